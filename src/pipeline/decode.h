/* decode.h: latents to frames, frames to the encoder and to the caller. */
#ifndef WAN_PIPELINE_DECODE_H
#define WAN_PIPELINE_DECODE_H

#include "media/media.h"
#include "pipeline/model.h"
#include "pipeline/progress.h"

/* One frame of 8-bit RGB, in order. */
typedef wan_status (*frame_sink)(void *user, int index, int width, int height, const uint8_t *rgb);

/* Decode x, F32 [T, h, w, C] in backend memory, frame by frame. progress (may be NULL) advances by latent
 * frames. Returns to the sink while later frames are still latent. */
wan_status decode_frames(backend *be, const char *vae_path, uint64_t keep_bytes, tensor x,
                         run_progress *progress, frame_sink sink, void *user);
/* One latent frame F32 [1, h, w, C] as a picture: rgb (core_free) of *width x *height. */
wan_status decode_picture(backend *be, const char *vae_path, tensor frame, int *width, int *height,
                          uint8_t **rgb);

/* Where frames go: a video file, the caller's callback, both or neither. */
typedef struct frame_output {
  core_ctx *ctx;
  video_writer *writer;
  wan_frame_fn frame;
  void *user;
} frame_output;
/* Check that the output can be written, without creating anything: name, folder, encoder, size. */
wan_status output_check(core_ctx *ctx, const char *path, int width, int height);
wan_status output_check_file(core_ctx *ctx, const char *path); /* any other file; NULL is fine */
wan_status output_open(core_ctx *ctx, const wan_generate_params *p, int width, int height, double fps,
                       const char *metadata, frame_output *out);
wan_status output_push(void *output, int index, int width, int height, const uint8_t *rgb); /* a frame_sink */
wan_status output_finish(frame_output *out);
void output_abort(frame_output *out);

#endif
