/* rng.c: two generators of Gaussian noise.
 *
 * The first repeats PyTorch's CPU generator to the bit, so that a seed gives the noise that it gives there.
 * From 16 values up PyTorch transforms eight pairs at a time with single-precision log, sin and cos
 * after the Cephes library (Moshier 1992); on the machines it is built for the compiler contracts a
 * product and the sum that follows into one rounding. Both are part of the result, so this file spells
 * the contractions out with fmaf() and is otherwise compiled without any.
 *
 * The second is ours: counter based, so any part of the noise can be made on its own.
 */
#define _DEFAULT_SOURCE
#include "core/rng.h"

#include <math.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static const double two_pi = 6.283185307179586476925;

/* ---- mt19937 (Matsumoto and Nishimura 1998) ---- */

enum { MT_N = 624, MT_M = 397 };

typedef struct mt19937 {
  uint32_t state[MT_N];
  int next;
} mt19937;

static void mt_seed(mt19937 *g, uint32_t seed) {
  g->state[0] = seed;
  for (uint32_t i = 1; i < MT_N; i++) {
    uint32_t before = g->state[i - 1];
    g->state[i] = 1812433253u * (before ^ before >> 30) + i;
  }
  g->next = MT_N;
}

static void mt_refill(mt19937 *g) {
  for (int i = 0; i < MT_N; i++) {
    uint32_t y = (g->state[i] & 0x80000000u) | (g->state[(i + 1) % MT_N] & 0x7fffffffu);
    g->state[i] = g->state[(i + MT_M) % MT_N] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
  }
  g->next = 0;
}

static uint32_t mt_draw(mt19937 *g) {
  if (g->next == MT_N) mt_refill(g);
  uint32_t y = g->state[g->next++];
  y ^= y >> 11;
  y ^= y << 7 & 0x9d2c5680u;
  y ^= y << 15 & 0xefc60000u;
  return y ^ y >> 18;
}

/* [0, 1) in steps of 2^-24. */
static float mt_uniform24(mt19937 *g) {
  return (float)(mt_draw(g) & 0xffffffu) * 0x1p-24f;
}

/* [0, 1) in steps of 2^-53; the first draw is the upper half. */
static double mt_uniform53(mt19937 *g) {
  uint64_t high = mt_draw(g), low = mt_draw(g);
  return (double)((high << 32 | low) & ((1ull << 53) - 1)) * 0x1p-53;
}

/* ---- Cephes' single-precision functions (logf.c, sinf.c), on the ranges that occur here ---- */

/* 2^-24 <= x <= 1. */
static float log_single(float x) {
  static const float p[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                            -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                            2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  int exponent;
  float m = frexpf(x, &exponent); /* [0.5, 1) */
  if (m < 0.707106781186547524f) {
    exponent--;
    m += m;
  }
  m -= 1;
  float e = (float)exponent, z = m * m, y = p[0];
  for (int i = 1; i < 9; i++) y = fmaf(y, m, p[i]);
  y = fmaf(y * m, z, e * -2.12194440e-4f); /* ln 2 = 0.693359375 - 2.1219444e-4 */
  y = fmaf(z, -0.5f, y);
  return fmaf(e, 0.693359375f, m + y);
}

/* 0 <= x < 2 pi: reduce to an eighth of a turn, then one polynomial each. */
static void sincos_single(float x, float *sine, float *cosine) {
  int octant = ((int)(x * 1.27323954473516f) + 1) & ~1; /* 4/pi */
  float j = (float)octant;
  x = fmaf(j, -0.78515625f, x); /* pi/4 in three parts */
  x = fmaf(j, -2.4187564849853515625e-4f, x);
  x = fmaf(j, -3.77489497744594108e-8f, x);
  float z = x * x;
  float c = fmaf(fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f);
  c = fmaf(c * z, z, z * -0.5f) + 1;
  float s = fmaf(fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f);
  s = fmaf(s * z, x, x);
  bool swapped = octant & 2;
  *sine = swapped ? c : s;
  *cosine = swapped ? s : c;
  if (octant & 4) *sine = -*sine;
  if ((octant - 2) & 4) return;
  *cosine = -*cosine;
}

/* Box-Muller in place: values j and j+8 make a pair. */
static void normal_block(float *v) {
  for (int j = 0; j < 8; j++) {
    float radius = sqrtf(-2 * log_single(1 - v[j])), sine, cosine;
    sincos_single((float)two_pi * v[j + 8], &sine, &cosine);
    v[j] = radius * cosine;
    v[j + 8] = radius * sine;
  }
}

/* Fewer than 16 values: one double-precision pair after the other. */
static void normal_pairs(mt19937 *g, float *out, size_t n) {
  for (size_t i = 0; i < n; i += 2) {
    double u1 = mt_uniform53(g), u2 = mt_uniform53(g);
    double radius = sqrt(-2 * log1p(-u2)), theta = two_pi * u1;
    out[i] = (float)(radius * cos(theta));
    if (i + 1 < n) out[i + 1] = (float)(radius * sin(theta));
  }
}

wan_status rng_normal_torch_cpu(core_ctx *ctx, uint64_t seed, float *out, size_t n) {
  (void)ctx;
  mt19937 g;
  mt_seed(&g, (uint32_t)seed);
  if (n < 16) {
    normal_pairs(&g, out, n);
    return WAN_OK;
  }
  for (size_t i = 0; i < n; i++) out[i] = mt_uniform24(&g);
  for (size_t i = 0; i + 16 <= n; i += 16) normal_block(out + i);
  if (n % 16) { /* the last 16 are drawn anew, some of them for the second time */
    for (size_t i = n - 16; i < n; i++) out[i] = mt_uniform24(&g);
    normal_block(out + n - 16);
  }
  return WAN_OK;
}

/* ---- Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011) ---- */

static void philox(uint64_t key, uint64_t counter, uint32_t out[4]) {
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), 0, 0};
  for (int round = 0; round < 10; round++) {
    uint64_t a = (uint64_t)c[0] * 0xd2511f53u, b = (uint64_t)c[2] * 0xcd9e8d57u;
    uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k1,
                        (uint32_t)a};
    memcpy(c, next, sizeof c);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  memcpy(out, c, sizeof c);
}

void rng_normal_philox(uint64_t seed, float *out, size_t n) {
  for (size_t i = 0; i < n; i += 4) {
    uint32_t x[4];
    float v[4];
    philox(seed, i / 4, x);
    for (int p = 0; p < 4; p += 2) { /* (0, 1] for the logarithm, [0, 1) for the angle */
      double radius = sqrt(-2 * log(((double)x[p] + 1) * 0x1p-32)), theta = two_pi * x[p + 1] * 0x1p-32;
      v[p] = (float)(radius * cos(theta));
      v[p + 1] = (float)(radius * sin(theta));
    }
    memcpy(out + i, v, (n - i < 4 ? n - i : 4) * sizeof *out);
  }
}

uint64_t rng_random_seed(void) {
  uint64_t seed;
  if (getentropy(&seed, sizeof seed) != 0) { /* before Linux 3.17 only */
    double now = core_now();
    memcpy(&seed, &now, sizeof seed);
    seed = seed * 0x9e3779b97f4a7c15u ^ (uint64_t)getpid();
  }
  return seed >> 1;
}
