/* flash_sm90.cu: attention on Hopper's matrix units, for bf16 heads of 128 channels.
 *
 * A block makes 128 queries of one head, 64 for each of two warpgroups; a third feeds keys and values, 176 at
 * a time, through rings of shared memory. Two neighbouring blocks form a cluster: they need the same keys, so
 * each fetches half of them and the copy engine writes it to both.
 *
 * Softmax costs about half as long as the products, so it has to hide behind them. A warpgroup issues the
 * next tile's scores, then this tile's values times its weights, and turns scores into weights while the
 * latter product runs; and the two warpgroups take turns, so that one multiplies while the other
 * exponentiates. Weights stay in registers: as accumulators they lie as a product's first operand. The last
 * keys, of which some may not exist, come first, so that only the first tile is masked. */
#include "backend/cuda/kernels/common.cuh"
#include "backend/cuda/kernels/sm90.cuh"
#include "backend/cuda/kernels/wgmma.cuh"

namespace {

enum {
  D = 128,
  QUERIES = 128,
  KEYS = 176,
  CONSUMERS = 2,
  BLOCK = (CONSUMERS + 1) * 128,
  CLUSTER = 2,
  STAGES = 2,
  HALF = 64, /* channels of a 128-byte swizzled row */
  Q_BYTES = QUERIES * D * 2,
  TILE_BYTES = KEYS * D * 2,
  SHARED_BYTES = Q_BYTES + 2 * STAGES * TILE_BYTES + 1024 /* the first tile starts on 1024 bytes */
};

struct flash_args {
  bf16 *out;
  int64_t ld; /* elements between rows of out */
  int lq, lk, tiles;
  float scale_log2; /* the scores' scale times log2(e) */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* Into both blocks of the cluster, at the same place. */
__device__ __forceinline__ void copy_tile_to_both(unsigned to, const CUtensorMap *map, unsigned barrier,
                                                  int channel, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(channel), "r"(row), "h"((uint16_t)((1 << CLUSTER) - 1))
      : "memory");
}

/* 2^x to 2 units in the last place; results below the normal numbers are 0 */
__device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* The two warpgroups' turns at the matrix units. */
__device__ __forceinline__ void turn_take(int warpgroup) {
  asm volatile("bar.sync %0, 256;" ::"r"(warpgroup + 1) : "memory");
}
__device__ __forceinline__ void turn_give(int warpgroup) {
  asm volatile("bar.arrive %0, 256;" ::"r"(warpgroup + 1) : "memory");
}

/* score = Q K^T, issued. q, k: shared addresses of this warpgroup's queries and of a tile. */
__device__ __forceinline__ void scores(float (&score)[KEYS / 2], unsigned q, unsigned k) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint64_t a = matrix(q + half * QUERIES * HALF * 2), b = matrix(k + half * KEYS * HALF * 2);
#pragma unroll
    for (int i = 0; i < HALF / 16; i++)
      wgmma<KEYS>(score, a + 2 * i, b + 2 * i, half > 0 || i > 0); /* 16 channels are 32 bytes */
  }
}

/* acc += P V, issued. */
__device__ __forceinline__ void values(float (&acc)[D / 2], const unsigned (&p)[KEYS / 16][4], unsigned v) {
  const uint64_t b = matrix(v, KEYS * HALF * 2);
#pragma unroll
  for (int i = 0; i < KEYS / 16; i++) wgmma_turned<D>(acc, p[i], b + i * (16 * HALF * 2 >> 4));
}

/* A thread's two rows: score[4j + 2r + e] is row r (of lane/4 and lane/4 + 8), key 8j + 2*(lane%4) + e. */
struct softmax_state {
  float top[2], sum[2], shrink[2];
};

/* Scores to weights. `first`: there is nothing before. */
template <bool FIRST>
__device__ __forceinline__ void weigh(float (&score)[KEYS / 2], softmax_state &s, float scale_log2) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float top = FIRST ? score[2 * r] : s.top[r];
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
      top = fmaxf(top, fmaxf(score[4 * j + 2 * r], score[4 * j + 2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    s.shrink[r] = FIRST ? 0.0f : power_of_2((s.top[r] - top) * scale_log2);
    s.top[r] = top;
    const float base = top * scale_log2;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float &x = score[4 * j + 2 * r + e];
        x = power_of_2(fmaf(x, scale_log2, -base));
        sum += x;
      }
    s.sum[r] = FIRST ? sum : fmaf(s.sum[r], s.shrink[r], sum);
  }
}

__device__ __forceinline__ void pack(unsigned (&p)[KEYS / 16][4], const float (&score)[KEYS / 2]) {
#pragma unroll
  for (int i = 0; i < KEYS / 16; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) p[i][e] = pack2(score[8 * i + 2 * e], score[8 * i + 2 * e + 1]);
}

#endif

__global__ void __launch_bounds__(BLOCK, 1)
    flash_wgmma(const __grid_constant__ CUtensorMap qm, const __grid_constant__ CUtensorMap km,
                const __grid_constant__ CUtensorMap vm, flash_args f) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char memory[];
  __shared__ __align__(8) uint64_t barriers[1 + 4 * STAGES];
  const unsigned q_at = (shared_address(memory) + 1023) & ~1023u, k_at = q_at + Q_BYTES,
                 v_at = k_at + STAGES * TILE_BYTES;
  const unsigned q_full = shared_address(barriers), k_full = q_full + 8, k_empty = k_full + 8 * STAGES,
                 v_full = k_empty + 8 * STAGES, v_empty = v_full + 8 * STAGES;
  const unsigned rank = cluster_rank();
  const int group = threadIdx.x / 128, q0 = blockIdx.x * QUERIES, head = blockIdx.y;
  if (threadIdx.x == 0) {
    barrier_init(q_full, 1);
    for (int i = 0; i < STAGES; i++) {
      barrier_init(k_full + 8 * i, 1);
      barrier_init(k_empty + 8 * i, CONSUMERS * CLUSTER);
      barrier_init(v_full + 8 * i, 1);
      barrier_init(v_empty + 8 * i, CONSUMERS * CLUSTER);
    }
    barriers_made();
  }
  cluster_sync();

  if (group == 0) { /* the producer */
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 0) {
      const int part = rank * (KEYS / CLUSTER); /* the rows of a tile that this block fetches */
      auto fetch = [&](const CUtensorMap *map, unsigned ring, unsigned full, unsigned empty, int i) {
        const int stage = i % STAGES, row = (f.tiles - 1 - i) * KEYS + part;
        const unsigned to = ring + stage * TILE_BYTES + part * HALF * 2;
        barrier_wait(empty + 8 * stage, (i / STAGES & 1) ^ 1); /* the first round finds every stage empty */
        barrier_expect(full + 8 * stage, TILE_BYTES);
        copy_tile_to_both(to, map, full + 8 * stage, head * D, row);
        copy_tile_to_both(to + KEYS * HALF * 2, map, full + 8 * stage, head * D + HALF, row);
      };
      barrier_expect(q_full, Q_BYTES);
      copy_tile(q_at, &qm, q_full, head * D, q0);
      copy_tile(q_at + QUERIES * HALF * 2, &qm, q_full, head * D + HALF, q0);
      fetch(&km, k_at, k_full, k_empty, 0);
      for (int i = 0; i < f.tiles; i++) {
        if (i + 1 < f.tiles) fetch(&km, k_at, k_full, k_empty, i + 1);
        fetch(&vm, v_at, v_full, v_empty, i);
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int warpgroup = group - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const unsigned q = q_at + warpgroup * 64 * HALF * 2;
    const bool signals = threadIdx.x % 128 < CLUSTER; /* one thread tells each block of the cluster */
    float score[KEYS / 2], acc[D / 2];
    unsigned p[KEYS / 16][4];
    softmax_state s;
#pragma unroll
    for (int i = 0; i < D / 2; i++) acc[i] = 0;

    if (warpgroup == 0) turn_give(0);
    barrier_wait(q_full, 0);
    barrier_wait(k_full, 0);
    products_begin();
    scores(score, q, k_at);
    products_commit();
    products_wait<0>();
    hold(score);
    if (signals) barrier_arrive(k_empty, threadIdx.x % 128);
    const int real = f.lk - (f.tiles - 1) * KEYS; /* keys of the last tile */
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (8 * j + 2 * (lane % 4) + e % 2 >= real) score[4 * j + e] = -INFINITY;
    weigh<true>(score, s, f.scale_log2);
    pack(p, score);

    for (int i = 1; i < f.tiles; i++) { /* scores of tile i, values of tile i - 1 */
      const int ks = i % STAGES, vs = (i - 1) % STAGES;
      barrier_wait(k_full + 8 * ks, i / STAGES & 1);
      turn_take(warpgroup);
      products_begin();
      scores(score, q, k_at + ks * TILE_BYTES);
      products_commit();
      barrier_wait(v_full + 8 * vs, (i - 1) / STAGES & 1);
      values(acc, p, v_at + vs * TILE_BYTES);
      products_commit();
      turn_give(1 - warpgroup);
      products_wait<1>();
      hold(score);
      if (signals) barrier_arrive(k_empty + 8 * ks, threadIdx.x % 128);
      weigh<false>(score, s, f.scale_log2);
      products_wait<0>();
      hold(acc);
      if (signals) barrier_arrive(v_empty + 8 * vs, threadIdx.x % 128);
#pragma unroll
      for (int j = 0; j < D / 2; j++) acc[j] *= s.shrink[j / 2 % 2];
      pack(p, score);
    }
    const int last = (f.tiles - 1) % STAGES;
    barrier_wait(v_full + 8 * last, (f.tiles - 1) / STAGES & 1);
    hold(acc);
    products_begin();
    values(acc, p, v_at + last * TILE_BYTES);
    products_commit();
    products_wait<0>();
    hold(acc);
    if (signals) barrier_arrive(v_empty + 8 * last, threadIdx.x % 128);

#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = s.sum[r];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float share = 1.0f / sum;
      const int row = q0 + warpgroup * 64 + warp * 16 + lane / 4 + 8 * r;
      if (row >= f.lq) continue;
      bf16 *out = f.out + row * f.ld + head * D + 2 * (lane % 4);
#pragma unroll
      for (int j = 0; j < D / 8; j++)
        *(unsigned *)(out + 8 * j) = pack2(acc[4 * j + 2 * r] * share, acc[4 * j + 2 * r + 1] * share);
    }
  }
  cluster_sync(); /* no block leaves while the other may still write to it */
#endif
}

/* [rows, width], fetched `box` rows of 64 channels at a time; rows that don't exist arrive as zeros. */
bool encode(encode_fn make, CUtensorMap *map, const void *data, int64_t rows, int64_t width, unsigned box) {
  const cuuint64_t dim[2] = {(cuuint64_t)width, (cuuint64_t)rows}, stride[1] = {(cuuint64_t)width * 2};
  const cuuint32_t size[2] = {HALF, box}, step[2] = {1, 1};
  return make(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void *>(data), dim, stride, size, step,
              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

} // namespace

bool k_flash_sm90(k_stream s, void *encoder, const k_flash_spec *f) {
  encode_fn make = (encode_fn)encoder;
  const int64_t width = (int64_t)f->heads * f->d;
  if (!make || f->d != D || !(f->scale > 0) || f->key_bias || f->rel_bias || f->lq > INT32_MAX / 2 ||
      f->lk > INT32_MAX / 2)
    return false;
  CUtensorMap q, k, v;
  if (!encode(make, &q, f->q, f->lq, width, QUERIES) ||
      !encode(make, &k, f->k, f->lk, width, KEYS / CLUSTER) ||
      !encode(make, &v, f->v, f->lk, width, KEYS / CLUSTER))
    return false;
  const flash_args args = {(bf16 *)f->out,
                           width,
                           (int)f->lq,
                           (int)f->lk,
                           (int)((f->lk + KEYS - 1) / KEYS),
                           f->scale * 1.4426950408889634f};
  const int64_t blocks = (f->lq + QUERIES - 1) / QUERIES;
  const dim3 grid((unsigned)((blocks + CLUSTER - 1) / CLUSTER * CLUSTER), (unsigned)f->heads);
  return launch_clusters(flash_wgmma, grid, BLOCK, SHARED_BYTES, CLUSTER, s, q, k, v, args);
}
