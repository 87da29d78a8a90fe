/* decode.c: the VAE decodes one latent frame at a time into four pixel frames; each is rounded to 8 bits on
 * the backend, fetched, and handed on. The video encoder works on a thread of its own meanwhile. */
#include "pipeline/decode.h"

#include <string.h>
#include <unistd.h>

#include "vae/vae.h"

typedef struct decoding {
  backend *be;
  vae *vae;
  vae_decoder *decoder;
  uint8_t *rgb; /* host, the frames of one push */
  int frames;   /* handed on so far */
  frame_sink sink;
  void *user;
} decoding;

static wan_status push(decoding *d, tensor latent) {
  backend *be = d->be;
  scope_mark mark = scope_begin(be);
  tensor frames, bytes = {0};
  wan_status s = vae_decoder_push(d->decoder, latent, &frames);
  if (s == WAN_OK) {
    bytes = op_to_u8(be, frames); /* [n, H, W, 3] */
    tensor_download(be, d->rgb, bytes);
    s = backend_status(be);
  }
  scope_end(be, mark);
  CORE_TRY(s);
  int height = (int)bytes.dim[1], width = (int)bytes.dim[2];
  for (int64_t i = 0; i < bytes.dim[0]; i++) {
    CORE_TRY(d->sink(d->user, d->frames++, width, height, d->rgb + (size_t)(i * height * width) * 3));
    CORE_TRY(core_check_cancel(be->ctx));
  }
  return WAN_OK;
}

wan_status decode_frames(backend *be, const char *vae_path, uint64_t keep_bytes, tensor x,
                         run_progress *progress, frame_sink sink, void *user) {
  decoding d = {.be = be, .sink = sink, .user = user};
  CORE_TRY(vae_open(be, vae_path, keep_bytes, &d.vae));
  vae_info info = vae_get_info(d.vae);
  size_t pixels = (size_t)(x.dim[1] * x.dim[2]) * (size_t)info.spatial_stride * (size_t)info.spatial_stride;
  wan_status s = vae_decoder_open(d.vae, x.dim[1], x.dim[2], &d.decoder);
  if (s == WAN_OK && !(d.rgb = core_alloc(be->ctx, pixels * 3 * (size_t)info.temporal_stride)))
    s = WAN_ERR_MEMORY;
  for (int64_t t = 0; t < x.dim[0] && s == WAN_OK; t++) {
    s = push(&d, tensor_slice(x, t, 1));
    if (progress && s == WAN_OK) progress_at(progress, (int)t + 1, 0);
  }
  core_free(be->ctx, d.rgb);
  if (d.decoder) vae_decoder_close(d.decoder);
  vae_close(d.vae);
  return s;
}

typedef struct one_picture {
  core_ctx *ctx;
  int width, height;
  uint8_t *rgb;
} one_picture;

static wan_status keep_picture(void *user, int index, int width, int height, const uint8_t *rgb) {
  one_picture *p = user;
  (void)index;
  size_t bytes = (size_t)width * (size_t)height * 3;
  if (!(p->rgb = core_alloc(p->ctx, bytes))) return WAN_ERR_MEMORY;
  memcpy(p->rgb, rgb, bytes);
  p->width = width;
  p->height = height;
  return WAN_OK;
}

wan_status decode_picture(backend *be, const char *vae_path, tensor frame, int *width, int *height,
                          uint8_t **rgb) {
  one_picture p = {.ctx = be->ctx};
  wan_status s = decode_frames(be, vae_path, 0, frame, NULL, keep_picture, &p);
  if (s != WAN_OK) {
    core_free(be->ctx, p.rgb);
    return s;
  }
  *width = p.width;
  *height = p.height;
  *rgb = p.rgb;
  return WAN_OK;
}

/* ---- Output ---- */

/* Before hours of work: is the folder there, and may files be made in it? A path that ends with a slash is
 * a folder itself, made when it is missing. */
static wan_status check_folder(core_ctx *ctx, const char *path) {
  char *dir = core_strdup(ctx, path), *slash;
  if (!dir) return WAN_ERR_MEMORY;
  size_t n = strlen(dir);
  bool folder = n > 1 && dir[n - 1] == '/';
  while (n > 1 && dir[n - 1] == '/') dir[--n] = 0;
  wan_status s = WAN_OK;
  if (!folder || !core_path_exists(dir)) { /* the last name is still to be made */
    slash = strrchr(dir, '/');
    if (!slash)
      strcpy(dir, "."); /* names are not empty */
    else
      slash[slash == dir] = 0;
  }
  if (!core_path_is_dir(dir))
    s = core_fail(ctx, WAN_ERR_IO, "%s: the folder %s does not exist", path, dir);
  else if (access(dir, W_OK | X_OK) != 0)
    s = core_fail(ctx, WAN_ERR_IO, "%s: no permission to write into the folder %s", path, dir);
  core_free(ctx, dir);
  return s;
}

wan_status output_check_file(core_ctx *ctx, const char *path) {
  if (!path) return WAN_OK;
  if (!*path) return core_fail(ctx, WAN_ERR_ARGUMENT, "the name of an output file is empty");
  if (core_path_is_dir(path))
    return core_fail(ctx, WAN_ERR_IO, "%s: is a folder, a file name is needed", path);
  return check_folder(ctx, path);
}

wan_status output_check(core_ctx *ctx, const char *path, int width, int height) {
  video_format format;
  if (!path) return WAN_OK;
  if (!video_format_from_path(path, &format))
    return core_fail(
        ctx, WAN_ERR_ARGUMENT,
        "%s: the kind of output follows from the name: .mp4, .webm, .gif, a folder or a pattern such "
        "as frame-%%04d.png",
        path);
  if (!video_format_available(format))
    return core_fail(ctx, WAN_ERR_UNSUPPORTED, "%s: no encoder for this format is present on this machine",
                     path);
  if ((width % 2 || height % 2) && format != VIDEO_GIF && format != VIDEO_PNG_SEQUENCE)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%s: a frame of %dx%d can't be stored, both have to be even",
                     path, width, height);
  if (format != VIDEO_PNG_SEQUENCE) return output_check_file(ctx, path);
  return check_folder(ctx, path);
}

wan_status output_open(core_ctx *ctx, const wan_generate_params *p, int width, int height, double fps,
                       const char *metadata, frame_output *out) {
  *out = (frame_output){.ctx = ctx, .frame = p->frame, .user = p->user};
  if (!p->output_path) return WAN_OK;
  video_params v = {.path = p->output_path, .width = width, .height = height, .fps = fps, .crf = p->crf};
  v.metadata = metadata;
  if (!video_format_from_path(p->output_path, &v.format))
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%s: unknown kind of output", p->output_path);
  return video_writer_open(ctx, &v, &out->writer);
}

wan_status output_push(void *output, int index, int width, int height, const uint8_t *rgb) {
  frame_output *out = output;
  if (out->frame && !out->frame(out->user, index, width, height, rgb))
    return core_fail(out->ctx, WAN_ERR_CANCELLED, "cancelled by the receiver of frame %d", index);
  return out->writer ? video_writer_push(out->writer, rgb) : WAN_OK;
}

wan_status output_finish(frame_output *out) {
  video_writer *w = out->writer;
  out->writer = NULL;
  return w ? video_writer_finish(w) : WAN_OK;
}

void output_abort(frame_output *out) {
  video_writer_abort(out->writer);
  out->writer = NULL;
}
