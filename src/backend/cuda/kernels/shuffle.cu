/* shuffle.cu: rearrangements and the parameter-free shortcuts of the VAE. A thread makes one output
 * element, or eight neighbouring channels where they come from eight neighbouring channels. */
#include "backend/cuda/kernels/common.cuh"

#include <type_traits>

namespace {

enum { BLOCK = 256 };

__device__ __forceinline__ int64_t index() {
  return (int64_t)blockIdx.x * BLOCK + threadIdx.x;
}

/* Splits i = ((t * H + y) * W + x) * C + c. */
struct place {
  int c, x, y;
  int64_t t;
};
__device__ __forceinline__ place split(int64_t i, int H, int W, int C) {
  place p;
  int64_t rest = i / C;
  p.c = (int)(i - rest * C);
  int64_t rows = rest / W;
  p.x = (int)(rest - rows * W);
  p.t = rows / H;
  p.y = (int)(rows - p.t * H);
  return p;
}
__device__ __forceinline__ int64_t join(int64_t t, int y, int x, int c, int H, int W, int C) {
  return ((t * H + y) * W + x) * C + c;
}

template <class X, class Y> __global__ void patchify(const X *x, Y *out, int64_t n, int h, int w, int c) {
  int64_t i = index();
  if (i >= n) return;
  place p = split(i, h / 2, w / 2, 4 * c); /* columns (c, ph, pw) */
  int ch = p.c / 4, ph = p.c / 2 % 2, pw = p.c % 2;
  put(out + i, to_f32(x[join(p.t, 2 * p.y + ph, 2 * p.x + pw, ch, h, w, c)]));
}

__global__ void unpatchify(const float *y, float *out, int64_t n, int h, int w, int c) {
  int64_t i = index();
  if (i >= n) return;
  place p = split(i, h, w, c); /* columns (ph, pw, c) of the token */
  int column = ((p.y % 2) * 2 + p.x % 2) * c + p.c;
  out[i] = y[join(p.t, p.y / 2, p.x / 2, column, h / 2, w / 2, 4 * c)];
}

template <class T> __global__ void time_unshuffle(const T *x, T *out, int64_t n, int64_t hw, int c) {
  int64_t i = index();
  if (i >= n) return;
  int64_t pixel = i / c, frame = pixel / hw;
  int ch = (int)(i - pixel * c);
  out[i] = x[((frame / 2) * hw + (pixel - frame * hw)) * 2 * c + (frame % 2) * c + ch];
}

template <class T, class X> struct dup_spec {
  T *out;
  const X *x;
  int ft, fs, skip, H, W, co, ci;
};
/* N channels from the index'th group of N on */
template <int N, class T, class X> __global__ void dup_up_add(dup_spec<T, X> d, int64_t groups) {
  int64_t i = index();
  if (i >= groups) return;
  place p = split(i, d.H, d.W, d.co / N);
  const int fold = d.ft * d.fs * d.fs, repeats = d.co * fold / d.ci;
  int64_t frame = p.t + d.skip, t = frame / d.ft;
  int a = (int)(frame - t * d.ft), b = p.y % d.fs, c = p.x % d.fs, shift = (a * d.fs + b) * d.fs + c;
  const X *x = d.x + join(t, p.y / d.fs, p.x / d.fs, 0, d.H / d.fs, d.W / d.fs, d.ci);
  T *out = d.out + i * N;
  if constexpr (N == VEC) {
    float v[VEC];
    load8(out, v);
#pragma unroll
    for (int j = 0; j < VEC; j++) v[j] += to_f32(x[((p.c * VEC + j) * fold + shift) / repeats]);
    store8(out, v);
  } else {
    put(out, to_f32(out[0]) + to_f32(x[(p.c * fold + shift) / repeats]));
  }
}

template <class T, class X> struct avg_spec {
  T *out;
  const X *x;
  int ft, fs, missing, H, W, co, ci; /* missing: zero frames in front */
};
template <class T, class X> __global__ void avg_down_add(avg_spec<T, X> d, int64_t n) {
  int64_t i = index();
  if (i >= n) return;
  place p = split(i, d.H, d.W, d.co);
  const int fold = d.ft * d.fs * d.fs, group = d.ci * fold / d.co;
  float sum = 0;
  for (int s = p.c * group; s < (p.c + 1) * group; s++) { /* s = (channel, a, b, c) */
    int c = s % d.fs, b = s / d.fs % d.fs, a = s / d.fs / d.fs % d.ft;
    int64_t frame = p.t * d.ft + a - d.missing;
    if (frame >= 0)
      sum += to_f32(d.x[join(frame, p.y * d.fs + b, p.x * d.fs + c, s / fold, d.H * d.fs, d.W * d.fs, d.ci)]);
  }
  put(d.out + i, to_f32(d.out[i]) + sum / (float)group);
}

template <class T>
__global__ void swap_depth(T *small, T *large, bool to_small, int64_t n, int H, int W, int c) {
  int64_t i = index(); /* of the large one, H x W */
  if (i >= n) return;
  place p = split(i, H, W, c);
  int q = p.y % 2, r = p.x % 2; /* the column offset is the slower one (Wan2.2 VAE) */
  int64_t s = join(p.t, p.y / 2, p.x / 2, p.c * 4 + r * 2 + q, H / 2, W / 2, 4 * c);
  if (to_small)
    small[s] = large[i];
  else
    large[i] = small[s];
}

template <class T> __global__ void concat(const T *a, const T *b, T *out, int64_t n, int ca, int cb) {
  int64_t i = index();
  if (i >= n) return;
  int64_t row = i / (ca + cb);
  int c = (int)(i - row * (ca + cb));
  out[i] = c < ca ? a[row * ca + c] : b[row * cb + c - ca];
}

template <class T> __global__ void pad_channels(const T *x, T *out, int64_t n, int c, int wide) {
  int64_t i = index();
  if (i >= n) return;
  int64_t row = i / wide;
  int ch = (int)(i - row * wide);
  put(out + i, ch < c ? to_f32(x[row * c + ch]) : 0.0f);
}

template <class X, class Y>
__global__ void pack_conv(const X *w, Y *out, int64_t n, int ci, int taps, int wide) {
  int64_t i = index();
  if (i >= n) return;
  int64_t rest = i / wide, o = rest / taps;
  int c = (int)(i - rest * wide), tap = (int)(rest - o * taps);
  put(out + i, c < ci ? to_f32(w[(o * ci + c) * taps + tap]) : 0.0f);
}

template <class X, class Y> __global__ void pack_up(const X *w, Y *out, int64_t n, int ci, int wide) {
  int64_t i = index();
  if (i >= n) return;
  int64_t rest = i / wide, o = rest / 16;
  int c = (int)(i - rest * wide), entry = (int)(rest - o * 16);
  int py = entry / 8, px = entry / 4 % 2, dy = entry / 2 % 2, dx = entry % 2;
  /* Row offsets -1, 0, 1 of the 3x3 kernel around output row 2i + py lie on source rows
   * i-1, i, i (py 0) and i, i, i+1 (py 1); columns alike. Tap 0 is the first of the two rows. */
  float sum = 0;
  for (int u = 0; u < 3 && c < ci; u++)
    for (int v = 0; v < 3; v++) {
      int row = py ? u == 2 : u > 0, col = px ? v == 2 : v > 0;
      if (row == dy && col == dx) sum += to_f32(w[((o * ci + c) * 3 + u) * 3 + v]);
    }
  put(out + i, sum);
}

} // namespace

void k_patchify(k_stream s, k_data x, k_data out, int T, int h, int w, int c) {
  int64_t n = (int64_t)T * h * w * c;
  with_type(x, [&](auto *i) {
    with_type(out, [&](auto *o) { patchify<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(i, o, n, h, w, c); });
  });
}

void k_unpatchify(k_stream s, const float *y, float *out, int T, int h, int w, int c) {
  int64_t n = (int64_t)T * h * w * c;
  unpatchify<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(y, out, n, h, w, c);
}

void k_time_unshuffle(k_stream s, k_data x, k_data out, int T, int64_t hw, int c) {
  int64_t n = (int64_t)T * hw * c; /* T of the result */
  if (out.type == K_BF16 && c % VEC == 0 && aligned16(x.p) && aligned16(out.p))
    time_unshuffle<<<blocks_for(n / VEC, BLOCK), BLOCK, 0, s>>>((const uint4 *)x.p, (uint4 *)out.p, n / VEC,
                                                                hw, c / VEC);
  else
    with_type(out, [&](auto *o) {
      time_unshuffle<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>((decltype(o))x.p, o, n, hw, c);
    });
}

void k_dup_up_add(k_stream s, k_data out, k_data x, int ft, int fs, int skip, int T, int H, int W, int co,
                  int ci) {
  int64_t n = (int64_t)T * H * W * co;
  with_type(out, [&](auto *o) {
    with_type(x, [&](auto *i) {
      dup_spec<std::remove_pointer_t<decltype(o)>, std::remove_pointer_t<decltype(i)>> d = {
          o, i, ft, fs, skip, H, W, co, ci};
      if (co % VEC == 0 && aligned16(o))
        dup_up_add<VEC><<<blocks_for(n / VEC, BLOCK), BLOCK, 0, s>>>(d, n / VEC);
      else
        dup_up_add<1><<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(d, n);
    });
  });
}

void k_avg_down_add(k_stream s, k_data out, k_data x, int ft, int fs, int Tx, int T, int H, int W, int co,
                    int ci) {
  int64_t n = (int64_t)T * H * W * co;
  int missing = T * ft - Tx;
  with_type(out, [&](auto *o) {
    with_type(x, [&](auto *i) {
      avg_spec<std::remove_pointer_t<decltype(o)>, std::remove_pointer_t<decltype(i)>> d = {
          o, i, ft, fs, missing, H, W, co, ci};
      avg_down_add<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(d, n);
    });
  });
}

void k_swap_depth(k_stream s, k_data small, k_data large, bool to_small, int T, int h, int w, int c) {
  int64_t n = (int64_t)T * h * w * c * 4;
  with_type(small, [&](auto *p) {
    swap_depth<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(p, (decltype(p))large.p, to_small, n, 2 * h, 2 * w, c);
  });
}

void k_concat(k_stream s, k_data a, k_data b, k_data out, int64_t rows, int ca, int cb) {
  int64_t n = rows * (ca + cb);
  with_type(out, [&](auto *o) {
    concat<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>((decltype(o))a.p, (decltype(o))b.p, o, n, ca, cb);
  });
}

void k_pad_channels(k_stream s, k_data x, k_data out, int64_t n, int c, int wide) {
  with_type(out, [&](auto *o) {
    pad_channels<<<blocks_for(n * wide, BLOCK), BLOCK, 0, s>>>((decltype(o))x.p, o, n * wide, c, wide);
  });
}

void k_pack_conv(k_stream s, k_data w, k_data out, int co, int ci, int taps, int wide) {
  int64_t n = (int64_t)co * taps * wide;
  with_type(w, [&](auto *i) {
    with_type(out,
              [&](auto *o) { pack_conv<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(i, o, n, ci, taps, wide); });
  });
}

void k_pack_up(k_stream s, k_data w, k_data out, int co, int ci, int wide) {
  int64_t n = (int64_t)co * 16 * wide;
  with_type(w, [&](auto *i) {
    with_type(out, [&](auto *o) { pack_up<<<blocks_for(n, BLOCK), BLOCK, 0, s>>>(i, o, n, ci, wide); });
  });
}
