/* test_umt5.c: the text encoder against transformers' UMT5EncoderModel, every backend and precision. */
#include "parity/parity.h"

#include "text/text.h"

/* f32: only the order of sums differs; a sum of K terms is off by about sqrt(K) * 2^-24, here 3e-7 after
 * two layers, and 1e-5 leaves room for other orders. bf16: eight roundings a layer of 2^-9 each add up to
 * 2^-9 * sqrt(16) = 8e-3; the manifest's bf16_error, what the official code loses, is 6e-3 to 1e-2. */
enum { RUNS_PER_CASE = 2 }; /* streamed, then kept */
static const double F32_LIMIT = 1e-5, BF16_LIMIT = 2e-2;

static int events;

static void count_event(void *user, int layer, int layers) {
  (void)user;
  assert_in_range(layer, 1, layers);
  events++;
}

static void encode_case(core_ctx *ctx, json_t *c, void *user) {
  const parity_setting *setting = user;
  backend *be = parity_backend(ctx, setting);
  safetensors *st = case_open(ctx, c);
  tensor wide = safetensors_find(st, "input_ids"), want = safetensors_find(st, "context");
  int n = (int)json_integer_value(json_object_get(c, "n"));
  int32_t ids[TEXT_MAX_TOKENS];
  for (int i = 0; i < n; i++) ids[i] = (int32_t)((const int64_t *)wide.data)[i];
  size_t count = (size_t)tensor_count(&want);
  float *got = core_alloc(ctx, count * sizeof *got);
  char path[512];
  snprintf(path, sizeof path, PARITY_DATA "ckpt/%s/models_t5_umt5-xxl-enc-bf16.pth", case_text(c, "ckpt"));
  for (int run = 0; run < RUNS_PER_CASE; run++) {
    umt5 *u;
    MUST(ctx, umt5_open(be, path, run ? UINT64_MAX : 0, &u));
    assert_int_equal((size_t)umt5_dim(u) * (size_t)n, count);
    for (int again = 0; again <= run; again++) { /* kept weights serve a second call */
      for (size_t i = 0; i < count; i++) got[i] = NAN;
      events = 0;
      MUST(ctx, umt5_encode(u, ids, n, got, count_event, NULL));
      assert_int_equal(events, 2); /* layers of the tiny encoder */
      double off = relative_l2(got, want.data, count);
      if (!(off <= setting->limit))
        fail_msg("%s, %s act %s: relative L2 %.3g, limit %.3g", case_text(c, "file"), setting->backend,
                 dtype_name(be->act), off, setting->limit);
      if (run == 0)
        print_message("%s %s %s: %.2e\n", case_text(c, "file"), setting->backend, dtype_name(be->act), off);
    }
    umt5_close(u);
  }
  core_free(ctx, got);
  safetensors_close(st);
  backend_close(be);
}

static void encode_all(const parity_setting *setting) {
  assert_int_equal(parity_cases("text", encode_case, (void *)(uintptr_t)setting), 10);
}

static void test_against_transformers(void **state) {
  (void)state;
  parity_each_backend(F32_LIMIT, BF16_LIMIT, encode_all);
}

static void test_refusals(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  const parity_setting setting = {"ref", WAN_PRECISION_F32, 0};
  backend *be = parity_backend(&ctx, &setting);
  umt5 *u;
  float out[3 * 32];
  MUST(&ctx, umt5_open(be, PARITY_DATA "ckpt/ti2v/models_t5_umt5-xxl-enc-bf16.pth", 0, &u));
  int32_t ids[3] = {5, (int32_t)umt5_vocab(u), 1};
  assert_int_equal(umt5_encode(u, ids, 0, out, NULL, NULL), WAN_ERR_ARGUMENT);
  assert_int_equal(umt5_encode(u, ids, 513, out, NULL, NULL), WAN_ERR_ARGUMENT);
  assert_int_equal(umt5_encode(u, ids, 3, out, NULL, NULL), WAN_ERR_ARGUMENT);
  assert_non_null(strstr(ctx.message, "token_embedding.weight"));
  backend_clear(be);
  core_cancel(&ctx);
  ids[1] = 7;
  assert_int_equal(umt5_encode(u, ids, 3, out, NULL, NULL), WAN_ERR_CANCELLED);
  umt5_close(u);
  assert_int_equal(umt5_open(be, PARITY_DATA "ckpt/t2v/Wan2.1_VAE.pth", 0, &u), WAN_ERR_FORMAT);
  assert_null(u);
  backend_close(be);
  assert_int_equal(core_mem_current(&ctx), 0);
}

/* Every allocation of opening and encoding fails once; nothing leaks, nothing crashes. */
static void test_memory_faults(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  const parity_setting setting = {"ref", WAN_PRECISION_BF16, 0};
  const int32_t ids[3] = {5, 6, 1};
  float out[3 * 32];
  wan_status s = WAN_ERR_MEMORY;
  int k = 0;
  for (; s != WAN_OK && k < 5000; k++) {
    umt5 *u = NULL;
    backend *be = parity_backend(&ctx, &setting);
    atomic_store(&ctx.mem_fail_in, k);
    s = umt5_open(be, PARITY_DATA "ckpt/ti2v/models_t5_umt5-xxl-enc-bf16.pth", 0, &u);
    if (s == WAN_OK) s = umt5_encode(u, ids, 3, out, NULL, NULL);
    atomic_store(&ctx.mem_fail_in, -1);
    umt5_close(u);
    backend_close(be);
    if (s != WAN_OK) assert_int_equal(s, WAN_ERR_MEMORY);
    assert_int_equal(core_mem_current(&ctx), 0);
  }
  assert_int_equal(s, WAN_OK);
  assert_in_range(k, 50, 4999);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_transformers),
                                     cmocka_unit_test(test_refusals), cmocka_unit_test(test_memory_faults)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
