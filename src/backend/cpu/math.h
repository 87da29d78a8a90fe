/* math.h: scalar functions written so that a loop over them becomes vector code: no branches, no
 * calls. Included by files compiled for several instruction sets.
 *
 * math_exp: x = n ln2 + r with |r| <= ln2/2, e^r by its Taylor polynomial of degree 6 (the first term
 * left out is r^7/5040 < 1.2e-7 of e^r at the ends of the interval), then scaled by 2^n in two steps, so
 * that the whole range of results, subnormals and infinity included, comes out of one path; NaN stays
 * NaN. tests/unit/test_cpu_math.c walks the range and holds the error below 2^-21.5 relative (measured:
 * 2^-21.9).
 */
#ifndef WAN_CPU_MATH_H
#define WAN_CPU_MATH_H

#include <stdint.h>
#include <string.h>

/* One rounding where the target has the instruction, two elsewhere; never a library call. */
#if defined(__FMA__) || defined(__aarch64__)
#define MATH_FMA(a, b, c) __builtin_fmaf((a), (b), (c))
#else
#define MATH_FMA(a, b, c) ((a) * (b) + (c))
#endif

static inline uint32_t math_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

static inline float math_float(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

static inline float math_exp(float x) {
  const float log2e = 1.44269504f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  const float shift = 12582912.0f;     /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
  float c = x < -104.0f ? -104.0f : x; /* e^-104 < 2^-150 rounds to 0 */
  c = c > 89.0f ? 89.0f : c;           /* e^89 overflows to infinity */
  float t = MATH_FMA(c, log2e, shift);
  float n = t - shift;
  float r = MATH_FMA(n, -ln2_hi, c);
  r = MATH_FMA(n, -ln2_lo, r);
  float p = 1.3888889e-3f; /* 1/6! ... 1/2! */
  p = MATH_FMA(p, r, 8.3333333e-3f);
  p = MATH_FMA(p, r, 4.1666667e-2f);
  p = MATH_FMA(p, r, 1.6666667e-1f);
  p = MATH_FMA(p, r, 0.5f);
  p = MATH_FMA(p, r, 1.0f);
  p = MATH_FMA(p, r, 1.0f);
  int32_t k = (int32_t)(math_bits(t) - math_bits(shift)); /* n as an integer, -150 .. 128 */
  int32_t h = k >> 1;
  return p * math_float((uint32_t)(h + 127) << 23) * math_float((uint32_t)(k - h + 127) << 23);
}

/* u / (1 + e^-u) */
static inline float math_silu(float u) {
  return u / (1.0f + math_exp(-u));
}

/* 0.5 u (1 + tanh z) = u / (1 + e^-2z), z = sqrt(2/pi) (u + 0.044715 u^3): no cancellation for u << 0 */
static inline float math_gelu(float u) {
  float z = 0.7978845608f * u * MATH_FMA(0.044715f * u, u, 1.0f);
  return u / (1.0f + math_exp(-2.0f * z));
}

static inline float math_from_bf16(uint16_t h) {
  return math_float((uint32_t)h << 16);
}

/* Nearest even; NaN stays NaN. */
static inline uint16_t math_to_bf16(float f) {
  uint32_t u = math_bits(f);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  uint32_t nan = (u >> 16) | 0x40u;
  return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

#endif
