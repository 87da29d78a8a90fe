/* What a value that is not finite does to a denoising run. The fault is the test's: the products of one kind
 * of weight are poisoned, in all precisions or in eight bits only. */
#define _GNU_SOURCE /* mkdtemp, nftw */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "core/rng.h"
#include "pipeline/stage.h"
#include "scratch.h"

enum { STEPS = 3, Z = 16, H = 8, W = 8, ROWS = 3, TEXT = 128 }; /* of models/shapes */

static scratch dir;

/* The backend whose products are poisoned; the table's functions have no other way to it. */
static struct fault {
  const backend_ops *real;
  bool all;     /* also where the weight is not in eight bits */
  int from, to; /* which of the calls so far */
  int calls;
} fault;

static wan_status poisoned_linear(backend *be, tensor x, const weight *w, const weight *bias, op_act act,
                                  tensor out) {
  CORE_TRY(fault.real->linear(be, x, w, bias, act, out));
  bool chosen = w->role == WEIGHT_PRODUCT || (fault.all && w->name && strstr(w->name, "blocks.3.ffn.0"));
  if (!chosen) return WAN_OK;
  if (fault.calls >= fault.from && fault.calls < fault.to)
    memset(out.data, 0xff, tensor_bytes(&out)); /* NaN */
  fault.calls++;
  return WAN_OK;
}

static int setup(void **state) {
  (void)state;
  static float noise[Z * H * W], context[ROWS * TEXT];
  scratch_open(&dir);
  rng_normal_philox(1, noise, Z * H * W);
  rng_normal_philox(2, context, ROWS * TEXT);
  named_tensor t[] = {{"noise", TENSOR_OF(DT_F32, noise, Z, 1, H, W)},
                      {"context", TENSOR_OF(DT_F32, context, ROWS, TEXT)}};
  return safetensors_write(NULL, scratch_path(&dir, "in.safetensors"), 2, t, NULL);
}

static int teardown(void **state) {
  (void)state;
  scratch_close(&dir);
  return 0;
}

typedef struct outcome {
  wan_status status;
  int retries; /* by the log */
  char message[CORE_MESSAGE_MAX], log[CORE_MESSAGE_MAX];
} outcome;

static void on_log(void *user, wan_log_level level, const char *text) {
  outcome *o = user;
  if (level != WAN_LOG_NOTICE || !strstr(text, "is made again in bf16")) return;
  o->retries++;
  snprintf(o->log, sizeof o->log, "%s", text);
}

/* A run with calls [from, to) poisoned; the latent goes to `out`. */
static outcome run(wan_precision precision, wan_on_nan on_nan, bool all, int from, int to, bool apg,
                   const char *out) {
  outcome o = {0};
  core_ctx ctx;
  backend *be;
  core_ctx_init(&ctx);
  ctx.log = on_log;
  ctx.log_user = &o;
  const backend_config config = {.name = "ref", .precision = precision};
  assert_int_equal(backend_open(&ctx, &config, &be), WAN_OK);
  fault = (struct fault){.real = be->ops, .all = all, .from = from, .to = to};
  backend_ops ops = *be->ops;
  ops.linear = poisoned_linear;
  be->ops = &ops;
  wan_stage_params p = {.stage = "denoise", .model_dir = WAN_SOURCE_DIR "/models/shapes"};
  wan_generate_params_init(&p.generate);
  p.in_path = scratch_path(&dir, "in.safetensors");
  p.out_path = out;
  p.generate.steps = STEPS;
  p.generate.guidance_low = p.generate.guidance_high = 1;
  p.generate.on_nan = on_nan;
  p.generate.apg = apg;
  o.status = stage_run(be, &p, NULL);
  snprintf(o.message, sizeof o.message, "%s", ctx.message);
  be->ops = fault.real;
  backend_clear(be);
  backend_close(be);
  assert_int_equal(core_mem_current(&ctx), 0);
  return o;
}

static bool same_file(const char *a, const char *b) {
  size_t na = 0, nb = 0;
  char *x = NULL, *y = NULL;
  assert_int_equal(core_read_text(NULL, a, 1 << 24, &x, &na), WAN_OK);
  assert_int_equal(core_read_text(NULL, b, 1 << 24, &y, &nb), WAN_OK);
  bool same = na == nb && memcmp(x, y, na) == 0;
  core_free(NULL, x);
  core_free(NULL, y);
  return same;
}

/* Every product in eight bits is poisoned: each step is made again, and the result is that of bf16. */
static void test_retry_all(void **state) {
  (void)state;
  char bf16[512], again[512], fp8[512];
  snprintf(bf16, sizeof bf16, "%s", scratch_path(&dir, "bf16.safetensors"));
  snprintf(again, sizeof again, "%s", scratch_path(&dir, "again.safetensors"));
  snprintf(fp8, sizeof fp8, "%s", scratch_path(&dir, "fp8.safetensors"));
  for (int apg = 0; apg < 2; apg++) {
    assert_int_equal(run(WAN_PRECISION_BF16, WAN_ON_NAN_FAIL, false, 0, 0, apg, bf16).status, WAN_OK);
    assert_int_equal(run(WAN_PRECISION_FP8, WAN_ON_NAN_FAIL, false, 0, 0, apg, fp8).status, WAN_OK);
    outcome o = run(WAN_PRECISION_FP8, WAN_ON_NAN_RETRY, false, 0, 1 << 30, apg, again);
    assert_string_equal(o.status == WAN_OK ? "" : o.message, "");
    assert_int_equal(o.retries, STEPS);
    assert_non_null(strstr(o.log, "step 3 of 3"));
    assert_true(same_file(again, bf16));
    assert_false(same_file(fp8, bf16));
  }
}

/* One poisoned product: its step alone is made again; the others stay in eight bits. */
static void test_retry_one(void **state) {
  (void)state;
  char one[512], fp8[512], bf16[512];
  snprintf(one, sizeof one, "%s", scratch_path(&dir, "one.safetensors"));
  snprintf(fp8, sizeof fp8, "%s", scratch_path(&dir, "fp8.safetensors"));
  snprintf(bf16, sizeof bf16, "%s", scratch_path(&dir, "bf16.safetensors"));
  assert_int_equal(run(WAN_PRECISION_FP8, WAN_ON_NAN_RETRY, false, 0, 0, false, fp8).retries, 0);
  const int calls = fault.calls;
  assert_true(calls > 0 && calls % STEPS == 0);
  outcome o =
      run(WAN_PRECISION_FP8, WAN_ON_NAN_RETRY, false, calls / STEPS + 1, calls / STEPS + 2, false, one);
  assert_string_equal(o.status == WAN_OK ? "" : o.message, "");
  assert_int_equal(o.retries, 1);
  assert_non_null(strstr(o.log, "step 2 of 3"));
  assert_non_null(strstr(o.log, ": block "));
  assert_int_equal(run(WAN_PRECISION_BF16, WAN_ON_NAN_FAIL, false, 0, 0, false, bf16).status, WAN_OK);
  assert_false(same_file(one, fp8));
  assert_false(same_file(one, bf16));
}

static void test_fail(void **state) {
  (void)state;
  char out[512];
  snprintf(out, sizeof out, "%s", scratch_path(&dir, "none.safetensors"));
  outcome o = run(WAN_PRECISION_FP8, WAN_ON_NAN_FAIL, false, 0, 1, false, out);
  assert_int_equal(o.status, WAN_ERR_NUMERIC);
  assert_non_null(strstr(o.message, "denoising step 1 of 3"));
  assert_non_null(strstr(o.message, ": block "));
  assert_false(core_path_exists(out));
  o = run(WAN_PRECISION_BF16, WAN_ON_NAN_RETRY, true, 0, 1, false, out); /* nothing better to go to */
  assert_int_equal(o.status, WAN_ERR_NUMERIC);
  assert_non_null(strstr(o.message, "there is no retry from bf16, only from fp8"));
  assert_non_null(strstr(o.message, "block 3"));
  o = run(WAN_PRECISION_FP8, WAN_ON_NAN_RETRY, true, 0, 1 << 30, false, out); /* and bf16 fares no better */
  assert_int_equal(o.status, WAN_ERR_NUMERIC);
  assert_int_equal(o.retries, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_retry_all), cmocka_unit_test(test_retry_one),
                                     cmocka_unit_test(test_fail)};
  return cmocka_run_group_tests(tests, setup, teardown);
}
