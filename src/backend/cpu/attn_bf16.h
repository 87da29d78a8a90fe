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

static inline void pack_queries_bf16(const uint16_t *x, int64_t stride, int64_t n, int64_t d, int64_t dp,
                                     void *to) {
  enum { PITCH = ATTN_Q * 4 };
  for (int64_t q = 0; q < ATTN_Q; q += LANES)
    for (int64_t e = 0; e < dp; e += 2 * LANES) {
      __mmask32 live = first_lanes(d - e);
      __m512i r[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++)
        r[i] = q + i < n ? _mm512_maskz_loadu_epi16(live, x + (q + i) * stride + e) : _mm512_setzero_si512();
      transpose_16(r, (char *)to + e / 2 * PITCH + q * 4, PITCH);
    }
}

/* 32 keys by 32 channels at a time: neighbouring keys become pairs, 16 of them are turned. */
static inline void pack_values_bf16(const uint16_t *x, int64_t stride, int64_t n, int64_t padded, int64_t d,
                                    int64_t dp, void *to) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                       38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(LANES));
  for (int64_t k = 0; k < padded; k += 2 * LANES)
    for (int64_t e = 0; e < dp; e += 2 * LANES) {
      __m512i a[LANES], b[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) {
        int64_t at = k + 2 * i;
        const uint16_t *row = x + at * stride + e;
        __m512i even = _mm512_maskz_loadu_epi16(at < n ? first_lanes(d - e) : 0, row);
        __m512i odd = _mm512_maskz_loadu_epi16(at + 1 < n ? first_lanes(d - e) : 0, row + stride);
        a[i] = _mm512_permutex2var_epi16(even, low, odd);
        b[i] = _mm512_permutex2var_epi16(even, high, odd);
      }
      char *out = (char *)to + (e * padded + k) * 2;
      transpose_16(a, out, (size_t)padded * 2);
      transpose_16(b, out + (size_t)(LANES * padded) * 2, (size_t)padded * 2);
    }
}

static inline void store_bf16(const float *o, const float *sum, int64_t n, int64_t d, uint16_t *to,
                              int64_t stride) {
  for (int64_t q = 0; q < n; q += LANES) {
    __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_loadu_ps(sum + q));
    for (int64_t e = 0; e < d; e += 2 * LANES) {
      float turned[2][LANES][LANES]; /* [half][query][channel] */
      for (int h = 0; h < 2; h++) {
        __m512i r[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
          r[i] = _mm512_castps_si512(
              _mm512_mul_ps(_mm512_loadu_ps(o + (e + h * LANES + i) * ATTN_Q + q), inverse));
        transpose_16(r, (char *)turned[h], sizeof turned[h][0]);
      }
      for (int64_t i = 0; i < LANES && q + i < n; i++)
        _mm512_mask_storeu_epi16(to + (q + i) * stride + e, first_lanes(d - e),
                                 two_bf16(_mm512_loadu_ps(turned[0][i]), _mm512_loadu_ps(turned[1][i])));
    }
  }
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
