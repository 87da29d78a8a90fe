/* conv_sm90.cu: convolution on Hopper's matrix units.
 *
 * A convolution is a sum over taps and channels of products [pixels, channels] x [channels, outputs]. A
 * block makes 128 pixels (a rectangle of one frame) times BN outputs. For each tap and each chunk of
 * channels the copy engine brings the rectangle, moved by the tap, and the tap's weights into shared
 * memory; what lies outside the picture arrives as zeros, which is the padding, and a stride is a step of
 * the copy. So there are no windows in memory and no index arithmetic beside one tap counter.
 *
 * One warp feeds a ring of stages, two warpgroups multiply, 64 pixels each. Two neighbouring blocks form a
 * cluster: they need the same weights, so each fetches half of them and the copy engine writes it to both.
 * A stage is refilled when the consumers of both blocks have left it. */
#include "backend/cuda/kernels/conv_sm90.cuh"

namespace {

enum { PIXELS = 128, CONSUMERS = 2, BLOCK = (CONSUMERS + 1) * 128 };

struct conv_tiles {
  int width_log2, tiles_h, tiles_w, tiles; /* rectangle's width; rectangles of all frames of a phase */
  int chunks;                              /* of channels */
  bool pairs;                              /* results are stored two by two */
};

template <int BN, int KC> struct ring {
  static constexpr int a_bytes = PIXELS * KC * 2, b_bytes = BN * KC * 2, stage_bytes = a_bytes + b_bytes;
  static constexpr int fit = (SHARED_MAX - 2048) / stage_bytes, stages = fit > 8 ? 8 : fit;
  static constexpr int bytes = stages * stage_bytes + 1024; /* the ring starts on 1024 bytes */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) /* nothing else has these instructions; elsewhere the kernel is empty \
                                        */

/* ---- What the kernel is made of ---- */

/* A block's rectangle. The last one of a cluster may lie behind the last frame: it is fetched as zeros and
 * not stored. */
struct spot {
  int x0, y0, t;
};
__device__ __forceinline__ spot place(const conv_tiles &g, int tile) {
  spot s;
  int rest = tile / g.tiles_w;
  s.x0 = (tile - rest * g.tiles_w) << g.width_log2;
  s.t = rest / g.tiles_h;
  s.y0 = (rest - s.t * g.tiles_h) * (PIXELS >> g.width_log2);
  return s;
}

#endif

template <int BN, int KC, class Out>
__global__ void __launch_bounds__(BLOCK, 1)
    conv_wgmma(const __grid_constant__ frame_maps pixels, const __grid_constant__ CUtensorMap weights,
               const __grid_constant__ k_conv_spec c, const conv_tiles g) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using R = ring<BN, KC>;
  extern __shared__ unsigned char memory[];
  __shared__ __align__(8) uint64_t barriers[2 * R::stages];
  const unsigned base = (shared_address(memory) + 1023) & ~1023u;
  const unsigned full = shared_address(barriers), empty = full + 8 * R::stages;
  const unsigned rank = cluster_rank();
  const int group = threadIdx.x / 128, taps = c.kt * c.kh * c.kw, steps = taps * g.chunks;
  const spot s = place(g, blockIdx.x);
  const int o0 = blockIdx.y * BN, phase = blockIdx.z; /* the same in the whole cluster, as the weights are */
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::stages; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, CONSUMERS * CLUSTER);
    }
    barriers_made();
  }
  cluster_sync();

  if (group == 0) { /* the producer */
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      const int top = c.up == 2 ? 1 - phase / 2 : c.pad_top, left = c.up == 2 ? 1 - phase % 2 : c.pad_left;
      const int x = s.x0 * c.stride_w - left, y = s.y0 * c.stride_h - top, t = s.t * c.stride_t;
      int stage = 0;
      unsigned parity = 1; /* the first round finds every stage empty */
      for (int tap = 0; tap < taps; tap++) {
        const int dx = tap % c.kw, dy = tap / c.kw % c.kh, at = t + tap / c.kw / c.kh;
        const CUtensorMap *map = &pixels.frame[c.apart ? min(at, c.T - 1) : 0]; /* beyond: not stored */
        for (int k = 0; k < g.chunks; k++) {
          const unsigned a = base + stage * R::stage_bytes, b = a + R::a_bytes;
          barrier_wait(empty + 8 * stage, parity);
          barrier_expect(full + 8 * stage, R::stage_bytes);
          copy_pixels(a, map, full + 8 * stage, k * KC, x + dx, y + dy, c.apart ? 0 : at);
          copy_weights(b + rank * (R::b_bytes / CLUSTER), &weights, full + 8 * stage, k * KC,
                       phase * c.taps + c.tap0 + tap, o0 + (int)rank * (BN / CLUSTER));
          if (++stage == R::stages) stage = 0, parity ^= 1;
        }
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int warpgroup = group - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    float acc[BN / 2];
    int stage = 0, last = 0;
    unsigned parity = 0;
    for (int step = 0; step < steps; step++) {
      barrier_wait(full + 8 * stage, parity);
      const unsigned a = base + stage * R::stage_bytes;
      const uint64_t am = matrix<KC>(a + warpgroup * 64 * KC * 2), bm = matrix<KC>(a + R::a_bytes);
      products_begin();
#pragma unroll
      for (int k = 0; k < KC / 16; k++)
        wgmma<BN>(acc, am + 2 * k, bm + 2 * k, step > 0 || k > 0); /* 16 channels are 32 bytes */
      products_commit();
      products_wait<1>();
      if (step > 0 && threadIdx.x % 128 < CLUSTER) barrier_arrive(empty + 8 * last, threadIdx.x % 128);
      last = stage;
      if (++stage == R::stages) stage = 0, parity ^= 1;
    }
    products_wait<0>();
    if (threadIdx.x % 128 < CLUSTER) barrier_arrive(empty + 8 * last, threadIdx.x % 128);

    /* acc[4j + e]: pixel warp*16 + lane/4 + 8*(e/2), output 8j + 2*(lane%4) + e%2 */
    const int py = phase / 2, px = phase % 2;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int p = warpgroup * 64 + warp * 16 + lane / 4 + 8 * r;
      const int x = s.x0 + (p & ((1 << g.width_log2) - 1)), y = s.y0 + (p >> g.width_log2);
      if (blockIdx.x >= g.tiles || x >= c.Wo || y >= c.Ho) continue;
      const int64_t row = (int64_t)s.t * c.Ho * c.up + y * c.up + py;
      const int64_t at = (row * c.Wo * c.up + x * c.up + px) * c.co;
#pragma unroll
      for (int j = 0; j < BN / 8; j++)
        conv_store<Out>(c, g.pairs, at, o0 + 8 * j + 2 * (lane % 4), acc[4 * j + 2 * r],
                        acc[4 * j + 2 * r + 1]);
    }
  }
  cluster_sync(); /* no block leaves while the other may still write to it */
#endif
}

/* ---- The host's side ---- */

/* The rectangle of 128 pixels that covers a frame with the least waste. */
int best_width_log2(int H, int W) {
  int best = 4;
  int64_t least = INT64_MAX;
  for (int log = 3; log <= 7; log++) {
    int64_t w = 1 << log, h = PIXELS >> log, tiles = ((W + w - 1) / w) * ((H + h - 1) / h);
    if (tiles < least || (tiles == least && log == 4)) least = tiles, best = log;
  }
  return best;
}

template <int BN, int KC, class Out> bool run(k_stream s, encode_fn make, const k_conv_spec &c) {
  frame_maps pixels;
  CUtensorMap weights;
  conv_tiles g;
  const int phases = c.up * c.up;
  g.width_log2 = best_width_log2(c.Ho, c.Wo);
  const int w = 1 << g.width_log2, h = PIXELS / w;
  g.tiles_w = (c.Wo + w - 1) / w;
  g.tiles_h = (c.Ho + h - 1) / h;
  g.tiles = g.tiles_w * g.tiles_h * c.To;
  g.chunks = (c.ci + KC - 1) / KC;
  g.pairs = conv_pairs<Out>(c);
  const cuuint32_t box[4] = {KC, (cuuint32_t)(w * c.stride_w), (cuuint32_t)(h * c.stride_h), 1};
  const cuuint32_t step[4] = {1, (cuuint32_t)c.stride_w, (cuuint32_t)c.stride_h, 1};
  if (!encode_frames(make, &pixels, c, box, step, KC) || !encode_weights(make, &weights, c, BN / CLUSTER, KC))
    return false;
  dim3 grid((unsigned)((g.tiles + CLUSTER - 1) / CLUSTER * CLUSTER), (unsigned)((c.co + BN - 1) / BN),
            (unsigned)phases);
  return launch_clusters(conv_wgmma<BN, KC, Out>, grid, BLOCK, ring<BN, KC>::bytes, CLUSTER, s, pixels,
                         weights, c, g);
}

template <int KC, class Out> bool run_width(k_stream s, encode_fn make, const k_conv_spec &c) {
  if (c.co <= 32) return run<32, KC, Out>(s, make, c);
  if (c.co <= 64) return run<64, KC, Out>(s, make, c);
  if (c.co <= 96) return run<96, KC, Out>(s, make, c);
  if (c.co <= 128) return run<128, KC, Out>(s, make, c);
  if (c.co % 256 != 0 && c.co % 192 == 0) return run<192, KC, Out>(s, make, c);
  return run<256, KC, Out>(s, make, c);
}

} // namespace

bool k_conv_sm90(k_stream s, void *encoder, const k_conv_spec *c) {
  encode_fn make = (encode_fn)encoder;
  bool fits = c->kt > 0 && c->ci % 8 == 0 && conv_aligned(*c) && c->stride_w <= 2 && c->stride_h <= 2;
  if (!fits || !make) return false;
  bool narrow = c->ci % 64 != 0 && c->ci % 64 <= 32; /* 96 channels are three chunks of 32 */
  if (c->out_type == K_F32)
    return narrow ? run_width<32, float>(s, make, *c) : run_width<64, float>(s, make, *c);
  return narrow ? run_width<32, bf16>(s, make, *c) : run_width<64, bf16>(s, make, *c);
}
