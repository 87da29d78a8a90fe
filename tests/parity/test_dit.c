/* The transformer against diffusers' WanTransformer3DModel and the official WanModel.
 *
 * Limits: f32: sums of up to a few thousand products round at 2^-24 each; over two blocks this stays below
 * 1e-5 relative L2 (the two reference implementations differ by 5e-6 between themselves). bf16: operands
 * round at 2^-9 = 2e-3 each; a dozen roundings along the path add in quadrature to under 1e-2; 2e-2. */
#include "parity.h"

#include "dit/dit.h"

static tensor upload_latent(backend *be, tensor host, tensor extra) {
  /* [C,T,h,w] -> F32 [T,h,w,C] on the backend, extra's channels appended */
  size_t rest = (size_t)(host.dim[1] * host.dim[2] * host.dim[3]);
  tensor parts[2] = {host, extra}, up[2] = {{0}};
  for (int i = 0; i < 2 && parts[i].type != DT_NONE; i++) {
    float *last = core_alloc(be->ctx, tensor_bytes(&parts[i]));
    to_channels_last(parts[i].data, last, (size_t)parts[i].dim[0], rest);
    up[i] = TENSOR_NEW(be, DT_F32, host.dim[1], host.dim[2], host.dim[3], parts[i].dim[0]);
    tensor_upload(be, up[i], last);
    core_free(be->ctx, last);
  }
  return up[1].type == DT_NONE ? up[0] : op_concat_channels(be, up[0], up[1]);
}

static void run_case(core_ctx *ctx, json_t *c, void *user) {
  const parity_setting *s = user;
  backend *be = parity_backend(ctx, s);
  safetensors *st = case_open(ctx, c);
  char path[512];
  const char *ckpt = case_text(c, "ckpt"), *expert = case_text(c, "expert");
  if (expert && !*expert) expert = NULL; /* a model with one expert keeps it at the top */
  snprintf(path, sizeof path, PARITY_DATA "ckpt/%s%s%s%s", ckpt, expert ? "/" : "", expert ? expert : "",
           expert ? "_noise_model" : "");
  dit *d;
  MUST(ctx, dit_open(be, path, UINT64_MAX, &d));
  tensor latent = safetensors_find(st, "latent"), t = safetensors_find(st, "timestep");
  tensor want = safetensors_find(st, "velocity_official");
  scope_mark mark = scope_begin(be);
  tensor x = upload_latent(be, latent, safetensors_find(st, "y"));
  tensor v = TENSOR_NEW(be, DT_F32, want.dim[1], want.dim[2], want.dim[3], want.dim[0]);
  dit_text *text;
  MUST(ctx, dit_text_create(d, safetensors_find(st, "context"), &text));
  float *times = core_alloc(ctx, (size_t)tensor_count(&t) * sizeof *times);
  if (t.type == DT_F32)
    memcpy(times, t.data, tensor_bytes(&t));
  else
    for (int64_t i = 0; i < tensor_count(&t); i++) times[i] = (float)((const int64_t *)t.data)[i];
  for (int again = 0; again < 2; again++) /* the second pass uses the keys kept from the first */
    MUST(ctx, dit_forward(d, x, (dit_timesteps){times, tensor_count(&t)}, 1, &text, &v, NULL));
  size_t n = (size_t)tensor_count(&want), C = (size_t)want.dim[0];
  float *got = core_alloc(ctx, 2 * n * sizeof *got);
  tensor_download(be, got, v);
  to_channels_first(got, got + n, C, n / C);
  double e = relative_l2(got + n, want.data, n);
  print_message("%s %s %s: %.2e\n", s->backend, s->precision == WAN_PRECISION_F32 ? "f32" : "bf16",
                case_text(c, "file"), e);
  if (!(e <= s->limit)) fail_msg("relative L2 %.3e, limit %.1e", e, s->limit);
  core_free(ctx, got);
  core_free(ctx, times);
  dit_text_free(text);
  scope_end(be, mark);
  dit_close(d);
  safetensors_close(st);
  backend_close(be);
}

static void run_setting(const parity_setting *s) {
  assert_true(parity_cases("dit", run_case, (void *)(uintptr_t)s) > 0);
}

static void test_dit(void **state) {
  (void)state;
  parity_each_backend(1e-5, 2e-2, run_setting);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_dit)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
