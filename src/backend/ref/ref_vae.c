/* ref_vae.c: what the two VAEs are made of. Videos are [T, H, W, C]. */
#include "backend/ref/ref.h"

#include <math.h>

/* Position of (t, i, j, c) in a video. */
static int64_t at(tensor v, int64_t t, int64_t i, int64_t j, int64_t c) {
  return ((t * v.dim[1] + i) * v.dim[2] + j) * v.dim[3] + c;
}

wan_status ref_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out) {
  int64_t n = tensor_rows(&x), c = tensor_cols(&x);
  double *v = ref_scratch(be, c);
  if (!v) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++) {
    double squares = 0;
    ref_read_row(x, i, v);
    for (int64_t j = 0; j < c; j++) squares += v[j] * v[j];
    double scale = sqrt((double)c) / fmax(sqrt(squares), 1e-12);
    for (int64_t j = 0; j < c; j++) v[j] = ref_activate(act, v[j] * scale * ref_vector(gamma, j));
    ref_write_row(out, i, v);
  }
  core_free(be->ctx, v);
  return WAN_OK;
}

/* ---- Convolution ---- */

/* The kernel's extent and place. The input is seen magnified: pixel (i, j) of it is x at (i/up, j/up). */
typedef struct window {
  int64_t kt, kh, kw;
  int64_t stride_t, stride_h, stride_w, top, left;
  int64_t up;
  const void *const *frame; /* as in conv_spec */
} window;

/* Frame t of a convolution's input; no data: zeros. */
static tensor frame_of(tensor x, const window *k, int64_t t) {
  tensor f = tensor_slice(x, t, 1);
  if (k->frame) f.data = (void *)(uintptr_t)k->frame[t];
  return f;
}

/* What the kernel sees at output (t, i, j), in the weight's order (ci, kt, kh, kw); 0 outside. */
static void gather(tensor x, const window *k, int64_t t, int64_t i, int64_t j, double *patch) {
  for (int64_t c = 0; c < x.dim[3]; c++)
    for (int64_t dt = 0; dt < k->kt; dt++)
      for (int64_t di = 0; di < k->kh; di++)
        for (int64_t dj = 0; dj < k->kw; dj++) {
          int64_t row = i * k->stride_h + di - k->top, col = j * k->stride_w + dj - k->left;
          tensor f = frame_of(x, k, t * k->stride_t + dt);
          bool inside = f.data && row >= 0 && col >= 0 && row < x.dim[1] * k->up && col < x.dim[2] * k->up;
          *patch++ = inside ? ref_get(x.type, f.data, at(f, 0, row / k->up, col / k->up, c)) : 0;
        }
}

static wan_status convolve(backend *be, tensor x, const weight *w, const weight *bias, const window *k,
                           tensor residual, tensor out) {
  int64_t taps = x.dim[3] * k->kt * k->kh * k->kw, pixels = tensor_rows(&out), n = out.dim[3];
  double *patch = ref_scratch(be, taps);
  if (!patch) return WAN_ERR_MEMORY;
  for (int64_t p = 0; p < pixels; p++) {
    int64_t j = p % out.dim[2], i = p / out.dim[2] % out.dim[1], t = p / out.dim[2] / out.dim[1];
    gather(x, k, t, i, j, patch);
    for (int64_t o = 0; o < n; o++) {
      const char *kernel = (const char *)w->data + (size_t)(o * taps) * dtype_size(w->type);
      double y = ref_dot(patch, w->type, kernel, taps) + ref_vector(bias, o);
      if (residual.type != DT_NONE) y += ref_get(residual.type, residual.data, p * n + o);
      ref_set(out, p * n + o, y);
    }
  }
  core_free(be->ctx, patch);
  return WAN_OK;
}

wan_status ref_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
                    tensor residual, tensor out) {
  const tensor *s = &w->src;
  window k = {.kt = s->ndim == 5 ? s->dim[2] : 1,
              .kh = s->dim[s->ndim - 2],
              .kw = s->dim[s->ndim - 1],
              .stride_t = spec->stride_t,
              .stride_h = spec->stride_h,
              .stride_w = spec->stride_w,
              .top = spec->pad_top,
              .left = spec->pad_left,
              .up = 1,
              .frame = spec->frame};
  return convolve(be, x, w, bias, &k, residual, out);
}

wan_status ref_upsample_conv(backend *be, tensor x, const weight *w, const weight *bias, tensor out) {
  window k = {
      .kt = 1, .kh = 3, .kw = 3, .stride_t = 1, .stride_h = 1, .stride_w = 1, .top = 1, .left = 1, .up = 2};
  return convolve(be, x, w, bias, &k, (tensor){0}, out);
}

/* ---- Rearrangements ---- */

wan_status ref_time_unshuffle(backend *be, tensor x, tensor out) {
  (void)be;
  int64_t C = out.dim[3];
  for (int64_t t = 0; t < out.dim[0]; t++)
    for (int64_t i = 0; i < out.dim[1]; i++)
      for (int64_t j = 0; j < out.dim[2]; j++)
        for (int64_t c = 0; c < C; c++)
          ref_set(out, at(out, t, i, j, c), ref_get(x.type, x.data, at(x, t / 2, i, j, t % 2 * C + c)));
  return WAN_OK;
}

wan_status ref_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip) {
  (void)be;
  int64_t fold = (int64_t)ft * fs * fs, repeats = out.dim[3] * fold / x.dim[3];
  for (int64_t t = 0; t < out.dim[0]; t++)
    for (int64_t i = 0; i < out.dim[1]; i++)
      for (int64_t j = 0; j < out.dim[2]; j++)
        for (int64_t o = 0; o < out.dim[3]; o++) {
          int64_t frame = t + skip, a = frame % ft, b = i % fs, c = j % fs;
          int64_t from = at(x, frame / ft, i / fs, j / fs, (o * fold + (a * fs + b) * fs + c) / repeats);
          int64_t to = at(out, t, i, j, o);
          ref_set(out, to, ref_get(out.type, out.data, to) + ref_get(x.type, x.data, from));
        }
  return WAN_OK;
}

wan_status ref_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs) {
  (void)be;
  int64_t fold = (int64_t)ft * fs * fs, group = x.dim[3] * fold / out.dim[3];
  int64_t missing = out.dim[0] * ft - x.dim[0]; /* zero frames in front */
  for (int64_t t = 0; t < out.dim[0]; t++)
    for (int64_t i = 0; i < out.dim[1]; i++)
      for (int64_t j = 0; j < out.dim[2]; j++)
        for (int64_t o = 0; o < out.dim[3]; o++) {
          double sum = 0;
          for (int64_t s = o * group; s < (o + 1) * group; s++) { /* s = (channel, a, b, c) */
            int64_t c = s % fs, b = s / fs % fs, a = s / fs / fs % ft, frame = t * ft + a - missing;
            if (frame >= 0) sum += ref_get(x.type, x.data, at(x, frame, i * fs + b, j * fs + c, s / fold));
          }
          int64_t to = at(out, t, i, j, o);
          ref_set(out, to, ref_get(out.type, out.data, to) + sum / (double)group);
        }
  return WAN_OK;
}

/* Walk all elements of a small video [T, H, W, 4C] and its large twin [T, 2H, 2W, C]. */
static void swap_depth(tensor small, tensor large, bool to_small) {
  for (int64_t t = 0; t < large.dim[0]; t++)
    for (int64_t i = 0; i < large.dim[1]; i++)
      for (int64_t j = 0; j < large.dim[2]; j++)
        for (int64_t c = 0; c < large.dim[3]; c++) {
          int64_t q = i % 2, r = j % 2; /* the column offset r is the slower one (Wan2.2 VAE) */
          int64_t s = at(small, t, i / 2, j / 2, c * 4 + r * 2 + q), l = at(large, t, i, j, c);
          if (to_small)
            ref_set(small, s, ref_get(large.type, large.data, l));
          else
            ref_set(large, l, ref_get(small.type, small.data, s));
        }
}

wan_status ref_space_to_depth(backend *be, tensor x, tensor out) {
  (void)be;
  swap_depth(out, x, true);
  return WAN_OK;
}

wan_status ref_depth_to_space(backend *be, tensor x, tensor out) {
  (void)be;
  swap_depth(x, out, false);
  return WAN_OK;
}
