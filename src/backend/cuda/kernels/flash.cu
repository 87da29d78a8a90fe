/* flash.cu: attention on the matrix units in one pass over the keys, for bf16 heads of up to 128 channels,
 * with the biases that the library's attention doesn't take. Runs on every card since compute capability 8.0.
 *
 * A block of 4 warps holds 64 queries of one head, 16 a warp. Keys and values pass through shared memory
 * 64 at a time, the next tile on its way while this one is used. Scores live in registers as mma.m16n8k16
 * leaves them; the running maximum and sum of a row are kept by the four threads that share it. Shared rows
 * are 16-byte groups, group g of row r stored at g ^ (r % 8), so that ldmatrix meets no bank twice. */
#include "backend/cuda/kernels/mma.cuh"

namespace {

enum { QUERIES = 64, KEYS = 64, WARPS = 4, BLOCK = WARPS * 32 };

/* Byte offset of 16-byte group g of row r in a tile of D channels. */
template <int D> __device__ __forceinline__ unsigned spot(int r, int g) {
  return (unsigned)(r * D * 2 + ((g ^ (r & 7)) << 4));
}

/* Rows row0.. of [rows, ld] (a head's columns) into a tile; rows and channels outside become 0. */
template <int D>
__device__ __forceinline__ void load_tile(unsigned to, const bf16 *from, int64_t row0, int64_t rows,
                                          int64_t ld, int d) {
  enum { GROUPS = D / 8 };
  for (int i = threadIdx.x; i < KEYS * GROUPS; i += BLOCK) {
    int r = i / GROUPS, g = i % GROUPS;
    bool real = row0 + r < rows && g * 8 < d;
    copy16(to + spot<D>(r, g), real ? from + (row0 + r) * ld + g * 8 : from, real);
  }
}

template <int D, bool BIASED> __global__ void __launch_bounds__(BLOCK) flash(k_flash_spec f) {
  extern __shared__ __align__(128) unsigned char memory[];
  enum { TILE_BYTES = KEYS * D * 2, STEPS = D / 16, KEY_BLOCKS = KEYS / 8, OUT_BLOCKS = D / 8 };
  static_assert((int)QUERIES == (int)KEYS, "a tile of queries uses load_tile too");
  const unsigned q_at = shared_address(memory), kv_at = q_at + TILE_BYTES; /* then K0 V0 K1 V1 */
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, h = blockIdx.y;
  const int64_t q0 = (int64_t)blockIdx.x * QUERIES, ld = (int64_t)f.heads * f.d;
  const bf16 *q = (const bf16 *)f.q + h * f.d, *k = (const bf16 *)f.k + h * f.d,
             *v = (const bf16 *)f.v + h * f.d;
  const int64_t tiles = (f.lk + KEYS - 1) / KEYS;
  const float log2e = 1.4426950408889634f, scale = f.scale * log2e;
  /* The biases of a tile by key - query, and by key; the latter with what hides keys that don't exist. */
  __shared__ float rel[2][BIASED ? QUERIES + KEYS : 1], bias[2][BIASED ? KEYS : 1];
  auto load_biases = [&](int64_t t) {
    if (!BIASED) return;
    const int to = (int)(t & 1);
    for (int i = threadIdx.x; i < QUERIES + KEYS; i += BLOCK) {
      const int64_t at = t * KEYS - q0 - (QUERIES - 1) + i + f.lq - 1;
      const bool real = f.rel_bias && at >= 0 && at < f.lq + f.lk - 1;
      rel[to][i] = real ? f.rel_bias[h * (f.lq + f.lk - 1) + at] * log2e : 0.0f;
    }
    for (int i = threadIdx.x; i < KEYS; i += BLOCK) {
      const int64_t key = t * KEYS + i;
      bias[to][i] = key >= f.lk ? -INFINITY : f.key_bias ? f.key_bias[key] * log2e : 0.0f;
    }
  };

  load_tile<D>(q_at, q, q0, f.lq, ld, f.d);
  load_tile<D>(kv_at, k, 0, f.lk, ld, f.d);
  load_tile<D>(kv_at + TILE_BYTES, v, 0, f.lk, ld, f.d);
  copies_commit();
  load_biases(0);

  unsigned qf[STEPS][4];
  float acc[OUT_BLOCKS][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  for (int64_t t = 0; t < tiles; t++) {
    const unsigned k_at = kv_at + (unsigned)(t & 1) * 2 * TILE_BYTES, v_at = k_at + TILE_BYTES;
    if (t + 1 < tiles) {
      const unsigned next = kv_at + (unsigned)((t + 1) & 1) * 2 * TILE_BYTES;
      load_tile<D>(next, k, (t + 1) * KEYS, f.lk, ld, f.d);
      load_tile<D>(next + TILE_BYTES, v, (t + 1) * KEYS, f.lk, ld, f.d);
      copies_commit();
      load_biases(t + 1);
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    __syncthreads();
    if (t == 0)
#pragma unroll
      for (int s = 0; s < STEPS; s++)
        ldmatrix4(qf[s], q_at + spot<D>(warp * 16 + lane % 16, 2 * s + lane / 16));

    float score[KEY_BLOCKS][4] = {};
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
      for (int n = 0; n < KEY_BLOCKS; n += 2) { /* 16 keys: two column blocks of the product */
        unsigned b[4];
        int row = n * 8 + lane % 8 + (lane / 16) * 8;
        ldmatrix4(b, k_at + spot<D>(row, 2 * s + lane / 8 % 2));
        mma(score[n], qf[s], b[0], b[1]);
        mma(score[n + 1], qf[s], b[2], b[3]);
      }

    /* score[n][e]: query warp*16 + lane/4 + 8*(e/2), key n*8 + 2*(lane%4) + e%2 */
    float largest[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < KEY_BLOCKS; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int key = n * 8 + 2 * (lane % 4) + e % 2, query = warp * 16 + lane / 4 + 8 * (e / 2);
        float x = score[n][e] * scale;
        if (BIASED) x += rel[t & 1][key - query + QUERIES - 1] + bias[t & 1][key];
        if (!BIASED && t * KEYS + key >= f.lk) x = -INFINITY;
        score[n][e] = x;
        largest[e / 2] = fmaxf(largest[e / 2], x);
      }
    float shrink[2], base[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], 1));
      largest[r] = fmaxf(largest[r], __shfl_xor_sync(0xffffffffu, largest[r], 2));
      base[r] = largest[r] == -INFINITY ? 0.0f : largest[r]; /* all keys so far weigh nothing */
      shrink[r] = exp2f(top[r] - base[r]);
      top[r] = largest[r];
      sum[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < OUT_BLOCKS; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[n][e] *= shrink[e / 2];
    unsigned p[KEY_BLOCKS][2];
#pragma unroll
    for (int n = 0; n < KEY_BLOCKS; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        score[n][e] = exp2f(score[n][e] - base[e / 2]);
        sum[e / 2] += score[n][e];
      }
      p[n][0] = pack2(score[n][0], score[n][1]);
      p[n][1] = pack2(score[n][2], score[n][3]);
    }
#pragma unroll
    for (int s = 0; s < KEYS / 16; s++) {
      unsigned a[4] = {p[2 * s][0], p[2 * s][1], p[2 * s + 1][0], p[2 * s + 1][1]};
#pragma unroll
      for (int n = 0; n < OUT_BLOCKS; n += 2) {
        unsigned b[4];
        ldmatrix4_transposed(b, v_at + spot<D>(s * 16 + lane % 16, n + lane / 16));
        mma(acc[n], a, b[0], b[1]);
        mma(acc[n + 1], a, b[2], b[3]);
      }
    }
    __syncthreads(); /* this tile's memory is free for the tile after next */
  }

#pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    sum[r] = 1.0f / sum[r];
  }
#pragma unroll
  for (int n = 0; n < OUT_BLOCKS; n++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      int64_t query = q0 + warp * 16 + lane / 4 + 8 * r;
      int channel = n * 8 + 2 * (lane % 4);
      if (query < f.lq && channel < f.d)
        *(unsigned *)((bf16 *)f.out + query * ld + h * f.d + channel) =
            pack2(acc[n][2 * r] * sum[r], acc[n][2 * r + 1] * sum[r]);
    }
}

template <int D, bool BIASED> void run(k_stream s, const k_flash_spec *f) {
  const int bytes = 5 * KEYS * D * 2; /* Q and two of K, V */
  cudaFuncSetAttribute(flash<D, BIASED>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  dim3 grid(blocks_for(f->lq, QUERIES), (unsigned)f->heads);
  flash<D, BIASED><<<grid, BLOCK, bytes, s>>>(*f);
}

} // namespace

void k_flash(k_stream s, const k_flash_spec *f) {
  bool biased = f->key_bias || f->rel_bias;
  if (f->d <= 64)
    biased ? run<64, true>(s, f) : run<64, false>(s, f);
  else
    biased ? run<128, true>(s, f) : run<128, false>(s, f);
}
