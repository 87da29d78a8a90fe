/* blocks.c: the parts of both autoencoders as streams. Tensors are [frames, rows, columns, channels]. What
 * runs from block to block (x, out) is F32, what enters a convolution is act: as in the transformer, only
 * operands are rounded, so that errors do not pile up along the residual path. A causal convolution of three
 * frames keeps the last two frames of its input; two zero frames at the start make the stream equal to one
 * causal pass over the clip. */
#include "vae/vae_internal.h"

#include <math.h>

static const conv_spec same3x3 = {1, 1, 1, 1, 1, 1, 1}; /* stride 1, one zero pixel on every side */
static const conv_spec pointwise = {1, 1, 1, 0, 0, 0, 0};
static const conv_spec halve = {1, 2, 2, 0, 1, 0, 1}; /* zero pixels right and below only */
static const conv_spec halve_time = {2, 1, 1, 0, 0, 0, 0};

tensor *vae_slot(vae_stream *s) {
  if (s->slot >= VAE_SLOTS) {
    backend_fail(s->v->be, WAN_ERR_UNSUPPORTED, "the autoencoder has more than %d causal convolutions",
                 VAE_SLOTS);
    return &s->history[0];
  }
  return &s->history[s->slot++];
}

void vae_stream_close(vae_stream *s) {
  for (int i = 0; i < VAE_SLOTS; i++) tensor_free(s->v->be, &s->history[i]);
}

/* The slot's tensor of `frames` frames like x, zero when it is first asked for. */
static tensor history_of(vae_stream *s, tensor *slot, int64_t frames, tensor x) {
  backend *be = s->v->be;
  if (slot->type == DT_NONE) {
    *slot = TENSOR_ALLOC(be, be->act, frames, x.dim[1], x.dim[2], x.dim[3]);
    tensor_zero(be, *slot);
  }
  return *slot;
}

/* [history; room for x's frames] in the current scope, and the history moved on once x is in place. */
static tensor with_history(vae_stream *s, tensor history, tensor x) {
  backend *be = s->v->be;
  tensor in = TENSOR_NEW(be, be->act, history.dim[0] + x.dim[0], x.dim[1], x.dim[2], x.dim[3]);
  tensor_copy(be, tensor_slice(in, 0, history.dim[0]), history);
  return in;
}

static void keep_history(vae_stream *s, tensor history, tensor in) {
  tensor_copy(s->v->be, history, tensor_slice(in, in.dim[0] - history.dim[0], history.dim[0]));
}

/* out = conv(silu(norm(x))) [+ residual], or conv(x) where there is no gamma. 3x3x3. */
void vae_causal_conv(vae_stream *s, tensor x, const weight *gamma, const vae_conv *conv, tensor residual,
                     tensor out) {
  backend *be = s->v->be;
  scope_mark mark = scope_begin(be);
  tensor history = history_of(s, vae_slot(s), 2, x);
  tensor in = with_history(s, history, x);
  tensor now = tensor_slice(in, 2, x.dim[0]);
  if (gamma)
    op_channel_norm(be, x, gamma, ACT_SILU, now);
  else
    tensor_copy(be, now, x);
  op_conv_into(be, in, &conv->w, &conv->b, &same3x3, residual, out);
  keep_history(s, history, in);
  scope_end(be, mark);
}

/* out = skip(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))) */
void vae_res_block(vae_stream *s, const vae_res *r, tensor x, tensor out) {
  backend *be = s->v->be;
  scope_mark mark = scope_begin(be);
  vae_causal_conv(s, x, &r->gamma1, &r->conv1, (tensor){0}, out);
  tensor skip = x;
  if (r->has_shortcut)
    skip = op_linear(be, op_cast(be, x, DT_NONE), &r->shortcut.w, &r->shortcut.b, ACT_NONE, DT_F32);
  /* out is read into the convolution's input before it is written again */
  vae_causal_conv(s, out, &r->gamma2, &r->conv2, skip, out);
  scope_end(be, mark);
}

/* out = x + proj(attention(norm(x))) within each frame */
static void attention_block(vae_stream *s, const vae_attention *a, tensor x, tensor out) {
  backend *be = s->v->be;
  const int64_t positions = x.dim[1] * x.dim[2], C = x.dim[3];
  attention_spec spec = {.heads = 1, .scale = 1 / sqrtf((float)C)};
  tensor_copy(be, out, x);
  for (int64_t t = 0; t < x.dim[0]; t++) {
    scope_mark mark = scope_begin(be);
    tensor xt = TENSOR_VIEW(tensor_slice(x, t, 1), positions, C);
    tensor n = TENSOR_NEW(be, DT_NONE, positions, C);
    op_channel_norm(be, xt, &a->gamma, ACT_NONE, n);
    tensor q = op_linear(be, n, &a->q.w, &a->q.b, ACT_NONE, DT_NONE);
    tensor k = op_linear(be, n, &a->k.w, &a->k.b, ACT_NONE, DT_NONE);
    tensor v = op_linear(be, n, &a->v.w, &a->v.b, ACT_NONE, DT_NONE);
    tensor y = op_attention(be, q, k, v, &spec);
    op_add(be, TENSOR_VIEW(tensor_slice(out, t, 1), positions, C),
           op_linear(be, y, &a->proj.w, &a->proj.b, ACT_NONE, DT_NONE));
    scope_end(be, mark);
  }
}

void vae_middle(vae_stream *s, const vae_net *net, tensor x, tensor out) {
  backend *be = s->v->be;
  scope_mark mark = scope_begin(be);
  tensor a = tensor_new(be, DT_F32, out.ndim, out.dim);
  vae_res_block(s, &net->middle0, x, out);
  attention_block(s, &net->middle1, out, a);
  vae_res_block(s, &net->middle2, a, out);
  scope_end(be, mark);
}

/* ---- Resampling ---- */

/* Two frames from each, except from the clip's first, which is not part of the convolution's past either.
 * F32 in, act out: the result only feeds the next convolution. */
static tensor double_time(vae_stream *s, const vae_level *l, tensor x) {
  backend *be = s->v->be;
  tensor *slot = vae_slot(s);
  tensor now = op_cast(be, x, DT_NONE);
  if (!s->started) return now;
  tensor history = history_of(s, slot, 2, now);
  tensor in = with_history(s, history, now);
  tensor_copy(be, tensor_slice(in, 2, now.dim[0]), now);
  tensor both = op_conv(be, in, &l->time.w, &l->time.b, &pointwise, (tensor){0});
  keep_history(s, history, in);
  return op_time_unshuffle(be, both);
}

/* Rows and columns halved; then one frame from each pair, except that the clip's first frame passes and
 * becomes the past of the next. */
static void halve_all(vae_stream *s, const vae_level *l, tensor x, tensor out) {
  backend *be = s->v->be;
  tensor operand = op_cast(be, x, DT_NONE);
  if (!s->started) op_conv_into(be, operand, &l->resample.w, &l->resample.b, &halve, (tensor){0}, out);
  tensor now = s->started ? op_conv(be, operand, &l->resample.w, &l->resample.b, &halve, (tensor){0})
                          : op_cast(be, out, DT_NONE);
  tensor history = history_of(s, vae_slot(s), 1, now);
  if (!s->started) {
    tensor_copy(be, history, now);
    return;
  }
  tensor in = with_history(s, history, now);
  tensor_copy(be, tensor_slice(in, 1, now.dim[0]), now);
  op_conv_into(be, in, &l->time.w, &l->time.b, &halve_time, (tensor){0}, out);
  keep_history(s, history, in);
}

static void resample(vae_stream *s, const vae_level *l, tensor x, tensor out) {
  backend *be = s->v->be;
  scope_mark mark = scope_begin(be);
  switch (l->kind) {
  case RESAMPLE_DOWN2D:
    op_conv_into(be, op_cast(be, x, DT_NONE), &l->resample.w, &l->resample.b, &halve, (tensor){0}, out);
    break;
  case RESAMPLE_DOWN3D:
    halve_all(s, l, x, out);
    break;
  case RESAMPLE_UP2D:
    op_upsample_conv_into(be, op_cast(be, x, DT_NONE), &l->resample.w, &l->resample.b, out);
    break;
  case RESAMPLE_UP3D:
    op_upsample_conv_into(be, double_time(s, l, x), &l->resample.w, &l->resample.b, out);
    break;
  case RESAMPLE_NONE:
    break;
  }
  scope_end(be, mark);
}

/* ---- Levels ---- */

static int time_factor(const vae_level *l) {
  return l->kind == RESAMPLE_DOWN3D || l->kind == RESAMPLE_UP3D ? 2 : 1;
}

static bool is_up(const vae_level *l) {
  return l->kind == RESAMPLE_UP2D || l->kind == RESAMPLE_UP3D;
}

static bool is_down(const vae_level *l) {
  return l->kind == RESAMPLE_DOWN2D || l->kind == RESAMPLE_DOWN3D;
}

static tensor new_result(vae_stream *s, const vae_level *l, tensor x) {
  int64_t T = x.dim[0], H = x.dim[1], W = x.dim[2];
  if (is_down(l)) T = s->started ? T / time_factor(l) : T, H /= 2, W /= 2;
  if (is_up(l)) T = s->started ? T * time_factor(l) : T, H *= 2, W *= 2;
  return TENSOR_NEW(s->v->be, DT_F32, T, H, W, l->cout);
}

/* Wan2.2 only: the level's input, resampled without parameters, is added to its output. */
static void add_shortcut(vae_stream *s, const vae_level *l, tensor x, tensor out, bool encoder) {
  int ft = time_factor(l), fs = l->kind == RESAMPLE_NONE ? 1 : 2;
  if (encoder)
    op_avg_down_add(s->v->be, out, x, ft, fs);
  else if (l->kind != RESAMPLE_NONE)
    op_dup_up_add(s->v->be, out, x, ft, fs, s->started ? 0 : ft - 1);
}

tensor vae_run_level(vae_stream *s, vae_level *l, residency_mode mode, tensor x) {
  backend *be = s->v->be;
  if (be->failed || core_check_cancel(be->ctx) != WAN_OK) {
    if (!be->failed) be->failed = WAN_ERR_CANCELLED;
    return (tensor){0};
  }
  if (weight_group_acquire(be, &l->group) != WAN_OK) {
    if (!be->failed) be->failed = WAN_ERR_MEMORY;
    return (tensor){0};
  }
  tensor out = new_result(s, l, x);
  scope_mark mark = scope_begin(be);
  const int64_t width = l->res[l->n_res - 1].cout;
  tensor a = TENSOR_NEW(be, DT_F32, x.dim[0], x.dim[1], x.dim[2], width);
  tensor b = TENSOR_NEW(be, DT_F32, x.dim[0], x.dim[1], x.dim[2], width);
  tensor now = x;
  for (int i = 0; i < l->n_res; i++) {
    bool last = i == l->n_res - 1 && l->kind == RESAMPLE_NONE;
    tensor next = last ? out : i % 2 ? b : a;
    vae_res_block(s, &l->res[i], now, next);
    now = next;
  }
  if (l->kind != RESAMPLE_NONE) resample(s, l, now, out);
  if (s->v->info.version == 22) add_shortcut(s, l, x, out, l->n_res == 2);
  scope_end(be, mark);
  backend_sync(be);
  weight_group_release(be, &l->group, mode);
  if (be->failed) return (tensor){0};
  return out;
}
