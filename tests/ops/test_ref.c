/* The reference itself, against small cases worked by hand and against the index maps of the model. */
#include "ops/ops_check.h"

#include <math.h>
#include <string.h>

typedef struct fixture {
  core_ctx ctx;
  backend *be;
  scope_mark mark;
} fixture;

static int open_ref(void **state) {
  static fixture f;
  backend_config config = {.name = "ref", .precision = WAN_PRECISION_F32};
  core_ctx_init(&f.ctx);
  if (backend_open(&f.ctx, &config, &f.be) != WAN_OK) return -1;
  f.mark = scope_begin(f.be);
  *state = &f;
  return 0;
}

static int close_ref(void **state) {
  fixture *f = *state;
  scope_end(f->be, f->mark);
  backend_close(f->be);
  return core_mem_current(&f->ctx) == 0 ? 0 : -1;
}

static tensor upload(backend *be, const float *host, int ndim, const int64_t *dim) {
  tensor t = tensor_new(be, DT_F32, ndim, dim);
  tensor_upload(be, t, host);
  return t;
}
#define UPLOAD(be, host, ...)                                                     \
  upload((be), (host), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
         (const int64_t[]){__VA_ARGS__})

static weight load(backend *be, weight_role role, float *host, int ndim, const int64_t *dim) {
  weight w = {.name = "w", .role = role, .src = tensor_of(DT_F32, host, ndim, dim)};
  assert_int_equal(backend_weight_load(be, &w), WAN_OK);
  assert_ptr_equal(w.data, host); /* the file's form is used in place: nothing to unload */
  assert_int_equal(w.data_bytes, 0);
  core_mem_add(be->ctx, -(int64_t)w.place_bytes); /* so it goes off the account here */
  w.place_bytes = 0;
  return w;
}
#define LOAD(be, role, host, ...)                                                       \
  load((be), (role), (host), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
       (const int64_t[]){__VA_ARGS__})

static void expect(backend *be, tensor t, const double *value, int n, double within) {
  assert_int_equal(backend_status(be), WAN_OK);
  assert_int_equal(tensor_count(&t), n);
  for (int i = 0; i < n; i++) {
    double found = (double)((const float *)t.data)[i];
    if (!(fabs(found - value[i]) <= within))
      fail_msg("element %d: expected %.9g, found %.9g", i, value[i], found);
  }
}

/* 0, 1, 2, ...: each element tells where it came from */
static void count_up(float *v, int n) {
  for (int i = 0; i < n; i++) v[i] = (float)i;
}

/* ---- Transformer ---- */

static void test_linear(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {1, -1, 2, 0, 0, 0}, m[] = {1, 2, 3, 4, 5, 6}, b[] = {10, -12};
  weight w = LOAD(be, WEIGHT_LINEAR, m, 2, 3), bias = LOAD(be, WEIGHT_VECTOR, b, 2);
  tensor t = UPLOAD(be, x, 2, 3);
  expect(be, op_linear(be, t, &w, &bias, ACT_NONE, DT_F32), (double[]){15, -1, 10, -12}, 4, 0);
  double silu15 = 15 / (1 + exp(-15)), silu_1 = -1 / (1 + exp(1)), silu10 = 10 / (1 + exp(-10));
  expect(be, op_linear(be, t, &w, &bias, ACT_SILU, DT_F32),
         (double[]){silu15, silu_1, silu10, -12 / (1 + exp(12))}, 4, 1e-6);
}

static void test_activations(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {0, 1, -1, 30, -30};
  tensor t = UPLOAD(be, x, 5);
  /* gelu_tanh(1) = 0.5 (1 + tanh(0.79788456 * 1.044715)), tanh(0.83357...) = 0.682384...;
   * silu(1) = 1/(1 + 1/e) */
  expect(be, op_activate(be, t, ACT_GELU_TANH, DT_F32), (double[]){0, 0.841191990, -0.158808010, 30, 0}, 5,
         1e-7);
  expect(be, op_activate(be, t, ACT_SILU, DT_F32), (double[]){0, 0.731058579, -0.268941421, 30, 0}, 5, 1e-7);
}

static void test_norms(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {1, 2, 3, 4}, g[] = {1, 1, 2, 2}, b[] = {0, 1, 0, 1},
        m[] = {0, 0, 0, 0, 1, 1, 1, 1, 5, 5, 5, 5};
  weight gamma = LOAD(be, WEIGHT_VECTOR, g, 4), beta = LOAD(be, WEIGHT_VECTOR, b, 4);
  tensor t = UPLOAD(be, x, 1, 4), mod = UPLOAD(be, m, 1, 3, 4);
  double s = 1 / sqrt(1.25), r = 1 / sqrt(7.5); /* biased variance 1.25; mean square 30/4 */
  expect(be, op_layer_norm(be, t, &gamma, &beta, 0, DT_F32), (double[]){-1.5 * s, 1 - 0.5 * s, s, 1 + 3 * s},
         4, 1e-6);
  expect(be, op_rms_norm(be, t, &gamma, 0, DT_F32), (double[]){r, 2 * r, 6 * r, 8 * r}, 4, 1e-6);
  token_rows rows = token_rows_create(be, (int32_t[]){0}, 1, 1);
  expect(be, op_ada_norm(be, t, mod, &rows, 2, 1, 0, DT_F32), (double[]){5 - 3 * s, 5 - s, 5 + s, 5 + 3 * s},
         4, 1e-6);
  tensor out = TENSOR_NEW(be, DT_F32, 1, 4);
  op_channel_norm(be, t, &gamma, ACT_NONE, out); /* sqrt(4) / sqrt(30) = 1 / sqrt(7.5) */
  expect(be, out, (double[]){r, 2 * r, 6 * r, 8 * r}, 4, 1e-6);
}

/* Tokens 3.. of three units of two tokens: unit 1 (second token), unit 2, unit 2. */
static void test_token_rows(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {1, 1, 1}, y[] = {1, 1, 1}, m[] = {10, 20, 30};
  tensor t = UPLOAD(be, x, 3, 1), mod = UPLOAD(be, m, 3, 1, 1);
  token_rows rows = token_rows_at(token_rows_create(be, (int32_t[]){1, 2, 0}, 3, 2), 3);
  op_gate_add(be, t, UPLOAD(be, y, 3, 1), mod, &rows, 0);
  expect(be, t, (double[]){31, 11, 11}, 3, 0);
}

/* Two pairs in one head, turned by 90 and 30 degrees; x has mean square 1, so the norm keeps it. */
static void test_rope(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {1, -1, 1, 1}, g[] = {1, 1, 1, 1}, turn[] = {0, 1, 0.866025404f, 0.5f};
  weight gamma = LOAD(be, WEIGHT_VECTOR, g, 4);
  tensor t = UPLOAD(be, x, 1, 4);
  op_qk_norm_rope(be, t, &gamma, 0, UPLOAD(be, turn, 1, 2, 2), 1);
  expect(be, t, (double[]){1, 1, 0.366025404, 1.366025404}, 4, 1e-6);
}

/* Weights 3/4 and 1/4: the scores differ by log 3, brought about in each possible way. */
static void test_attention(void **state) {
  backend *be = ((fixture *)*state)->be;
  float one[] = {1, 0}, k[] = {logf(3), 0, 0, 0}, v[] = {4, 8, 0, 16}, zeros[] = {0, 0, 0, 0};
  float bias[] = {logf(3), 0};
  tensor q = UPLOAD(be, one, 1, 2), zero = UPLOAD(be, zeros, 2, 2), values = UPLOAD(be, v, 2, 2);
  attention_spec s = {.heads = 1, .scale = 1};
  const double expected[] = {3, 10};
  expect(be, op_attention(be, q, UPLOAD(be, k, 2, 2), values, &s), expected, 2, 1e-6);
  s.key_bias = UPLOAD(be, bias, 2);
  expect(be, op_attention(be, q, zero, values, &s), expected, 2, 1e-6);
  s = (attention_spec){.heads = 1, .scale = 1, .rel_bias = UPLOAD(be, bias, 1, 2)};
  expect(be, op_attention(be, q, zero, values, &s), expected, 2, 1e-6);
}

/* rel_bias[h, j-i+Lq-1]: with two queries, key 1 is one ahead of query 0 and level with query 1. */
static void test_relative_bias(void **state) {
  backend *be = ((fixture *)*state)->be;
  float v[] = {1, 0}, zeros[] = {0, 0}, bias[] = {0, logf(3), logf(9)}; /* j-i = -1, 0, 1 */
  tensor zero = UPLOAD(be, zeros, 2, 1);
  attention_spec s = {.heads = 1, .scale = 1, .rel_bias = UPLOAD(be, bias, 1, 3)};
  /* query 0: weights 3 and 9; query 1: weights 1 and 3 */
  expect(be, op_attention(be, zero, zero, UPLOAD(be, v, 2, 1), &s), (double[]){0.25, 0.25}, 2, 1e-6);
}

static void test_modulation_and_embed(void **state) {
  backend *be = ((fixture *)*state)->be;
  float base[] = {1, 2, 3, 4}, e[] = {10, 20}, table[] = {0, 1, 2, 3, 4, 5};
  weight b = LOAD(be, WEIGHT_VECTOR, base, 1, 2, 2), rows = LOAD(be, WEIGHT_TABLE, table, 3, 2);
  expect(be, op_modulation(be, &b, UPLOAD(be, e, 1, 2)), (double[]){11, 22, 13, 24}, 4, 0);
  int32_t ids[] = {2, 0, 2};
  expect(be, op_embed(be, &rows, ids, 3, DT_F32), (double[]){4, 5, 0, 1, 4, 5}, 6, 0);
}

/* One 2x2 patch of two channels, value = 10 pixel + channel. */
static void test_patches(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {0, 1, 10, 11, 20, 21, 30, 31};
  tensor t = UPLOAD(be, x, 1, 2, 2, 2);
  /* into the embedding: channel slowest, then row, then column */
  expect(be, op_patchify(be, t), (double[]){0, 10, 20, 30, 1, 11, 21, 31}, 8, 0);
  /* out of the head: row, column, then channel fastest */
  tensor y = UPLOAD(be, x, 1, 8);
  expect(be, op_unpatchify(be, y, 1, 2, 2), (double[]){0, 1, 10, 11, 20, 21, 30, 31}, 8, 0);
}

/* Two tokens in a row: the second is two columns to the right. */
static void test_token_order(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[16];
  count_up(x, 16);
  expect(be, op_patchify(be, UPLOAD(be, x, 1, 4, 4, 1)),
         (double[]){0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15}, 16, 0);
  expect(be, op_unpatchify(be, UPLOAD(be, x, 4, 4), 1, 4, 4),
         (double[]){0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15}, 16, 0);
}

/* ---- Convolution ---- */

/* A kernel that is one at a single tap shifts the picture; zero comes in from outside. */
static void test_conv_shift(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {1, 2, 3, 4, 5, 6}, k[9] = {0};
  tensor t = UPLOAD(be, x, 1, 2, 3, 1);
  conv_spec same = {1, 1, 1, 1, 1, 1, 1, NULL};
  k[4] = 1;
  weight w = LOAD(be, WEIGHT_CONV, k, 1, 1, 3, 3);
  expect(be, op_conv(be, t, &w, NULL, &same, (tensor){0}), (double[]){1, 2, 3, 4, 5, 6}, 6, 0);
  k[4] = 0;
  k[5] = 1; /* the tap to the right */
  expect(be, op_conv(be, t, &w, NULL, &same, (tensor){0}), (double[]){2, 3, 0, 5, 6, 0}, 6, 0);
  k[5] = 0;
  k[1] = 1; /* the tap above */
  expect(be, op_conv(be, t, &w, NULL, &same, t), (double[]){1, 2, 3, 5, 7, 9}, 6, 0);
}

/* Stride two with a zero row and column behind: taps (0,0) and (2,2). */
static void test_conv_stride(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[16], k[9] = {0};
  count_up(x, 16);
  k[0] = 1;
  k[8] = 100;
  weight w = LOAD(be, WEIGHT_CONV, k, 1, 1, 1, 3, 3);
  conv_spec s = {1, 2, 2, 0, 1, 0, 1, NULL};
  expect(be, op_conv(be, UPLOAD(be, x, 1, 4, 4, 1), &w, NULL, &s, (tensor){0}), (double[]){1000, 2, 8, 10}, 4,
         0);
}

/* Time: weight [Cout, Cin, 3, 1, 1], stride two, two channels mixed. */
static void test_conv_time(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {1, 10, 2, 20, 3, 30, 4, 40, 5, 50}, k[] = {1, 0, 0, 0, 0, 1}, b[] = {0.5f};
  weight w = LOAD(be, WEIGHT_CONV, k, 1, 2, 3, 1, 1), bias = LOAD(be, WEIGHT_VECTOR, b, 1);
  conv_spec s = {2, 1, 1, 0, 0, 0, 0, NULL};
  /* channel 0 of the oldest frame plus channel 1 of the newest */
  expect(be, op_conv(be, UPLOAD(be, x, 5, 1, 1, 2), &w, &bias, &s, (tensor){0}), (double[]){31.5, 53.5}, 2,
         0);
}

static void test_upsample_conv(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {1, 2}, k[9] = {0};
  k[3] = 1; /* the tap to the left */
  weight w = LOAD(be, WEIGHT_CONV_UP, k, 1, 1, 3, 3);
  tensor out = TENSOR_NEW(be, DT_NONE, 1, 2, 4, 1);
  op_upsample_conv_into(be, UPLOAD(be, x, 1, 1, 2, 1), &w, NULL, out);
  expect(be, out, (double[]){0, 1, 1, 2, 0, 1, 1, 2}, 8, 0);
}

/* ---- Index maps of the Wan2.2 VAE ---- */

/* pixel (c, 2i+q, 2j+r) is channel 4c + 2r + q: the column offset is the slower one */
static void test_space_to_depth(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {0, 1, 10, 11, 20, 21, 30, 31}; /* pixels 0 1 / 2 3, two channels */
  tensor t = UPLOAD(be, x, 1, 2, 2, 2), deep = op_space_to_depth(be, t);
  expect(be, deep, (double[]){0, 20, 10, 30, 1, 21, 11, 31}, 8, 0);
  expect(be, op_depth_to_space(be, deep), (double[]){0, 1, 10, 11, 20, 21, 30, 31}, 8, 0);
}

static void test_time_unshuffle(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {1, 2, 3, 4, 5, 6, 7, 8};
  expect(be, op_time_unshuffle(be, UPLOAD(be, x, 2, 1, 1, 4)), (double[]){1, 2, 3, 4, 5, 6, 7, 8}, 8, 0);
  expect(be, op_time_unshuffle(be, UPLOAD(be, x, 1, 1, 2, 4)), (double[]){1, 2, 5, 6, 3, 4, 7, 8}, 8, 0);
}

/* (1024 -> 1024, 2, 2) keeps the channel; (1024 -> 512, 1, 2) reads 2o on even and 2o+1 on odd rows. */
static void test_dup_up(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {1, 2}, wide[] = {1, 2, 3, 4}, zeros[32] = {0};
  tensor out = UPLOAD(be, zeros, 2, 2, 2, 2), first = UPLOAD(be, zeros, 1, 2, 2, 2);
  tensor t = UPLOAD(be, x, 1, 1, 1, 2);
  double same[16];
  for (int i = 0; i < 16; i++) same[i] = 1 + i % 2;
  op_dup_up_add(be, out, t, 2, 2, 0);
  expect(be, out, same, 16, 0);
  op_dup_up_add(be, first, t, 2, 2, 1);
  op_dup_up_add(be, first, t, 2, 2, 1); /* it adds */
  for (int i = 0; i < 8; i++) same[i] *= 2;
  expect(be, first, same, 8, 0);
  tensor half = UPLOAD(be, zeros, 1, 2, 2, 2);
  op_dup_up_add(be, half, UPLOAD(be, wide, 1, 1, 1, 4), 1, 2, 0);
  expect(be, half, (double[]){1, 3, 1, 3, 2, 4, 2, 4}, 8, 0);
}

/* Frames 0..3 of constant value in two channels: out 2c is the earlier frame of a pair, 2c+1 the later;
 * an odd count gets a zero frame in front, so that the first pair's even channels are zero. */
static void test_avg_down(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[32], zeros[8] = {0};
  for (int i = 0; i < 32; i++) x[i] = (float)(1 + i / 8 + 10 * (i % 2)); /* frame 1..4, channel 0 or 10 */
  tensor t = UPLOAD(be, x, 4, 2, 2, 2), out = UPLOAD(be, zeros, 2, 1, 1, 4);
  op_avg_down_add(be, out, t, 2, 2);
  expect(be, out, (double[]){1, 2, 11, 12, 3, 4, 13, 14}, 8, 0);
  tensor odd = UPLOAD(be, zeros, 2, 1, 1, 4);
  op_avg_down_add(be, odd, tensor_slice(t, 0, 3), 2, 2);
  expect(be, odd, (double[]){0, 1, 0, 11, 2, 3, 12, 13}, 8, 0);
  float picture[] = {1, 2, 3, 6};
  tensor mean = UPLOAD(be, zeros, 1, 1, 1, 1);
  op_avg_down_add(be, mean, UPLOAD(be, picture, 1, 2, 2, 1), 1, 2);
  expect(be, mean, (double[]){3}, 1, 0);
}

/* ---- Pixels and reductions ---- */

static void test_pixels(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {-2, -1, 0, 0.999f, 1, 7}, a[] = {1, 2}, b[] = {3, 4, 5, 6}, mul[] = {2, 3}, add[] = {1, 0};
  tensor u8 = op_to_u8(be, UPLOAD(be, x, 6));
  const uint8_t expected[] = {0, 0, 127, 254, 255, 255}; /* 127.5 and 254.87 are cut */
  assert_memory_equal(u8.data, expected, sizeof expected);
  tensor t = UPLOAD(be, a, 2, 1), pair = UPLOAD(be, b, 2, 2);
  expect(be, op_concat_channels(be, t, pair), (double[]){1, 3, 4, 2, 5, 6}, 6, 0);
  expect(be, op_channel_affine(be, pair, UPLOAD(be, mul, 2), UPLOAD(be, add, 2), DT_F32),
         (double[]){7, 12, 11, 18}, 4, 0);
  op_lincomb(be, pair, 2, (tensor[]){pair, pair}, (float[]){2, -0.5f});
  expect(be, pair, (double[]){4.5, 6, 7.5, 9}, 4, 0);
  assert_true(op_dot(be, t, t) == 5);
}

static void test_all_finite(void **state) {
  backend *be = ((fixture *)*state)->be;
  float x[] = {0, 3.4e38f, -1e-45f, NAN, INFINITY, -INFINITY};
  tensor t = UPLOAD(be, x, 6);
  assert_true(op_all_finite(be, tensor_slice(t, 0, 3)));
  for (int i = 3; i < 6; i++) assert_false(op_all_finite(be, tensor_slice(t, i, 1)));
}

/* ---- Refusals: the first failure is kept, and nothing is computed afterwards ---- */

static void test_sticky_failure(void **state) {
  fixture *f = *state;
  backend *be = f->be;
  float x[] = {1, 2, 3}, m[] = {1, 2, 3, 4};
  weight w = LOAD(be, WEIGHT_LINEAR, m, 2, 2);
  tensor t = UPLOAD(be, x, 1, 3);
  tensor y = op_linear(be, t, &w, NULL, ACT_NONE, DT_F32);
  assert_int_equal(y.type, DT_NONE);
  assert_int_equal(backend_status(be), WAN_ERR_ARGUMENT);
  assert_non_null(strstr(f->ctx.message, "linear"));
  assert_int_equal(op_activate(be, t, ACT_SILU, DT_F32).type, DT_NONE);
  assert_false(op_all_finite(be, t));
  assert_non_null(strstr(f->ctx.message, "linear"));
  backend_clear(be);
  assert_int_equal(op_activate(be, t, ACT_SILU, DT_F32).type, DT_F32);
}

static void test_embed_refuses_bad_ids(void **state) {
  fixture *f = *state;
  float table[] = {0, 1, 2};
  weight w = LOAD(f->be, WEIGHT_TABLE, table, 3, 1);
  int32_t beyond[] = {0, 3}, negative[] = {-1};
  op_embed(f->be, &w, beyond, 2, DT_F32);
  assert_int_equal(backend_status(f->be), WAN_ERR_ARGUMENT);
  assert_non_null(strstr(f->ctx.message, "position 1"));
  backend_clear(f->be);
  op_embed(f->be, &w, negative, 1, DT_F32);
  assert_int_equal(backend_status(f->be), WAN_ERR_ARGUMENT);
  backend_clear(f->be);
}

static void test_weight_refusals(void **state) {
  fixture *f = *state;
  int32_t numbers[] = {1, 2};
  weight w = {.name = "counts", .role = WEIGHT_VECTOR, .src = TENSOR_OF(DT_I32, numbers, 2)};
  assert_int_equal(backend_weight_load(f->be, &w), WAN_ERR_UNSUPPORTED);
  assert_non_null(strstr(f->ctx.message, "counts"));
  assert_null(w.data);
  w.src = TENSOR_OF(DT_F16, numbers, 4); /* needs a conversion, so it needs memory */
  atomic_store(&f->ctx.mem_fail_in, 0);
  assert_int_equal(backend_weight_load(f->be, &w), WAN_ERR_MEMORY);
  assert_null(w.data);
  assert_int_equal(w.type, DT_NONE);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, open_ref, close_ref)
  const struct CMUnitTest tests[] = {
      TEST(test_linear),
      TEST(test_activations),
      TEST(test_norms),
      TEST(test_token_rows),
      TEST(test_rope),
      TEST(test_attention),
      TEST(test_relative_bias),
      TEST(test_modulation_and_embed),
      TEST(test_patches),
      TEST(test_token_order),
      TEST(test_conv_shift),
      TEST(test_conv_stride),
      TEST(test_conv_time),
      TEST(test_upsample_conv),
      TEST(test_space_to_depth),
      TEST(test_time_unshuffle),
      TEST(test_dup_up),
      TEST(test_avg_down),
      TEST(test_pixels),
      TEST(test_all_finite),
      TEST(test_sticky_failure),
      TEST(test_embed_refuses_bad_ids),
      TEST(test_weight_refusals),
  };
  return cmocka_run_group_tests_name("reference", tests, NULL, NULL);
}
