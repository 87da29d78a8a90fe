/* common.cuh: loads, stores and sums that the kernels share. */
#ifndef WAN_BACKEND_CUDA_COMMON_CUH
#define WAN_BACKEND_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "backend/cuda/kernels/kernels.h"

typedef __nv_bfloat16 bf16;

enum { VEC = 8 }; /* elements a thread moves at once: 16 bytes of bf16, twice 16 bytes of f32 */

__device__ __forceinline__ float to_f32(float v) {
  return v;
}
__device__ __forceinline__ float to_f32(bf16 v) {
  return __bfloat162float(v);
}
__device__ __forceinline__ void put(float *p, float v) {
  *p = v;
}
__device__ __forceinline__ void put(bf16 *p, float v) {
  *p = __float2bfloat16_rn(v);
}

__device__ __forceinline__ void load8(const float *p, float v[VEC]) {
  float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void load8(const bf16 *p, float v[VEC]) {
  uint4 u = *reinterpret_cast<const uint4 *>(p);
  unsigned w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[2 * i] = __uint_as_float(w[i] << 16);
    v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
  }
}
/* 8 values as they lie in memory, read once: they should not push from the caches what every row reads. */
template <class T> struct raw8;
template <> struct raw8<float> {
  float4 a, b;
  __device__ __forceinline__ void load(const float *p) {
    a = __ldcs(reinterpret_cast<const float4 *>(p));
    b = __ldcs(reinterpret_cast<const float4 *>(p) + 1);
  }
  __device__ __forceinline__ void widen(float v[VEC]) const {
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  }
};
template <> struct raw8<bf16> {
  uint4 a;
  __device__ __forceinline__ void load(const bf16 *p) {
    a = __ldcs(reinterpret_cast<const uint4 *>(p));
  }
  __device__ __forceinline__ void widen(float v[VEC]) const {
    const unsigned w[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v[2 * i] = __uint_as_float(w[i] << 16);
      v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
  }
};
__device__ __forceinline__ void store8(float *p, const float v[VEC]) {
  reinterpret_cast<float4 *>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
  reinterpret_cast<float4 *>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ __forceinline__ unsigned pack2(float lo, float hi) {
  __nv_bfloat162 h = __floats2bfloat162_rn(lo, hi);
  return *reinterpret_cast<unsigned *>(&h);
}
__device__ __forceinline__ void store8(bf16 *p, const float v[VEC]) {
  *reinterpret_cast<uint4 *>(p) =
      make_uint4(pack2(v[0], v[1]), pack2(v[2], v[3]), pack2(v[4], v[5]), pack2(v[6], v[7]));
}

/* silu(x) = x sigmoid(x); gelu in its tanh form */
__device__ __forceinline__ float activate(k_act act, float x) {
  if (act == K_SILU) return x / (1.0f + expf(-x));
  if (act == K_GELU) {
    const float sqrt_2_pi = 0.79788456080286535588f;
    return 0.5f * x * (1.0f + tanhf(sqrt_2_pi * (x + 0.044715f * x * x * x)));
  }
  return x;
}

/* Row of the modulation that token i uses, entry `which`. */
__device__ __forceinline__ const float *mod_entry(const k_mod &m, int64_t i, int which, int c) {
  return m.mod + ((int64_t)m.row[(m.offset + i) / m.per] * m.R + which) * c;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
  return v;
}

/* Frame t of a convolution's input. */
template <class T> __device__ __forceinline__ const T *conv_frame(const k_conv_spec &c, int64_t t) {
  return c.apart ? (const T *)c.frame[t] : (const T *)c.x + t * c.H * c.W * c.ci;
}

inline bool aligned16(const void *p) {
  return ((uintptr_t)p & 15) == 0;
}

inline unsigned blocks_for(int64_t n, int64_t per) {
  return (unsigned)((n + per - 1) / per);
}

/* Call f with pointers of the types that the data have. */
template <class F> void with_type(k_data d, F f) {
  if (d.type == K_BF16)
    f(static_cast<bf16 *>(d.p));
  else
    f(static_cast<float *>(d.p));
}

#endif
