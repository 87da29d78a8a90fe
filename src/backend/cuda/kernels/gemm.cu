/* gemm.cu: matrix products and convolutions in plain f32 arithmetic, for every shape and dtype. They are
 * what f32 precision convolves with, and what runs where the library has no kernel. A block of 256 threads
 * makes a tile of 64 x 64 results, 4 x 4 a thread, 16 terms at a time through shared memory. */
#include "backend/cuda/kernels/common.cuh"

#include <type_traits>

namespace {

enum { TILE = 64, STEP = 16, BLOCK = 256 };

/* a_at(row, term), b_at(column, term): elements or 0 outside; done(row, column, value). */
template <class A, class B, class Done>
__device__ __forceinline__ void product(int64_t row0, int64_t col0, int64_t terms, bool b_by_column, A a_at,
                                        B b_at, Done done) {
  __shared__ float as[STEP][TILE + 4], bs[STEP][TILE + 4];
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  float sum[4][4] = {};
  for (int64_t k0 = 0; k0 < terms; k0 += STEP) {
    for (int i = threadIdx.x; i < TILE * STEP; i += BLOCK) {
      as[i % STEP][i / STEP] = a_at(row0 + i / STEP, k0 + i % STEP);
      if (b_by_column)
        bs[i / TILE][i % TILE] = b_at(col0 + i % TILE, k0 + i / TILE);
      else
        bs[i % STEP][i / STEP] = b_at(col0 + i / STEP, k0 + i % STEP);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < STEP; k++) {
      float a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = as[k][ty * 4 + i], b[i] = bs[k][tx * 4 + i];
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) done(row0 + ty * 4 + i, col0 + tx * 4 + j, sum[i][j]);
}

template <class T, class Out>
__global__ void __launch_bounds__(BLOCK)
    gemm(k_gemm_spec g, const T *a, const T *b, Out *out, const float *bias, k_act act) {
  a += blockIdx.z * g.stride_a;
  b += blockIdx.z * g.stride_b;
  out += blockIdx.z * g.stride_o;
  product((int64_t)blockIdx.x * TILE, (int64_t)blockIdx.y * TILE, g.k, !g.bt,
          [&](int64_t m, int64_t k) { return m < g.m && k < g.k ? to_f32(a[m * g.lda + k]) : 0.0f; },
          [&](int64_t n, int64_t k) {
            return n < g.n && k < g.k ? to_f32(g.bt ? b[n * g.ldb + k] : b[k * g.ldb + n]) : 0.0f;
          },
          [&](int64_t m, int64_t n, float v) {
            if (m < g.m && n < g.n)
              put(out + m * g.ldo + n, activate(act, g.alpha * v + (bias ? bias[n] : 0.0f)));
          });
}

/* Pixels are numbered through the frames of one phase; blockIdx.z is the phase. */
template <class T, class Out> __global__ void __launch_bounds__(BLOCK) conv_simple(k_conv_spec c) {
  const int phase = blockIdx.z, py = phase / 2, px = phase % 2;
  const int taps = c.kt * c.kh * c.kw, phases = c.up * c.up;
  const int64_t pixels = (int64_t)c.To * c.Ho * c.Wo, terms = (int64_t)taps * c.ci;
  const T *w = (const T *)c.w + ((int64_t)phase * c.taps + c.tap0) * c.ci;
  const int top = c.up == 2 ? 1 - py : c.pad_top, left = c.up == 2 ? 1 - px : c.pad_left;
  product((int64_t)blockIdx.x * TILE, (int64_t)blockIdx.y * TILE, terms, false,
          [&](int64_t p, int64_t k) {
            if (p >= pixels || k >= terms) return 0.0f;
            int tap = (int)(k / c.ci), ch = (int)(k - (int64_t)tap * c.ci);
            int dj = tap % c.kw, di = tap / c.kw % c.kh, dt = tap / c.kw / c.kh;
            int j = (int)(p % c.Wo), i = (int)(p / c.Wo % c.Ho);
            int64_t t = p / c.Wo / c.Ho * c.stride_t + dt;
            int row = i * c.stride_h + di - top, col = j * c.stride_w + dj - left;
            if (row < 0 || col < 0 || row >= c.H || col >= c.W) return 0.0f;
            return to_f32(conv_frame<T>(c, t)[((int64_t)row * c.W + col) * c.ci + ch]);
          },
          [&](int64_t o, int64_t k) {
            return o < c.co && k < terms ? to_f32(w[o * phases * c.taps * c.ci + k]) : 0.0f;
          },
          [&](int64_t p, int64_t o, float v) {
            if (p >= pixels || o >= c.co) return;
            int64_t j = p % c.Wo, i = p / c.Wo % c.Ho, t = p / c.Wo / c.Ho;
            int64_t at = ((t * c.Ho * c.up + i * c.up + py) * c.Wo * c.up + j * c.up + px) * c.co + o;
            if (c.bias) v += c.bias[o];
            if (c.residual) v += to_f32(((const Out *)c.residual)[at]);
            put((Out *)c.out + at, v);
          });
}

} // namespace

void k_gemm(k_stream s, const k_gemm_spec *g, k_data a, k_data b, k_data out, const float *bias, k_act act) {
  dim3 grid(blocks_for(g->m, TILE), blocks_for(g->n, TILE), (unsigned)g->batch);
  if (!g->m || !g->n) return;
  with_type(a, [&](auto *p) {
    with_type(out, [&](auto *o) {
      using T = std::remove_pointer_t<decltype(p)>;
      gemm<T><<<grid, BLOCK, 0, s>>>(*g, p, (const T *)b.p, o, bias, act);
    });
  });
}

void k_conv_simple(k_stream s, const k_conv_spec *c, k_type type) {
  dim3 grid(blocks_for((int64_t)c->To * c->Ho * c->Wo, TILE), blocks_for(c->co, TILE),
            (unsigned)(c->up * c->up));
  if (type == K_F32)
    conv_simple<float, float><<<grid, BLOCK, 0, s>>>(*c);
  else if (c->out_type == K_F32)
    conv_simple<bf16, float><<<grid, BLOCK, 0, s>>>(*c);
  else
    conv_simple<bf16, bf16><<<grid, BLOCK, 0, s>>>(*c);
}
