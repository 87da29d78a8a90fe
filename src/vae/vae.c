/* vae.c: the two directions as streams of latent frames and pixel frames. */
#include "vae/vae_internal.h"

#include <string.h>

struct vae_decoder {
  vae_stream stream;
  int64_t h, w;
  tensor mul, add; /* F32 [z]: latent statistics */
};

struct vae_encoder {
  vae_stream stream;
  int64_t H, W;
  tensor mul, add;
};

/* Per-channel factors on the backend. The official code forms the reciprocal first, in f32, and both
 * directions use it: encode (mu - mean) * inv, decode z / inv + mean. */
static void statistics(vae *v, bool encode, tensor *mul, tensor *add) {
  const int64_t z = v->info.z;
  const float *mean = vae_latent_mean(z), *std = vae_latent_std(z);
  float m[48], a[48];
  for (int64_t i = 0; i < z; i++) {
    float inv = 1.0f / std[i];
    m[i] = encode ? inv : 1.0f / inv;
    a[i] = encode ? -mean[i] * inv : mean[i];
  }
  *mul = TENSOR_ALLOC(v->be, DT_F32, z);
  *add = TENSOR_ALLOC(v->be, DT_F32, z);
  tensor_upload(v->be, *mul, m);
  tensor_upload(v->be, *add, a);
}

/* A push ends here: nothing that is not finite leaves the autoencoder. */
static void check_finite(vae *v, tensor result, const char *what) {
  if (!v->be->failed && !op_all_finite(v->be, result))
    backend_fail(v->be, WAN_ERR_NUMERIC,
                 "%s: the %s produced a value that is not finite; the latent or the weights are damaged",
                 weight_set_path(v->set), what);
}

/* ---- Decoder ---- */

wan_status vae_decoder_open(vae *v, int64_t h, int64_t w, vae_decoder **out) {
  core_ctx *ctx = v->be->ctx;
  *out = NULL;
  if (h < 1 || w < 1)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "a latent of %lld x %lld can't be decoded", (long long)h,
                     (long long)w);
  vae_decoder *d = core_calloc(ctx, 1, sizeof *d);
  if (!d) return WAN_ERR_MEMORY;
  d->stream.v = v;
  d->h = h;
  d->w = w;
  statistics(v, false, &d->mul, &d->add);
  if (v->be->failed) {
    wan_status s = v->be->failed;
    vae_decoder_close(d);
    return s;
  }
  *out = d;
  return WAN_OK;
}

void vae_decoder_close(vae_decoder *d) {
  if (!d) return;
  backend *be = d->stream.v->be;
  tensor_free(be, &d->mul);
  tensor_free(be, &d->add);
  vae_stream_close(&d->stream);
  core_free(be->ctx, d);
}

/* Latent frame -> input of the first level: F32 [1, h, w, width]. */
static void decoder_front(vae_decoder *d, tensor latent, tensor out) {
  vae_net *n = &d->stream.v->decoder;
  backend *be = d->stream.v->be;
  scope_mark mark = scope_begin(be);
  tensor z = op_channel_affine(be, latent, d->mul, d->add, DT_NONE);
  z = op_linear(be, z, &n->point.w, &n->point.b, ACT_NONE, DT_NONE);
  vae_causal_conv(&d->stream, z, NULL, &n->first, (tensor){0}, out);
  vae_middle(&d->stream, n, out);
  scope_end(be, mark);
}

/* A causal stream gives the same result however its frames are grouped. So the widest part of the network
 * runs with as few frames at a time as it can: decoding, one from level 2 on; encoding, one in level 0, and
 * the two that become one in level 1. There the residual stream is in act: in bf16 that makes a decode's
 * error 1.1e-2 instead of 7.5e-3 (tests/parity/test_vae_width.c), and saves half of the memory and of the
 * traffic beside the convolutions. */
enum { DECODER_SPLIT = 1, ENCODER_SPLIT = 2 };

static wan_status acquire_levels(backend *be, vae_net *n, int first, int last) {
  for (int i = first; i < last; i++) CORE_TRY(weight_group_acquire(be, &n->level[i].group));
  return WAN_OK;
}

static void release_levels(backend *be, vae_net *n, int first, int last, residency_mode mode) {
  for (int i = first; i < last; i++)
    if (n->level[i].group.users > 0) weight_group_release(be, &n->level[i].group, mode);
}

/* Frame t from the last temporal upsampling on: -> pixels F32 [1, H, W, 3]. x and narrow: that level's. */
static void decoder_tail(vae_decoder *d, tensor x, tensor narrow, int64_t t, tensor pixels) {
  vae_stream *s = &d->stream;
  vae *v = s->v;
  backend *be = v->be;
  vae_net *n = &v->decoder;
  scope_mark mark = scope_begin(be);
  vae_level *up = &n->level[DECODER_SPLIT], *l2 = up + 1, *l3 = up + 2;
  const int64_t H = 2 * narrow.dim[1], W = 2 * narrow.dim[2];
  tensor y = TENSOR_NEW(be, DT_NONE, 1, 2 * H, 2 * W, l2->cout);
  scope_mark inner = scope_begin(be);
  tensor wide = TENSOR_NEW(be, DT_NONE, 1, H, W, up->cout);
  vae_up_frames(s, up, x, narrow, t, wide);
  vae_run_level(s, l2, v->decoder_mode, wide, y);
  scope_end(be, inner);
  tensor last = vae_level_result(s, l3, y);
  vae_run_level(s, l3, v->decoder_mode, y, last);
  if (v->info.version == 22) {
    tensor blocks = TENSOR_NEW(be, DT_F32, 1, y.dim[1], y.dim[2], 12);
    vae_causal_conv(s, last, &n->head_gamma, &n->head, (tensor){0}, blocks);
    tensor_copy(be, pixels, op_depth_to_space(be, blocks));
  } else {
    vae_causal_conv(s, last, &n->head_gamma, &n->head, (tensor){0}, pixels);
  }
  scope_end(be, mark);
}

wan_status vae_decoder_push(vae_decoder *d, tensor latent, tensor *frames) {
  vae_stream *s = &d->stream;
  vae *v = s->v;
  backend *be = v->be;
  vae_net *n = &v->decoder;
  *frames = (tensor){0};
  CORE_TRY(backend_status(be));
  if (latent.type != DT_F32 || latent.ndim != 4 || latent.dim[0] != 1 || latent.dim[1] != d->h ||
      latent.dim[2] != d->w || latent.dim[3] != v->info.z) {
    char shape[96];
    return core_fail(be->ctx, WAN_ERR_ARGUMENT,
                     "the decoder was given %s %s; F32 [1, %lld, %lld, %lld] is needed",
                     dtype_name(latent.type), tensor_shape_text(&latent, shape, sizeof shape),
                     (long long)d->h, (long long)d->w, (long long)v->info.z);
  }
  s->slot = 0;
  const int64_t stride = v->info.spatial_stride, T = s->started ? v->info.temporal_stride : 1;
  tensor result = TENSOR_NEW(be, DT_F32, T, d->h * stride, d->w * stride, 3);
  scope_mark mark = scope_begin(be);
  CORE_TRY(weight_group_acquire(be, &n->ends));
  CORE_TRY(weight_group_acquire(be, &n->middle));
  tensor x = TENSOR_NEW(be, DT_F32, 1, d->h, d->w, n->level[0].cin);
  decoder_front(d, latent, x);
  weight_group_release(be, &n->middle, v->decoder_mode);
  for (int i = 0; i < DECODER_SPLIT; i++) {
    tensor y = vae_level_result(s, &n->level[i], x);
    vae_run_level(s, &n->level[i], v->decoder_mode, x, y);
    x = y;
  }
  CORE_TRY(acquire_levels(be, n, DECODER_SPLIT, VAE_LEVELS));
  tensor narrow = vae_up_begin(s, &n->level[DECODER_SPLIT], x);
  const int slot = s->slot;
  for (int64_t t = 0; t < T && !be->failed; t++) {
    s->slot = slot;
    decoder_tail(d, x, narrow, t, tensor_slice(result, t, 1));
  }
  check_finite(v, result, "decoder");
  scope_end(be, mark);
  release_levels(be, n, DECODER_SPLIT, VAE_LEVELS, v->decoder_mode);
  weight_group_release(be, &n->ends, v->decoder_mode);
  if (be->failed) return be->failed;
  s->started = true;
  *frames = result;
  return WAN_OK;
}

/* ---- Encoder ---- */

wan_status vae_encoder_open(vae *v, int64_t H, int64_t W, vae_encoder **out) {
  core_ctx *ctx = v->be->ctx;
  const int stride = v->info.spatial_stride;
  *out = NULL;
  if (H < stride || W < stride || H % stride || W % stride)
    return core_fail(
        ctx, WAN_ERR_ARGUMENT,
        "a picture of %lld x %lld (width x height) can't be encoded: both must be multiples of %d",
        (long long)W, (long long)H, stride);
  vae_encoder *e = core_calloc(ctx, 1, sizeof *e);
  if (!e) return WAN_ERR_MEMORY;
  e->stream.v = v;
  e->H = H;
  e->W = W;
  statistics(v, true, &e->mul, &e->add);
  if (v->be->failed) {
    wan_status s = v->be->failed;
    vae_encoder_close(e);
    return s;
  }
  *out = e;
  return WAN_OK;
}

void vae_encoder_close(vae_encoder *e) {
  if (!e) return;
  backend *be = e->stream.v->be;
  tensor_free(be, &e->mul);
  tensor_free(be, &e->add);
  vae_stream_close(&e->stream);
  core_free(be->ctx, e);
}

/* One frame through the first convolution and level 0: F32 [1, H, W, 3] -> act [1, ..]. */
static void encoder_front(vae_encoder *e, tensor frame, tensor out) {
  vae_stream *s = &e->stream;
  vae *v = s->v;
  backend *be = v->be;
  vae_net *n = &v->encoder;
  scope_mark mark = scope_begin(be);
  tensor x = op_cast(be, frame, DT_NONE);
  if (v->info.version == 22) x = op_space_to_depth(be, x);
  tensor y = TENSOR_NEW(be, DT_NONE, 1, x.dim[1], x.dim[2], n->level[0].cin);
  vae_causal_conv(s, x, NULL, &n->first, (tensor){0}, y);
  vae_run_level(s, &n->level[0], v->encoder_mode, y, out);
  scope_end(be, mark);
}

/* The frames that become one in level 1: F32 [1 or 2, H, W, 3] -> F32 [1, ..]. */
static void encoder_pair(vae_encoder *e, tensor frames, tensor out) {
  vae_stream *s = &e->stream;
  backend *be = s->v->be;
  vae_net *n = &s->v->encoder;
  scope_mark mark = scope_begin(be);
  tensor x = TENSOR_NEW(be, DT_NONE, frames.dim[0], 2 * out.dim[1], 2 * out.dim[2], n->level[0].cout);
  for (int64_t t = 0; t < frames.dim[0] && !be->failed; t++) {
    s->slot = 0;
    encoder_front(e, tensor_slice(frames, t, 1), tensor_slice(x, t, 1));
  }
  vae_run_level(s, &n->level[1], s->v->encoder_mode, x, out);
  scope_end(be, mark);
}

wan_status vae_encoder_push(vae_encoder *e, tensor frames, tensor *latent) {
  vae_stream *s = &e->stream;
  vae *v = s->v;
  backend *be = v->be;
  vae_net *n = &v->encoder;
  const int64_t T = s->started ? v->info.temporal_stride : 1, stride = v->info.spatial_stride;
  *latent = (tensor){0};
  CORE_TRY(backend_status(be));
  if (frames.type != DT_F32 || frames.ndim != 4 || frames.dim[0] != T || frames.dim[1] != e->H ||
      frames.dim[2] != e->W || frames.dim[3] != 3) {
    char shape[96];
    return core_fail(be->ctx, WAN_ERR_ARGUMENT,
                     "the encoder was given %s %s; F32 [%lld, %lld, %lld, 3] is needed",
                     dtype_name(frames.type), tensor_shape_text(&frames, shape, sizeof shape), (long long)T,
                     (long long)e->H, (long long)e->W);
  }
  tensor result = TENSOR_NEW(be, DT_F32, 1, e->H / stride, e->W / stride, v->info.z);
  scope_mark mark = scope_begin(be);
  CORE_TRY(weight_group_acquire(be, &n->ends));
  CORE_TRY(acquire_levels(be, n, 0, ENCODER_SPLIT));
  /* Both levels halve rows and columns (2.2: of the 2x2 pixel blocks). */
  const int64_t f = v->info.version == 22 ? 8 : 4, pairs = (T + 1) / 2;
  tensor x = TENSOR_NEW(be, DT_F32, pairs, e->H / f, e->W / f, n->level[1].cout);
  for (int64_t i = 0; i < pairs && !be->failed; i++)
    encoder_pair(e, tensor_slice(frames, 2 * i, T / pairs), tensor_slice(x, i, 1));
  release_levels(be, n, 0, ENCODER_SPLIT, v->encoder_mode);
  for (int i = ENCODER_SPLIT; i < VAE_LEVELS && !be->failed; i++) {
    tensor y = vae_level_result(s, &n->level[i], x);
    vae_run_level(s, &n->level[i], v->encoder_mode, x, y);
    x = y;
  }
  CORE_TRY(weight_group_acquire(be, &n->middle));
  if (!be->failed) {
    vae_middle(s, n, x);
    tensor h = TENSOR_NEW(be, DT_NONE, 1, x.dim[1], x.dim[2], 2 * v->info.z);
    vae_causal_conv(s, x, &n->head_gamma, &n->head, (tensor){0}, h);
    tensor mu = op_linear(be, h, &n->point.w, &n->point.b, ACT_NONE, DT_F32);
    tensor_copy(be, result, op_channel_affine(be, mu, e->mul, e->add, DT_F32));
  }
  check_finite(v, result, "encoder");
  scope_end(be, mark);
  weight_group_release(be, &n->middle, v->encoder_mode);
  weight_group_release(be, &n->ends, v->encoder_mode);
  if (be->failed) return be->failed;
  s->started = true;
  *latent = result;
  return WAN_OK;
}
