/* picture.c: a picture file becomes opaque 8-bit RGB, upright. The format is recognised by content.
 * Transparent pixels are composited over white; the official code drops the alpha channel instead,
 * which shows whatever colour the editor happened to leave below it.
 */
#define _GNU_SOURCE /* open_memstream */
#include "media/internal.h"

#include <stdlib.h>
#include <string.h>

wan_status picture_check_size(core_ctx *ctx, const char *name, uint64_t width, uint64_t height) {
  if (width >= 1 && height >= 1 && width <= PICTURE_SIDE_MAX && height <= PICTURE_SIDE_MAX) return WAN_OK;
  return core_fail(ctx, WAN_ERR_FORMAT, "%s: %llu x %llu pixels, a picture has 1 to %d a side", name,
                   (unsigned long long)width, (unsigned long long)height, PICTURE_SIDE_MAX);
}

void picture_free(core_ctx *ctx, picture *p) {
  core_free(ctx, p->rgb);
  *p = (picture){0};
}

static bool starts_with(const uint8_t *data, size_t size, size_t at, const char *magic, size_t n) {
  return size >= at + n && memcmp(data + at, magic, n) == 0;
}

static wan_status decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out) {
  if (png_recognise(data, size)) return png_decode(ctx, data, size, name, out);
  if (starts_with(data, size, 0, "\xff\xd8\xff", 3)) return jpeg_decode(ctx, data, size, name, out);
  if (starts_with(data, size, 0, "RIFF", 4) && starts_with(data, size, 8, "WEBP", 4))
    return webp_decode(ctx, data, size, name, out);
  return core_fail(ctx, WAN_ERR_FORMAT, "%s: not a picture this program knows (PNG, JPEG or WebP)", name);
}

/* RGBA to RGB in place: every pixel moves towards the start, so the order is safe. */
static void composite_over_white(decoded *d) {
  size_t n = (size_t)d->width * (size_t)d->height;
  uint8_t *to = d->pixels;
  for (const uint8_t *p = d->pixels, *end = p + n * 4; p < end; p += 4) {
    unsigned alpha = p[3];
    for (int c = 0; c < 3; c++) *to++ = (uint8_t)((p[c] * alpha + 255 * (255 - alpha) + 127) / 255);
  }
  d->channels = 3;
}

/* Orientation: 2 mirrored, 3 turned by 180 degrees, 4 flipped, 5 transposed, 6 needs a turn to the
 * right, 7 transposed over the other diagonal, 8 needs a turn to the left (EXIF 2.3, tag 0x0112). */
static wan_status turn_upright(core_ctx *ctx, decoded *d) {
  int o = d->orientation, w = d->width, h = d->height;
  if (o <= 1 || o > 8) return WAN_OK;
  bool swap = o >= 5;                                     /* rows become columns */
  bool from_right = o == 2 || o == 3 || o == 7 || o == 8; /* the source's x runs backwards */
  bool from_below = o == 3 || o == 4 || o == 6 || o == 7; /* the source's y runs backwards */
  int out_w = swap ? h : w, out_h = swap ? w : h;
  uint8_t *to = core_alloc(ctx, (size_t)w * (size_t)h * 3), *p = to;
  if (!to) return WAN_ERR_MEMORY;
  for (int y = 0; y < out_h; y++)
    for (int x = 0; x < out_w; x++) {
      int sx = swap ? y : x, sy = swap ? x : y;
      if (from_right) sx = w - 1 - sx;
      if (from_below) sy = h - 1 - sy;
      memcpy(p, d->pixels + ((size_t)sy * (size_t)w + (size_t)sx) * 3, 3);
      p += 3;
    }
  core_free(ctx, d->pixels);
  d->pixels = to;
  d->width = out_w;
  d->height = out_h;
  return WAN_OK;
}

wan_status picture_load_memory(core_ctx *ctx, const void *data, size_t size, const char *name,
                               const picture_options *options, picture *out) {
  decoded d = {.orientation = 1};
  *out = (picture){0};
  CORE_TRY(decode(ctx, data, size, name, &d));
  if (d.channels == 4) composite_over_white(&d);
  if (!(options && options->ignore_exif)) {
    wan_status s = turn_upright(ctx, &d);
    if (s != WAN_OK) {
      core_free(ctx, d.pixels);
      return s;
    }
  }
  *out = (picture){d.width, d.height, d.pixels};
  return WAN_OK;
}

wan_status picture_load(core_ctx *ctx, const char *path, const picture_options *options, picture *out) {
  core_map map;
  *out = (picture){0};
  CORE_TRY(core_map_open(ctx, path, &map));
  wan_status s = picture_load_memory(ctx, map.data, map.size, path, options, out);
  core_map_close(&map);
  return s;
}

wan_status picture_save_png(core_ctx *ctx, const char *path, int width, int height, const uint8_t *rgb) {
  core_outfile file;
  CORE_TRY(core_outfile_begin(ctx, path, &file));
  FILE *f = fopen(file.temp, "wb");
  wan_status s = f ? png_encode(ctx, f, path, width, height, rgb, NULL)
                   : core_fail(ctx, WAN_ERR_IO, "%s: can't open for writing", file.temp);
  if (f && fclose(f) != 0 && s == WAN_OK)
    s = core_fail(ctx, WAN_ERR_IO, "%s: can't write (is the disk full?)", path);
  if (s == WAN_OK) return core_outfile_commit(ctx, &file);
  core_outfile_abort(ctx, &file);
  return s;
}

wan_status picture_encode_png(core_ctx *ctx, int width, int height, const uint8_t *rgb, uint8_t **out,
                              size_t *size) {
  char *data = NULL; /* on the C library's heap while it grows */
  size_t n = 0;
  *out = NULL;
  FILE *f = open_memstream(&data, &n);
  if (!f) return core_fail(ctx, WAN_ERR_MEMORY, "out of memory while a picture is encoded");
  wan_status s = png_encode(ctx, f, "picture in memory", width, height, rgb, NULL);
  if (fclose(f) != 0 && s == WAN_OK)
    s = core_fail(ctx, WAN_ERR_MEMORY, "out of memory while a picture is encoded");
  if (s == WAN_OK && !(*out = core_alloc(ctx, n))) s = WAN_ERR_MEMORY;
  if (s == WAN_OK) memcpy(*out, data, n);
  *size = n;
  free(data);
  return s;
}
