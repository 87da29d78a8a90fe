/* media.h: pictures in, resizing as Pillow and PyTorch do it, video out. */
#ifndef WAN_MEDIA_MEDIA_H
#define WAN_MEDIA_MEDIA_H

#include "core/ctx.h"
#include "core/file.h"

/* ---- Pictures ---- */

typedef struct picture {
  int width, height;
  uint8_t *rgb; /* height*width*3, rows top to bottom; core_free */
} picture;

typedef struct picture_options {
  bool ignore_exif; /* do not apply the EXIF orientation (what the official code does) */
} picture_options;

/* PNG, JPEG or WebP, recognised by content. 8-bit RGB out: grey and palette expanded, 16-bit reduced,
 * alpha composited over white (the official code drops it). No colour profile is applied. Refuses more than
 * 16384 pixels a side. options may be NULL. */
wan_status picture_load(core_ctx *ctx, const char *path, const picture_options *options, picture *out);
wan_status picture_load_memory(core_ctx *ctx, const void *data, size_t size, const char *name,
                               const picture_options *options, picture *out);
void picture_free(core_ctx *ctx, picture *p);
/* Written under a temporary name, then renamed. */
wan_status picture_save_png(core_ctx *ctx, const char *path, int width, int height, const uint8_t *rgb);
/* The same into memory (core_free). */
wan_status picture_encode_png(core_ctx *ctx, int width, int height, const uint8_t *rgb, uint8_t **out,
                              size_t *size);

typedef enum resize_filter { RESIZE_BICUBIC, RESIZE_LANCZOS } resize_filter;
/* Pillow's Image.resize on 8-bit RGB, equal to the byte. */
wan_status picture_resize(core_ctx *ctx, const picture *in, int width, int height, resize_filter filter,
                          picture *out);
/* torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=False): a = -0.75.
 * in and out are [channels][height][width] f32. */
wan_status resize_bicubic_torch(core_ctx *ctx, const float *in, int channels, int height, int width,
                                float *out, int out_height, int out_width);

/* TI2V: the size near `area` pixels with the picture's aspect, multiples of dw and dh (spec 6.4). */
void best_output_size(int width, int height, int dw, int dh, int64_t area, int *out_width, int *out_height);
/* I2V A14B: output pixels from the aspect and the area (spec 6.2), multiples of 16. */
void i2v_output_size(int width, int height, int64_t area, int *out_width, int *out_height);
/* TI2V picture: scale to cover, Pillow LANCZOS, centre crop to exactly width x height. */
wan_status picture_cover(core_ctx *ctx, const picture *in, int width, int height, picture *out);

/* ---- Video out ---- */

typedef enum video_format { VIDEO_MP4, VIDEO_WEBM, VIDEO_GIF, VIDEO_PNG_SEQUENCE } video_format;

typedef struct video_params {
  const char
      *path; /* PNG_SEQUENCE: a pattern with one %d-style number, "x.png" for x_%04d.png, or a folder */
  video_format format;
  int width, height;
  double fps;
  int crf;              /* -1: the format's default (MP4: 10, as the official writer's quality 8) */
  const char *metadata; /* stored in the container's comment, UTF-8; NULL: none */
} video_params;

/* From the file name's ending; false when unknown. */
bool video_format_from_path(const char *path, video_format *out);
/* Is the encoder for this format present on this machine? */
bool video_format_available(video_format format);

typedef struct video_writer video_writer;
/* Encoding runs on a thread of its own, behind a queue of a few frames: push returns once the frame is
 * copied. Odd sizes are refused for yuv420p formats. */
wan_status video_writer_open(core_ctx *ctx, const video_params *params, video_writer **out);
wan_status video_writer_push(video_writer *w, const uint8_t *rgb); /* width*height*3 */
/* Finish and rename into place. The writer is freed whatever the result; nothing is left on failure. */
wan_status video_writer_finish(video_writer *w);
void video_writer_abort(video_writer *w); /* drop everything; NULL is fine */

/* The metadata string that video_writer stored; WAN_ERR_FORMAT when the file has none. core_free. */
wan_status video_read_metadata(core_ctx *ctx, const char *path, char **out);

/* Decode frames (for --video and tests): calls sink for each RGB frame in order. */
typedef wan_status (*video_sink)(void *user, int index, int width, int height, const uint8_t *rgb);
wan_status video_read_frames(core_ctx *ctx, const char *path, video_sink sink, void *user, double *fps);

#endif
