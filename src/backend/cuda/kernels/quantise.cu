/* quantise.cu: rows of numbers as e4m3 with a scale for each row, and what products of them still need where
 * the library doesn't know such scales. A row's scale is its largest magnitude / 448 (src/core/tensor.h). */
#include "backend/cuda/kernels/common.cuh"

#include <cfloat>
#include <cuda_fp8.h>
#include <type_traits>

namespace {

enum { BLOCK = 256 };

/* max(m, |v|), where what is not finite counts as infinity */
__device__ __forceinline__ float magnitude(float m, float v) {
  v = fabsf(v);
  return v <= FLT_MAX ? fmaxf(m, v) : INFINITY;
}

/* The largest of all threads' values, in all threads. Called once by a kernel. */
__device__ __forceinline__ float block_largest(float v) {
  __shared__ float part[BLOCK / 32];
  v = warp_max(v);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  v = part[0];
#pragma unroll
  for (int i = 1; i < BLOCK / 32; i++) v = fmaxf(v, part[i]);
  return v;
}

struct row_scale {
  float scale, inverse;
  __device__ explicit row_scale(float top) {
    scale = top * (1.0f / 448.0f);
    if (scale < FLT_MIN) scale = 0; /* its inverse would be infinite */
    inverse = scale > 0 ? 1.0f / scale : 0.0f;
  }
  __device__ __forceinline__ unsigned pair(float a, float b) const {
    return __nv_cvt_float2_to_fp8x2(make_float2(a * inverse, b * inverse), __NV_SATFINITE, __NV_E4M3);
  }
};

/* A row stays in registers: CHUNKS times 8 values a thread. */
template <int CHUNKS, class T>
__global__ void __launch_bounds__(BLOCK) quantise(const T *x, uint8_t *out, float *scales, int c) {
  const int64_t row = blockIdx.x;
  float v[CHUNKS][VEC], top = 0;
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) {
    const int col = (k * BLOCK + threadIdx.x) * VEC;
    if (col < c) load8(x + row * c + col, v[k]);
  }
#pragma unroll
  for (int k = 0; k < CHUNKS; k++)
    if ((k * BLOCK + threadIdx.x) * VEC < c)
#pragma unroll
      for (int j = 0; j < VEC; j++) top = magnitude(top, v[k][j]);
  const row_scale s(block_largest(top));
  if (threadIdx.x == 0) scales[row] = s.scale;
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) {
    const int col = (k * BLOCK + threadIdx.x) * VEC;
    if (col < c)
      *reinterpret_cast<uint2 *>(out + row * c + col) =
          make_uint2(s.pair(v[k][0], v[k][1]) | s.pair(v[k][2], v[k][3]) << 16,
                     s.pair(v[k][4], v[k][5]) | s.pair(v[k][6], v[k][7]) << 16);
  }
}

/* Any row: read twice. */
template <class T>
__global__ void __launch_bounds__(BLOCK) quantise_plain(const T *x, uint8_t *out, float *scales, int c) {
  const int64_t row = blockIdx.x;
  float top = 0;
  for (int i = threadIdx.x; i < c; i += BLOCK) top = magnitude(top, to_f32(x[row * c + i]));
  const row_scale s(block_largest(top));
  if (threadIdx.x == 0) scales[row] = s.scale;
  for (int i = threadIdx.x; i < c; i += BLOCK)
    out[row * c + i] = (uint8_t)s.pair(to_f32(x[row * c + i]), 0.0f);
}

__global__ void dequantise(const uint8_t *x, const float *scales, float *out, int64_t n, int c) {
  const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
  if (i < n) out[i] = __half2float(__half(__nv_cvt_fp8_to_halfraw(x[i], __NV_E4M3))) * scales[i / c];
}

template <class Out>
__global__ void scale_bias_act(const float *acc, const float *rows, const float *columns, const float *bias,
                               k_act act, Out *out, int64_t n, int c) {
  const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
  if (i >= n) return;
  const int col = (int)(i % c);
  put(out + i, activate(act, acc[i] * rows[i / c] * columns[col] + (bias ? bias[col] : 0.0f)));
}

template <class T> void run(k_stream s, const T *x, uint8_t *out, float *scales, int64_t rows, int c) {
  const unsigned grid = (unsigned)rows;
  const bool vector = c % VEC == 0 && aligned16(x) && ((uintptr_t)out & 7) == 0;
  if (!vector || c > 7 * BLOCK * VEC)
    quantise_plain<<<grid, BLOCK, 0, s>>>(x, out, scales, c);
  else if (c <= BLOCK * VEC)
    quantise<1><<<grid, BLOCK, 0, s>>>(x, out, scales, c);
  else if (c <= 2 * BLOCK * VEC) /* 3072 */
    quantise<2><<<grid, BLOCK, 0, s>>>(x, out, scales, c);
  else if (c <= 3 * BLOCK * VEC) /* 5120 */
    quantise<3><<<grid, BLOCK, 0, s>>>(x, out, scales, c);
  else /* 13824, 14336 */
    quantise<7><<<grid, BLOCK, 0, s>>>(x, out, scales, c);
}

} // namespace

void k_quantise(k_stream s, k_data x, void *out, float *scales, int64_t rows, int c) {
  if (rows <= 0 || c <= 0) return;
  with_type(x, [&](auto *p) { run(s, p, (uint8_t *)out, scales, rows, c); });
}

void k_dequantise(k_stream s, const void *x, const float *scales, float *out, int64_t rows, int c) {
  const int64_t n = rows * c;
  if (n > 0) dequantise<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>((const uint8_t *)x, scales, out, n, c);
}

void k_scale_bias_act(k_stream s, const float *acc, const float *row_scales, const float *column_scales,
                      const float *bias, k_act act, k_data out, int64_t rows, int c) {
  const int64_t n = rows * c;
  if (n <= 0) return;
  with_type(out, [&](auto *o) {
    scale_bias_act<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(acc, row_scales, column_scales, bias, act, o, n, c);
  });
}
