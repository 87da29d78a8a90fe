/* Attention at sizes where a backend may take another path than at those the reference can follow: the
 * attention of some queries must be the same whether they are asked alone or among many.
 *
 * Limit: both results are bf16 roundings (2^-9 relative) of sums whose weights were rounded to bf16 in
 * different orders; their difference stays below 2^-7 of the result's rms. */
#include "ops/ops_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void randomize(backend *be, tensor t, uint64_t *state, float scale) {
  int64_t n = tensor_count(&t);
  float *f = malloc((size_t)n * sizeof *f);
  void *host = malloc(tensor_bytes(&t));
  for (int64_t i = 0; i < n; i++) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    f[i] = scale * 2 * (float)(int32_t)(*state >> 32) * 0x1p-31f;
  }
  convert_from_f32(t.type, f, host, (size_t)n);
  tensor_upload(be, t, host);
  free(host);
  free(f);
}

static void compare(backend *be, tensor a, tensor b) {
  int64_t n = tensor_count(&a);
  uint16_t *x = malloc((size_t)n * 2), *y = malloc((size_t)n * 2);
  tensor_download(be, x, a);
  tensor_download(be, y, b);
  double error = 0, norm = 0;
  for (int64_t i = 0; i < n; i++) {
    double u = (double)bf16_to_f32(x[i]), v = (double)bf16_to_f32(y[i]);
    error += (u - v) * (u - v);
    norm += v * v;
  }
  free(x);
  free(y);
  if (backend_status(be)) fail_msg("%s", be->ctx->message);
  print_message("%s %lld x %lld: %.2e\n", be->ops->name, (long long)a.dim[0], (long long)a.dim[1],
                sqrt(error / norm));
  if (!(sqrt(error) <= 0x1p-7 * sqrt(norm))) fail_msg("relative L2 %.3e", sqrt(error / norm));
}

static void check(backend *be, int64_t lq, int64_t lk, int64_t heads, int64_t d, bool biased) {
  scope_mark mark = scope_begin(be);
  uint64_t state = (uint64_t)(lq * 31 + lk);
  tensor q = TENSOR_NEW(be, DT_BF16, lq, heads * d), k = TENSOR_NEW(be, DT_BF16, lk, heads * d),
         v = TENSOR_NEW(be, DT_BF16, lk, heads * d);
  randomize(be, q, &state, 1);
  randomize(be, k, &state, 1);
  randomize(be, v, &state, 1);
  attention_spec spec = {.heads = (int)heads, .scale = 1 / sqrtf((float)d)};
  if (biased) {
    spec.key_bias = TENSOR_NEW(be, DT_F32, lk);
    randomize(be, spec.key_bias, &state, 3);
  }
  tensor all = op_attention(be, q, k, v, &spec);
  for (int64_t part = 0; part < 2; part++) {
    int64_t rows = 33, at = part ? lq - rows : 5;
    tensor some = op_attention(be, tensor_slice(q, at, rows), k, v, &spec);
    compare(be, some, tensor_slice(all, at, rows));
  }
  scope_end(be, mark);
}

static void test_slices(void **state) {
  (void)state;
  for (int i = 0; backend_name(i); i++) {
    if (strcmp(backend_name(i), "ref") == 0) continue; /* it takes each query alone */
    core_ctx ctx;
    core_ctx_init(&ctx);
    backend_config config = {.name = backend_name(i)};
    backend *be;
    if (backend_open(&ctx, &config, &be) != WAN_OK) {
      print_message("SKIPPED %s: %s\n", config.name, ctx.message);
      continue;
    }
    check(be, 1031, 1031, 2, 128, false);
    check(be, 2048, 513, 3, 64, false);
    check(be, 1500, 512, 2, 128, true);
    backend_close(be);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_slices)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
