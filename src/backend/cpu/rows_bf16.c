/* rows_bf16.c: row kernels whose rows are bf16 on both sides, for AVX512-BF16: nothing but the row itself is
 * read and written, where rows.h needs float copies before and after. */
#if defined(__x86_64__)
#include "backend/cpu/avx512.h"
#include "backend/cpu/rows.h"

#include <math.h>

enum { LANES = 16, STEP = 2 * LANES };

typedef struct pair {
  __m512 v[2];
} pair;

static inline pair load(const uint16_t *x, __mmask32 live) {
  __m512i h = _mm512_maskz_loadu_epi16(live, x);
  return (pair){{widen_bf16(_mm512_castsi512_si256(h)), widen_bf16(_mm512_extracti64x4_epi64(h, 1))}};
}

static inline pair load_f32(const float *x, __mmask32 live) {
  return (pair){{_mm512_maskz_loadu_ps((__mmask16)live, x),
                 _mm512_maskz_loadu_ps((__mmask16)(live >> LANES), x + LANES)}};
}

static inline float sum_squares(const uint16_t *x, int64_t n) {
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < n; i += STEP) {
    pair p = load(x + i, first_lanes(n - i));
    for (int h = 0; h < 2; h++) sum[h] = _mm512_fmadd_ps(p.v[h], p.v[h], sum[h]);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

static inline pair scaled(const uint16_t *x, const float *gamma, __m512 r, __mmask32 live) {
  pair p = load(x, live), g = load_f32(gamma, live);
  for (int h = 0; h < 2; h++) p.v[h] = _mm512_mul_ps(_mm512_mul_ps(p.v[h], r), g.v[h]);
  return p;
}

static void channel_norm(const uint16_t *x, const float *gamma, float root, bool silu, uint16_t *out,
                         int64_t n) {
  float norm = sqrtf(sum_squares(x, n));
  __m512 r = _mm512_set1_ps(root / (norm <= 1e-12f ? 1e-12f : norm)); /* NaN passes through */
  for (int64_t i = 0; i < n; i += STEP) {
    __mmask32 live = first_lanes(n - i);
    pair p = scaled(x + i, gamma + i, r, live);
    if (silu)
      for (int h = 0; h < 2; h++) p.v[h] = silu_bf16(p.v[h]);
    _mm512_mask_storeu_epi16(out + i, live, two_bf16(p.v[0], p.v[1]));
  }
}

/* Even lanes a c - b s, odd lanes b c + a s, for (a, b) in v and (c, s) in cs. */
static inline __m512 turn(__m512 v, __m512 cs) {
  __m512 swapped = _mm512_permute_ps(v, 0xb1);
  return _mm512_fmaddsub_ps(v, _mm512_moveldup_ps(cs), _mm512_mul_ps(swapped, _mm512_movehdup_ps(cs)));
}

static void norm_rope(uint16_t *x, const float *gamma, float eps, const float *rope, int64_t head,
                      int64_t n) {
  __m512 r = _mm512_set1_ps(1.0f / sqrtf(sum_squares(x, n) / (float)n + eps));
  for (int64_t at = 0; at < n; at += head)
    for (int64_t i = 0; i < head; i += STEP) {
      __mmask32 live = first_lanes(head - i);
      pair p = scaled(x + at + i, gamma + at + i, r, live);
      if (rope) {
        pair cs = load_f32(rope + i, live);
        for (int h = 0; h < 2; h++) p.v[h] = turn(p.v[h], cs.v[h]);
      }
      _mm512_mask_storeu_epi16(x + at + i, live, two_bf16(p.v[0], p.v[1]));
    }
}

const cpu_rows_bf16 cpu_rows_avx512bf16 = {.channel_norm = channel_norm, .norm_rope = norm_rope};
#endif
