/* conv_halo_sm90.cu: convolutions of 3x3 pixels with few outputs, on Hopper's matrix units.
 *
 * With few outputs a rectangle of pixels that is fetched for one tap is used for too little work, and the
 * second-level cache can't keep up. So here a block fetches its rectangle together with a rim of one pixel,
 * once for each frame and chunk of channels, and all nine taps read it in shared memory: a tap is the same
 * matrix, begun some rows further on. That needs rows that follow each other at one distance: 64 rows are
 * 8 x 8 pixels, groups of 8 neighbours, and from group to group it is one line of the rectangle. The
 * swizzle is a function of the address alone, so a matrix may begin at any row.
 *
 * Blocks stay and go through the tiles: while the last results are stored, the next tile is on its way. Two
 * blocks form a cluster and share what they fetch of the weights, as in conv_sm90.cu. */
#include "backend/cuda/kernels/conv_sm90.cuh"

namespace {

enum { CONSUMERS = 2, BLOCK = (CONSUMERS + 1) * 128, TILE_W = 16, LINE = TILE_W + 2, SIDE = 8, TAPS = 9 };

struct halo_tiles {
  int tiles_w, tiles_h, tiles, pairs; /* of one group of outputs; pairs: of tiles, for the clusters */
  int groups;                         /* of BN outputs */
  int chunks;                         /* of channels */
  bool two;                           /* results are stored two by two */
};

/* MT: matrices of 8 x 8 pixels a warpgroup; TB: taps a stage of weights. */
template <int BN, int KC, int MT, int TB> struct halo {
  static constexpr int tile_h = MT * CONSUMERS * SIDE * SIDE / TILE_W;
  static constexpr int a_bytes = (tile_h + 2) * LINE * KC * 2, a_stage = (a_bytes + 1023) / 1024 * 1024;
  static constexpr int b_tap = BN * KC * 2, b_stage = TB * b_tap;
  static constexpr int a_stages = 2, fit = (SHARED_MAX - 2048 - a_stages * a_stage) / b_stage;
  static constexpr int b_stages = fit > 6 ? 6 : fit;
  static constexpr int bytes = a_stages * a_stage + b_stages * b_stage + 1024;
  static_assert(b_stages >= 2, "weights are fetched ahead");
  static_assert(b_tap % 1024 == 0 || KC == 32, "stages begin where the swizzle does");
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct spot {
  int x0, y0, t;
};
template <int H> __device__ __forceinline__ spot place(const halo_tiles &g, int tile) {
  spot s;
  const int rest = tile / g.tiles_w;
  s.x0 = (tile - rest * g.tiles_w) * TILE_W;
  s.t = rest / g.tiles_h;
  s.y0 = (rest - s.t * g.tiles_h) * H;
  return s;
}

/* Rows of KC bf16 from `at` on; groups of 8 rows are a line of the rectangle apart. */
template <int KC> __device__ __forceinline__ uint64_t pixel_matrix(unsigned at) {
  const uint64_t mode = KC == 64 ? 1 : 2, group = LINE * KC * 2;
  return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (group >> 4) << 32 | mode << 62;
}

/* A stage of a ring, and in which round it is. */
template <int N> struct turn {
  int stage = 0;
  unsigned parity;
  __device__ turn(unsigned first) : parity(first) {}
  __device__ void next() {
    if (++stage == N) stage = 0, parity ^= 1;
  }
};

#endif

template <int BN, int KC, int MT, int TB, class Out>
__global__ void __launch_bounds__(BLOCK, 1)
    conv_halo(const __grid_constant__ frame_maps pixels, const __grid_constant__ CUtensorMap weights,
              const __grid_constant__ k_conv_spec c, const halo_tiles g) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using R = halo<BN, KC, MT, TB>;
  extern __shared__ unsigned char memory[];
  __shared__ __align__(8) uint64_t barriers[2 * (R::a_stages + R::b_stages)];
  const unsigned base_a = (shared_address(memory) + 1023) & ~1023u,
                 base_b = base_a + R::a_stages * R::a_stage;
  const unsigned full_a = shared_address(barriers), empty_a = full_a + 8 * R::a_stages,
                 full_b = empty_a + 8 * R::a_stages, empty_b = full_b + 8 * R::b_stages;
  const unsigned rank = cluster_rank();
  const int role = threadIdx.x / 128, clusters = gridDim.x / CLUSTER, work = g.pairs * g.groups;
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::a_stages; i++) {
      barrier_init(full_a + 8 * i, 1);
      barrier_init(empty_a + 8 * i, CONSUMERS);
    }
    for (int i = 0; i < R::b_stages; i++) {
      barrier_init(full_b + 8 * i, 1);
      barrier_init(empty_b + 8 * i, CONSUMERS * CLUSTER);
    }
    barriers_made();
  }
  cluster_sync();

  if (role == 0) { /* the producer */
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      turn<R::a_stages> a(1);
      turn<R::b_stages> b(1);
      for (int i = blockIdx.x / CLUSTER; i < work; i += clusters) {
        const int group = i / g.pairs;
        const spot s = place<R::tile_h>(g, (i - group * g.pairs) * CLUSTER + (int)rank);
        for (int dt = 0; dt < c.kt; dt++) {
          const int at = min(s.t + dt, c.T - 1); /* a tile beyond the last is not stored */
          const CUtensorMap *map = &pixels.frame[c.apart ? at : 0];
          for (int k = 0; k < g.chunks; k++) {
            barrier_wait(empty_a + 8 * a.stage, a.parity);
            barrier_expect(full_a + 8 * a.stage, R::a_bytes);
            copy_pixels(base_a + a.stage * R::a_stage, map, full_a + 8 * a.stage, k * KC, s.x0 - c.pad_left,
                        s.y0 - c.pad_top, c.apart ? 0 : at);
            a.next();
            for (int tap = 0; tap < TAPS; tap += TB) {
              barrier_wait(empty_b + 8 * b.stage, b.parity);
              barrier_expect(full_b + 8 * b.stage, R::b_stage);
#pragma unroll
              for (int j = 0; j < TB; j++)
                copy_weights(base_b + b.stage * R::b_stage + j * R::b_tap + rank * (R::b_tap / CLUSTER),
                             &weights, full_b + 8 * b.stage, k * KC, c.tap0 + dt * TAPS + tap + j,
                             group * BN + (int)rank * (BN / CLUSTER));
              b.next();
            }
          }
        }
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int warpgroup = role - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const bool teller = threadIdx.x % 128 < CLUSTER;
    turn<R::a_stages> a(0);
    turn<R::b_stages> b(0);
    for (int i = blockIdx.x / CLUSTER; i < work; i += clusters) {
      float acc[MT][BN / 2];
      int last_a = -1, last_b = -1; /* stages that the products before the last ones have read */
      for (int step = 0; step < c.kt * g.chunks; step++) {
        barrier_wait(full_a + 8 * a.stage, a.parity);
        const unsigned at = base_a + a.stage * R::a_stage;
#pragma unroll 1
        for (int tap = 0; tap < TAPS; tap += TB) {
          barrier_wait(full_b + 8 * b.stage, b.parity);
          products_begin();
#pragma unroll
          for (int j = 0; j < TB; j++) {
            const int dy = (tap + j) / 3, dx = (tap + j) - 3 * dy;
            const uint64_t bm = matrix<KC>(base_b + b.stage * R::b_stage + j * R::b_tap);
#pragma unroll
            for (int m = 0; m < MT; m++) {
              const int q = warpgroup * MT + m, row = (q / 2 * SIDE + dy) * LINE + q % 2 * SIDE + dx;
              const uint64_t am = pixel_matrix<KC>(at + row * KC * 2);
#pragma unroll
              for (int k = 0; k < KC / 16; k++)
                wgmma<BN>(acc[m], am + 2 * k, bm + 2 * k, step > 0 || tap + j > 0 || k > 0);
            }
          }
          products_commit();
          products_wait<1>();
          if (last_b >= 0 && teller) barrier_arrive(empty_b + 8 * last_b, threadIdx.x % 128);
          if (last_a >= 0 && tap == 0 && threadIdx.x % 128 == 0) barrier_arrive(empty_a + 8 * last_a, rank);
          last_b = b.stage;
          b.next();
        }
        last_a = a.stage;
        a.next();
      }
      products_wait<0>();
      if (teller) barrier_arrive(empty_b + 8 * last_b, threadIdx.x % 128);
      if (threadIdx.x % 128 == 0) barrier_arrive(empty_a + 8 * last_a, rank);

      /* acc[m][4j + e]: row warp*2 + e/2 and column lane/4 of the matrix's pixels, output 8j + 2*(lane%4) +
       * e%2 */
      const int group = i / g.pairs, tile = (i - group * g.pairs) * CLUSTER + (int)rank;
      const spot s = place<R::tile_h>(g, tile);
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const int q = warpgroup * MT + m, x = s.x0 + q % 2 * SIDE + lane / 4,
                    y = s.y0 + q / 2 * SIDE + warp * 2 + r;
          if (tile >= g.tiles || x >= c.Wo || y >= c.Ho) continue;
          const int64_t at = (((int64_t)s.t * c.Ho + y) * c.Wo + x) * c.co;
#pragma unroll
          for (int j = 0; j < BN / 8; j++)
            conv_store<Out>(c, g.two, at, group * BN + 8 * j + 2 * (lane % 4), acc[m][4 * j + 2 * r],
                            acc[m][4 * j + 2 * r + 1]);
        }
    }
  }
  cluster_sync(); /* no block leaves while the other may still write to it */
#endif
}

/* ---- The host's side ---- */

template <int BN, int KC, int MT, int TB, class Out>
bool run(k_stream s, encode_fn make, const k_conv_spec &c) {
  using R = halo<BN, KC, MT, TB>;
  frame_maps pixels;
  CUtensorMap weights;
  halo_tiles g;
  g.tiles_w = (c.Wo + TILE_W - 1) / TILE_W;
  g.tiles_h = (c.Ho + R::tile_h - 1) / R::tile_h;
  g.tiles = g.tiles_w * g.tiles_h * c.To;
  g.pairs = (g.tiles + CLUSTER - 1) / CLUSTER;
  g.groups = (c.co + BN - 1) / BN;
  g.chunks = (c.ci + KC - 1) / KC;
  g.two = conv_pairs<Out>(c);
  const cuuint32_t box[4] = {KC, LINE, R::tile_h + 2, 1}, step[4] = {1, 1, 1, 1};
  if (!encode_frames(make, &pixels, c, box, step, KC) || !encode_weights(make, &weights, c, BN / CLUSTER, KC))
    return false;
  int device = 0, sms = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    return false;
  const int clusters = min(g.pairs * g.groups, sms / CLUSTER);
  return launch_clusters(conv_halo<BN, KC, MT, TB, Out>, dim3((unsigned)(clusters * CLUSTER)), BLOCK,
                         R::bytes, CLUSTER, s, pixels, weights, c, g);
}

template <int KC, class Out> bool run_width(k_stream s, encode_fn make, const k_conv_spec &c) {
  if (c.co <= 16) return run<16, KC, 4, 3, Out>(s, make, c);
  if (c.co > 64 && c.co <= 96) return run<96, KC, 2, 3, Out>(s, make, c);
  if (c.co % 160 == 0) return run < 160, KC, 2, KC == 32 ? 3 : 1, Out > (s, make, c);
  if (c.co % 192 == 0) return run<192, KC, 1, 1, Out>(s, make, c);
  if (c.co % 256 == 0) return run<256, KC, 1, 1, Out>(s, make, c);
  return false;
}

} // namespace

bool k_conv_halo_sm90(k_stream s, void *encoder, const k_conv_spec *c) {
  encode_fn make = (encode_fn)encoder;
  bool fits = make && c->ci % 8 == 0 && conv_aligned(*c) && c->kt > 0 && c->kh == 3 && c->kw == 3 &&
              c->up == 1 && c->stride_t == 1 && c->stride_h == 1 && c->stride_w == 1;
  if (!fits) return false;
  bool narrow = c->ci % 64 != 0 && c->ci % 64 <= 32;
  if (c->out_type == K_F32)
    return narrow ? run_width<32, float>(s, make, *c) : run_width<64, float>(s, make, *c);
  return narrow ? run_width<32, bf16>(s, make, *c) : run_width<64, bf16>(s, make, *c);
}
