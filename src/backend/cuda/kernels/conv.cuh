/* conv.cuh: how a convolution's sums become its result. */
#ifndef WAN_BACKEND_CUDA_CONV_CUH
#define WAN_BACKEND_CUDA_CONV_CUH

#include "backend/cuda/kernels/common.cuh"

/* Outputs o and o + 1 of the pixel whose first output is element `at`. pairs: they may be stored together. */
template <class Out>
__device__ __forceinline__ void conv_store(const k_conv_spec &c, bool pairs, int64_t at, int o, float v0,
                                           float v1) {
  if (o >= c.co) return;
  Out *out = (Out *)c.out + at + o;
  const Out *residual = c.residual ? (const Out *)c.residual + at + o : nullptr;
  bool second = o + 1 < c.co;
  if (c.bias) {
    v0 += c.bias[o];
    if (second) v1 += c.bias[o + 1];
  }
  if (pairs) { /* then o + 1 < co */
    if (sizeof(Out) == 4) {
      float2 r = residual ? *(const float2 *)residual : make_float2(0, 0);
      *(float2 *)out = make_float2(v0 + r.x, v1 + r.y);
    } else {
      unsigned r = residual ? *(const unsigned *)residual : 0;
      *(unsigned *)out = pack2(v0 + __uint_as_float(r << 16), v1 + __uint_as_float(r & 0xffff0000u));
    }
    return;
  }
  put(out, v0 + (residual ? to_f32(residual[0]) : 0.0f));
  if (second) put(out + 1, v1 + (residual ? to_f32(residual[1]) : 0.0f));
}

/* Whether pairs of outputs are aligned to their joint size. */
template <class Out> bool conv_pairs(const k_conv_spec &c) {
  return c.co % 2 == 0 && (uintptr_t)c.out % (2 * sizeof(Out)) == 0 &&
         (uintptr_t)c.residual % (2 * sizeof(Out)) == 0;
}

/* Whether all operands start on 16 bytes. */
inline bool conv_aligned(const k_conv_spec &c) {
  bool aligned = aligned16(c.w) && (c.apart || aligned16(c.x));
  for (int t = 0; c.apart && t < c.T; t++) aligned &= aligned16(c.frame[t]);
  return aligned;
}

#endif
