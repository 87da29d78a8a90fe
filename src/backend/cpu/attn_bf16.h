/* attn_bf16.h: what the two bf16 attention kernels (AVX512-BF16, AMX) share: the softmax from f32 scores to
 * bf16 probabilities, pairs of keys together. Include only in files compiled for AVX512-BF16. */
#ifndef WAN_CPU_ATTN_BF16_H
#define WAN_CPU_ATTN_BF16_H

#include "backend/cpu/attn.h"
#include "backend/cpu/avx512.h"

enum { LANES = 16, VECS = ATTN_Q / LANES };
_Static_assert(VECS == 2, "the kernels below are unrolled for two vectors of queries");

/* Scale and bias the scores in place, for what the fast path below does not cover. */
static inline void bias_scores(float *s, const attn_bias *bias, int64_t keys) {
  __m512 scale = _mm512_set1_ps(bias->scale);
  for (int64_t k = 0; k < keys; k++) {
    __m512 key = _mm512_set1_ps(bias->key ? bias->key[k] : 0.0f);
    for (int v = 0; v < VECS; v++) {
      float *row = s + k * ATTN_Q + v * LANES;
      __m512 x = _mm512_fmadd_ps(_mm512_loadu_ps(row), scale, key);
      if (bias->rel) x = _mm512_add_ps(x, _mm512_loadu_ps(bias->rel + v * LANES - k));
      _mm512_storeu_ps(row, x);
    }
  }
}

/* Four running maxima a vector hide the latency. */
static inline void column_max(const float *s, int64_t keys, __m512 out[VECS]) {
  __m512 m[4][VECS];
  for (int i = 0; i < 4; i++)
    for (int v = 0; v < VECS; v++) m[i][v] = _mm512_loadu_ps(s + v * LANES);
  int64_t k = 0;
  for (; k + 4 <= keys; k += 4)
    for (int i = 0; i < 4; i++)
      for (int v = 0; v < VECS; v++)
        m[i][v] = _mm512_max_ps(_mm512_loadu_ps(s + (k + i) * ATTN_Q + v * LANES), m[i][v]);
  for (; k < keys; k++)
    for (int v = 0; v < VECS; v++)
      m[0][v] = _mm512_max_ps(_mm512_loadu_ps(s + k * ATTN_Q + v * LANES), m[0][v]);
  for (int v = 0; v < VECS; v++)
    out[v] = _mm512_max_ps(_mm512_max_ps(m[0][v], m[1][v]), _mm512_max_ps(m[2][v], m[3][v]));
}

/* Interleaves two rounded rows: lane q of the result is (lo[q], hi[q]). */
static inline __m512i pair_bf16(__m512 lo, __m512 hi) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(hi, lo));
}

static inline bool softmax_bf16(float *s, const attn_bias *bias, int64_t keys, int64_t padded,
                                attn_state *state, void *p) {
  char *out = p;
  __m512 scale = _mm512_set1_ps(bias->scale), max[VECS], sum[VECS][2], before[VECS];
  if (bias->key || bias->rel || !(bias->scale > 0)) {
    bias_scores(s, bias, keys);
    scale = _mm512_set1_ps(1.0f);
  }
  column_max(s, keys, max);
  for (int v = 0; v < VECS; v++) {
    before[v] = _mm512_loadu_ps(state->max + v * LANES);
    max[v] = _mm512_max_ps(_mm512_mul_ps(max[v], scale), before[v]);
    sum[v][0] = sum[v][1] = _mm512_setzero_ps();
  }
  int64_t k = 0;
  for (; k + 2 <= keys; k += 2)
    for (int v = 0; v < VECS; v++) {
      const float *row = s + k * ATTN_Q + v * LANES;
      __m512 lo = exp2_bf16(_mm512_fmsub_ps(_mm512_loadu_ps(row), scale, max[v]));
      __m512 hi = exp2_bf16(_mm512_fmsub_ps(_mm512_loadu_ps(row + ATTN_Q), scale, max[v]));
      sum[v][0] = _mm512_add_ps(sum[v][0], lo);
      sum[v][1] = _mm512_add_ps(sum[v][1], hi);
      _mm512_storeu_si512(out + (k * ATTN_Q + v * 2 * LANES) * 2, pair_bf16(lo, hi));
    }
  for (; k < padded; k += 2) /* an odd last key, then padding */
    for (int v = 0; v < VECS; v++) {
      __m512 lo = _mm512_setzero_ps();
      if (k < keys)
        lo = exp2_bf16(_mm512_fmsub_ps(_mm512_loadu_ps(s + k * ATTN_Q + v * LANES), scale, max[v]));
      sum[v][0] = _mm512_add_ps(sum[v][0], lo);
      _mm512_storeu_si512(out + (k * ATTN_Q + v * 2 * LANES) * 2, pair_bf16(lo, _mm512_setzero_ps()));
    }
  __mmask16 changed = 0;
  for (int v = 0; v < VECS; v++) {
    __m512 alpha = exp2_bf16(_mm512_sub_ps(before[v], max[v]));
    __mmask16 grew = _mm512_cmp_ps_mask(before[v], max[v], _CMP_NEQ_UQ);
    alpha = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), grew, alpha); /* exactly 1 where nothing changed */
    changed |= grew;
    _mm512_storeu_ps(state->max + v * LANES, max[v]);
    _mm512_storeu_ps(state->alpha + v * LANES, alpha);
    __m512 total = _mm512_add_ps(sum[v][0], sum[v][1]);
    _mm512_storeu_ps(state->sum + v * LANES,
                     _mm512_fmadd_ps(_mm512_loadu_ps(state->sum + v * LANES), alpha, total));
  }
  return changed != 0;
}

static inline void rescale_bf16(float *c, const float *alpha, int64_t M) {
  __m512 a[VECS];
  for (int v = 0; v < VECS; v++) a[v] = _mm512_loadu_ps(alpha + v * LANES);
  for (int64_t m = 0; m < M; m++)
    for (int v = 0; v < VECS; v++) {
      float *row = c + m * ATTN_Q + v * LANES;
      _mm512_storeu_ps(row, _mm512_mul_ps(_mm512_loadu_ps(row), a[v]));
    }
}

#endif
