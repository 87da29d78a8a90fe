/* attn.h: the three inner kernels of attention, filled in for each instruction set.
 *
 * Everything is transposed so that queries lie along the vector lanes: scores S^T = K Q^T are
 * [keys, queries], the softmax over keys then runs down the rows with no sums across lanes, and
 * O^T = V^T P^T is [head_dim, queries]. Both products have one form:
 *   C [M, queries] (+)= A [M, K] . B [K, queries]
 * A is packed row by row (keys by head_dim, or head_dim by keys), B is [K, queries] in f32 or
 * [K/2, queries, 2] in bf16 (pairs of K together, as the bf16 dot product instructions want). */
#ifndef WAN_CPU_ATTN_H
#define WAN_CPU_ATTN_H

#include "backend/backend.h"

enum {
  ATTN_Q = 32,     /* queries a kernel call handles: two vectors of 16 floats */
  ATTN_KEYS = 256, /* keys a block */
  ATTN_ALIGN = 32  /* head_dim and keys are padded with zeros to this many */
};

/* Softmax state of ATTN_Q queries, scores in units of log2. */
typedef struct attn_state {
  float max[ATTN_Q], sum[ATTN_Q];
  float alpha[ATTN_Q]; /* factor for what was accumulated before the last block */
} attn_state;

typedef struct attn_bias {
  float scale;      /* multiplies the raw score: softmax scale * log2(e) */
  const float *key; /* NULL, or per key of the block, times log2(e) */
  const float
      *rel; /* NULL, or rel[q - key] for queries and keys counted from the block's first: points at q = key */
} attn_bias;

typedef struct cpu_attn {
  bool bf16; /* A, B in bf16; otherwise all f32 */
  /* C [M, ATTN_Q] = A.B, or += when add. M and K multiples of ATTN_ALIGN; lda in elements. */
  void (*gemm)(const void *a, int64_t lda, const void *b, float *c, int64_t M, int64_t K, bool add);
  /* Scores [keys, ATTN_Q] -> probabilities in B's form; rows keys..padded-1 become 0. Updates state.
   * Returns true when alpha is not 1 everywhere. */
  bool (*softmax)(float *s, const attn_bias *bias, int64_t keys, int64_t padded, attn_state *state, void *p);
  /* C [M, ATTN_Q] *= alpha */
  void (*rescale)(float *c, const float *alpha, int64_t M);
  /* With bf16, else NULL: the forms above from and to rows of bf16 `stride` elements apart, vectorised. */
  /* n <= ATTN_Q queries of d channels -> [dp/2, ATTN_Q, 2] */
  void (*pack_queries)(const uint16_t *x, int64_t stride, int64_t n, int64_t d, int64_t dp, void *to);
  /* n keys' values of d channels -> [dp, padded] */
  void (*pack_values)(const uint16_t *x, int64_t stride, int64_t n, int64_t padded, int64_t d, int64_t dp,
                      void *to);
  /* n columns of O^T [d, ATTN_Q], each divided by its sum, -> rows of d */
  void (*store)(const float *o, const float *sum, int64_t n, int64_t d, uint16_t *to, int64_t stride);
  /* once on each thread before and after its kernel calls; may be NULL */
  void (*enter)(void);
  void (*leave)(void);
} cpu_attn;

extern const cpu_attn cpu_attn_c;
#if defined(__x86_64__)
extern const cpu_attn cpu_attn_avx2, cpu_attn_avx512, cpu_attn_bf16, cpu_attn_amx;
#endif

#endif
