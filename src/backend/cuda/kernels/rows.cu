/* rows.cu: everything that needs a whole row of channels before its first result: norms and softmax.
 *
 * The fast form keeps a row in registers: GROUP threads (a warp, or a block of 128) hold CHUNKS times 8
 * values each, so that memory is read once. Rows that are too long, or not made of aligned groups of 8,
 * take the plain form, one block a row, which reads the row once for each pass. A thread takes the mean and
 * the squares around it of its own values, and these are merged behind one barrier, so that a row of large
 * equal values gives 0. */
#include "backend/cuda/kernels/common.cuh"

#include <type_traits>

namespace {

enum { BLOCK = 128 };

/* ---- What is done with the standardised value: at(row, a thread's first column).apply(column, values) ----
 */

struct ada {
  static constexpr bool centred = true;
  k_mod m;
  int shift, scale, c;
  struct in_row {
    const float *add, *mul;
    template <int N> __device__ void apply(int col, float *v) const {
#pragma unroll
      for (int j = 0; j < N; j++) v[j] = v[j] * (1.0f + mul[col + j]) + add[col + j];
    }
  };
  template <int STEP> __device__ in_row at(int64_t row, int) const {
    return {mod_entry(m, row, shift, c), mod_entry(m, row, scale, c)};
  }
};

struct layer {
  static constexpr bool centred = true;
  const float *gamma, *beta;
  template <int N> __device__ void apply(int col, float *v) const {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = v[j] * gamma[col + j] + beta[col + j];
  }
  template <int STEP> __device__ layer at(int64_t, int) const {
    return *this;
  }
};

struct rms {
  static constexpr bool centred = false;
  const float *gamma;
  template <int N> __device__ void apply(int col, float *v) const {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = v[j] * gamma[col + j];
  }
  template <int STEP> __device__ rms at(int64_t, int) const {
    return *this;
  }
};

struct rms_rope {
  static constexpr bool centred = false;
  const float *gamma;
  const float2 *rope;
  int pairs;
  /* A head's rotations come again every `pairs` pairs: where that divides the distance between a thread's
   * groups of columns, it needs 4 of them, which are on their way while the row is summed up. */
  struct in_row {
    const float *gamma;
    const float2 *rope; /* of the row, or NULL */
    int pairs;
    bool same;
    float2 turn[VEC / 2];
    template <int N> __device__ void apply(int col, float *v) const {
      static_assert(N % 2 == 0, "pairs stay together");
      int p = rope && !same ? col / 2 % pairs : 0;
#pragma unroll
      for (int j = 0; j < N; j += 2) {
        float a = v[j] * gamma[col + j], b = v[j + 1] * gamma[col + j + 1];
        float2 t = same ? turn[j / 2] : rope ? rope[p] : make_float2(1, 0);
        v[j] = a * t.x - b * t.y;
        v[j + 1] = a * t.y + b * t.x;
        if (++p == pairs) p = 0;
      }
    }
  };
  template <int STEP> __device__ in_row at(int64_t row, int col) const {
    in_row r = {gamma, rope ? rope + row * pairs : nullptr, pairs, rope && STEP && STEP / 2 % pairs == 0, {}};
    if (!r.same) return r;
    int p = col / 2 % pairs;
#pragma unroll
    for (int i = 0; i < VEC / 2; i++) {
      r.turn[i] = r.rope[p];
      if (++p == pairs) p = 0;
    }
    return r;
  }
};

struct channel {
  static constexpr bool centred = false;
  const float *gamma;
  k_act act;
  template <int N> __device__ void apply(int col, float *v) const {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = activate(act, v[j] * gamma[col + j]);
  }
  template <int STEP> __device__ channel at(int64_t, int) const {
    return *this;
  }
};

/* From the mean of squares to the factor. The VAE's norm divides by max(||x||, 1e-12) / sqrt(c). */
template <class Op> __device__ __forceinline__ float factor(const Op &, float mean_square, float eps, int) {
  return 1.0f / sqrtf(mean_square + eps);
}
__device__ __forceinline__ float factor(const channel &, float mean_square, float, int c) {
  return sqrtf((float)c) / fmaxf(sqrtf(mean_square * (float)c), 1e-12f);
}

/* ---- What is added to a row on its way in ---- */

struct nothing {
  static constexpr bool adds = false;
};

/* x += gate * y, as gate_add does it; what is not finite then is noted in *watch. */
template <class Y> struct gated {
  static constexpr bool adds = true;
  using raw = raw8<Y>;
  float *x;
  const Y *y;
  k_mod m;
  int gate, c;
  int *watch;
  struct in_row {
    float *x;
    const float *g; /* or NULL */
    /* True when a sum is not finite. */
    __device__ bool apply(const raw &from, int col, float *v) const {
      float w[VEC], scale[VEC];
      from.widen(w);
      if (g) {
        load8(g + col, scale);
#pragma unroll
        for (int j = 0; j < VEC; j++) w[j] *= scale[j];
      }
      bool bad = false;
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        v[j] += w[j];
        bad |= !isfinite(v[j]);
      }
      store8(x + col, v);
      return bad;
    }
  };
  __device__ in_row at(int64_t row) const {
    return {x + row * c, m.mod ? mod_entry(m, row, gate, c) : nullptr};
  }
};

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

/* Count, mean and sum of squares around the mean of some values. */
struct moments {
  float n, mean, squares;
};

__device__ __forceinline__ moments merge(const moments &a, const moments &b) {
  const float n = a.n + b.n, part = b.n > 0 ? __fdividef(b.n, n) : 0.0f, d = b.mean - a.mean;
  return {n, a.mean + d * part, a.squares + b.squares + d * d * a.n * part};
}

/* Of one thread's values, those of chunks beyond the row left out. The mean's own rounding is taken out
 * again. */
template <int GROUP, int CHUNKS>
__device__ __forceinline__ moments moments_of(const float (&v)[CHUNKS][VEC], int lane, int c) {
  float sum = 0, off = 0, squares = 0, n = 0;
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) {
    if ((k * GROUP + lane) * VEC < c) n += VEC;
#pragma unroll
    for (int j = 0; j < VEC; j++) sum += v[k][j]; /* zeros beyond the row */
  }
  if (n == 0) return {0, 0, 0};
  const float mean = sum / n;
#pragma unroll
  for (int k = 0; k < CHUNKS; k++)
    if ((k * GROUP + lane) * VEC < c)
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        float d = v[k][j] - mean;
        off += d;
        squares += d * d;
      }
  return {n, mean + off / n, squares - off * (off / n)};
}

/* Of a whole row, the same bits in all its threads. Called once by a kernel. */
template <int GROUP> __device__ __forceinline__ moments merge_all(moments m) {
  __shared__ moments part[BLOCK / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) {
    moments other = {__shfl_down_sync(0xffffffffu, m.n, o), __shfl_down_sync(0xffffffffu, m.mean, o),
                     __shfl_down_sync(0xffffffffu, m.squares, o)};
    m = merge(m, other);
  }
  if (GROUP == 32) return {m.n, __shfl_sync(0xffffffffu, m.mean, 0), __shfl_sync(0xffffffffu, m.squares, 0)};
  if (lane == 0) part[warp] = m;
  __syncthreads();
  m = part[0];
#pragma unroll
  for (int i = 1; i < BLOCK / 32; i++) m = merge(m, part[i]);
  return m;
}

/* ---- The row in registers ---- */

/* f(chunk, first column) for each of a thread's groups of 8. */
template <int GROUP, int CHUNKS, class F> __device__ __forceinline__ void each_group(int lane, int c, F f) {
#pragma unroll
  for (int k = 0; k < CHUNKS; k++) {
    const int col = (k * GROUP + lane) * VEC;
    if (col < c) f(k, col);
  }
}

template <class In, class Out, int GROUP, int CHUNKS, class Add, class Op>
__global__ void __launch_bounds__(BLOCK)
    rows_fast(const In *x, Out *out, int64_t rows, int c, float eps, Add add, Op op) {
  const int lane = threadIdx.x % GROUP;
  const int64_t row = (int64_t)blockIdx.x * (BLOCK / GROUP) + threadIdx.x / GROUP;
  if (row >= rows) return; /* whole warps only: with GROUP == BLOCK there is a block a row */
  auto each = [&](auto f) { each_group<GROUP, CHUNKS>(lane, c, f); };
  float v[CHUNKS][VEC] = {};
  raw8<In> in[CHUNKS];
  each([&](int k, int col) { in[k].load(x + row * c + col); });
  const auto in_row = op.template at<GROUP * VEC>(row, lane * VEC);
  if constexpr (Add::adds) {
    typename Add::raw more[CHUNKS];
    const auto sum = add.at(row);
    bool bad = false;
    each([&](int k, int col) { more[k].load(add.y + row * c + col); });
    each([&](int k, int col) {
      in[k].widen(v[k]);
      bad |= sum.apply(more[k], col, v[k]);
    });
    if (bad && add.watch) *add.watch = 1; /* every writer writes the same */
  } else {
    each([&](int k, int) { in[k].widen(v[k]); });
  }
  float mean = 0, scale;
  if constexpr (Op::centred) {
    const moments m = merge_all<GROUP>(moments_of<GROUP, CHUNKS>(v, lane, c));
    mean = m.mean;
    scale = factor(op, fmaxf(m.squares / (float)c, 0.0f), eps, c);
  } else {
    float2 s = make_float2(0, 0);
#pragma unroll
    for (int k = 0; k < CHUNKS; k++)
#pragma unroll
      for (int j = 0; j < VEC; j++) s.x += v[k][j] * v[k][j];
    scale = factor(op, group_sum<GROUP>(s).x / (float)c, eps, c);
  }
  each([&](int k, int col) {
#pragma unroll
    for (int j = 0; j < VEC; j++) v[k][j] = (v[k][j] - mean) * scale;
    in_row.template apply<VEC>(col, v[k]);
    store8(out + row * c + col, v[k]);
  });
}

/* ---- The row in memory ---- */

/* The last element of an odd row; rows that are rotated are even. */
template <class Row> __device__ __forceinline__ void last(const Row &row, int i, float *v) {
  row.template apply<1>(i, v);
}
__device__ __forceinline__ void last(const rms_rope::in_row &, int, float *) {}

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
  const auto in_row = op.template at<0>(row, 0);
  for (int i = threadIdx.x * 2; i < c; i += 2 * BLOCK) { /* two by two: rotations work on pairs */
    float v[2] = {(to_f32(x[i]) - mean - off) * scale, 0};
    if (i + 1 < c) {
      v[1] = (to_f32(x[i + 1]) - mean - off) * scale;
      in_row.template apply<2>(i, v);
      put(out + i, v[0]);
      put(out + i + 1, v[1]);
    } else {
      last(in_row, i, v);
      put(out + i, v[0]);
    }
  }
}

template <int GROUP, int CHUNKS, class In, class Out, class Add, class Op>
void launch(k_stream s, const In *x, Out *out, int64_t rows, int c, float eps, Add add, Op op) {
  rows_fast<In, Out, GROUP, CHUNKS, Add, Op>
      <<<blocks_for(rows, BLOCK / GROUP), BLOCK, 0, s>>>(x, out, rows, c, eps, add, op);
}

template <class In, class Out, class Op>
void rows_run(k_stream s, const In *x, Out *out, int64_t rows, int c, float eps, Op op) {
  if (rows <= 0) return;
  const nothing none;
  bool vector = c % VEC == 0 && aligned16(x) && aligned16(out);
  if (!vector || c > BLOCK * VEC * 8)
    rows_plain<<<(unsigned)rows, BLOCK, 0, s>>>(x, out, c, eps, op);
  else if (c <= 32 * VEC)
    launch<32, 1>(s, x, out, rows, c, eps, none, op);
  else if (c <= 32 * VEC * 2)
    launch<32, 2>(s, x, out, rows, c, eps, none, op);
  else if (c <= 32 * VEC * 4)
    launch<32, 4>(s, x, out, rows, c, eps, none, op);
  else if (c <= BLOCK * VEC * 2)
    launch<BLOCK, 2>(s, x, out, rows, c, eps, none, op);
  else if (c <= BLOCK * VEC * 3) /* 3072 */
    launch<BLOCK, 3>(s, x, out, rows, c, eps, none, op);
  else if (c <= BLOCK * VEC * 5) /* 4096, 5120 */
    launch<BLOCK, 5>(s, x, out, rows, c, eps, none, op);
  else
    launch<BLOCK, 8>(s, x, out, rows, c, eps, none, op);
}

/* With an addition in front. False: not this case. */
template <class Out, class Y, class Op>
bool added_rows_run(k_stream s, const gated<Y> &add, Out *out, int64_t rows, float eps, Op op) {
  const int c = add.c;
  if (c % VEC != 0 || c > BLOCK * VEC * 5 || !aligned16(add.x) || !aligned16(add.y) || !aligned16(out) ||
      !aligned16(add.m.mod))
    return false;
  if (c <= BLOCK * VEC)
    launch<BLOCK, 1>(s, add.x, out, rows, c, eps, add, op);
  else if (c <= BLOCK * VEC * 3)
    launch<BLOCK, 3>(s, add.x, out, rows, c, eps, add, op);
  else
    launch<BLOCK, 5>(s, add.x, out, rows, c, eps, add, op);
  return true;
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

/* The two steps apart, where they can't be joined. */
static void add_first(k_stream s, float *x, const k_residual *r, int64_t rows, int c) {
  k_gate_add(s, k_data{x, K_F32}, r->y, r->m, r->gate, rows, c);
  if (r->watch) k_not_finite(s, k_data{x, K_F32}, rows * c, r->watch);
}

void k_add_ada_norm(k_stream s, float *x, const k_residual *r, k_mod m, int shift, int scale, float eps,
                    k_data out, int64_t rows, int c) {
  bool done = rows <= 0;
  with_type(out, [&](auto *o) {
    with_type(r->y, [&](auto *y) {
      gated<std::remove_pointer_t<decltype(y)>> add{x, y, r->m, r->gate, c, r->watch};
      if (!done) done = added_rows_run(s, add, o, rows, eps, ada{m, shift, scale, c});
    });
  });
  if (done) return;
  add_first(s, x, r, rows, c);
  k_ada_norm(s, x, m, shift, scale, eps, out, rows, c);
}

void k_add_layer_norm(k_stream s, float *x, const k_residual *r, const float *gamma, const float *beta,
                      float eps, k_data out, int64_t rows, int c) {
  bool done = rows <= 0;
  with_type(out, [&](auto *o) {
    with_type(r->y, [&](auto *y) {
      gated<std::remove_pointer_t<decltype(y)>> add{x, y, r->m, r->gate, c, r->watch};
      if (!done) done = added_rows_run(s, add, o, rows, eps, layer{gamma, beta});
    });
  });
  if (done) return;
  add_first(s, x, r, rows, c);
  k_layer_norm(s, x, gamma, beta, eps, out, rows, c);
}

void k_rms_norm(k_stream s, k_data x, const float *gamma, float eps, k_data out, int64_t rows, int c) {
  with_type(x,
            [&](auto *i) { with_type(out, [&](auto *o) { rows_run(s, i, o, rows, c, eps, rms{gamma}); }); });
}

void k_qk_norm_rope(k_stream s, k_data x, const float *gamma, float eps, const float *rope, int pairs,
                    int64_t rows, int c) {
  with_type(x, [&](auto *p) {
    rows_run(s, p, p, rows, c, eps, rms_rope{gamma, (const float2 *)rope, pairs});
  });
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
