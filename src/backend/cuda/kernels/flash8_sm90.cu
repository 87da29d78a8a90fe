/* flash8_sm90.cu: attention in 8 bits on Hopper's matrix units, for heads of 128 channels without biases.
 *
 * Scores are products of int8: a query row has its own scale, 128 keys share one. Their mean key is taken off
 * first: it adds the same to all scores of a query, which softmax doesn't see, and what is left is small.
 * Values lose their mean, too, and get it back at the end.
 *
 * Weights and values are e4m3. That product's operand wants four neighbouring keys in a thread where the
 * scores have two and two: so the keys of V (transposed when it is quantised) are stored in the order in
 * which the scores lie, and weights go from accumulator to operand without leaving the thread. The matrix
 * units add e4m3 products with some 14 bits, which cut off what is small beside the sum: so a tile's sum
 * starts from zero, and tiles are added in f32.
 *
 * A block is 128 queries of one head: a producer that fetches tiles of 128 keys and values, and two
 * warpgroups of 64 queries. The next tile's scores are issued together with this tile's sum over values, and
 * softmax runs beside the latter. */
#include "backend/cuda/kernels/common.cuh"
#include "backend/cuda/kernels/sm90.cuh"
#include "backend/cuda/kernels/wgmma8.cuh"

#include <cuda_fp8.h>

namespace {

enum { D = 128, TILE = 128, GROUP_ROWS = 64, GROUPS = 2, BLOCK = (GROUPS + 1) * 128, STAGES = 4 };
enum { TILE_BYTES = TILE * D, SHARED = TILE_BYTES * (2 * STAGES + 1) + 1024 /* tiles start on 1024 bytes */ };

/* ---- Quantisation ---- */

__device__ __forceinline__ float not_zero(float scale) {
  return scale > 1e-30f || scale != scale ? scale : 1e-30f;
}

/* max(|v|), where anything that isn't finite counts as infinity */
__device__ __forceinline__ float magnitude(float m, float v) {
  v = fabsf(v);
  return v <= 3.4e38f ? fmaxf(m, v) : INFINITY;
}

__device__ __forceinline__ void four_bf16(uint2 u, float v[4]) {
  v[0] = __uint_as_float(u.x << 16), v[1] = __uint_as_float(u.x & 0xffff0000u);
  v[2] = __uint_as_float(u.y << 16), v[3] = __uint_as_float(u.y & 0xffff0000u);
}

__device__ __forceinline__ unsigned four_s8(const float *v, float inverse) {
  unsigned w = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) w |= (unsigned)(__float2int_rn(v[i] * inverse) & 255) << (8 * i);
  return w;
}

__device__ __forceinline__ unsigned four_e4m3(float a, float b, float c, float d) {
  return (unsigned)__nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3) |
         (unsigned)__nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3) << 16;
}

/* Column sums of k and sums, minima and maxima of v over 128 rows: part [chunks][4][c]. */
__global__ void __launch_bounds__(128)
    column_parts(const bf16 *k, const bf16 *v, int64_t lk, int c, float *part) {
  const int col = (blockIdx.x * 128 + threadIdx.x) * 2;
  const int64_t r0 = (int64_t)blockIdx.y * TILE, r1 = r0 + TILE < lk ? r0 + TILE : lk;
  if (col >= c) return;
  float2 ks = make_float2(0, 0), vs = ks, lo = make_float2(INFINITY, INFINITY),
         hi = make_float2(-INFINITY, -INFINITY);
#pragma unroll 8
  for (int64_t r = r0; r < r1; r++) {
    unsigned a = *reinterpret_cast<const unsigned *>(k + r * c + col),
             b = *reinterpret_cast<const unsigned *>(v + r * c + col);
    float2 x = make_float2(__uint_as_float(a << 16), __uint_as_float(a & 0xffff0000u));
    float2 y = make_float2(__uint_as_float(b << 16), __uint_as_float(b & 0xffff0000u));
    ks.x += x.x, ks.y += x.y, vs.x += y.x, vs.y += y.y;
    lo.x = fminf(lo.x, y.x), lo.y = fminf(lo.y, y.y), hi.x = fmaxf(hi.x, y.x), hi.y = fmaxf(hi.y, y.y);
  }
  float2 *to = reinterpret_cast<float2 *>(part + (int64_t)blockIdx.y * 4 * c + col);
  const int half = c / 2;
  to[0] = ks, to[half] = vs, to[2 * half] = lo, to[3 * half] = hi;
}

/* columns [3][c]: mean of k, mean of v, scale of v */
__global__ void __launch_bounds__(128)
    column_totals(const float *part, int64_t chunks, int64_t lk, int c, float *columns) {
  const int col = blockIdx.x * 32 + threadIdx.x % 32, w = threadIdx.x / 32;
  __shared__ float all[4][4][32];
  float ks = 0, vs = 0, lo = INFINITY, hi = -INFINITY;
  if (col < c)
    for (int64_t i = w; i < chunks; i += 4) {
      const float *p = part + i * 4 * c + col;
      ks += p[0], vs += p[c], lo = fminf(lo, p[2 * c]), hi = fmaxf(hi, p[3 * c]);
    }
  all[0][w][threadIdx.x % 32] = ks, all[1][w][threadIdx.x % 32] = vs;
  all[2][w][threadIdx.x % 32] = lo, all[3][w][threadIdx.x % 32] = hi;
  __syncthreads();
  if (w || col >= c) return;
  for (int i = 1; i < 4; i++) {
    ks += all[0][i][threadIdx.x], vs += all[1][i][threadIdx.x];
    lo = fminf(lo, all[2][i][threadIdx.x]), hi = fmaxf(hi, all[3][i][threadIdx.x]);
  }
  const float mean = vs / (float)lk;
  float top = magnitude(magnitude(0, hi - mean), mean - lo);
  if (!(fabsf(mean) <= 3.4e38f)) top = INFINITY;
  columns[col] = ks / (float)lk;
  columns[c + col] = mean;
  columns[2 * c + col] = not_zero(top * (1.0f / 448.0f));
}

/* Keys and values: a block a tile of 128 keys of one head. */
__global__ void __launch_bounds__(256)
    quantise_kv(const bf16 *k, const bf16 *v, const float *columns, int64_t lk, int64_t padded, int heads,
                int8_t *k8, float *k_scale, uint8_t *v8) {
  __shared__ float top_of[8];
  __shared__ unsigned turned[D][TILE / 4 + 1];
  const int h = blockIdx.y, c = heads * D, t = threadIdx.x, lane = t % 32, warp = t / 32;
  const int64_t r0 = (int64_t)blockIdx.x * TILE;
  const int col = lane * 4; /* a warp reads a row of the head, four channels a thread */
  float x[16][4], top = 0;
  const float4 km = *reinterpret_cast<const float4 *>(columns + h * D + col);
  const float k_mean[4] = {km.x, km.y, km.z, km.w};
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const int64_t row = r0 + warp * 16 + i;
    four_bf16(row < lk ? *reinterpret_cast<const uint2 *>(k + row * c + h * D + col) : make_uint2(0, 0),
              x[i]);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      x[i][j] = row < lk ? x[i][j] - k_mean[j] : 0.0f;
      top = magnitude(top, x[i][j]);
    }
  }
  top = warp_max(top);
  if (lane == 0) top_of[warp] = top;
  __syncthreads();
  top = top_of[0];
#pragma unroll
  for (int i = 1; i < 8; i++) top = fmaxf(top, top_of[i]);
  top = not_zero(top);
  if (t == 0) k_scale[(int64_t)h * (padded / TILE) + blockIdx.x] = top * (1.0f / 127.0f);
#pragma unroll
  for (int i = 0; i < 16; i++)
    *reinterpret_cast<unsigned *>(k8 + ((int64_t)h * padded + r0 + warp * 16 + i) * D + col) =
        four_s8(x[i], 127.0f / top);
  const float4 vm = *reinterpret_cast<const float4 *>(columns + c + h * D + col);
  const float4 vs = *reinterpret_cast<const float4 *>(columns + 2 * c + h * D + col);
  const float mean[4] = {vm.x, vm.y, vm.z, vm.w}, inverse[4] = {1 / vs.x, 1 / vs.y, 1 / vs.z, 1 / vs.w};
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const int64_t row = r0 + warp * 16 + i;
    four_bf16(row < lk ? *reinterpret_cast<const uint2 *>(v + row * c + h * D + col) : make_uint2(0, 0),
              x[i]);
#pragma unroll
    for (int j = 0; j < 4; j++) x[i][j] = row < lk ? (x[i][j] - mean[j]) * inverse[j] : 0.0f;
  }
  /* of 16 keys, four bytes in a row are keys 2i, 2i + 1, 2i + 8, 2i + 9 */
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
      turned[col + j][warp * 4 + i] =
          four_e4m3(x[2 * i][j], x[2 * i + 1][j], x[2 * i + 8][j], x[2 * i + 9][j]);
  __syncthreads();
  for (int i = t; i < D * TILE / 16; i += 256) {
    const int channel = i / (TILE / 16), piece = i % (TILE / 16);
    const unsigned *from = &turned[channel][piece * 4];
    *reinterpret_cast<uint4 *>(v8 + ((int64_t)h * D + channel) * padded + r0 + piece * 16) =
        make_uint4(from[0], from[1], from[2], from[3]);
  }
}

/* ---- The kernel ---- */

struct job {
  const bf16 *q;
  const float *k_scale, *columns;
  bf16 *out;
  int64_t lq, lk;
  int heads, tiles;
  float scale; /* of scores, for powers of 2 */
  int once;    /* always 1, which the compiler doesn't know */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ unsigned pack4(float a, float b, float c, float d) {
  unsigned r;
  asm volatile("{\n.reg .b16 lo, hi;\n"
               "cvt.rn.satfinite.e4m3x2.f32 lo, %2, %1;\n"
               "cvt.rn.satfinite.e4m3x2.f32 hi, %4, %3;\n"
               "mov.b32 %0, {lo, hi};\n}"
               : "=r"(r)
               : "f"(a), "f"(b), "f"(c), "f"(d));
  return r;
}
/* An integer of less than 23 bits is a float of its own when it starts from the bits of 1.5 * 2^23. */
enum { START = 0x4b400000 };
#define ZERO 12582912.0f
#define TOP_WEIGHT 8.807355f /* log2 of the largest weight, 448, where e4m3 ends */

/* s = q k^T as such floats */
__device__ __forceinline__ void scores(int (&s)[64], uint64_t q, uint64_t k) {
#pragma unroll
  for (int i = 0; i < 64; i++) s[i] = START;
  products_begin();
#pragma unroll
  for (int i = 0; i < D / 32; i++) wgmma_s8(s, q + 2 * i, k + 2 * i, 1); /* 32 channels are 32 bytes */
  products_commit();
}

/* s becomes weights (as bits of f32); top, sum and shrink of this thread's two rows */
__device__ __forceinline__ void soften(int (&s)[64], const float scale[2], int keys, float top[2],
                                       float sum[2], float shrink[2]) {
  const int lane = threadIdx.x % 32;
  float f[64];
#pragma unroll
  for (int i = 0; i < 64; i++) f[i] = __int_as_float(s[i]);
  if (keys < TILE)
#pragma unroll
    for (int i = 0; i < 64; i++)
      if (i / 4 * 8 + 2 * (lane % 4) + i % 2 >= keys) f[i] = -INFINITY;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float m = f[2 * r];
#pragma unroll
    for (int j = 0; j < 16; j++) m = fmaxf(m, fmaxf(f[4 * j + 2 * r], f[4 * j + 2 * r + 1]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    const float next = fmaxf(top[r], (m - ZERO) * scale[r]);
    shrink[r] = power_of_2(top[r] - next);
    top[r] = next;
    const float base = fmaf(ZERO, scale[r], next) - TOP_WEIGHT;
    float part = 0;
#pragma unroll
    for (int j = 0; j < 16; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float p = power_of_2(fmaf(f[4 * j + 2 * r + e], scale[r], -base));
        part += p;
        s[4 * j + 2 * r + e] = __float_as_int(p);
      }
    sum[r] = fmaf(sum[r], shrink[r], part);
  }
}

__device__ __forceinline__ void weights(const int (&s)[64], unsigned (&p)[16]) {
#pragma unroll
  for (int i = 0; i < 8; i++) /* 16 keys: two column blocks of the scores */
#pragma unroll
    for (int r = 0; r < 2; r++)
      p[i / 2 * 4 + i % 2 * 2 + r] =
          pack4(__int_as_float(s[8 * i + 2 * r]), __int_as_float(s[8 * i + 2 * r + 1]),
                __int_as_float(s[8 * i + 4 + 2 * r]), __int_as_float(s[8 * i + 5 + 2 * r]));
}

/* o = p v */
__device__ __forceinline__ void values(float (&o)[64], const unsigned (&p)[16], uint64_t v) {
  products_begin();
#pragma unroll
  for (int i = 0; i < TILE / 32; i++) wgmma_e4m3(o, p + 4 * i, v + 2 * i, i > 0);
  products_commit();
}

/* This warp's 16 queries, quantised, into the group's tile at `to`; scale[r] is that of this thread's rows.
 */
__device__ __forceinline__ void load_queries(const job &j, int h, int64_t row0, unsigned to,
                                             float (&scale)[2]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const bf16 *from = j.q + ((row0 + 8 * r) * j.heads + h) * D + 4 * t;
    const bool real = row0 + 8 * r < j.lq;
    float v[8][4], top = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      four_bf16(real ? *reinterpret_cast<const uint2 *>(from + 16 * i) : make_uint2(0, 0), v[i]);
#pragma unroll
      for (int e = 0; e < 4; e++) top = magnitude(top, v[i][e]);
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = not_zero(fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2)));
    scale[r] = top * (1.0f / 127.0f) * j.scale;
    const int row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + 8 * r;
#pragma unroll
    for (int i = 0; i < 8; i++) { /* 16 bytes of row r are stored at their number ^ (r % 8) */
      const unsigned at = to + row * D + ((i ^ (row & 7)) << 4) + 4 * t;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(four_s8(v[i], 127.0f / top)) : "memory");
    }
  }
}

#endif

__global__ void __launch_bounds__(BLOCK, 1)
    flash8(const __grid_constant__ CUtensorMap km, const __grid_constant__ CUtensorMap vm, job j) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char memory[];
  __shared__ __align__(8) uint64_t barriers[4 * STAGES];
  const unsigned k_at = (shared_address(memory) + 1023) & ~1023u, v_at = k_at + STAGES * TILE_BYTES;
  const unsigned k_full = shared_address(barriers), v_full = k_full + 8 * STAGES,
                 k_empty = v_full + 8 * STAGES, v_empty = k_empty + 8 * STAGES;
  const int group = threadIdx.x / 128, h = blockIdx.y;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(k_full + 8 * i, 1);
      barrier_init(v_full + 8 * i, 1);
      barrier_init(k_empty + 8 * i, GROUPS);
      barrier_init(v_empty + 8 * i, GROUPS);
    }
    barriers_made();
  }
  __syncthreads();

  if (group == GROUPS) { /* the producer */
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == GROUPS * 128) {
      int stage = 0;
      unsigned parity = 1; /* the first round finds every stage empty */
      for (int t = 0; t < j.tiles; t++) {
        barrier_wait(k_empty + 8 * stage, parity);
        barrier_expect(k_full + 8 * stage, TILE_BYTES);
        copy_tile(k_at + stage * TILE_BYTES, &km, k_full + 8 * stage, 0, (h * j.tiles + t) * TILE);
        barrier_wait(v_empty + 8 * stage, parity);
        barrier_expect(v_full + 8 * stage, TILE_BYTES);
        copy_tile(v_at + stage * TILE_BYTES, &vm, v_full + 8 * stage, t * TILE, h * D);
        if (++stage == STAGES) stage = 0, parity ^= 1;
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int64_t row0 = (int64_t)blockIdx.x * TILE + group * GROUP_ROWS + warp * 16 + lane / 4;
    const unsigned q_at = v_at + STAGES * TILE_BYTES + group * GROUP_ROWS * D;
    const uint64_t q = matrix(q_at);
    const float *k_scale = j.k_scale + (int64_t)h * j.tiles;
    const int last_keys = (int)(j.lk - (int64_t)(j.tiles - 1) * TILE);
    float o[64] = {}, part[64]; /* the sum over all tiles, and that over one */
    float own[2], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, shrink[2];
    int s[64], ks = 0, vs = 0; /* stages of the next keys and values */
    unsigned p[16], kp = 0, vp = 0;
    load_queries(j, h, row0, q_at, own);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* the matrix units read them */
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");

    auto take_keys = [&] {
      if (threadIdx.x % 128 == 0) barrier_arrive(k_empty + 8 * ks);
      if (++ks == STAGES) ks = 0, kp ^= 1;
    };
    auto take_values = [&] {
      if (threadIdx.x % 128 == 0) barrier_arrive(v_empty + 8 * vs);
      if (++vs == STAGES) vs = 0, vp ^= 1;
    };
    auto soften_tile = [&](int t) {
      const float scale[2] = {own[0] * k_scale[t], own[1] * k_scale[t]};
      int times = j.once; /* without a loop, the compiler moves the exponentials behind the next wait */
      do {
        soften(s, scale, t + 1 == j.tiles ? last_keys : TILE, top, sum, shrink);
      } while (--times > 0);
    };
    /* o is of the maximum before the one that part is of */
    auto add_part = [&](float shrink0, float shrink1) {
#pragma unroll
      for (int i = 0; i < 64; i++) o[i] = fmaf(o[i], i / 2 % 2 ? shrink1 : shrink0, part[i]);
    };

    barrier_wait(k_full, 0);
    scores(s, q, matrix(k_at));
    products_wait<0>();
    hold(s);
    take_keys();
    soften_tile(0);
    weights(s, p);
    if (j.tiles > 1) barrier_wait(k_full + 8 * ks, kp);
    for (int t = 1; t < j.tiles; t++) {
      scores(s, q, matrix(k_at + ks * TILE_BYTES));
      barrier_wait(v_full + 8 * vs, vp);
      values(part, p, matrix(v_at + vs * TILE_BYTES));
      products_wait<1>();
      hold(s);
      take_keys();
      const float shrink0 = shrink[0], shrink1 = shrink[1];
      soften_tile(t);
      if (t + 1 < j.tiles) barrier_wait(k_full + 8 * ks, kp);
      products_wait<0>();
      hold(part);
      take_values();
      weights(s, p);
      add_part(shrink0, shrink1);
    }
    barrier_wait(v_full + 8 * vs, vp);
    values(part, p, matrix(v_at + vs * TILE_BYTES));
    products_wait<0>();
    hold(part);
    add_part(shrink[0], shrink[1]);

    const int c = j.heads * D;
    const float *mean = j.columns + c + h * D, *v_scale = mean + c;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
      const float share = 1.0f / sum[r];
      const int64_t row = row0 + 8 * r;
      if (row >= j.lq) continue;
#pragma unroll
      for (int b = 0; b < 16; b++) {
        const int col = 8 * b + 2 * (lane % 4);
        const float2 m = *reinterpret_cast<const float2 *>(mean + col),
                     f = *reinterpret_cast<const float2 *>(v_scale + col);
        *reinterpret_cast<unsigned *>(j.out + row * c + h * D + col) =
            pack2(fmaf(o[4 * b + 2 * r] * share, f.x, m.x), fmaf(o[4 * b + 2 * r + 1] * share, f.y, m.y));
      }
    }
  }
#endif
}

/* ---- The host's side ---- */

bool encode(encode_fn make, CUtensorMap *map, void *data, int64_t width, int64_t rows) {
  const cuuint64_t dim[2] = {(cuuint64_t)width, (cuuint64_t)rows}, stride[1] = {(cuuint64_t)width};
  const cuuint32_t box[2] = {128, 128}, step[2] = {1, 1};
  return make(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, data, dim, stride, box, step,
              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

int64_t round_up(int64_t n) {
  return (n + TILE - 1) / TILE * TILE;
}

/* Where the pieces of the scratch memory lie, in bytes. */
struct layout {
  int64_t k8, v8, k_scale, part, columns, bytes;
};
layout layout_of(int64_t lk, int heads) {
  const int64_t kp = round_up(lk), c = (int64_t)heads * D, tiles = kp / TILE;
  layout l = {};
  l.v8 = l.k8 + kp * c;
  l.k_scale = l.v8 + kp * c;
  l.part = l.k_scale + (tiles * heads * 4 + 255) / 256 * 256;
  l.columns = l.part + tiles * 4 * c * 4;
  l.bytes = l.columns + 3 * c * 4;
  return l;
}

} // namespace

bool k_flash8(k_stream s, void *encoder, const k_flash_spec *f, void *scratch, size_t bytes) {
  const layout l = layout_of(f->lk, f->heads);
  const int64_t kp = round_up(f->lk);
  const int tiles = (int)(kp / TILE), c = f->heads * D;
  char *at = (char *)scratch;
  CUtensorMap km, vm;
  if (!encoder || f->d != D || f->key_bias || f->rel_bias || (size_t)l.bytes > bytes) return false;
  if (!encode((encode_fn)encoder, &km, at + l.k8, D, kp * f->heads) ||
      !encode((encode_fn)encoder, &vm, at + l.v8, kp, c))
    return false;
  if (cudaFuncSetAttribute(flash8, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED) != cudaSuccess)
    return false;
  const bf16 *k = (const bf16 *)f->k, *v = (const bf16 *)f->v;
  float *part = (float *)(at + l.part), *columns = (float *)(at + l.columns),
        *k_scale = (float *)(at + l.k_scale);
  const float log2e = 1.4426950408889634f;
  const dim3 grid((unsigned)tiles, (unsigned)f->heads);
  column_parts<<<dim3(blocks_for(c, 256), (unsigned)tiles), 128, 0, s>>>(k, v, f->lk, c, part);
  column_totals<<<blocks_for(c, 32), 128, 0, s>>>(part, tiles, f->lk, c, columns);
  quantise_kv<<<grid, 256, 0, s>>>(k, v, columns, f->lk, kp, f->heads, (int8_t *)(at + l.k8), k_scale,
                                   (uint8_t *)(at + l.v8));
  job j = {(const bf16 *)f->q, k_scale, columns, (bf16 *)f->out, f->lq, f->lk, f->heads, tiles,
           f->scale * log2e,   1};
  flash8<<<dim3(blocks_for(f->lq, TILE), (unsigned)f->heads), BLOCK, SHARED, s>>>(km, vm, j);
  return true;
}
