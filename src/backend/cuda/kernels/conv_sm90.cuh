/* conv_sm90.cuh: what the convolutions for Hopper share: copies of pixels and weights, their matrix
 * descriptors, and on the host the maps that describe them to the copy engine. */
#ifndef WAN_BACKEND_CUDA_CONV_SM90_CUH
#define WAN_BACKEND_CUDA_CONV_SM90_CUH

#include "backend/cuda/kernels/conv.cuh"
#include "backend/cuda/kernels/sm90.cuh"
#include "backend/cuda/kernels/wgmma.cuh"

namespace {

enum { CLUSTER = 2, SHARED_MAX = 227 * 1024 };

/* One for each frame, or the first for all of them. */
struct frame_maps {
  CUtensorMap frame[K_CONV_FRAMES];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) /* nothing else has these instructions */

__device__ __forceinline__ void copy_pixels(unsigned to, const CUtensorMap *map, unsigned barrier, int c,
                                            int x, int y, int t) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
               "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
               "l"(map), "r"(barrier), "r"(c), "r"(x), "r"(y), "r"(t)
               : "memory");
}
/* Into both blocks of the cluster, at the same place. */
__device__ __forceinline__ void copy_weights(unsigned to, const CUtensorMap *map, unsigned barrier, int c,
                                             int tap, int o) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c), "r"(tap), "r"(o), "h"((uint16_t)((1 << CLUSTER) - 1))
      : "memory");
}
/* Matrix descriptor of rows of KC bf16, swizzled over 128 or 64 bytes; groups of 8 rows follow each other. */
template <int KC> __device__ __forceinline__ uint64_t matrix(unsigned at) {
  const uint64_t mode = KC == 64 ? 1 : 2, group = KC * 2 * 8;
  return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (group >> 4) << 32 | mode << 62;
}

#endif

/* ---- The host's side ---- */

inline bool encode(encode_fn make, CUtensorMap *map, const void *data, int dims, const cuuint64_t *dim,
                   const cuuint32_t *box, const cuuint32_t *step, int kc) {
  cuuint64_t stride[4], bytes = 2;
  for (int i = 0; i + 1 < dims; i++) stride[i] = bytes *= dim[i];
  return make(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)dims, const_cast<void *>(data), dim, stride,
              box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
              kc == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* Maps of a convolution's frames, fetched by boxes. */
inline bool encode_frames(encode_fn make, frame_maps *maps, const k_conv_spec &c, const cuuint32_t box[4],
                          const cuuint32_t step[4], int kc) {
  const cuuint64_t dim[4] = {(cuuint64_t)c.ci, (cuuint64_t)c.W, (cuuint64_t)c.H,
                             (cuuint64_t)(c.apart ? 1 : c.T)};
  for (int t = 0; t < (c.apart ? c.T : 1); t++)
    if (!encode(make, &maps->frame[t], c.apart ? c.frame[t] : c.x, 4, dim, box, step, kc)) return false;
  return true;
}

/* Of its weights: kc channels of one tap for `rows` outputs. */
inline bool encode_weights(encode_fn make, CUtensorMap *map, const k_conv_spec &c, int rows, int kc) {
  const cuuint64_t dim[3] = {(cuuint64_t)c.ci, (cuuint64_t)(c.up * c.up * c.taps), (cuuint64_t)c.co};
  const cuuint32_t box[3] = {(cuuint32_t)kc, 1, (cuuint32_t)rows}, step[3] = {1, 1, 1};
  return encode(make, map, c.w, 3, dim, box, step, kc);
}

} // namespace

#endif
