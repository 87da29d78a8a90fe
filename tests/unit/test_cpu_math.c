/* The CPU backend's kernels below the operation table: the exponential over its whole range, and every
 * instruction set this machine has against portable C. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#ifdef WAN_HAVE_CPU
#include "backend/cpu/cpu.h"
#include "backend/cpu/math.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* Every 251st float (a prime, so that all low bits occur): 17 million values. Normal results: 2^-21.5
 * relative. Subnormal ones: half a unit in the last place more. */
static void test_exp(void **state) {
  (void)state;
  double worst = 0;
  for (uint64_t u = 0; u <= UINT32_MAX; u += 251) {
    float x = math_float((uint32_t)u), y = math_exp(x);
    if (isnan(x)) {
      assert_true(isnan(y));
      continue;
    }
    double e = exp((double)x);
    if (e > FLT_MAX * (1 + 0x1p-22)) {
      assert_true(isinf(y) && y > 0);
      continue;
    }
    if (isinf(y)) { /* within the error of the largest float */
      assert_true(e > FLT_MAX * (1 - 0x1p-21));
      continue;
    }
    double error = fabs((double)y - e), allowed = 0x1p-21 * 0.7071 * e + 0x1p-149;
    if (error > allowed) fail_msg("exp(%.9g) = %.9g, expected %.9g", (double)x, (double)y, e);
    if (e > FLT_MIN) worst = fmax(worst, error / e);
  }
  print_message("largest relative error 2^%.2f\n", log2(worst));
}

/* u / (1 + e^-v): the exponential's 2^-21.5, a few roundings at 2^-24, and v's own rounding, which moves e^-v
 * by |v| 2^-23 of itself. Where e^-v overflows the result is 0 instead of at most 89 e^-88.7 < 3e-37. */
static void test_activations(void **state) {
  (void)state;
  for (float u = -120; u < 120; u += 0.0009765625f) {
    double x = (double)u, v = 2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x);
    double silu = x / (1 + exp(-x)), gelu = x / (1 + exp(-v));
    assert_true(fabs((double)math_silu(u) - silu) <= 0x1p-20 * fabs(silu) + 3e-37);
    assert_true(fabs((double)math_gelu(u) - gelu) <= (0x1p-20 + fabs(v) * 0x1p-22) * fabs(gelu) + 3e-37);
  }
  assert_true(isnan(math_silu(NAN)) && isnan(math_gelu(NAN)));
}

static void test_bf16(void **state) {
  (void)state;
  for (uint64_t u = 0; u <= UINT32_MAX; u += 251) {
    float x = math_float((uint32_t)u);
    assert_int_equal(math_to_bf16(x), f32_to_bf16(x));
  }
}

/* ---- Attention kernels of each instruction set against a double loop ---- */

static float noise(void) {
  return (float)rand() / (float)RAND_MAX * 2 - 1;
}

static void fill_act(tensor t) {
  for (int64_t i = 0; i < tensor_count(&t); i++)
    if (t.type == DT_BF16)
      ((uint16_t *)t.data)[i] = f32_to_bf16(noise());
    else
      ((float *)t.data)[i] = noise();
}

static double at(tensor t, int64_t i) {
  return t.type == DT_BF16 ? (double)bf16_to_f32(((uint16_t *)t.data)[i]) : (double)((float *)t.data)[i];
}

/* limit: P rounds to bf16 (2^-9) and so does the result; f32: some 100 roundings at 2^-24. */
static void check_attention(backend *be, const cpu_attn *kernels, double limit) {
  enum { LQ = 70, LK = 301, HEADS = 2, D = 40 };
  cpu_of(be)->isa.attn_bf16 = cpu_of(be)->isa.attn_f32 = kernels;
  scope_mark mark = scope_begin(be);
  tensor q = TENSOR_NEW(be, DT_NONE, LQ, HEADS * D), k = TENSOR_NEW(be, DT_NONE, LK, HEADS * D);
  tensor v = TENSOR_NEW(be, DT_NONE, LK, HEADS * D), bias = TENSOR_NEW(be, DT_F32, LK);
  tensor rel = TENSOR_NEW(be, DT_F32, HEADS, LQ + LK - 1);
  tensor parts[] = {q, k, v, bias, rel};
  for (int i = 0; i < 5; i++) fill_act(parts[i]);
  for (int biased = 0; biased < 2; biased++) {
    attention_spec spec = {.heads = HEADS, .scale = 0.7f};
    if (biased) spec.key_bias = bias, spec.rel_bias = rel;
    tensor out = op_attention(be, q, k, v, &spec);
    assert_int_equal(backend_status(be), WAN_OK);
    for (int64_t h = 0; h < HEADS; h++)
      for (int64_t i = 0; i < LQ; i++) {
        double p[LK], sum = 0;
        for (int64_t j = 0; j < LK; j++) {
          double s = 0;
          for (int64_t e = 0; e < D; e++)
            s += at(q, i * HEADS * D + h * D + e) * at(k, j * HEADS * D + h * D + e);
          s *= (double)spec.scale;
          if (biased) s += at(bias, j) + at(rel, h * (LQ + LK - 1) + j - i + LQ - 1);
          sum += p[j] = exp(s);
        }
        for (int64_t e = 0; e < D; e++) {
          double y = 0;
          for (int64_t j = 0; j < LK; j++) y += p[j] / sum * at(v, j * HEADS * D + h * D + e);
          double got = at(out, i * HEADS * D + h * D + e);
          if (!(fabs(got - y) <= limit)) fail_msg("(%d, %d): %g, expected %g", (int)i, (int)e, got, y);
        }
      }
  }
  scope_end(be, mark);
}

static void each_attention(wan_precision precision) {
  core_ctx ctx;
  core_ctx_init(&ctx);
  backend *be;
  backend_config config = {.name = "cpu", .precision = precision, .threads = 2};
  assert_int_equal(backend_open(&ctx, &config, &be), WAN_OK);
  bool bf16 = be->act == DT_BF16;
  cpu_isa isa = cpu_of(be)->isa;
  check_attention(be, &cpu_attn_c, bf16 ? 0x1p-8 : 1e-5);
#if defined(__x86_64__)
  bool amx = isa.attn_bf16 == &cpu_attn_amx, avx512_bf16 = amx || isa.attn_bf16 == &cpu_attn_bf16;
  bool avx512 = isa.rows == &cpu_rows_avx512, avx2 = avx512 || isa.rows == &cpu_rows_avx2;
  print_message("%s: avx2 %d, avx512 %d, avx512_bf16 %d, amx %d\n", dtype_name(be->act), avx2, avx512,
                avx512_bf16, amx);
  if (avx2) check_attention(be, &cpu_attn_avx2, bf16 ? 0x1p-8 : 1e-5);
  if (avx512) check_attention(be, &cpu_attn_avx512, bf16 ? 0x1p-8 : 1e-5);
  if (bf16 && avx512_bf16) check_attention(be, &cpu_attn_bf16, 0x1p-7);
  if (bf16 && amx) check_attention(be, &cpu_attn_amx, 0x1p-7);
#endif
  backend_close(be);
  assert_int_equal(core_mem_current(&ctx), 0);
}

static void test_attention(void **state) {
  (void)state;
  each_attention(WAN_PRECISION_BF16);
  each_attention(WAN_PRECISION_F32);
}

/* ---- Row kernels ---- */

static void near_rows(const float *a, const float *b, int64_t n, const char *what) {
  for (int64_t i = 0; i < n; i++)
    if (!(fabsf(a[i] - b[i]) <= 1e-5f * fabsf(b[i]) + 1e-5f))
      fail_msg("%s at %d of %d: %g and %g", what, (int)i, (int)n, (double)a[i], (double)b[i]);
}

static void check_rows(const cpu_rows *k) {
  enum { MAX = 130 };
  float x[MAX], g[MAX], h[MAX], got[MAX], want[MAX];
  uint16_t narrow[MAX], narrow_c[MAX];
  const cpu_rows *c = &cpu_rows_c;
  for (int64_t n = 2; n <= MAX; n += 2) {
    for (int i = 0; i < n; i++) x[i] = 3 * noise(), g[i] = noise(), h[i] = noise();
    k->ada_norm(x, g, h, 1e-6f, got, n), c->ada_norm(x, g, h, 1e-6f, want, n);
    near_rows(got, want, n, "ada_norm");
    k->layer_norm(x, g, h, 1e-6f, got, n), c->layer_norm(x, g, h, 1e-6f, want, n);
    near_rows(got, want, n, "layer_norm");
    k->rms_norm(x, g, 1e-6f, got, n), c->rms_norm(x, g, 1e-6f, want, n);
    near_rows(got, want, n, "rms_norm");
    k->rope(got, g, 1, n / 2), c->rope(want, g, 1, n / 2);
    near_rows(got, want, n, "rope");
    k->channel_norm(x, g, 4, ACT_SILU, got, n), c->channel_norm(x, g, 4, ACT_SILU, want, n);
    near_rows(got, want, n, "channel_norm");
    k->activate(x, ACT_GELU_TANH, got, n), c->activate(x, ACT_GELU_TANH, want, n);
    near_rows(got, want, n, "activate");
    k->gate_add(got, x, g, n), c->gate_add(want, x, g, n);
    near_rows(got, want, n, "gate_add");
    k->affine(x, g, h, got, n), c->affine(x, g, h, want, n);
    near_rows(got, want, n, "affine");
    k->to_bf16(x, narrow, n), c->to_bf16(x, narrow_c, n);
    assert_memory_equal(narrow, narrow_c, (size_t)n * 2);
    k->to_u8(h, (uint8_t *)narrow, n), c->to_u8(h, (uint8_t *)narrow_c, n);
    assert_memory_equal(narrow, narrow_c, (size_t)n);
    x[n - 1] = n % 4 ? NAN : INFINITY;
    assert_false(k->finite(x, n));
    assert_true(k->finite(g, n));
  }
}

static void test_rows(void **state) {
  (void)state;
#if defined(__x86_64__)
  cpu_isa isa;
  cpu_isa_detect(&isa);
  if (isa.rows != &cpu_rows_c) check_rows(&cpu_rows_avx2);
  if (isa.rows == &cpu_rows_avx512) check_rows(&cpu_rows_avx512);
#endif
  check_rows(&cpu_rows_c);
}

/* ---- Without bf16 instructions: products and convolutions in f32 give what bf16 ones give ---- */

static tensor product_and_conv(backend *be, const weight *matrix, const weight *kernel) {
  srand(5);
  tensor x = TENSOR_NEW(be, DT_NONE, 3, 9, 70, 64);
  fill_act(x);
  conv_spec s = {1, 2, 1, 1, 1, 1, 1, NULL};
  tensor y = op_conv(be, x, kernel, NULL, &s, (tensor){0});
  return op_linear(be, y, matrix, NULL, ACT_NONE, DT_F32);
}

static void test_without_bf16(void **state) {
  (void)state;
  enum { N = 48, C = 64 };
  static float values[N * C * 27];
  for (int i = 0; i < N * C * 27; i++) values[i] = noise() / 40;
  tensor result[2];
  core_ctx ctx;
  core_ctx_init(&ctx);
  backend *be[2];
  for (int i = 0; i < 2; i++) {
    backend_config config = {.name = "cpu", .precision = WAN_PRECISION_BF16, .threads = 2};
    assert_int_equal(backend_open(&ctx, &config, &be[i]), WAN_OK);
    if (i) cpu_of(be[i])->native_bf16 = false;
    weight matrix = {.name = "m", .role = WEIGHT_LINEAR, .src = TENSOR_OF(DT_F32, values, N, C)};
    weight kernel = {.name = "k", .role = WEIGHT_CONV, .src = TENSOR_OF(DT_F32, values, C, C, 2, 3, 3)};
    assert_int_equal(backend_weight_load(be[i], &matrix), WAN_OK);
    assert_int_equal(backend_weight_load(be[i], &kernel), WAN_OK);
    result[i] = product_and_conv(be[i], &matrix, &kernel);
    assert_int_equal(backend_status(be[i]), WAN_OK);
    backend_weight_unload(be[i], &matrix);
    backend_weight_unload(be[i], &kernel);
  }
  double error = 0, norm = 0;
  for (int64_t i = 0; i < tensor_count(&result[0]); i++) {
    double a = at(result[0], i), b = at(result[1], i);
    error += (a - b) * (a - b);
    norm += a * a;
  }
  /* only sums in another order, some of which round to the other bf16 neighbour between the two */
  assert_true(norm > 0 && sqrt(error / norm) < 1e-3);
  for (int i = 0; i < 2; i++) backend_close(be[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_exp),       cmocka_unit_test(test_activations),
                                     cmocka_unit_test(test_bf16),      cmocka_unit_test(test_rows),
                                     cmocka_unit_test(test_attention), cmocka_unit_test(test_without_bf16)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
int main(void) {
  print_message("SKIPPED: this build has no CPU backend\n");
  return 0;
}
#endif
