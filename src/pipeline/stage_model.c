/* stage_model.c: dit, vae-encode, vae-decode: one forward pass each. */
#include <string.h>

#include "pipeline/stage.h"
#include "vae/vae.h"

/* ---- dit ---- */

static wan_status open_expert(stage_call *c, dit **out) {
  const char *name = c->p->expert, *path;
  bool two = c->dir.experts == 2;
  if (name && strcmp(name, "high") != 0 && strcmp(name, "low") != 0)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "--expert %s: high or low is needed", name);
  if (two && !name)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "%s: has two experts, choose one (--expert high or low)",
                     c->dir.root);
  if (!two && name)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "%s: has one expert, leave --expert out", c->dir.root);
  model_part part = two && strcmp(name, "low") == 0 ? MODEL_DIT_LOW : MODEL_DIT;
  CORE_TRY(model_need(c->ctx, &c->dir, part, &path));
  return dit_open(c->be, path, 0, out);
}

/* [x; y] on the channels, where the model wants it. */
static wan_status join_y(stage_call *c, const dit_config *config, tensor x, tensor *out) {
  tensor y = {0};
  *out = x;
  if (config->type != DIT_I2V) return WAN_OK;
  CORE_TRY(stage_input_video(c, "y", config->in_dim - config->out_dim, &y));
  wan_status s = WAN_OK;
  if (y.dim[0] != x.dim[0] || y.dim[1] != x.dim[1] || y.dim[2] != x.dim[2])
    s = core_fail(c->ctx, WAN_ERR_FORMAT, "%s: \"y\" and \"latent\" differ in frames, height or width",
                  c->p->in_path);
  else
    *out = op_concat_channels(c->be, x, y);
  if (s == WAN_OK) s = backend_sync(c->be);
  tensor_free(c->be, &y);
  return s;
}

static wan_status run_dit(stage_call *c, dit *d, tensor latent, tensor time, tensor context) {
  backend *be = c->be;
  const dit_config *config = dit_get_config(d);
  dit_text *text = NULL;
  tensor in, v;
  int64_t tokens = latent.dim[0] * (latent.dim[1] / 2) * (latent.dim[2] / 2);
  if (time.dim[0] != 1 && time.dim[0] != tokens)
    return core_fail(c->ctx, WAN_ERR_FORMAT,
                     "%s: \"timestep\" has %lld values; 1 or %lld (one a token) are needed", c->p->in_path,
                     (long long)time.dim[0], (long long)tokens);
  CORE_TRY(dit_text_create(d, context, &text));
  scope_mark mark = scope_begin(be);
  wan_status s = join_y(c, config, latent, &in);
  if (s == WAN_OK) {
    v = TENSOR_NEW(be, DT_F32, latent.dim[0], latent.dim[1], latent.dim[2], config->out_dim);
    s = dit_forward(d, in, (dit_timesteps){time.data, time.dim[0]}, 1, &text, &v, NULL);
  }
  if (s == WAN_OK) s = stage_output_video(c, "velocity", v);
  scope_end(be, mark);
  dit_text_free(text);
  return s;
}

wan_status stage_dit(stage_call *c) {
  dit *d = NULL;
  tensor latent = {0}, time = {0}, context = {0};
  CORE_TRY(open_expert(c, &d));
  const dit_config *config = dit_get_config(d);
  wan_status s = stage_input_video(c, "latent", config->out_dim, &latent);
  if (s == WAN_OK) s = stage_input(c, "timestep", 1, (int64_t[]){-1}, &time);
  if (s == WAN_OK) s = stage_input(c, "context", 2, (int64_t[]){-1, config->text_dim}, &context);
  if (s == WAN_OK) s = run_dit(c, d, latent, time, context);
  tensor_free(c->be, &latent);
  core_free(c->ctx, time.data);
  core_free(c->ctx, context.data);
  dit_close(d);
  return s;
}

/* ---- VAE ---- */

static wan_status open_vae(stage_call *c, vae **out) {
  const char *path;
  CORE_TRY(model_need(c->ctx, &c->dir, MODEL_VAE, &path));
  return vae_open(c->be, path, 0, out);
}

static wan_status encode(stage_call *c, vae *v, tensor video, tensor latent) {
  backend *be = c->be;
  vae_encoder *e = NULL;
  CORE_TRY(vae_encoder_open(v, video.dim[1], video.dim[2], &e));
  wan_status s = WAN_OK;
  for (int64_t t = 0; t < latent.dim[0] && s == WAN_OK; t++) {
    scope_mark mark = scope_begin(be);
    tensor out = {0};
    s = vae_encoder_push(e, t ? tensor_slice(video, 4 * t - 3, 4) : tensor_slice(video, 0, 1), &out);
    if (s == WAN_OK) {
      tensor_copy(be, tensor_slice(latent, t, 1), out);
      s = backend_sync(be);
    }
    scope_end(be, mark);
  }
  vae_encoder_close(e);
  return s;
}

wan_status stage_vae_encode(stage_call *c) {
  vae *v = NULL;
  tensor video = {0}, latent = {0};
  CORE_TRY(open_vae(c, &v));
  vae_info info = vae_get_info(v);
  wan_status s = stage_input_video(c, "video", 3, &video);
  if (s == WAN_OK && video.dim[0] % 4 != 1)
    s = core_fail(c->ctx, WAN_ERR_FORMAT, "%s: \"video\" has %lld frames, 4n+1 are needed", c->p->in_path,
                  (long long)video.dim[0]);
  if (s == WAN_OK) {
    latent = TENSOR_ALLOC(c->be, DT_F32, (video.dim[0] - 1) / 4 + 1, video.dim[1] / info.spatial_stride,
                          video.dim[2] / info.spatial_stride, info.z);
    s = encode(c, v, video, latent);
  }
  if (s == WAN_OK) s = stage_output_video(c, "latent", latent);
  tensor_free(c->be, &latent);
  tensor_free(c->be, &video);
  vae_close(v);
  return s;
}

/* The decoder's frames clamped to -1..1, as the official decode() returns them. */
static wan_status decode(stage_call *c, vae *v, tensor latent, tensor video) {
  backend *be = c->be;
  vae_decoder *d = NULL;
  CORE_TRY(vae_decoder_open(v, latent.dim[1], latent.dim[2], &d));
  wan_status s = WAN_OK;
  for (int64_t t = 0, f = 0; t < latent.dim[0] && s == WAN_OK; t++) {
    scope_mark mark = scope_begin(be);
    tensor frames = {0};
    s = vae_decoder_push(d, tensor_slice(latent, t, 1), &frames);
    if (s == WAN_OK) {
      tensor_copy(be, tensor_slice(video, f, frames.dim[0]), op_cast(be, frames, DT_F32));
      f += frames.dim[0];
      s = backend_sync(be);
    }
    scope_end(be, mark);
  }
  vae_decoder_close(d);
  return s;
}

static wan_status write_clamped(stage_call *c, tensor video) {
  int64_t n = tensor_count(&video);
  float *x = core_alloc(c->ctx, tensor_bytes(&video));
  wan_status s = x ? WAN_OK : WAN_ERR_MEMORY;
  if (s == WAN_OK) {
    tensor_download(c->be, x, video);
    for (int64_t i = 0; i < n; i++) x[i] = x[i] < -1 ? -1 : x[i] > 1 ? 1 : x[i];
    tensor_upload(c->be, video, x);
    s = backend_status(c->be);
  }
  core_free(c->ctx, x);
  return s == WAN_OK ? stage_output_video(c, "video", video) : s;
}

wan_status stage_vae_decode(stage_call *c) {
  vae *v = NULL;
  tensor latent = {0}, video = {0};
  CORE_TRY(open_vae(c, &v));
  vae_info info = vae_get_info(v);
  wan_status s = stage_input_video(c, "latent", info.z, &latent);
  if (s == WAN_OK) {
    video = TENSOR_ALLOC(c->be, DT_F32, (latent.dim[0] - 1) * 4 + 1, latent.dim[1] * info.spatial_stride,
                         latent.dim[2] * info.spatial_stride, 3);
    s = decode(c, v, latent, video);
  }
  if (s == WAN_OK) s = write_clamped(c, video);
  tensor_free(c->be, &video);
  tensor_free(c->be, &latent);
  vae_close(v);
  return s;
}
