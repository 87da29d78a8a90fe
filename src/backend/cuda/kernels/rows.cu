/* rows.cu: everything that needs a whole row of channels before its first result: norms and softmax.
 *
 * The fast form keeps a row in registers: GROUP threads (a warp, or a block of 128) hold CHUNKS times 8
 * values each, so that memory is read once. Rows that are too long, or not made of aligned groups of 8,
 * take the plain form, one block a row, which reads the row once for each pass. Variances are taken
 * around a first mean and corrected by what that mean is off, so that a row of large equal values gives 0. */
#include "backend/cuda/kernels/common.cuh"

namespace {

enum { BLOCK = 128 };

/* ---- What is done with the standardised value: apply(row, first column, count, values) ---- */

struct ada {
  static constexpr bool centred = true;
  k_mod m;
  int shift, scale, c;
  template <int N> __device__ void apply(int64_t row, int col, float *v) const {
    const float *add = mod_entry(m, row, shift, c) + col, *mul = mod_entry(m, row, scale, c) + col;
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = v[j] * (1.0f + mul[j]) + add[j];
  }
};

struct layer {
  static constexpr bool centred = true;
  const float *gamma, *beta;
  template <int N> __device__ void apply(int64_t, int col, float *v) const {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = v[j] * gamma[col + j] + beta[col + j];
  }
};

struct rms {
  static constexpr bool centred = false;
  const float *gamma;
  template <int N> __device__ void apply(int64_t, int col, float *v) const {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = v[j] * gamma[col + j];
  }
};

struct rms_rope {
  static constexpr bool centred = false;
  const float *gamma, *rope;
  int pairs;
  template <int N> __device__ void apply(int64_t row, int col, float *v) const {
    static_assert(N % 2 == 0, "pairs stay together");
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      float a = v[j] * gamma[col + j], b = v[j + 1] * gamma[col + j + 1];
      float2 turn = make_float2(1, 0);
      if (rope) turn = reinterpret_cast<const float2 *>(rope)[row * pairs + (col + j) / 2 % pairs];
      v[j] = a * turn.x - b * turn.y;
      v[j + 1] = a * turn.y + b * turn.x;
    }
  }
};

struct channel {
  static constexpr bool centred = false;
  const float *gamma;
  k_act act;
  template <int N> __device__ void apply(int64_t, int col, float *v) const {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = activate(act, v[j] * gamma[col + j]);
  }
};

/* From the mean of squares to the factor. The VAE's norm divides by max(||x||, 1e-12) / sqrt(c). */
template <class Op> __device__ __forceinline__ float factor(const Op &, float mean_square, float eps, int) {
  return 1.0f / sqrtf(mean_square + eps);
}
__device__ __forceinline__ float factor(const channel &, float mean_square, float, int c) {
  return sqrtf((float)c) / fmaxf(sqrtf(mean_square * (float)c), 1e-12f);
}

/* ---- Sums over the threads of a row ---- */

template <int GROUP> __device__ __forceinline__ float2 group_sum(float2 v) {
  v.x = warp_sum(v.x);
  v.y = warp_sum(v.y);
  if (GROUP == 32) return v;
  __shared__ float2 part[BLOCK / 32];
  static_assert(GROUP == 32 || GROUP == BLOCK, "a warp or the block");
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads(); /* the part read last time is free */
  if (lane == 0) part[warp] = v;
  __syncthreads();
  float2 sum = make_float2(0, 0);
#pragma unroll
  for (int i = 0; i < BLOCK / 32; i++) sum.x += part[i].x, sum.y += part[i].y;
  return sum;
}

/* ---- The row in registers ---- */

template <class In, class Out, int GROUP, int CHUNKS, class Op>
__global__ void __launch_bounds__(BLOCK)
    rows_fast(const In *x, Out *out, int64_t rows, int c, float eps, Op op) {
  const int lane = threadIdx.x % GROUP;
  const int64_t row = (int64_t)blockIdx.x * (BLOCK / GROUP) + threadIdx.x / GROUP;
  if (row >= rows) return; /* whole warps only: with GROUP == BLOCK there is a block a row */
  float v[CHUNKS][VEC], sum = 0;
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) {
    int col = (k * GROUP + lane) * VEC;
    if (col < c) {
      load8(x + row * c + col, v[k]);
    } else {
#pragma unroll
      for (int j = 0; j < VEC; j++) v[k][j] = 0;
    }
#pragma unroll
    for (int j = 0; j < VEC; j++) sum += v[k][j];
  }
  float mean = 0;
  if (Op::centred) mean = group_sum<GROUP>(make_float2(sum, 0)).x / (float)c;
  float2 s = make_float2(0, 0);
#pragma unroll
  for (int k = 0; k < CHUNKS; k++)
    if ((k * GROUP + lane) * VEC < c)
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        v[k][j] -= mean;
        s.x += v[k][j];
        s.y += v[k][j] * v[k][j];
      }
  s = group_sum<GROUP>(s);
  float off = Op::centred ? s.x / (float)c : 0, square = s.y / (float)c - off * off;
  float scale = factor(op, fmaxf(square, 0.0f), eps, c);
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) {
    int col = (k * GROUP + lane) * VEC;
    if (col >= c) continue;
#pragma unroll
    for (int j = 0; j < VEC; j++) v[k][j] = (v[k][j] - off) * scale;
    op.template apply<VEC>(row, col, v[k]);
    store8(out + row * c + col, v[k]);
  }
}

/* ---- The row in memory ---- */

/* The last element of an odd row; rows that are rotated are even. */
template <class Op> __device__ __forceinline__ void last(const Op &op, int64_t row, int i, float *v) {
  op.template apply<1>(row, i, v);
}
__device__ __forceinline__ void last(const rms_rope &, int64_t, int, float *) {}

template <class In, class Out, class Op>
__global__ void __launch_bounds__(BLOCK) rows_plain(const In *x, Out *out, int c, float eps, Op op) {
  const int64_t row = blockIdx.x;
  x += row * c;
  out += row * c;
  float mean = 0;
  if (Op::centred) {
    float sum = 0;
    for (int i = threadIdx.x; i < c; i += BLOCK) sum += to_f32(x[i]);
    mean = group_sum<BLOCK>(make_float2(sum, 0)).x / (float)c;
  }
  float2 s = make_float2(0, 0);
  for (int i = threadIdx.x; i < c; i += BLOCK) {
    float d = to_f32(x[i]) - mean;
    s.x += d;
    s.y += d * d;
  }
  s = group_sum<BLOCK>(s);
  float off = Op::centred ? s.x / (float)c : 0, square = s.y / (float)c - off * off;
  float scale = factor(op, fmaxf(square, 0.0f), eps, c);
  for (int i = threadIdx.x * 2; i < c; i += 2 * BLOCK) { /* two by two: rotations work on pairs */
    float v[2] = {(to_f32(x[i]) - mean - off) * scale, 0};
    if (i + 1 < c) {
      v[1] = (to_f32(x[i + 1]) - mean - off) * scale;
      op.template apply<2>(row, i, v);
      put(out + i, v[0]);
      put(out + i + 1, v[1]);
    } else {
      last(op, row, i, v);
      put(out + i, v[0]);
    }
  }
}

template <class In, class Out, class Op>
void rows_run(k_stream s, const In *x, Out *out, int64_t rows, int c, float eps, Op op) {
  if (rows <= 0) return;
  bool vector = c % VEC == 0 && aligned16(x) && aligned16(out);
  unsigned few = blocks_for(rows, BLOCK / 32), each = (unsigned)rows;
  if (!vector || c > BLOCK * VEC * 8)
    rows_plain<<<each, BLOCK, 0, s>>>(x, out, c, eps, op);
  else if (c <= 32 * VEC)
    rows_fast<In, Out, 32, 1, Op><<<few, BLOCK, 0, s>>>(x, out, rows, c, eps, op);
  else if (c <= 32 * VEC * 2)
    rows_fast<In, Out, 32, 2, Op><<<few, BLOCK, 0, s>>>(x, out, rows, c, eps, op);
  else if (c <= 32 * VEC * 4)
    rows_fast<In, Out, 32, 4, Op><<<few, BLOCK, 0, s>>>(x, out, rows, c, eps, op);
  else if (c <= BLOCK * VEC * 2)
    rows_fast<In, Out, BLOCK, 2, Op><<<each, BLOCK, 0, s>>>(x, out, rows, c, eps, op);
  else if (c <= BLOCK * VEC * 3) /* 3072 */
    rows_fast<In, Out, BLOCK, 3, Op><<<each, BLOCK, 0, s>>>(x, out, rows, c, eps, op);
  else if (c <= BLOCK * VEC * 5) /* 5120 */
    rows_fast<In, Out, BLOCK, 5, Op><<<each, BLOCK, 0, s>>>(x, out, rows, c, eps, op);
  else
    rows_fast<In, Out, BLOCK, 8, Op><<<each, BLOCK, 0, s>>>(x, out, rows, c, eps, op);
}

/* ---- Softmax over the keys of one query, one block each ---- */

__device__ __forceinline__ float block_max(float v) {
  __shared__ float part[BLOCK / 32];
  v = warp_max(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  float m = part[0];
#pragma unroll
  for (int i = 1; i < BLOCK / 32; i++) m = fmaxf(m, part[i]);
  return m;
}

template <class Out>
__global__ void __launch_bounds__(BLOCK)
    softmax_rows(const float *score, const float *key_bias, const float *rel_bias, Out *p, int64_t rows,
                 int64_t row0, int64_t lq, int64_t lk) {
  const int64_t i = blockIdx.x, h = blockIdx.y, at = (h * rows + i) * lk;
  const float *rel = rel_bias ? rel_bias + h * (lq + lk - 1) + lq - 1 - (row0 + i) : nullptr;
  auto biased = [&](int64_t j) {
    return score[at + j] + (key_bias ? key_bias[j] : 0.0f) + (rel ? rel[j] : 0.0f);
  };
  float m = -INFINITY;
  for (int64_t j = threadIdx.x; j < lk; j += BLOCK) m = fmaxf(m, biased(j));
  m = block_max(m);
  float2 sum = make_float2(0, 0);
  for (int64_t j = threadIdx.x; j < lk; j += BLOCK) sum.x += expf(biased(j) - m);
  float inverse = 1.0f / group_sum<BLOCK>(sum).x;
  for (int64_t j = threadIdx.x; j < lk; j += BLOCK) put(p + at + j, expf(biased(j) - m) * inverse);
}

} // namespace

void k_ada_norm(k_stream s, const float *x, k_mod m, int shift, int scale, float eps, k_data out,
                int64_t rows, int c) {
  with_type(out, [&](auto *o) { rows_run(s, x, o, rows, c, eps, ada{m, shift, scale, c}); });
}

void k_layer_norm(k_stream s, const float *x, const float *gamma, const float *beta, float eps, k_data out,
                  int64_t rows, int c) {
  with_type(out, [&](auto *o) { rows_run(s, x, o, rows, c, eps, layer{gamma, beta}); });
}

void k_rms_norm(k_stream s, k_data x, const float *gamma, float eps, k_data out, int64_t rows, int c) {
  with_type(x,
            [&](auto *i) { with_type(out, [&](auto *o) { rows_run(s, i, o, rows, c, eps, rms{gamma}); }); });
}

void k_qk_norm_rope(k_stream s, k_data x, const float *gamma, float eps, const float *rope, int pairs,
                    int64_t rows, int c) {
  with_type(x, [&](auto *p) { rows_run(s, p, p, rows, c, eps, rms_rope{gamma, rope, pairs}); });
}

void k_channel_norm(k_stream s, k_data x, const float *gamma, k_act act, k_data out, int64_t rows, int c) {
  with_type(x, [&](auto *i) {
    with_type(out, [&](auto *o) { rows_run(s, i, o, rows, c, 0.0f, channel{gamma, act}); });
  });
}

void k_softmax(k_stream s, const float *score, const float *key_bias, const float *rel_bias, k_data p,
               int heads, int64_t rows, int64_t row0, int64_t lq, int64_t lk) {
  dim3 grid((unsigned)rows, (unsigned)heads);
  with_type(p, [&](auto *o) {
    softmax_rows<<<grid, BLOCK, 0, s>>>(score, key_bias, rel_bias, o, rows, row0, lq, lk);
  });
}
