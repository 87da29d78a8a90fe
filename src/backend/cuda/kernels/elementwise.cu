/* elementwise.cu: one result for each element. A thread takes 8 elements in a row; pointers that are not
 * aligned to 16 bytes, and the last few elements, go one by one. */
#include "backend/cuda/kernels/common.cuh"

#include <cuda_fp16.h>
#include <cuda_fp8.h>

namespace {

enum { BLOCK = 256 };

/* Reads up to 8 elements from i on; how many is returned. */
template <bool VECTOR, class T>
__device__ __forceinline__ int read(const T *p, int64_t i, int64_t n, float *v) {
  if (VECTOR && i + VEC <= n) {
    load8(p + i, v);
    return VEC;
  }
  int count = (int)(n - i < VEC ? n - i : VEC);
#pragma unroll
  for (int j = 0; j < VEC; j++) v[j] = j < count ? to_f32(p[i + j]) : 0.0f;
  return count;
}

template <bool VECTOR, class T>
__device__ __forceinline__ void write(T *p, int64_t i, int count, const float *v) {
  if (VECTOR && count == VEC) {
    store8(p + i, v);
    return;
  }
#pragma unroll
  for (int j = 0; j < VEC; j++)
    if (j < count) put(p + i + j, v[j]);
}

__device__ __forceinline__ int64_t first_element() {
  return ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * VEC;
}

template <bool VECTOR, class X, class Y> __global__ void add(X *x, const Y *y, int64_t n) {
  int64_t i = first_element();
  if (i >= n) return;
  float a[VEC], b[VEC];
  int count = read<VECTOR>(x, i, n, a);
  read<VECTOR>(y, i, n, b);
#pragma unroll
  for (int j = 0; j < VEC; j++) a[j] += b[j];
  write<VECTOR>(x, i, count, a);
}

/* One row a block, so that the row of the modulation is found once. */
template <bool VECTOR, class X, class Y>
__global__ void gate_add(X *x, const Y *y, k_mod m, int gate, int c) {
  const int64_t row = blockIdx.x;
  const float *g = mod_entry(m, row, gate, c);
  x += row * c;
  y += row * c;
  for (int i = threadIdx.x * VEC; i < c; i += blockDim.x * VEC) {
    float a[VEC], b[VEC], w[VEC];
    int count = read<VECTOR>(x, i, c, a);
    read<VECTOR>(y, i, c, b);
    read<VECTOR>(g, i, c, w);
#pragma unroll
    for (int j = 0; j < VEC; j++) a[j] += w[j] * b[j];
    write<VECTOR>(x, i, count, a);
  }
}

template <bool VECTOR, class T> __global__ void mul(T *a, const T *b, int64_t n) {
  int64_t i = first_element();
  if (i >= n) return;
  float u[VEC], v[VEC];
  int count = read<VECTOR>(a, i, n, u);
  read<VECTOR>(b, i, n, v);
#pragma unroll
  for (int j = 0; j < VEC; j++) u[j] *= v[j];
  write<VECTOR>(a, i, count, u);
}

template <bool VECTOR, class X, class Y> __global__ void apply(const X *x, k_act act, Y *out, int64_t n) {
  int64_t i = first_element();
  if (i >= n) return;
  float v[VEC];
  int count = read<VECTOR>(x, i, n, v);
#pragma unroll
  for (int j = 0; j < VEC; j++) v[j] = activate(act, v[j]);
  write<VECTOR>(out, i, count, v);
}

struct terms {
  const float *x[8];
  float coef[8];
  int n;
};

template <bool VECTOR> __global__ void lincomb(float *out, terms t, int64_t n) {
  int64_t i = first_element();
  if (i >= n) return;
  float sum[VEC] = {0}, v[VEC];
  int count = 0;
  for (int k = 0; k < t.n; k++) {
    count = read<VECTOR>(t.x[k], i, n, v);
#pragma unroll
    for (int j = 0; j < VEC; j++) sum[j] = k ? fmaf(t.coef[k], v[j], sum[j]) : t.coef[k] * v[j];
  }
  write<VECTOR>(out, i, count, sum);
}

template <class X, class Y>
__global__ void channel_affine(const X *x, const float *m, const float *a, Y *out, int64_t n, int c) {
  int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
  if (i < n) put(out + i, fmaf(to_f32(x[i]), m[i % c], a[i % c]));
}

/* Each step rounds to f32, as the reference's do: where a result is truncated, roundings decide. */
template <class X> __global__ void to_u8(const X *x, uint8_t *out, int64_t n) {
  int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
  if (i >= n) return;
  float v = to_f32(x[i]);
  v = v > -1.0f ? (v < 1.0f ? v : 1.0f) : -1.0f; /* NaN becomes -1 */
  v = __fmul_rn(__fadd_rn(v, 1.0f), 0.5f);
  out[i] = (uint8_t)__fmul_rn(v, 255.0f);
}

template <bool VECTOR, class X> __global__ void not_finite(const X *x, int64_t n, int *flag) {
  bool bad = false;
  for (int64_t i = first_element(); i < n; i += (int64_t)gridDim.x * BLOCK * VEC) {
    float v[VEC];
    read<VECTOR>(x, i, n, v);
#pragma unroll
    for (int j = 0; j < VEC; j++) bad |= !isfinite(v[j]);
  }
  if (bad) *flag = 1; /* every writer writes the same */
}

__global__ void modulation(const float *base, const float *e, bool per_row, float *out, int64_t n, int R,
                           int c) {
  int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, rc = (int64_t)R * c;
  if (i >= n * rc) return;
  int64_t unit = i / rc, at = i - unit * rc;
  out[i] = base[at] + (per_row ? e[i] : e[unit * c + at % c]);
}

__global__ void position_bias(const float *table, const int32_t *bucket, float *out, int heads, int n,
                              bool round) {
  int i = (int)(blockIdx.x * BLOCK + threadIdx.x), h = blockIdx.y;
  if (i >= n) return;
  float v = table[bucket[i] * heads + h];
  out[(int64_t)h * n + i] = round ? __bfloat162float(__float2bfloat16_rn(v)) : v;
}

__device__ __forceinline__ double block_sum(double v) {
  __shared__ double part[BLOCK];
  __syncthreads();
  part[threadIdx.x] = v;
  __syncthreads();
  for (int half = BLOCK / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  return part[0];
}

__global__ void dot_parts(const float *a, const float *b, int64_t n, double *part) {
  double sum = 0;
  for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < n; i += (int64_t)K_DOT_PARTS * BLOCK)
    sum += (double)a[i] * (double)b[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

__global__ void dot_total(double *part) {
  static_assert((int)K_DOT_PARTS == (int)BLOCK, "a thread for each part");
  double sum = block_sum(part[threadIdx.x]);
  if (threadIdx.x == 0) part[K_DOT_PARTS] = sum;
}

template <class Out>
__global__ void bias_act(const float *acc, const float *bias, k_act act, Out *out, int64_t n, int c) {
  int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
  if (i < n) put(out + i, activate(act, acc[i] + (bias ? bias[i % c] : 0.0f)));
}

__device__ __forceinline__ float widen(const void *p, k_type type, int64_t i) {
  switch (type) {
  case K_F32:
    return ((const float *)p)[i];
  case K_BF16:
    return __bfloat162float(((const bf16 *)p)[i]);
  case K_F16:
    return __half2float(((const __half *)p)[i]);
  case K_F8E4M3:
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(((const uint8_t *)p)[i], __NV_E4M3)));
  case K_F8E5M2:
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(((const uint8_t *)p)[i], __NV_E5M2)));
  default:
    return (float)((const double *)p)[i];
  }
}

template <class Out> __global__ void convert(const void *in, k_type type, Out *out, int64_t n) {
  int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
  if (i < n) put(out + i, widen(in, type, i));
}

} // namespace

void k_gate_add(k_stream s, k_data x, k_data y, k_mod m, int gate, int64_t rows, int c) {
  const int64_t n = rows * c;
  if (!n) return;
  const bool by_row = c % VEC == 0; /* every row is aligned if the first is */
  const unsigned threads = c >= BLOCK * VEC ? BLOCK : (blocks_for(c, VEC) + 31) / 32 * 32;
  with_type(x, [&](auto *a) {
    with_type(y, [&](auto *b) {
      const bool vector = aligned16(a) && aligned16(b) && (!m.mod || (by_row && aligned16(m.mod)));
      if (!m.mod && vector)
        add<true><<<blocks_for(n, BLOCK * VEC), BLOCK, 0, s>>>(a, b, n);
      else if (!m.mod)
        add<false><<<blocks_for(n, BLOCK * VEC), BLOCK, 0, s>>>(a, b, n);
      else if (vector)
        gate_add<true><<<(unsigned)rows, threads, 0, s>>>(a, b, m, gate, c);
      else
        gate_add<false><<<(unsigned)rows, threads, 0, s>>>(a, b, m, gate, c);
    });
  });
}

void k_mul(k_stream s, k_data a, k_data b, int64_t n) {
  unsigned grid = blocks_for(n, BLOCK * VEC);
  if (!n) return;
  with_type(a, [&](auto *p) {
    auto *q = static_cast<decltype(p)>(b.p);
    if (aligned16(p) && aligned16(q))
      mul<true><<<grid, BLOCK, 0, s>>>(p, q, n);
    else
      mul<false><<<grid, BLOCK, 0, s>>>(p, q, n);
  });
}

void k_activate(k_stream s, k_data x, k_act act, k_data out, int64_t n) {
  unsigned grid = blocks_for(n, BLOCK * VEC);
  if (!n) return;
  with_type(x, [&](auto *i) {
    with_type(out, [&](auto *o) {
      if (aligned16(i) && aligned16(o))
        apply<true><<<grid, BLOCK, 0, s>>>(i, act, o, n);
      else
        apply<false><<<grid, BLOCK, 0, s>>>(i, act, o, n);
    });
  });
}

void k_modulation(k_stream s, const float *base, const float *e, bool per_row, float *out, int64_t n, int R,
                  int c) {
  modulation<<<blocks_for(n * R * c, BLOCK), BLOCK, 0, s>>>(base, e, per_row, out, n, R, c);
}

void k_position_bias(k_stream s, const float *table, const int32_t *bucket, float *out, int heads, int n,
                     bool round) {
  position_bias<<<dim3(blocks_for(n, BLOCK), (unsigned)heads), BLOCK, 0, s>>>(table, bucket, out, heads, n,
                                                                              round);
}

void k_convert(k_stream s, k_data in, k_data out, int64_t n) {
  if (!n) return;
  with_type(out, [&](auto *o) { convert<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(in.p, in.type, o, n); });
}

void k_lincomb(k_stream s, float *out, int count, const float *const *x, const float *coef, int64_t n) {
  terms t = {};
  bool vector = aligned16(out);
  t.n = count;
  for (int i = 0; i < count; i++) {
    t.x[i] = x[i];
    t.coef[i] = coef[i];
    vector = vector && aligned16(x[i]);
  }
  if (!n) return;
  if (vector)
    lincomb<true><<<blocks_for(n, BLOCK * VEC), BLOCK, 0, s>>>(out, t, n);
  else
    lincomb<false><<<blocks_for(n, BLOCK * VEC), BLOCK, 0, s>>>(out, t, n);
}

void k_channel_affine(k_stream s, k_data x, const float *m, const float *a, k_data out, int64_t n, int c) {
  if (!n) return;
  with_type(x, [&](auto *i) {
    with_type(out, [&](auto *o) { channel_affine<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(i, m, a, o, n, c); });
  });
}

void k_to_u8(k_stream s, k_data x, uint8_t *out, int64_t n) {
  if (!n) return;
  with_type(x, [&](auto *i) { to_u8<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(i, out, n); });
}

void k_not_finite(k_stream s, k_data x, int64_t n, int *flag) {
  if (!n) return;
  unsigned grid = blocks_for(n, BLOCK * VEC);
  if (grid > 2048) grid = 2048;
  with_type(x, [&](auto *i) {
    if (aligned16(i))
      not_finite<true><<<grid, BLOCK, 0, s>>>(i, n, flag);
    else
      not_finite<false><<<grid, BLOCK, 0, s>>>(i, n, flag);
  });
}

void k_dot(k_stream s, const float *a, const float *b, int64_t n, double *part) {
  dot_parts<<<K_DOT_PARTS, BLOCK, 0, s>>>(a, b, n, part);
  dot_total<<<1, BLOCK, 0, s>>>(part);
}

void k_bias_act(k_stream s, const float *acc, const float *bias, k_act act, k_data out, int64_t rows, int c) {
  int64_t n = rows * c;
  if (!n) return;
  with_type(out, [&](auto *o) { bias_act<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(acc, bias, act, o, n, c); });
}
