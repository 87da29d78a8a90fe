/* picture_jpeg.c: JPEG through libjpeg, with its default (exact integer) inverse transform and smooth
 * chroma, which is what Pillow uses. libjpeg reports errors through a callback that may not return,
 * so state lives in a struct outside the function that calls setjmp. It only warns about data that
 * ends early and paints the rest grey: here that is an error.
 */
#include "media/internal.h"

#ifdef WAN_HAVE_IMAGES
#include <setjmp.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

enum { SCANS_MAX = 500 }; /* a progressive file has about ten; thousands are an attack on our time */

typedef struct jpeg_state {
  struct jpeg_error_mgr errors; /* first: libjpeg hands back a pointer to it */
  struct jpeg_progress_mgr progress;
  struct jpeg_decompress_struct jpeg;
  jmp_buf escape;
  core_ctx *ctx;
  const char *name;
  wan_status status;
  decoded d;
  uint8_t *line; /* one row of CMYK */
} jpeg_state;

static _Noreturn void give_up(jpeg_state *st, wan_status s) {
  st->status = s;
  longjmp(st->escape, 1);
}

static _Noreturn void on_error(j_common_ptr cinfo) {
  jpeg_state *st = (jpeg_state *)(void *)cinfo->err;
  char text[JMSG_LENGTH_MAX];
  cinfo->err->format_message(cinfo, text);
  wan_status s = cinfo->err->msg_code == JERR_OUT_OF_MEMORY ? WAN_ERR_MEMORY : WAN_ERR_FORMAT;
  give_up(st, core_fail(st->ctx, s, "%s: broken JPEG file: %s", st->name, text));
}

/* level -1 is a warning, above it a trace. These few leave the pixels intact. */
static void on_message(j_common_ptr cinfo, int level) {
  int code = cinfo->err->msg_code;
  bool harmless = code == JWRN_EXTRANEOUS_DATA || code == JWRN_JFIF_MAJOR || code == JWRN_ADOBE_XFORM ||
                  code == JWRN_TOO_MUCH_DATA;
  if (level < 0 && !harmless) on_error(cinfo);
}

static void on_output(j_common_ptr cinfo) {
  (void)cinfo;
}

static void on_progress(j_common_ptr cinfo) {
  jpeg_state *st = (jpeg_state *)(void *)cinfo->err;
  if (st->jpeg.input_scan_number > SCANS_MAX)
    give_up(st, core_fail(st->ctx, WAN_ERR_FORMAT, "%s: more than %d scans in a JPEG file", st->name,
                          (int)SCANS_MAX));
}

static void read_header(jpeg_state *st, const uint8_t *data, size_t size) {
  jpeg_create_decompress(&st->jpeg);
  st->jpeg.mem->max_memory_to_use = 1L << 30; /* coefficients of a progressive file; 8 bytes a pixel */
  st->progress.progress_monitor = on_progress;
  st->jpeg.progress = &st->progress;
  jpeg_mem_src(&st->jpeg, data, (unsigned long)size);
  jpeg_save_markers(&st->jpeg, JPEG_APP0 + 1, 0xffff);
  jpeg_read_header(&st->jpeg, TRUE);
  wan_status s = picture_check_size(st->ctx, st->name, st->jpeg.image_width, st->jpeg.image_height);
  if (s != WAN_OK) give_up(st, s);
  int n = st->jpeg.num_components;
  if (n != 1 && n != 3 && n != 4)
    give_up(st, core_fail(st->ctx, WAN_ERR_UNSUPPORTED,
                          "%s: a JPEG file of %d components (1, 3 and 4 are known)", st->name, n));
  st->jpeg.out_color_space = n == 4 ? JCS_CMYK : JCS_RGB;
}

/* CMYK files follow Adobe in storing inverted inks; no colour profile is applied (as Pillow does). */
static void cmyk_to_rgb(const uint8_t *cmyk, int n, uint8_t *rgb) {
  for (int i = 0; i < n; i++, cmyk += 4)
    for (int c = 0; c < 3; c++) {
      unsigned white = cmyk[3], t = (255u - cmyk[c]) * white + 128;
      int v = (int)white - (int)((t + (t >> 8)) >> 8); /* product / 255, rounded */
      *rgb++ = (uint8_t)(v < 0 ? 0 : v);
    }
}

static void read_pixels(jpeg_state *st) {
  decoded *d = &st->d;
  jpeg_start_decompress(&st->jpeg);
  d->width = (int)st->jpeg.output_width;
  d->height = (int)st->jpeg.output_height;
  d->channels = 3;
  size_t row = (size_t)d->width * 3;
  d->pixels = core_alloc(st->ctx, row * (size_t)d->height);
  st->line = core_alloc(st->ctx, (size_t)d->width * 4);
  if (!d->pixels || !st->line) give_up(st, WAN_ERR_MEMORY);
  bool cmyk = st->jpeg.output_components == 4;
  while (st->jpeg.output_scanline < st->jpeg.output_height) {
    uint8_t *to = d->pixels + (size_t)st->jpeg.output_scanline * row;
    JSAMPROW target = cmyk ? st->line : to;
    if (jpeg_read_scanlines(&st->jpeg, &target, 1) != 1)
      give_up(st, core_fail(st->ctx, WAN_ERR_FORMAT, "%s: broken JPEG file: a row is missing", st->name));
    if (cmyk) cmyk_to_rgb(st->line, d->width, to);
  }
  jpeg_finish_decompress(&st->jpeg);
}

static void read_orientation(jpeg_state *st) {
  for (jpeg_saved_marker_ptr m = st->jpeg.marker_list; m; m = m->next)
    if (m->data_length > 6 && memcmp(m->data, "Exif\0\0", 6) == 0) {
      st->d.orientation = exif_orientation(m->data, m->data_length);
      return;
    }
}

wan_status jpeg_decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out) {
  jpeg_state st = {.ctx = ctx, .name = name, .d.orientation = 1};
  st.jpeg.err = jpeg_std_error(&st.errors);
  st.errors.error_exit = on_error;
  st.errors.emit_message = on_message;
  st.errors.output_message = on_output;
  if (!setjmp(st.escape)) {
    read_header(&st, data, size);
    read_orientation(&st);
    read_pixels(&st);
  }
  jpeg_destroy_decompress(&st.jpeg);
  core_free(ctx, st.line);
  if (st.status != WAN_OK)
    core_free(ctx, st.d.pixels);
  else
    *out = st.d;
  return st.status;
}

#else

wan_status jpeg_decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out) {
  (void)data, (void)size, (void)out;
  return core_fail(ctx, WAN_ERR_UNSUPPORTED, "%s: this build has no picture support (libjpeg is missing)",
                   name);
}
#endif
