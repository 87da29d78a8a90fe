/* condition_picture.c: given frames through the VAE's encoder.
 *
 * TI2V: given frames replace latent frames. A clip of 4m+1 frames from the start gives latent frames
 * 0..m; a single picture at frame 0 gives latent frame 0. A picture at a later frame stands for the four
 * frames of its latent frame: it is encoded as a still clip, whose second latent frame is taken.
 *
 * I2V: the model is shown a condition clip (given frames, mid grey elsewhere) and a mask of the given
 * ones: y = [mask 4; latent 16].
 *
 * Grey is encoded again and again only until it cannot change the result: an encoder is a causal
 * stack of convolutions, so its output depends on a bounded number of frames. Once that many pushes
 * of the same grey have gone in, history and input are the same as one push before, and so is the
 * output, bit for bit. GREY_PUSHES counts them for the Wan2.1 encoder (kernel 3 in time, so each
 * convolution looks back 2 frames at its own rate):
 *   full rate, 4 frames a push: conv1 and 4 blocks of 2 convolutions: 9 * 2 = 18 frames -> 5 pushes
 *   time_conv (stride 2, looks back 1)                            and at half rate, 2 frames a push,
 *     2 blocks: 4 * 2 = 8 frames                                  -> 1 + 4 pushes
 *   time_conv again; quarter rate, 1 frame a push, 2 blocks, the 2 of the middle, head: 9 * 2 = 18
 *     frames                                                      -> 1 + 18 pushes
 * together 29. The default of 81 frames has 20 grey pushes, so this pays for long clips only. */
#include <string.h>

#include "pipeline/condition.h"
#include "pipeline/latent.h"
#include "vae/vae.h"

enum { GREY_PUSHES = 29, MASK_CHANNELS = 4 };

wan_status condition_pixels(core_ctx *ctx, wan_family family, const picture *in, int width, int height,
                            float *out) {
  size_t plane = (size_t)width * (size_t)height;
  if (family != WAN_FAMILY_I2V) {
    picture fit = {0};
    CORE_TRY(picture_cover(ctx, in, width, height, &fit));
    for (size_t i = 0; i < plane * 3; i++) out[i] = (float)fit.rgb[i] / 255.0f * 2 - 1;
    picture_free(ctx, &fit);
    return WAN_OK;
  }
  /* The official code resizes the normalised floats (wan/image2video.py), channel by channel. */
  size_t from = (size_t)in->width * (size_t)in->height;
  float *planes = core_alloc(ctx, from * 3 * sizeof *planes),
        *sized = core_alloc(ctx, plane * 3 * sizeof *sized);
  wan_status s = planes && sized ? WAN_OK : WAN_ERR_MEMORY;
  if (s == WAN_OK) {
    for (size_t i = 0; i < from; i++)
      for (size_t c = 0; c < 3; c++)
        planes[c * from + i] = ((float)in->rgb[i * 3 + c] / 255.0f - 0.5f) / 0.5f;
    s = resize_bicubic_torch(ctx, planes, 3, in->height, in->width, sized, height, width);
  }
  if (s == WAN_OK) channels_last(sized, 3, (int64_t)plane, out);
  core_free(ctx, planes);
  core_free(ctx, sized);
  return s;
}

/* ---- An encoder with its input buffer ---- */

typedef struct encoding {
  wan_model *m;
  denoiser *d;
  const run_settings *s;
  vae *vae;
  float *frames; /* host [4, H, W, 3] */
  int done;      /* latent frames made so far, for the progress */
} encoding;

static size_t frame_floats(const encoding *e) {
  return (size_t)e->s->width * (size_t)e->s->height * 3;
}

/* Pixel frame f of the condition clip into `out`: the given picture, or grey. True when given. */
static wan_status clip_frame(encoding *e, int f, float *out, bool *given) {
  const run_settings *s = e->s;
  *given = false;
  for (int i = 0; i < s->given_count; i++) {
    if (s->given[i].frame != f) continue;
    *given = true;
    return condition_pixels(e->m->ctx, e->m->family, &s->given[i].pixels, s->width, s->height, out);
  }
  memset(out, 0, frame_floats(e) * sizeof *out);
  return WAN_OK;
}

/* Push n frames of the buffer; the latent frame goes to `out` [1, h, w, C], which outlives the push. */
static wan_status push(encoding *e, vae_encoder *enc, int n, tensor out) {
  backend *be = e->m->be;
  scope_mark mark = scope_begin(be);
  tensor latent = {0}, in = TENSOR_NEW(be, DT_F32, n, e->s->height, e->s->width, 3);
  tensor_upload(be, in, e->frames);
  wan_status st = backend_status(be);
  if (st == WAN_OK) st = vae_encoder_push(enc, in, &latent);
  if (st == WAN_OK) {
    tensor_copy(be, out, latent);
    st = backend_sync(be);
  }
  scope_end(be, mark);
  if (st == WAN_OK) st = core_check_cancel(be->ctx);
  if (e->d->progress) progress_at(e->d->progress, ++e->done, 0);
  return st;
}

/* ---- TI2V ---- */

static int latent_of(int frame) {
  return (frame + 3) / 4;
}

/* The clip's frames 0..count-1 (4m+1 of them) into latent frames 0..m. */
static wan_status encode_start(encoding *e, int count) {
  vae_encoder *enc = NULL;
  CORE_TRY(vae_encoder_open(e->vae, e->s->height, e->s->width, &enc));
  wan_status st = WAN_OK;
  for (int f = 0; f < count && st == WAN_OK;) {
    int n = f ? 4 : 1, at = latent_of(f);
    bool given;
    for (int i = 0; i < n && st == WAN_OK; i++)
      st = clip_frame(e, f + i, e->frames + (size_t)i * frame_floats(e), &given);
    if (st == WAN_OK) st = push(e, enc, n, tensor_slice(e->d->first, at, 1));
    e->d->given[at] = true;
    f += n;
  }
  vae_encoder_close(enc);
  return st;
}

/* A picture at a later frame: five times the same, of which the second latent frame is kept. */
static wan_status encode_still(encoding *e, int frame) {
  int at = latent_of(frame);
  bool given;
  if (e->d->given[at])
    return core_fail(
        e->m->ctx, WAN_ERR_ARGUMENT,
        "a picture is given for frame %d, but frames %d to %d share one latent frame that is given "
        "already",
        frame, at * 4 - 3, at * 4);
  CORE_TRY(clip_frame(e, frame, e->frames, &given));
  for (size_t i = 1; i < 4; i++)
    memcpy(e->frames + i * frame_floats(e), e->frames, frame_floats(e) * sizeof(float));
  vae_encoder *enc = NULL;
  CORE_TRY(vae_encoder_open(e->vae, e->s->height, e->s->width, &enc));
  tensor out = tensor_slice(e->d->first, at, 1);
  wan_status st = push(e, enc, 1, out);
  if (st == WAN_OK) st = push(e, enc, 4, out);
  e->d->given[at] = true;
  vae_encoder_close(enc);
  return st;
}

static wan_status encode_ti2v(encoding *e) {
  const run_settings *s = e->s;
  denoiser *d = e->d;
  d->first = TENSOR_ALLOC(e->m->be, DT_F32, s->T, s->h, s->w, s->C);
  d->given = core_calloc(e->m->ctx, (size_t)s->T, sizeof *d->given);
  CORE_TRY(backend_status(e->m->be));
  if (!d->given) return WAN_ERR_MEMORY;
  int start = s->given_clip ? s->given_clip : s->given[0].frame == 0 ? 1 : 0;
  if (start) CORE_TRY(encode_start(e, start));
  for (int i = 0; i < s->given_count; i++)
    if (s->given[i].frame >= start) CORE_TRY(encode_still(e, s->given[i].frame));
  return WAN_OK;
}

/* ---- I2V ---- */

/* Latent frame t of y: channels 0..3 the flags of its pixel frames (spec 6.2: frame 0 counts four
 * times), then the latent. */
static void put_y(encoding *e, int64_t t, const bool flags[4], tensor latent) {
  backend *be = e->m->be;
  const run_settings *s = e->s;
  scope_mark mark = scope_begin(be);
  int64_t n = s->h * s->w;
  float values[MASK_CHANNELS];
  for (int c = 0; c < MASK_CHANNELS; c++) values[c] = flags[c] ? 1 : 0;
  tensor mask = TENSOR_NEW(be, DT_F32, 1, s->h, s->w, MASK_CHANNELS), base = mask;
  tensor_zero(be, base);
  tensor add = TENSOR_NEW(be, DT_F32, MASK_CHANNELS), one = TENSOR_NEW(be, DT_F32, MASK_CHANNELS);
  tensor_upload(be, add, values);
  tensor_zero(be, one);
  mask = op_channel_affine(be, base, one, add, DT_F32);
  tensor both = op_concat_channels(be, TENSOR_VIEW(mask, n, MASK_CHANNELS), TENSOR_VIEW(latent, n, s->C));
  tensor_copy(be, TENSOR_VIEW(tensor_slice(e->d->y, t, 1), n, MASK_CHANNELS + s->C), both);
  scope_end(be, mark);
}

static wan_status encode_clip(encoding *e, vae_encoder *enc, tensor latent) {
  const run_settings *s = e->s;
  int grey = 0; /* pushes of nothing but grey so far */
  for (int64_t t = 0; t < s->T; t++) {
    int n = t ? 4 : 1;
    bool flags[4] = {0}, any = false;
    for (int i = 0; i < n; i++) {
      int f = t ? (int)(t - 1) * 4 + 1 + i : 0;
      CORE_TRY(clip_frame(e, f, e->frames + (size_t)i * frame_floats(e), &flags[i]));
      any |= flags[i];
    }
    for (int i = n; i < 4; i++) flags[i] = flags[0];
    grey = any || t == 0 ? 0 : grey + 1; /* the first push has one frame only */
    if (grey <= GREY_PUSHES)
      CORE_TRY(push(e, enc, n, latent));
    else if (e->d->progress) /* the same latent as before, see the top; the history stays right, too */
      progress_at(e->d->progress, ++e->done, 0);
    put_y(e, t, flags, latent);
    CORE_TRY(backend_status(e->m->be));
  }
  return WAN_OK;
}

static wan_status encode_i2v(encoding *e) {
  const run_settings *s = e->s;
  backend *be = e->m->be;
  vae_encoder *enc = NULL;
  e->d->y = TENSOR_ALLOC(be, DT_F32, s->T, s->h, s->w, MASK_CHANNELS + s->C);
  tensor latent = TENSOR_ALLOC(be, DT_F32, 1, s->h, s->w, s->C);
  wan_status st = backend_status(be);
  if (st == WAN_OK) st = vae_encoder_open(e->vae, s->height, s->width, &enc);
  if (st == WAN_OK) st = encode_clip(e, enc, latent);
  if (enc) vae_encoder_close(enc);
  tensor_free(be, &latent);
  return st;
}

int condition_chunks(const wan_model *m, const run_settings *s) {
  if (!s->given_count) return 0;
  if (m->family == WAN_FAMILY_I2V) return (int)s->T;
  int start = s->given_clip            ? s->given_clip
              : s->given[0].frame == 0 ? 1
                                       : 0,
      n = start ? latent_of(start - 1) + 1 : 0;
  for (int i = 0; i < s->given_count; i++) n += s->given[i].frame >= start ? 2 : 0;
  return n;
}

wan_status condition_pictures(wan_model *m, denoiser *d, uint64_t keep_bytes) {
  if (!d->s->given_count) return WAN_OK;
  encoding e = {.m = m, .d = d, .s = d->s};
  wan_status st = vae_open(m->be, m->dir.part[MODEL_VAE], keep_bytes, &e.vae);
  if (st == WAN_OK) {
    e.frames = core_alloc(m->ctx, 4 * frame_floats(&e) * sizeof *e.frames);
    st = e.frames ? WAN_OK : WAN_ERR_MEMORY;
  }
  if (st == WAN_OK) st = m->family == WAN_FAMILY_I2V ? encode_i2v(&e) : encode_ti2v(&e);
  core_free(m->ctx, e.frames);
  if (e.vae) vae_close(e.vae);
  return st;
}
