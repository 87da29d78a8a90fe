/* attn_avx512bf16.c: attention kernels for AVX512-BF16: vdpbf16ps multiplies pairs, sums in f32. */
#if defined(__x86_64__)
#include "backend/cpu/attn_bf16.h"

#include <string.h>

enum { ROWS = 8 }; /* 16 accumulators, 2 vectors of B, 1 broadcast pair */
_Static_assert(ATTN_ALIGN % ROWS == 0, "M is a multiple of ATTN_ALIGN");

static inline __m512bh broadcast_pair(const uint16_t *a) {
  int32_t pair;
  memcpy(&pair, a, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}

static void gemm(const void *a, int64_t lda, const void *b, float *c, int64_t M, int64_t K, bool add) {
  for (int64_t m = 0; m < M; m += ROWS) {
    const uint16_t *row = (const uint16_t *)a + m * lda;
    __m512 sum[ROWS][VECS];
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECS; v++)
        sum[r][v] = add ? _mm512_loadu_ps(c + (m + r) * ATTN_Q + v * LANES) : _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k += 2) {
      const char *bk = (const char *)b + k * ATTN_Q * 2;
      __m512bh b0 = (__m512bh)_mm512_loadu_si512(bk), b1 = (__m512bh)_mm512_loadu_si512(bk + 64);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        __m512bh pair = broadcast_pair(row + r * lda + k);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], pair, b0);
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], pair, b1);
      }
    }
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECS; v++) _mm512_storeu_ps(c + (m + r) * ATTN_Q + v * LANES, sum[r][v]);
  }
}

const cpu_attn cpu_attn_bf16 = {.bf16 = true,
                                .gemm = gemm,
                                .softmax = softmax_bf16,
                                .rescale = rescale_bf16,
                                .pack_queries = pack_queries_bf16,
                                .pack_values = pack_values_bf16,
                                .store = store_bf16};
#endif
