/* conv_mma.cu: convolution in bf16 on the matrix units of any card since compute capability 8.0.
 *
 * A block makes 128 pixels times 128 outputs, 8 warps with 64 x 32 each. For each tap and each 32 channels
 * the pixels that the tap meets and the tap's weights are gathered into shared memory, 16 bytes a copy, zeros
 * where the window leaves the picture; four such steps are on their way at a time. A thread always copies for
 * the same two pixels, so it knows their places once. Shared rows are four groups of 16 bytes, group g of
 * row r stored at g ^ (r/2 % 4), so that ldmatrix meets no bank twice. */
#include "backend/cuda/kernels/conv.cuh"
#include "backend/cuda/kernels/mma.cuh"

namespace {

enum { PIXELS = 128, OUTPUTS = 128, CHANNELS = 32, STAGES = 4, BLOCK = 256 };
enum { TILE_BYTES = 128 * CHANNELS * 2, SHARED_BYTES = STAGES * 2 * TILE_BYTES };

__device__ __forceinline__ unsigned spot(int r, int g) {
  return (unsigned)(r * CHANNELS * 2 + ((g ^ (r / 2 & 3)) << 4));
}

/* A pixel's window: where it starts, in frames, rows and columns of x. */
struct window {
  int t, y, x;
  bool real;
};

template <class Out> __global__ void __launch_bounds__(BLOCK) conv_mma(k_conv_spec c, bool pairs) {
  extern __shared__ __align__(128) unsigned char memory[];
  const unsigned base = shared_address(memory);
  const int phase = blockIdx.z, py = phase / 2, px = phase % 2, taps = c.kt * c.kh * c.kw,
            phases = c.up * c.up;
  const int top = c.up == 2 ? 1 - py : c.pad_top, left = c.up == 2 ? 1 - px : c.pad_left;
  const int64_t pixels = (int64_t)c.To * c.Ho * c.Wo, p0 = (int64_t)blockIdx.x * PIXELS;
  const int o0 = blockIdx.y * OUTPUTS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int wm = warp / 4 * 64, wn = warp % 4 * 32;
  const int chunks = (c.ci + CHANNELS - 1) / CHANNELS, steps = taps * chunks;
  const bf16 *w = (const bf16 *)c.w;

  const int row = threadIdx.x / 4, g = threadIdx.x % 4; /* copies: rows row and row + 64, group g */
  window from[2];
#pragma unroll
  for (int q = 0; q < 2; q++) {
    int64_t p = p0 + row + 64 * q, line = p / c.Wo, frame = line / c.Ho;
    from[q].real = p < pixels;
    from[q].x = (int)(p - line * c.Wo) * c.stride_w - left;
    from[q].y = (int)(line - frame * c.Ho) * c.stride_h - top;
    from[q].t = (int)frame * c.stride_t;
  }
  int tap = 0, chunk = 0; /* of the next step to be copied */
  auto fetch = [&](int stage) {
    const unsigned a = base + stage * 2 * TILE_BYTES, b = a + TILE_BYTES;
    const int dx = tap % c.kw, dy = tap / c.kw % c.kh, dt = tap / c.kw / c.kh, ch = chunk * CHANNELS + g * 8;
    const int entry = phase * c.taps + c.tap0 + tap;
#pragma unroll
    for (int q = 0; q < 2; q++) {
      const int r = row + 64 * q, yy = from[q].y + dy, xx = from[q].x + dx, o = o0 + r;
      bool inside = from[q].real && ch < c.ci && yy >= 0 && xx >= 0 && yy < c.H && xx < c.W;
      const bf16 *s = w;
      if (inside) s = conv_frame<bf16>(c, from[q].t + dt) + ((int64_t)yy * c.W + xx) * c.ci + ch;
      copy16(a + spot(r, g), s, inside);
      bool used = o < c.co && ch < c.ci;
      copy16(b + spot(r, g), used ? w + ((int64_t)o * phases * c.taps + entry) * c.ci + ch : w, used);
    }
    if (++chunk == chunks) chunk = 0, tap++;
  };

  float acc[4][4][4] = {};
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < steps) fetch(i);
    copies_commit();
  }
  for (int step = 0; step < steps; step++) {
    copies_wait<STAGES - 2>();
    __syncthreads(); /* this step's tiles are here, and the stage of the step before is free */
    if (step + STAGES - 1 < steps) fetch((step + STAGES - 1) % STAGES);
    copies_commit();
    const unsigned a = base + step % STAGES * 2 * TILE_BYTES, b = a + TILE_BYTES;
#pragma unroll
    for (int k = 0; k < CHANNELS / 16; k++) {
      unsigned af[4][4], bf[2][4];
#pragma unroll
      for (int m = 0; m < 4; m++) ldmatrix4(af[m], a + spot(wm + m * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int n = 0; n < 2; n++)
        ldmatrix4(bf[n], b + spot(wn + n * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < 4; n++) mma(acc[m][n], af[m], bf[n / 2][n % 2 * 2], bf[n / 2][n % 2 * 2 + 1]);
    }
  }

  /* acc[m][n][e]: pixel wm + 16m + lane/4 + 8*(e/2), output wn + 8n + 2*(lane%4) + e%2 */
#pragma unroll
  for (int m = 0; m < 4; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int64_t p = p0 + wm + m * 16 + lane / 4 + 8 * r;
      if (p >= pixels) continue;
      const int64_t line = p / c.Wo, j = p - line * c.Wo, t = line / c.Ho, i = line - t * c.Ho;
      const int64_t at = ((t * c.Ho * c.up + i * c.up + py) * c.Wo * c.up + j * c.up + px) * c.co;
#pragma unroll
      for (int n = 0; n < 4; n++)
        conv_store<Out>(c, pairs, at, o0 + wn + n * 8 + 2 * (lane % 4), acc[m][n][2 * r],
                        acc[m][n][2 * r + 1]);
    }
}

template <class Out> void run(k_stream s, const k_conv_spec &c) {
  cudaFuncSetAttribute(conv_mma<Out>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES);
  dim3 grid(blocks_for((int64_t)c.To * c.Ho * c.Wo, PIXELS), blocks_for(c.co, OUTPUTS),
            (unsigned)(c.up * c.up));
  conv_mma<Out><<<grid, BLOCK, SHARED_BYTES, s>>>(c, conv_pairs<Out>(c));
}

} // namespace

bool k_conv_mma(k_stream s, const k_conv_spec *c) {
  if (c->ci % 8 != 0 || !conv_aligned(*c)) return false;
  if (c->out_type == K_F32)
    run<float>(s, *c);
  else
    run<bf16>(s, *c);
  return true;
}
