/* attn_impl.h: attention kernels in f32, written with the compiler's vector types; included once for
 * each instruction set with ATTN_TABLE naming the table and LANES the floats a register holds.
 * Compiled with contraction allowed: which sums are fused is part of these kernels' own definition. */
#include "backend/cpu/attn.h"
#include "backend/cpu/math.h"

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
enum { VECS = ATTN_Q / LANES, ROWS = VECS >= 8 ? 1 : VECS >= 4 ? 3 : 6 };

static inline vec vload(const float *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline void vstore(float *p, vec v) {
  memcpy(p, &v, sizeof v);
}

static inline vec vselect(ivec mask, vec a, vec b) {
  return (vec)(((ivec)a & mask) | ((ivec)b & ~mask));
}

/* `rows` rows of C; the accumulators of ROWS rows fill the register file. */
static inline __attribute__((always_inline)) void gemm_rows(const float *a, int64_t lda, const float *b,
                                                            float *c, int rows, int64_t K, bool add) {
  vec sum[ROWS][VECS];
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < VECS; v++) sum[r][v] = add ? vload(c + r * ATTN_Q + v * LANES) : (vec){0};
  for (int64_t k = 0; k < K; k++) {
    vec bk[VECS];
    for (int v = 0; v < VECS; v++) bk[v] = vload(b + k * ATTN_Q + v * LANES);
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < VECS; v++) sum[r][v] += a[r * lda + k] * bk[v];
  }
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < VECS; v++) vstore(c + r * ATTN_Q + v * LANES, sum[r][v]);
}

static void gemm(const void *a, int64_t lda, const void *b, float *c, int64_t M, int64_t K, bool add) {
  const float *pa = a;
  int64_t m = 0;
  for (; m + ROWS <= M; m += ROWS) gemm_rows(pa + m * lda, lda, b, c + m * ATTN_Q, ROWS, K, add);
  for (; m < M; m++) gemm_rows(pa + m * lda, lda, b, c + m * ATTN_Q, 1, K, add);
}

/* 2^x for x <= 0: below -126 the result is 0 (it would be added to a sum of at least 1). */
static inline vec vexp2(vec x) {
  const vec shift = (vec){0} + 12582912.0f; /* 1.5 * 2^23, see math.h */
  ivec tiny = x < -126.0f;
  x = vselect(tiny, (vec){0} - 126.0f, x);
  vec t = x + shift;
  vec f = x - (t - shift);          /* |f| <= 1/2 */
  vec p = (vec){0} + 1.5403530e-4f; /* ln2^k / k! */
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  vec y = p * (vec)(((ivec)t + 127) << 23);
  return vselect(tiny, (vec){0}, y);
}

/* Biased scores in place, and their maximum. */
static inline vec bias_scores(float *s, const attn_bias *bias, int64_t keys, int v, vec max) {
  for (int64_t k = 0; k < keys; k++) {
    float *row = s + k * ATTN_Q + v * LANES;
    vec x = vload(row) * bias->scale;
    if (bias->key) x += bias->key[k];
    if (bias->rel) x += vload(bias->rel + v * LANES - k);
    vstore(row, x);
    max = vselect(x > max, x, max);
  }
  return max;
}

static bool softmax(float *s, const attn_bias *bias, int64_t keys, int64_t padded, attn_state *state,
                    void *p) {
  float *out = p;
  bool changed = false;
  for (int v = 0; v < VECS; v++) {
    vec before = vload(state->max + v * LANES), sum = {0};
    vec max = bias_scores(s, bias, keys, v, before);
    for (int64_t k = 0; k < keys; k++) {
      vec e = vexp2(vload(s + k * ATTN_Q + v * LANES) - max);
      sum += e;
      vstore(out + k * ATTN_Q + v * LANES, e);
    }
    for (int64_t k = keys; k < padded; k++) vstore(out + k * ATTN_Q + v * LANES, (vec){0});
    vec alpha = vexp2(before - max);
    vstore(state->max + v * LANES, max);
    vstore(state->alpha + v * LANES, alpha);
    vstore(state->sum + v * LANES, vload(state->sum + v * LANES) * alpha + sum);
  }
  for (int i = 0; i < ATTN_Q; i++) changed |= state->alpha[i] != 1.0f;
  return changed;
}

static void rescale(float *c, const float *alpha, int64_t M) {
  for (int64_t m = 0; m < M; m++)
    for (int v = 0; v < VECS; v++) {
      float *row = c + m * ATTN_Q + v * LANES;
      vstore(row, vload(row) * vload(alpha + v * LANES));
    }
}

const cpu_attn ATTN_TABLE = {.bf16 = false, .gemm = gemm, .softmax = softmax, .rescale = rescale};
