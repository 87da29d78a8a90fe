/* rows_impl.h: the row kernels; included once for each instruction set with ROWS_TABLE naming the table.
 * Sums are reassociated only where a simd reduction says so. */
#include "backend/cpu/math.h"
#include "backend/cpu/rows.h"

#include <math.h>

static void from_bf16(const uint16_t *restrict x, float *restrict out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = math_from_bf16(x[i]);
}

static void to_bf16(const float *restrict x, uint16_t *restrict out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = math_to_bf16(x[i]);
}

/* Two passes: the variance is taken around the mean, so a large mean costs no digits. */
static void statistics(const float *restrict x, float eps, int64_t n, float *mean, float *rstd) {
  float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i];
  float m = sum / (float)n;
#pragma omp simd reduction(+ : square)
  for (int64_t i = 0; i < n; i++) {
    float d = x[i] - m;
    square += d * d;
  }
  *mean = m;
  *rstd = 1.0f / sqrtf(square / (float)n + eps);
}

static void ada_norm(const float *restrict x, const float *restrict shift, const float *restrict scale,
                     float eps, float *restrict out, int64_t n) {
  float mean, rstd;
  statistics(x, eps, n, &mean, &rstd);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = MATH_FMA((x[i] - mean) * rstd, 1.0f + scale[i], shift[i]);
}

static void layer_norm(const float *restrict x, const float *restrict gamma, const float *restrict beta,
                       float eps, float *restrict out, int64_t n) {
  float mean, rstd;
  statistics(x, eps, n, &mean, &rstd);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = MATH_FMA((x[i] - mean) * rstd, gamma[i], beta[i]);
}

static float sum_squares(const float *restrict x, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  return sum;
}

static void rms_norm(const float *x, const float *restrict gamma, float eps, float *out, int64_t n) {
  float r = 1.0f / sqrtf(sum_squares(x, n) / (float)n + eps);
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = x[i] * r * gamma[i];
}

static void rope(float *restrict x, const float *restrict cs, int heads, int64_t half) {
  for (int h = 0; h < heads; h++) {
    float *restrict v = x + 2 * h * half;
#pragma omp simd
    for (int64_t j = 0; j < half; j++) {
      float a = v[2 * j], b = v[2 * j + 1], c = cs[2 * j], s = cs[2 * j + 1];
      v[2 * j] = a * c - b * s;
      v[2 * j + 1] = a * s + b * c;
    }
  }
}

static void gate_add(float *restrict x, const float *restrict y, const float *restrict g, int64_t n) {
  if (g) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] = MATH_FMA(g[i], y[i], x[i]);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
  }
}

static void mul(float *restrict a, const float *restrict b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) a[i] *= b[i];
}

static void activate(const float *x, op_act act, float *out, int64_t n) {
  if (act == ACT_SILU) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = math_silu(x[i]);
  } else if (act == ACT_GELU_TANH) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = math_gelu(x[i]);
  } else if (x != out) {
    memcpy(out, x, (size_t)n * sizeof *out);
  }
}

static void channel_norm(const float *restrict x, const float *restrict gamma, float root, op_act act,
                         float *restrict out, int64_t n) {
  float norm = sqrtf(sum_squares(x, n));
  float r = root / (norm > 1e-12f ? norm : norm <= 1e-12f ? 1e-12f : norm); /* NaN passes through */
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = x[i] * r * gamma[i];
  if (act != ACT_NONE) activate(out, act, out, n);
}

/* Out may be one of the terms, so every element is read before it is written. */
static void lincomb(int count, const float *const *x, const float *coef, float *out, int64_t n) {
  enum { BLOCK = 512 };
  float sum[BLOCK];
  for (int64_t i = 0; i < n; i += BLOCK) {
    int64_t m = n - i < BLOCK ? n - i : BLOCK;
    const float *first = x[0] + i;
    float c0 = coef[0];
#pragma omp simd
    for (int64_t j = 0; j < m; j++) sum[j] = c0 * first[j];
    for (int k = 1; k < count; k++) {
      const float *term = x[k] + i;
      float c = coef[k];
#pragma omp simd
      for (int64_t j = 0; j < m; j++) sum[j] += c * term[j];
    }
    memcpy(out + i, sum, (size_t)m * sizeof *out);
  }
}

static void affine(const float *x, const float *restrict m, const float *restrict add, float *out,
                   int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = MATH_FMA(x[i], m[i], add[i]);
}

/* NaN becomes 0: the comparison that keeps a value fails for it. */
static void to_u8(const float *restrict x, uint8_t *restrict out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    float v = x[i] > -1.0f ? x[i] : -1.0f;
    v = v < 1.0f ? v : 1.0f;
    out[i] = (uint8_t)(int32_t)((v + 1.0f) / 2.0f * 255.0f);
  }
}

static bool finite(const float *restrict x, int64_t n) {
  uint32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; i++) bad |= (math_bits(x[i]) & 0x7f800000u) == 0x7f800000u;
  return !bad;
}

static double dot(const float *restrict a, const float *restrict b, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
  return sum;
}

const cpu_rows ROWS_TABLE = {
    .from_bf16 = from_bf16,
    .to_bf16 = to_bf16,
    .ada_norm = ada_norm,
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .rope = rope,
    .gate_add = gate_add,
    .mul = mul,
    .activate = activate,
    .channel_norm = channel_norm,
    .lincomb = lincomb,
    .affine = affine,
    .to_u8 = to_u8,
    .finite = finite,
    .dot = dot,
};
