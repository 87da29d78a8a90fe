/* blocks.c: the parts of both autoencoders as streams. Tensors are [frames, rows, columns, channels]. What
 * enters a convolution is act; what runs from block to block (x, out) is F32 in the deep levels, where it
 * costs little and errors would pile up along the residual path, and act in the wide ones (vae.c). A causal
 * convolution of three frames keeps the last two frames of its input; two zero frames at the start make the
 * stream equal to one causal pass over the clip. */
#include "vae/vae_internal.h"

#include <math.h>

static const conv_spec same3x3 = {1, 1, 1, 1, 1, 1, 1, NULL}; /* stride 1, one zero pixel on every side */
static const conv_spec pointwise = {1, 1, 1, 0, 0, 0, 0, NULL};
static const conv_spec halve = {1, 2, 2, 0, 1, 0, 1, NULL}; /* zero pixels right and below only */
static const conv_spec halve_time = {2, 1, 1, 0, 0, 0, 0, NULL};

/* ---- Causal convolutions ---- */

static tensor *take_slot(vae_stream *s) {
  if (s->slot < VAE_SLOTS) return s->past[s->slot++];
  backend_fail(s->v->be, WAN_ERR_UNSUPPORTED, "the autoencoder has more than %d causal convolutions",
               VAE_SLOTS);
  return s->past[0];
}

void vae_stream_close(vae_stream *s) {
  for (int i = 0; i < VAE_SLOTS; i++)
    for (int j = 0; j < VAE_PAST; j++) tensor_free(s->v->be, &s->past[i][j]);
  for (int i = 0; i < VAE_NOW; i++) tensor_free(s->v->be, &s->spare[i]);
}

/* A frame like those of x, in act: a forgotten one of that size, else new memory in place of theirs. */
static tensor take_frame(vae_stream *s, tensor x) {
  const int64_t count = x.dim[1] * x.dim[2] * x.dim[3];
  for (int i = 0; i < VAE_NOW; i++) {
    if (tensor_count(&s->spare[i]) != count) continue;
    tensor f = s->spare[i];
    s->spare[i] = (tensor){0};
    return TENSOR_VIEW(f, 1, x.dim[1], x.dim[2], x.dim[3]);
  }
  for (int i = 0; i < VAE_NOW; i++) tensor_free(s->v->be, &s->spare[i]);
  return TENSOR_ALLOC(s->v->be, s->v->be->act, 1, x.dim[1], x.dim[2], x.dim[3]);
}

static void forget_frame(vae_stream *s, tensor f) {
  if (f.type == DT_NONE) return;
  for (int i = 0; i < VAE_NOW; i++)
    if (s->spare[i].type == DT_NONE) {
      s->spare[i] = f;
      return;
    }
  tensor_free(s->v->be, &f);
}

/* x's frames (a push has at most VAE_NOW) as they enter a convolution: silu(norm(x)), or in act where there
 * is no gamma. */
static void enter(vae_stream *s, tensor x, const weight *gamma, tensor now[VAE_NOW]) {
  backend *be = s->v->be;
  for (int64_t t = 0; t < x.dim[0]; t++) {
    now[t] = take_frame(s, x);
    if (gamma)
      op_channel_norm(be, tensor_slice(x, t, 1), gamma, ACT_SILU, now[t]);
    else
      op_cast_into(be, tensor_slice(x, t, 1), now[t]);
  }
}

/* The convolution of its past and now; then the last of both are the past. */
static void convolve(vae_stream *s, tensor *past, int depth, const tensor *now, int n, const vae_conv *conv,
                     const conv_spec *how, tensor residual, tensor out) {
  backend *be = s->v->be;
  if (be->failed) {
    for (int i = 0; i < n; i++) forget_frame(s, now[i]);
    return;
  }
  tensor all[VAE_PAST + VAE_NOW];
  const void *frame[VAE_PAST + VAE_NOW];
  for (int i = 0; i < depth + n; i++) {
    all[i] = i < depth ? past[i] : now[i - depth];
    frame[i] = all[i].data;
  }
  conv_spec spec = *how;
  spec.frame = frame;
  tensor x =
      tensor_of(be->act, NULL, 4, (const int64_t[]){depth + n, now[0].dim[1], now[0].dim[2], now[0].dim[3]});
  op_conv_into(be, x, &conv->w, &conv->b, &spec, residual, out);
  for (int i = 0; i < n; i++) forget_frame(s, all[i]);
  for (int i = 0; i < depth; i++) past[i] = all[n + i];
}

void vae_causal_conv(vae_stream *s, tensor x, const weight *gamma, const vae_conv *conv, tensor residual,
                     tensor out) {
  tensor now[VAE_NOW] = {{0}}, *past = take_slot(s);
  enter(s, x, gamma, now);
  convolve(s, past, VAE_PAST, now, (int)x.dim[0], conv, &same3x3, residual, out);
}

/* ---- Blocks ---- */

/* out = shortcut(x), in bands of rows: the operand is a copy in act. */
static void project(vae_stream *s, const vae_conv *shortcut, tensor x, tensor out) {
  enum { BAND_BYTES = 32 << 20 };
  backend *be = s->v->be;
  const int64_t rows = tensor_rows(&x), cin = tensor_cols(&x), cout = tensor_cols(&out);
  const int64_t most = BAND_BYTES / (cin * (int64_t)dtype_size(be->act)) + 1;
  x = TENSOR_VIEW(x, rows, cin);
  out = TENSOR_VIEW(out, rows, cout);
  for (int64_t i = 0; i < rows && !be->failed; i += most) {
    const int64_t n = rows - i < most ? rows - i : most;
    scope_mark mark = scope_begin(be);
    op_linear_into(be, op_cast(be, tensor_slice(x, i, n), DT_NONE), &shortcut->w, &shortcut->b, ACT_NONE,
                   tensor_slice(out, i, n));
    scope_end(be, mark);
  }
}

/* out = skip(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))); out may be x where skip is the identity. */
static void res_block(vae_stream *s, const vae_res *r, tensor x, tensor out) {
  backend *be = s->v->be;
  scope_mark mark = scope_begin(be);
  if (r->has_shortcut) project(s, &r->shortcut, x, out);
  tensor h = tensor_new(be, out.type, out.ndim, out.dim);
  vae_causal_conv(s, x, &r->gamma1, &r->conv1, (tensor){0}, h);
  vae_causal_conv(s, h, &r->gamma2, &r->conv2, r->has_shortcut ? out : x, out);
  scope_end(be, mark);
}

/* x += proj(attention(norm(x))) within each frame */
static void attention_block(vae_stream *s, const vae_attention *a, tensor x) {
  backend *be = s->v->be;
  const int64_t positions = x.dim[1] * x.dim[2], C = x.dim[3];
  attention_spec spec = {.heads = 1, .scale = 1 / sqrtf((float)C)};
  for (int64_t t = 0; t < x.dim[0]; t++) {
    scope_mark mark = scope_begin(be);
    tensor xt = TENSOR_VIEW(tensor_slice(x, t, 1), positions, C);
    tensor n = TENSOR_NEW(be, DT_NONE, positions, C);
    op_channel_norm(be, xt, &a->gamma, ACT_NONE, n);
    tensor q = op_linear(be, n, &a->q.w, &a->q.b, ACT_NONE, DT_NONE);
    tensor k = op_linear(be, n, &a->k.w, &a->k.b, ACT_NONE, DT_NONE);
    tensor v = op_linear(be, n, &a->v.w, &a->v.b, ACT_NONE, DT_NONE);
    tensor y = op_attention(be, q, k, v, &spec);
    op_add(be, xt, op_linear(be, y, &a->proj.w, &a->proj.b, ACT_NONE, DT_NONE));
    scope_end(be, mark);
  }
}

void vae_middle(vae_stream *s, const vae_net *net, tensor x) {
  res_block(s, &net->middle0, x, x);
  attention_block(s, &net->middle1, x);
  res_block(s, &net->middle2, x, x);
}

/* ---- Resampling ---- */

/* Two frames from each. The clip's first frame never comes here: it passes, and is not part of the
 * convolution's past either. */
static void double_time(vae_stream *s, tensor *past, const vae_level *l, tensor x, tensor out) {
  backend *be = s->v->be;
  scope_mark mark = scope_begin(be);
  tensor now[VAE_NOW] = {{0}};
  tensor both = TENSOR_NEW(be, DT_NONE, x.dim[0], x.dim[1], x.dim[2], 2 * x.dim[3]);
  enter(s, x, NULL, now);
  convolve(s, past, 2, now, (int)x.dim[0], &l->time, &pointwise, (tensor){0}, both);
  op_time_unshuffle_into(be, both, out);
  scope_end(be, mark);
}

/* Rows and columns halved; then one frame from each pair, except that the clip's first frame passes and
 * becomes the past of the next. */
static void halve_all(vae_stream *s, const vae_level *l, tensor x, tensor out) {
  backend *be = s->v->be;
  tensor now[VAE_NOW] = {{0}}, *past = take_slot(s), operand = op_cast(be, x, DT_NONE);
  if (!s->started) {
    op_conv_into(be, operand, &l->resample.w, &l->resample.b, &halve, (tensor){0}, out);
    enter(s, out, NULL, past);
    return;
  }
  enter(s, op_conv(be, operand, &l->resample.w, &l->resample.b, &halve, (tensor){0}), NULL, now);
  convolve(s, past, 1, now, (int)x.dim[0], &l->time, &halve_time, (tensor){0}, out);
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

tensor vae_level_result(vae_stream *s, const vae_level *l, tensor x) {
  int64_t T = x.dim[0], H = x.dim[1], W = x.dim[2];
  if (is_down(l)) T = s->started ? T / time_factor(l) : T, H /= 2, W /= 2;
  if (is_up(l)) T = s->started ? T * time_factor(l) : T, H *= 2, W *= 2;
  return TENSOR_NEW(s->v->be, x.type, T, H, W, l->cout);
}

static void run_blocks(vae_stream *s, const vae_level *l, tensor x, tensor out) {
  for (int i = 0; i < l->n_res; i++) res_block(s, &l->res[i], i ? out : x, out);
}

static tensor blocks_result(vae_stream *s, const vae_level *l, tensor x) {
  return TENSOR_NEW(s->v->be, x.type, x.dim[0], x.dim[1], x.dim[2], l->res[l->n_res - 1].cout);
}

tensor vae_up_begin(vae_stream *s, const vae_level *l, tensor x) {
  backend *be = s->v->be;
  const bool doubled = l->kind == RESAMPLE_UP3D && s->started;
  tensor narrow =
      TENSOR_NEW(be, DT_NONE, x.dim[0] * (doubled ? 2 : 1), x.dim[1], x.dim[2], l->res[l->n_res - 1].cout);
  scope_mark mark = scope_begin(be);
  tensor a = blocks_result(s, l, x);
  run_blocks(s, l, x, a);
  tensor *past = l->kind == RESAMPLE_UP3D ? take_slot(s) : NULL;
  if (doubled)
    double_time(s, past, l, a, narrow);
  else
    op_cast_into(be, a, narrow);
  scope_end(be, mark);
  return narrow;
}

void vae_up_frames(vae_stream *s, const vae_level *l, tensor x, tensor narrow, int64_t first, tensor out) {
  backend *be = s->v->be;
  if (be->failed) return;
  op_upsample_conv_into(be, tensor_slice(narrow, first, out.dim[0]), &l->resample.w, &l->resample.b, out);
  if (s->v->info.version == 21) return;
  /* Wan2.2: the level's input, repeated, is added. The clip's first frame is the last of its copies. */
  const int ft = time_factor(l);
  const int64_t at = first + (s->started ? 0 : ft - 1);
  op_dup_up_add(be, out, tensor_slice(x, at / ft, x.dim[0] - at / ft), ft, 2, (int)(at % ft));
}

/* Wan2.2's encoder: the level's input, averaged, is added to its output. */
static void add_average(vae_stream *s, const vae_level *l, tensor x, tensor out) {
  if (s->v->info.version == 22)
    op_avg_down_add(s->v->be, out, x, time_factor(l), l->kind == RESAMPLE_NONE ? 1 : 2);
}

static void run_down(vae_stream *s, const vae_level *l, tensor x, tensor out) {
  backend *be = s->v->be;
  tensor a = blocks_result(s, l, x);
  run_blocks(s, l, x, a);
  if (l->kind == RESAMPLE_DOWN3D)
    halve_all(s, l, a, out);
  else
    op_conv_into(be, op_cast(be, a, DT_NONE), &l->resample.w, &l->resample.b, &halve, (tensor){0}, out);
  add_average(s, l, x, out);
}

void vae_run_level(vae_stream *s, vae_level *l, residency_mode mode, tensor x, tensor out) {
  backend *be = s->v->be;
  if (!be->failed && core_check_cancel(be->ctx) != WAN_OK) be->failed = WAN_ERR_CANCELLED;
  if (!be->failed && weight_group_acquire(be, &l->group) != WAN_OK && !be->failed)
    be->failed = WAN_ERR_MEMORY;
  if (be->failed) return;
  scope_mark mark = scope_begin(be);
  if (is_up(l)) {
    tensor narrow = vae_up_begin(s, l, x);
    vae_up_frames(s, l, x, narrow, 0, out);
  } else if (is_down(l)) {
    run_down(s, l, x, out);
  } else {
    run_blocks(s, l, x, out);
    if (l->n_res == 2) add_average(s, l, x, out); /* the encoder's last level */
  }
  scope_end(be, mark);
  if (mode != RESIDENCY_KEEP) backend_sync(be);
  weight_group_release(be, &l->group, mode);
}
