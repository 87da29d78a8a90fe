/* ops_vae.c: the operations of the autoencoders. */
#include "backend/ops_check.h"

#include <string.h>

void op_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out) {
  bool ok = usable(x) && is_act(be, x) && out.type == be->act && tensor_count(&x) == tensor_count(&out) &&
            tensor_cols(&x) == tensor_cols(&out);
  if (!require(be, ok, "channel_norm", x, out)) return;
  if (!require_loaded(be, "channel_norm", gamma, tensor_cols(&x))) return;
  double t0 = profile_start(be);
  settle(be, be->ops->channel_norm(be, x, gamma, act, out));
  profile_stop(be, PROF_CHANNEL_NORM, t0, 10.0 * (double)tensor_count(&x), size_of(x) + size_of(out));
}

/* Whether the frames are few enough, and missing ones only in front. */
static bool frames_fit(const conv_spec *s, int64_t T) {
  if (!s->frame) return true;
  for (int64_t t = 1; t < T && T <= CONV_FRAMES_MAX; t++)
    if (!s->frame[t] && s->frame[t - 1]) return false;
  return T <= CONV_FRAMES_MAX;
}

static double kernel_bytes(const weight *w) {
  return (double)tensor_count(&w->src) * (double)dtype_size(w->type);
}

/* The result's dims of a convolution that fits; false (and the failed state) otherwise. */
static bool conv_shape(backend *be, tensor x, const weight *w, const conv_spec *s, int64_t dim[4]) {
  if (be->failed) return false;
  const tensor *k = &w->src;
  bool ok = usable(x) && x.type == be->act && x.ndim == 4 && (k->ndim == 5 || k->ndim == 4) &&
            k->dim[0] > 0 && k->dim[1] == x.dim[3] && s->stride_t > 0 && s->stride_h > 0 && s->stride_w > 0 &&
            frames_fit(s, x.dim[0]);
  if (!require(be, ok, "conv", x, *k)) return false;
  int64_t kt = k->ndim == 5 ? k->dim[2] : 1, kh = k->dim[k->ndim - 2], kw = k->dim[k->ndim - 1];
  int64_t H = x.dim[1] + s->pad_top + s->pad_bottom, W = x.dim[2] + s->pad_left + s->pad_right;
  if (!require(be, x.dim[0] >= kt && H >= kh && W >= kw, "conv", x, *k)) return false;
  dim[0] = (x.dim[0] - kt) / s->stride_t + 1;
  dim[1] = (H - kh) / s->stride_h + 1;
  dim[2] = (W - kw) / s->stride_w + 1;
  dim[3] = k->dim[0];
  return true;
}

void op_conv_into(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *s,
                  tensor residual, tensor out) {
  int64_t dim[4];
  const tensor *k = &w->src;
  if (!conv_shape(be, x, w, s, dim)) return;
  bool ok = is_act(be, out) && out.ndim == 4 && memcmp(dim, out.dim, sizeof dim) == 0;
  if (!require(be, ok, "conv", x, out)) return;
  if (!require_loaded(be, "conv", w, tensor_count(k))) return;
  if (bias && !require_loaded(be, "conv bias", bias, k->dim[0])) return;
  if (usable(residual) && !require(be, residual.type == out.type && tensor_same_shape(&residual, &out),
                                   "conv residual", residual, out))
    return;
  double t0 = profile_start(be);
  settle(be, be->ops->conv(be, x, w, bias, s, residual, out));
  profile_stop(be, PROF_CONV, t0, 2.0 * (double)tensor_count(&out) * (double)(tensor_count(k) / k->dim[0]),
               size_of(x) + size_of(out) + size_of(residual) + kernel_bytes(w));
}

tensor op_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *s,
               tensor residual) {
  int64_t dim[4];
  if (!conv_shape(be, x, w, s, dim)) return (tensor){0};
  tensor y = tensor_new(be, be->act, 4, dim);
  op_conv_into(be, x, w, bias, s, residual, y);
  return unless_failed(be, y);
}

void op_upsample_conv_into(backend *be, tensor x, const weight *w, const weight *bias, tensor out) {
  const tensor *k = &w->src;
  bool ok = usable(x) && x.type == be->act && x.ndim == 4 && k->ndim == 4 && k->dim[1] == x.dim[3] &&
            k->dim[2] == 3 && k->dim[3] == 3 && is_act(be, out) && out.ndim == 4 && out.dim[0] == x.dim[0] &&
            out.dim[1] == 2 * x.dim[1] && out.dim[2] == 2 * x.dim[2] && out.dim[3] == k->dim[0];
  if (!require(be, ok, "upsample_conv", x, out)) return;
  if (!require_loaded(be, "upsample_conv", w, tensor_count(k))) return;
  if (bias && !require_loaded(be, "upsample_conv bias", bias, k->dim[0])) return;
  double t0 = profile_start(be);
  settle(be, be->ops->upsample_conv(be, x, w, bias, out));
  profile_stop(be, PROF_UPSAMPLE_CONV, t0, 18.0 * (double)tensor_count(&out) * (double)k->dim[1],
               size_of(x) + size_of(out) + kernel_bytes(w));
}

void op_time_unshuffle_into(backend *be, tensor x, tensor out) {
  bool ok = usable(x) && is_act(be, x) && x.ndim == 4 && out.type == x.type && out.ndim == 4 &&
            out.dim[0] == 2 * x.dim[0] && out.dim[1] == x.dim[1] && out.dim[2] == x.dim[2] &&
            2 * out.dim[3] == x.dim[3];
  if (!require(be, ok, "time_unshuffle", x, out)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->time_unshuffle(be, x, out));
  profile_stop(be, PROF_RESHAPE, t0, 0, 2 * size_of(x));
}

tensor op_time_unshuffle(backend *be, tensor x) {
  if (!require(be, usable(x) && x.ndim == 4, "time_unshuffle", x, x)) return (tensor){0};
  tensor y = TENSOR_NEW(be, x.type, 2 * x.dim[0], x.dim[1], x.dim[2], x.dim[3] / 2);
  op_time_unshuffle_into(be, x, y);
  return unless_failed(be, y);
}

void op_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip) {
  bool ok = usable(x) && is_act(be, x) && is_act(be, out) && x.ndim == 4 && out.ndim == 4 && ft > 0 &&
            fs > 0 && skip >= 0 && out.dim[0] <= x.dim[0] * ft - skip && out.dim[1] == x.dim[1] * fs &&
            out.dim[2] == x.dim[2] * fs && x.dim[3] > 0 && (out.dim[3] * ft * fs * fs) % x.dim[3] == 0;
  if (!require(be, ok, "dup_up_add", out, x)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->dup_up_add(be, out, x, ft, fs, skip));
  profile_stop(be, PROF_RESHAPE, t0, (double)tensor_count(&out), size_of(x) + 2 * size_of(out));
}

void op_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs) {
  bool ok = usable(x) && is_act(be, x) && is_act(be, out) && x.ndim == 4 && out.ndim == 4 && ft > 0 &&
            fs > 0 && out.dim[0] == (x.dim[0] + ft - 1) / ft && out.dim[1] * fs == x.dim[1] &&
            out.dim[2] * fs == x.dim[2] && out.dim[3] > 0 && (x.dim[3] * ft * fs * fs) % out.dim[3] == 0;
  if (!require(be, ok, "avg_down_add", out, x)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->avg_down_add(be, out, x, ft, fs));
  profile_stop(be, PROF_RESHAPE, t0, (double)tensor_count(&x), size_of(x) + 2 * size_of(out));
}

tensor op_space_to_depth(backend *be, tensor x) {
  bool ok = usable(x) && is_act(be, x) && x.ndim == 4 && x.dim[1] % 2 == 0 && x.dim[2] % 2 == 0;
  if (!require(be, ok, "space_to_depth", x, x)) return (tensor){0};
  tensor y = TENSOR_NEW(be, x.type, x.dim[0], x.dim[1] / 2, x.dim[2] / 2, x.dim[3] * 4);
  if (be->failed) return y;
  settle(be, be->ops->space_to_depth(be, x, y));
  return unless_failed(be, y);
}

tensor op_depth_to_space(backend *be, tensor x) {
  bool ok = usable(x) && is_act(be, x) && x.ndim == 4 && x.dim[3] % 4 == 0;
  if (!require(be, ok, "depth_to_space", x, x)) return (tensor){0};
  tensor y = TENSOR_NEW(be, x.type, x.dim[0], x.dim[1] * 2, x.dim[2] * 2, x.dim[3] / 4);
  if (be->failed) return y;
  settle(be, be->ops->depth_to_space(be, x, y));
  return unless_failed(be, y);
}
