/* Every operation of every backend with each of its allocations failing in turn: the status is out of
 * memory, nothing leaks, and the backend computes again afterwards. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"

enum { C = 24, L = 10, HEADS = 3, T = 3, H = 4, W = 6, WEIGHTS = 6 };

/* Enough numbers for the largest weight here, 3x3x3 taps from C to C channels. */
typedef struct numbers {
  uint16_t half[C * C * 27];
} numbers;

static weight make(const numbers *n, weight_role role, int ndim, const int64_t *dim) {
  void *data = (void *)(uintptr_t)n->half; /* F16: no backend uses it as it is */
  return (weight){.name = "w", .role = role, .src = tensor_of(DT_F16, data, ndim, dim)};
}
#define MAKE(n, role, ...) \
  make((n), (role), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__})

static tensor zeros(backend *be, dtype type, int ndim, const int64_t *dim) {
  tensor t = tensor_new(be, type, ndim, dim);
  if (!backend_status(be)) tensor_zero(be, t);
  return t;
}
#define ZEROS(be, type, ...)                                                     \
  zeros((be), (type), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
        (const int64_t[]){__VA_ARGS__})

static void transformer(backend *be, const weight *w, const weight *vector, const weight *table) {
  int32_t ids[L] = {0};
  tensor x = ZEROS(be, DT_F32, L, C), mod = ZEROS(be, DT_F32, 1, 6, C),
         rope = ZEROS(be, DT_F32, L, C / HEADS / 2, 2);
  token_rows rows = token_rows_create(be, (const int32_t[]){0}, 1, L);
  tensor a = op_ada_norm(be, x, mod, &rows, 0, 1, 1e-6f, DT_NONE);
  tensor q = op_linear(be, a, w, vector, ACT_SILU, DT_NONE);
  op_linear(be, x, w, NULL, ACT_GELU_TANH, DT_F32);
  op_linear_add(be, a, w, vector, x);
  op_qk_norm_rope(be, q, vector, 1e-6f, rope, HEADS);
  attention_spec spec = {.heads = HEADS, .scale = 1, .key_bias = ZEROS(be, DT_F32, L)};
  spec.rel_bias = ZEROS(be, DT_F32, HEADS, 2 * L - 1);
  tensor y = op_attention(be, q, q, a, &spec);
  op_gate_add(be, x, y, mod, &rows, 2);
  residual_add add = {.y = y, .mod = mod, .gate = 2, .watch = ZEROS(be, DT_I32, 1)};
  op_add_ada_norm(be, x, &add, mod, &rows, 0, 1, 1e-6f, y);
  op_add_layer_norm(be, x, &add, &rows, vector, vector, 1e-6f, y);
  op_attention_into(be, q, q, a, &spec, y);
  op_mul(be, y, q);
  op_activate(be, y, ACT_SILU, DT_NONE);
  op_layer_norm(be, x, vector, vector, 1e-6f, DT_NONE);
  op_rms_norm(be, x, vector, 1e-6f, DT_NONE);
  op_embed(be, table, ids, L, DT_NONE);
  op_cast(be, y, DT_F32);
  op_patchify(be, ZEROS(be, DT_F32, T, H, W, C));
  op_unpatchify(be, ZEROS(be, DT_F32, T * H * W / 4, 4 * C), T, H, W);
}

static void vae(backend *be, const weight *conv, const weight *up, const weight *vector) {
  conv_spec same = {1, 1, 1, 1, 1, 1, 1, NULL};
  tensor x = ZEROS(be, DT_NONE, T, H, W, C), n = ZEROS(be, DT_NONE, T, H, W, C);
  op_channel_norm(be, x, vector, ACT_SILU, n);
  tensor y = op_conv(be, n, conv, vector, &same, ZEROS(be, DT_NONE, T - 2, H, W, C));
  tensor large = TENSOR_NEW(be, DT_NONE, T - 2, 2 * H, 2 * W, C);
  op_upsample_conv_into(be, y, up, vector, large);
  op_dup_up_add(be, large, y, 1, 2, 0);
  op_avg_down_add(be, y, large, 1, 2);
  op_time_unshuffle(be, x);
  op_depth_to_space(be, op_space_to_depth(be, x));
}

static void pixels(backend *be) {
  tensor x = ZEROS(be, DT_F32, T, H, W, C), c = ZEROS(be, DT_F32, C);
  op_lincomb(be, x, 2, (const tensor[]){x, x}, (const float[]){1, 2});
  op_concat_channels(be, op_channel_affine(be, x, c, c, DT_F32), x);
  op_to_u8(be, x);
  op_dot(be, x, x);
  if (!backend_status(be)) assert_true(op_all_finite(be, x) || backend_status(be));
}

static wan_status all_operations(backend *be, const numbers *n) {
  weight w[WEIGHTS] = {MAKE(n, WEIGHT_LINEAR, C, C),        MAKE(n, WEIGHT_VECTOR, C),
                       MAKE(n, WEIGHT_TABLE, 5, C),         MAKE(n, WEIGHT_CONV, C, C, 3, 3, 3),
                       MAKE(n, WEIGHT_CONV_UP, C, C, 3, 3), MAKE(n, WEIGHT_LINEAR_F32, C, C)};
  wan_status s = WAN_OK;
  for (int i = 0; i < WEIGHTS && s == WAN_OK; i++) s = backend_weight_load(be, &w[i]);
  if (s == WAN_OK) {
    scope_mark mark = scope_begin(be);
    transformer(be, &w[0], &w[1], &w[2]);
    op_linear(be, ZEROS(be, DT_F32, 1, C), &w[5], &w[1], ACT_NONE, DT_F32);
    op_position_bias(be, &w[5], ZEROS(be, DT_I32, L));
    vae(be, &w[3], &w[4], &w[1]);
    pixels(be);
    s = backend_sync(be);
    scope_end(be, mark);
  }
  for (int i = 0; i < WEIGHTS; i++) backend_weight_unload(be, &w[i]);
  return s;
}

static void check_backend(const char *name, wan_precision precision) {
  backend_config config = {.name = name, .precision = precision, .threads = 2};
  numbers *n = test_calloc(1, sizeof *n);
  core_ctx ctx;
  core_ctx_init(&ctx);
  for (int fail = 0, injected = 1; injected; fail++) {
    backend *be = NULL;
    ctx.message[0] = 0;
    atomic_store(&ctx.mem_fail_in, fail);
    wan_status s = backend_open(&ctx, &config, &be);
    if (s == WAN_ERR_BACKEND || s == WAN_ERR_UNSUPPORTED) {
      print_message("skipped: %s: %s\n", name, ctx.message);
      break;
    }
    if (s == WAN_OK) s = all_operations(be, n);
    injected = atomic_load(&ctx.mem_fail_in) < 0;
    atomic_store(&ctx.mem_fail_in, -1);
    if (s != (injected ? WAN_ERR_MEMORY : WAN_OK))
      fail_msg("%s, allocation %d: status %d, \"%s\"", name, fail, (int)s, ctx.message);
    if (injected && !strstr(ctx.message, "memory"))
      fail_msg("%s, allocation %d: the message is \"%s\"", name, fail, ctx.message);
    if (be && injected) {
      backend_clear(be);
      if ((s = all_operations(be, n)) != WAN_OK)
        fail_msg("%s, after allocation %d failed: status %d, \"%s\"", name, fail, (int)s, ctx.message);
    }
    backend_close(be);
    if (core_mem_current(&ctx))
      fail_msg("%s, allocation %d: %llu bytes leaked", name, fail,
               (unsigned long long)core_mem_current(&ctx));
  }
  test_free(n);
}

static void test_f32(void **state) {
  (void)state;
  for (int i = 0; backend_name(i); i++) check_backend(backend_name(i), WAN_PRECISION_F32);
}

static void test_bf16(void **state) {
  (void)state;
  for (int i = 0; backend_name(i); i++) check_backend(backend_name(i), WAN_PRECISION_BF16);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16)};
  return cmocka_run_group_tests_name("operations without memory", tests, NULL, NULL);
}
