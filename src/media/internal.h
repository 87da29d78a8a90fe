/* internal.h: what the files of this room share. */
#ifndef WAN_MEDIA_INTERNAL_H
#define WAN_MEDIA_INTERNAL_H

#include "media/media.h"

#include <stdio.h>

enum { PICTURE_SIDE_MAX = 16384 };

/* ---- Pictures ---- */

/* What a decoder hands back: 8-bit pixels, rows top to bottom, 3 (RGB) or 4 (RGBA, straight alpha)
 * channels, and the EXIF orientation (1: as stored). */
typedef struct decoded {
  int width, height, channels;
  uint8_t *pixels; /* core_free */
  int orientation;
} decoded;

/* data is the whole file; name is for messages. On failure nothing has to be freed. */
wan_status png_decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out);
wan_status jpeg_decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out);
wan_status webp_decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out);

bool png_recognise(const uint8_t *data, size_t size);
wan_status picture_check_size(core_ctx *ctx, const char *name, uint64_t width, uint64_t height);
/* Orientation (1..8) of a block of EXIF data, with or without its "Exif\0\0" header; 1 when absent. */
int exif_orientation(const uint8_t *data, size_t size);

/* Write to an open file; text (UTF-8, may be NULL) becomes the picture's comment. */
wan_status png_encode(core_ctx *ctx, FILE *file, const char *name, int width, int height, const uint8_t *rgb,
                      const char *text);
/* The comment that png_encode stored; *out is NULL when there is none. */
wan_status png_read_comment(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, char **out);

/* ---- Video ---- */

/* One output being written: FFmpeg's libraries (MP4, WebM, GIF) ... */
typedef struct av_encoder av_encoder;
wan_status av_encoder_open(core_ctx *ctx, const video_params *params, av_encoder **out);
wan_status av_encoder_frame(core_ctx *ctx, av_encoder *e, const uint8_t *rgb);
wan_status av_encoder_finish(core_ctx *ctx, av_encoder *e); /* renamed into place; close it all the same */
void av_encoder_close(core_ctx *ctx, av_encoder *e);        /* without finish: leaves nothing behind */

/* ... or a folder of PNG files. */
typedef struct png_sequence png_sequence;
wan_status png_sequence_open(core_ctx *ctx, const video_params *params, png_sequence **out);
wan_status png_sequence_frame(core_ctx *ctx, png_sequence *s, const uint8_t *rgb);
wan_status png_sequence_finish(core_ctx *ctx, png_sequence *s);
void png_sequence_close(core_ctx *ctx, png_sequence *s);

/* GIF keeps its comment in an extension block of its own. */
wan_status gif_append_comment(core_ctx *ctx, const char *path, const char *name, const char *text);
wan_status gif_read_comment(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, char **out);

#endif
