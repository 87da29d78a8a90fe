/* attn_amx.c: attention kernels for AMX: tiles of 16 rows of 64 bytes, C += A . B over 32 bf16 at a time. */
#if defined(__x86_64__)
#include "backend/cpu/amx.h"
#include "backend/cpu/attn_bf16.h"

static void enter(void) {
  _tile_loadconfig(&amx_all_tiles);
}

static void leave(void) {
  _tile_release();
}

/* Two by two tiles of C (32 rows, 32 queries) in registers: tiles 0-3; A in 4 and 5, B in 6 and 7. */
static void gemm(const void *a, int64_t lda, const void *b, float *c, int64_t M, int64_t K, bool add) {
  enum { C_STRIDE = ATTN_Q * 4, B_STRIDE = ATTN_Q * 4, HALF = 16 };
  size_t a_stride = (size_t)lda * 2;
  for (int64_t m = 0; m < M; m += 2 * HALF) {
    const char *a0 = (const char *)a + (size_t)m * a_stride, *a1 = a0 + HALF * a_stride, *pb = b;
    float *c0 = c + m * ATTN_Q, *c1 = c0 + HALF * ATTN_Q;
    if (add) {
      _tile_loadd(0, c0, C_STRIDE);
      _tile_loadd(1, c0 + 16, C_STRIDE);
      _tile_loadd(2, c1, C_STRIDE);
      _tile_loadd(3, c1 + 16, C_STRIDE);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < K; k += 32) {
      _tile_loadd(6, pb, B_STRIDE);
      _tile_loadd(4, a0, a_stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, a1, a_stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, pb + 64, B_STRIDE);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
      a0 += 64;
      a1 += 64;
      pb += 16 * B_STRIDE;
    }
    _tile_stored(0, c0, C_STRIDE);
    _tile_stored(1, c0 + 16, C_STRIDE);
    _tile_stored(2, c1, C_STRIDE);
    _tile_stored(3, c1 + 16, C_STRIDE);
  }
}

const cpu_attn cpu_attn_amx = {.bf16 = true,
                               .gemm = gemm,
                               .softmax = softmax_bf16,
                               .rescale = rescale_bf16,
                               .pack_queries = pack_queries_bf16,
                               .pack_values = pack_values_bf16,
                               .store = store_bf16,
                               .enter = enter,
                               .leave = leave};
#endif
