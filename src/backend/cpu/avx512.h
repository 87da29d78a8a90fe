/* avx512.h: vector functions shared by the files compiled for AVX512-BF16 and AMX. */
#ifndef WAN_CPU_AVX512_H
#define WAN_CPU_AVX512_H

#include <immintrin.h>
#include <stdint.h>

/* 2^x: scalef multiplies by 2^floor(x), the polynomial of degree 4 is 2^f for f = x - floor(x) in [0, 1),
 * balanced to 2.6e-6 relative: 700 times finer than the bf16 it will be rounded to. -infinity and anything
 * below the float range give 0. */
static inline __m512 exp2_bf16(__m512 x) {
  __m512 f = _mm512_reduce_ps(x, 0x09); /* x - floor(x), no exceptions */
  __m512 p = _mm512_set1_ps(1.35341680e-2f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.20114611e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.41442756e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93003835e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.00000259f));
  return _mm512_scalef_ps(p, x);
}

/* u / (1 + 2^y). The bound on y keeps the reciprocal's correction finite; NaN stays NaN (the instruction
 * gives its second operand then). */
static inline __m512 over_1_exp2(__m512 u, __m512 y) {
  __m512 one = _mm512_set1_ps(1.0f);
  __m512 d = _mm512_add_ps(one, exp2_bf16(_mm512_min_ps(_mm512_set1_ps(120.0f), y)));
  __m512 r = _mm512_rcp14_ps(d);
  r = _mm512_fmadd_ps(r, _mm512_fnmadd_ps(d, r, one), r); /* Newton: 2^-14 becomes 2^-28 */
  return _mm512_mul_ps(u, r);
}

static inline __m512 silu_bf16(__m512 u) {
  return over_1_exp2(u, _mm512_mul_ps(u, _mm512_set1_ps(-1.44269504f)));
}

/* math.h's form: u / (1 + e^-2z), z = sqrt(2/pi) (u + 0.044715 u^3) */
static inline __m512 gelu_bf16(__m512 u) {
  const float unit = -2.0f * 0.7978845608f * 1.44269504f;
  __m512 poly = _mm512_fmadd_ps(_mm512_mul_ps(u, u), _mm512_set1_ps(0.044715f * unit), _mm512_set1_ps(unit));
  return over_1_exp2(u, _mm512_mul_ps(u, poly));
}

/* 16 bf16 as floats, and floats as 16 bf16 (nearest even) */
static inline __m512 widen_bf16(__m256i h) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

static inline __m512i two_bf16(__m512 lo, __m512 hi) {
  return (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
}

/* The first n of 32 lanes */
static inline __mmask32 first_lanes(int64_t n) {
  return n >= 32 ? ~(__mmask32)0 : n <= 0 ? 0 : ((__mmask32)1 << n) - 1;
}

/* 16 x 16 elements of 4 bytes: vector r[i] becomes element i of 16 vectors, stored `pitch` bytes apart. */
static inline void transpose_16(__m512i r[16], char *to, size_t pitch) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int h = 0; h < 2; h++) {
      r[i + 2 * h] = _mm512_unpacklo_epi64(t[i + h], t[i + 2 + h]);
      r[i + 2 * h + 1] = _mm512_unpackhi_epi64(t[i + h], t[i + 2 + h]);
    }
  /* r[4 q + m] holds, in its 128-bit lane l, elements 4q..4q+3 of vector 4 l + m */
  for (int m = 0; m < 4; m++) {
    __m512i a = _mm512_shuffle_i32x4(r[m], r[4 + m], 0x88), b = _mm512_shuffle_i32x4(r[m], r[4 + m], 0xdd);
    __m512i c = _mm512_shuffle_i32x4(r[8 + m], r[12 + m], 0x88),
            d = _mm512_shuffle_i32x4(r[8 + m], r[12 + m], 0xdd);
    char *at = to + (size_t)m * pitch;
    _mm512_storeu_si512(at, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_storeu_si512(at + 4 * pitch, _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_storeu_si512(at + 8 * pitch, _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_storeu_si512(at + 12 * pitch, _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}

#endif
