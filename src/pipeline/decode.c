/* decode.c: the VAE decodes one latent frame at a time into four pixel frames, which are rounded to 8 bits on
 * the backend, fetched, and handed on. Three things go on at once where the backend works behind the host: it
 * decodes the next latent frame, this thread hands on the frames before, and a thread of the video encoder
 * compresses those before them. */
#include "pipeline/decode.h"

#include <string.h>
#include <unistd.h>

#include "vae/vae.h"

enum { FETCHES = 2 }; /* one is filled while the other is handed on */

typedef struct decoding {
  backend *be;
  vae *vae;
  vae_decoder *decoder;
  int fetches;                  /* in use: one where nothing goes on behind the host */
  backend_fetch fetch[FETCHES]; /* of the frames of one latent frame, U8 [n, H, W, 3] */
  tensor pending[FETCHES];      /* what is in there or on its way; without data */
  int frames;                   /* handed on so far */
  frame_sink sink;
  void *user;
} decoding;

/* Issue the work on a latent frame. */
static wan_status begin(decoding *d, int slot, tensor latent) {
  backend *be = d->be;
  scope_mark mark = scope_begin(be);
  tensor frames;
  wan_status s = vae_decoder_push(d->decoder, latent, &frames);
  if (s == WAN_OK) {
    d->pending[slot] = op_to_u8(be, frames);
    s = backend_fetch_begin(be, &d->fetch[slot], d->pending[slot]);
  }
  scope_end(be, mark);
  return s;
}

/* Wait for its frames and hand them on. */
static wan_status end(decoding *d, int slot) {
  const tensor *t = &d->pending[slot];
  const int64_t count = t->dim[0], height = t->dim[1], width = t->dim[2];
  CORE_TRY(backend_fetch_end(d->be, &d->fetch[slot]));
  const uint8_t *rgb = d->fetch[slot].host;
  for (int64_t i = 0; i < count; i++) {
    CORE_TRY(d->sink(d->user, d->frames++, (int)width, (int)height, rgb + i * height * width * 3));
    CORE_TRY(core_check_cancel(d->be->ctx));
  }
  return WAN_OK;
}

/* A backend that works behind the host is given the next latent frame before the last one's frames are taken.
 */
static wan_status run(decoding *d, tensor x, run_progress *progress) {
  const int behind = d->fetches - 1;
  for (int64_t t = 0; t < x.dim[0] + behind; t++) {
    if (t < x.dim[0]) CORE_TRY(begin(d, (int)(t % d->fetches), tensor_slice(x, t, 1)));
    if (t < behind) continue;
    CORE_TRY(end(d, (int)((t - behind) % d->fetches)));
    if (progress) progress_at(progress, (int)(t - behind) + 1, 0);
  }
  return WAN_OK;
}

wan_status decode_frames(backend *be, const char *vae_path, uint64_t keep_bytes, tensor x,
                         run_progress *progress, frame_sink sink, void *user) {
  decoding d = {.be = be, .sink = sink, .user = user};
  d.fetches = backend_fetches_behind(be) ? FETCHES : 1;
  CORE_TRY(vae_open(be, vae_path, keep_bytes, &d.vae));
  vae_info info = vae_get_info(d.vae);
  size_t pixels = (size_t)(x.dim[1] * x.dim[2]) * (size_t)info.spatial_stride * (size_t)info.spatial_stride;
  wan_status s = vae_decoder_open(d.vae, x.dim[1], x.dim[2], &d.decoder);
  for (int i = 0; i < d.fetches && s == WAN_OK; i++)
    s = backend_fetch_open(be, pixels * 3 * (size_t)info.temporal_stride, &d.fetch[i]);
  if (s == WAN_OK) s = run(&d, x, progress);
  for (int i = 0; i < FETCHES; i++) backend_fetch_close(be, &d.fetch[i]);
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
