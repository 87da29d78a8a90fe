/* The backend that only counts: equal calls are one entry, others are not, and forgetting is complete. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "backend/dry.h"

enum { ROWS = 8, IN = 32, OUT = 16 };

static float values[OUT * IN];

static const dry_call *find(const backend *be, profile_op op, int64_t rows) {
  const dry_call *calls;
  const int64_t n = backend_dry_calls(be, &calls);
  for (int64_t i = 0; i < n; i++)
    if (calls[i].op == op && (calls[i].x.type == DT_NONE || calls[i].x.dim[0] == rows)) return &calls[i];
  return NULL;
}

static void test_calls(void **state) {
  (void)state;
  core_ctx ctx;
  backend *be;
  const dry_call *calls;
  core_ctx_init(&ctx);
  assert_int_equal(backend_open_dry(&ctx, &(backend_config){.precision = WAN_PRECISION_BF16}, &be), WAN_OK);
  weight w = {.name = "w", .role = WEIGHT_LINEAR, .src = TENSOR_OF(DT_F32, values, OUT, IN)};
  scope_mark mark = scope_begin(be);
  assert_int_equal(backend_weight_load(be, &w), WAN_OK);
  tensor x = TENSOR_NEW(be, DT_NONE, ROWS, IN), longer = TENSOR_NEW(be, DT_NONE, 2 * ROWS, IN);
  op_linear(be, x, &w, NULL, ACT_NONE, DT_NONE);
  op_linear(be, longer, &w, NULL, ACT_NONE, DT_NONE);
  op_linear(be, x, &w, NULL, ACT_NONE, DT_NONE);
  op_linear(be, x, &w, NULL, ACT_NONE, DT_F32); /* another result: another call */
  assert_int_equal(backend_dry_calls(be, &calls), 4);
  assert_int_equal(find(be, PROF_LINEAR, ROWS)->count, 2);
  assert_int_equal(find(be, PROF_LINEAR, 2 * ROWS)->count, 1);
  assert_ptr_equal(find(be, PROF_LINEAR, ROWS)->w.src.data, values);
  assert_int_equal(find(be, PROF_WEIGHT_LOAD, 0)->count, 1);
  assert_true(be->profile->row[PROF_LINEAR].flops == 2.0 * 5 * ROWS * IN * OUT);
  backend_dry_forget(be);
  assert_int_equal(backend_dry_calls(be, &calls), 0);
  assert_true(be->profile->row[PROF_LINEAR].flops == 0);
  scope_end(be, mark);
  backend_weight_unload(be, &w);
  backend_close(be);
  assert_int_equal(core_mem_current(&ctx), 0);
}

/* Keys, heads and the number of rows of an attention make different calls. */
static void test_attention(void **state) {
  (void)state;
  core_ctx ctx;
  backend *be;
  const dry_call *calls;
  core_ctx_init(&ctx);
  assert_int_equal(backend_open_dry(&ctx, &(backend_config){.precision = WAN_PRECISION_BF16}, &be), WAN_OK);
  scope_mark mark = scope_begin(be);
  tensor q = TENSOR_NEW(be, DT_NONE, ROWS, IN), k = TENSOR_NEW(be, DT_NONE, 2 * ROWS, IN);
  const attention_spec two = {.heads = 2, .scale = 1}, four = {.heads = 4, .scale = 1};
  op_attention(be, q, k, k, &two);
  op_attention(be, q, q, q, &two);
  op_attention(be, q, k, k, &four);
  op_attention(be, q, k, k, &two);
  assert_int_equal(backend_dry_calls(be, &calls), 3);
  assert_int_equal(calls[0].count, 2);
  scope_end(be, mark);
  backend_close(be);
  assert_int_equal(core_mem_current(&ctx), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_calls), cmocka_unit_test(test_attention)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
