/* rows.h: kernels over one row of floats. Written once (rows_impl.h), compiled for each instruction
 * set (rows_c.c, rows_avx2.c, rows_avx512.c), chosen at run time (isa.c). Rows of other dtypes
 * are widened into a buffer first: a row lies in the first cache, so this costs little. */
#ifndef WAN_CPU_ROWS_H
#define WAN_CPU_ROWS_H

#include "backend/backend.h"

typedef struct cpu_rows {
  void (*from_bf16)(const uint16_t *x, float *out, int64_t n);
  void (*to_bf16)(const float *x, uint16_t *out, int64_t n);
  /* out = (x - mean) * rstd * (1 + scale) + shift */
  void (*ada_norm)(const float *x, const float *shift, const float *scale, float eps, float *out, int64_t n);
  /* out = (x - mean) * rstd * gamma + beta */
  void (*layer_norm)(const float *x, const float *gamma, const float *beta, float eps, float *out, int64_t n);
  void (*rms_norm)(const float *x, const float *gamma, float eps, float *out, int64_t n);
  /* in place: pairs (2j, 2j+1) of each head turned by cs[j] = (cos, sin); half = pairs a head */
  void (*rope)(float *x, const float *cs, int heads, int64_t half);
  /* x += g * y; g NULL: x += y */
  void (*gate_add)(float *x, const float *y, const float *g, int64_t n);
  void (*mul)(float *a, const float *b, int64_t n);
  void (*activate)(const float *x, op_act act, float *out, int64_t n);
  /* x / max(||x||, 1e-12) * root * gamma, then act */
  void (*channel_norm)(const float *x, const float *gamma, float root, op_act act, float *out, int64_t n);
  /* out = sum of coef[i] * x[i][at + ...], n elements */
  void (*lincomb)(int count, const float *const *x, const float *coef, float *out, int64_t n);
  void (*affine)(const float *x, const float *mul, const float *add, float *out, int64_t n);
  void (*to_u8)(const float *x, uint8_t *out, int64_t n);
  bool (*finite)(const float *x, int64_t n);
  double (*dot)(const float *a, const float *b, int64_t n);
} cpu_rows;

/* Rows of bf16 in and out in one pass; not on every machine. */
typedef struct cpu_rows_bf16 {
  void (*channel_norm)(const uint16_t *x, const float *gamma, float root, bool silu, uint16_t *out,
                       int64_t n);
  /* in place, heads of `head` channels; rope NULL or [head / 2] pairs (cos, sin) */
  void (*norm_rope)(uint16_t *x, const float *gamma, float eps, const float *rope, int64_t head, int64_t n);
} cpu_rows_bf16;

extern const cpu_rows cpu_rows_c;
#if defined(__x86_64__)
extern const cpu_rows_bf16 cpu_rows_avx512bf16;
extern const cpu_rows cpu_rows_avx2, cpu_rows_avx512;
#endif

#endif
