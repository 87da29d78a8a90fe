/* picture_png.c: PNG through libpng. libpng reports errors with longjmp, so everything that must survive
 * one lives in a struct outside the function that calls setjmp.
 */
#include "media/internal.h"

#include <string.h>

bool png_recognise(const uint8_t *data, size_t size) {
  return size >= 8 && memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0;
}

#ifdef WAN_HAVE_IMAGES
#include <errno.h>
#include <png.h>

typedef struct png_state {
  core_ctx *ctx;
  const char *name;
  const uint8_t *data; /* reading */
  size_t size, at;
  FILE *file; /* writing */
  wan_status status;
  png_structp png;
  png_infop info;
  decoded d;
  png_bytep *rows;
} png_state;

static void on_error(png_structp png, png_const_charp message) {
  png_state *st = png_get_error_ptr(png);
  if (st->status == WAN_OK)
    st->status = core_fail(st->ctx, WAN_ERR_FORMAT, "%s: broken PNG file: %s", st->name, message);
  png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message) {
  (void)png;
  (void)message;
}

static void on_read(png_structp png, png_bytep to, size_t n) {
  png_state *st = png_get_io_ptr(png);
  if (n > st->size - st->at) png_error(png, "the file is cut short");
  memcpy(to, st->data + st->at, n);
  st->at += n;
}

/* Fill st->status and leave through libpng's error path. */
static void give_up(png_state *st, wan_status s) {
  st->status = s;
  png_error(st->png, "");
}

static bool open_reader(png_state *st) {
  st->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, st, on_error, on_warning);
  st->info = st->png ? png_create_info_struct(st->png) : NULL;
  if (st->info) return true;
  png_destroy_read_struct(&st->png, NULL, NULL);
  st->status = core_fail(st->ctx, WAN_ERR_MEMORY, "%s: libpng could not be started", st->name);
  return false;
}

static void set_limits(png_state *st) {
  png_set_user_limits(st->png, 0x7fffffff, 0x7fffffff); /* picture_check_size() gives the better message */
  png_set_chunk_malloc_max(st->png, 8 << 20);           /* a comment or profile; no picture needs more */
  png_set_chunk_cache_max(st->png, 128);
  /* By default chunks other than the pixels are left out when damaged, transparency and orientation too. */
  png_set_crc_action(st->png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_set_read_fn(st->png, st, on_read);
}

/* Ask for 8-bit RGB or RGBA, whatever is stored. */
static void set_transforms(png_state *st) {
  int colour = png_get_color_type(st->png, st->info);
  if (png_get_bit_depth(st->png, st->info) == 16) png_set_strip_16(st->png); /* high byte, as Pillow */
  if (colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(st->png);
  if (!(colour & PNG_COLOR_MASK_COLOR)) {
    png_set_expand_gray_1_2_4_to_8(st->png);
    png_set_gray_to_rgb(st->png);
  }
  if (png_get_valid(st->png, st->info, PNG_INFO_tRNS)) png_set_tRNS_to_alpha(st->png);
  png_set_interlace_handling(st->png);
  png_read_update_info(st->png, st->info);
}

static void read_orientation(png_state *st) {
#ifdef PNG_eXIf_SUPPORTED
  png_bytep exif;
  png_uint_32 n;
  if (png_get_eXIf_1(st->png, st->info, &n, &exif)) st->d.orientation = exif_orientation(exif, n);
#endif
}

static void read_pixels(png_state *st) {
  decoded *d = &st->d;
  png_read_info(st->png, st->info);
  uint64_t w = png_get_image_width(st->png, st->info), h = png_get_image_height(st->png, st->info);
  wan_status s = picture_check_size(st->ctx, st->name, w, h);
  if (s != WAN_OK) give_up(st, s);
  set_transforms(st);
  d->width = (int)w;
  d->height = (int)h;
  d->channels = png_get_channels(st->png, st->info);
  size_t row = png_get_rowbytes(st->png, st->info);
  if ((d->channels != 3 && d->channels != 4) || row != w * (size_t)d->channels)
    png_error(st->png, "unexpected pixel layout");
  d->pixels = core_alloc(st->ctx, row * h);
  st->rows = core_calloc(st->ctx, h, sizeof *st->rows);
  if (!d->pixels || !st->rows) give_up(st, WAN_ERR_MEMORY);
  for (size_t y = 0; y < h; y++) st->rows[y] = d->pixels + y * row;
  png_read_image(st->png, st->rows);
  png_read_end(st->png, st->info);
  read_orientation(st);
}

wan_status png_decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out) {
  png_state st = {.ctx = ctx, .name = name, .data = data, .size = size, .d.orientation = 1};
  if (!open_reader(&st)) return st.status;
  if (!setjmp(png_jmpbuf(st.png))) {
    set_limits(&st);
    read_pixels(&st);
  }
  png_destroy_read_struct(&st.png, &st.info, NULL);
  core_free(ctx, st.rows);
  if (st.status != WAN_OK)
    core_free(ctx, st.d.pixels);
  else
    *out = st.d;
  return st.status;
}

static void on_write(png_structp png, png_bytep from, size_t n) {
  png_state *st = png_get_io_ptr(png);
  if (fwrite(from, 1, n, st->file) == n) return;
  give_up(st, core_fail(st->ctx, WAN_ERR_IO, "%s: can't write: %s", st->name, strerror(errno)));
}

static void on_flush(png_structp png) {
  png_state *st = png_get_io_ptr(png);
  if (fflush(st->file) == 0) return;
  give_up(st, core_fail(st->ctx, WAN_ERR_IO, "%s: can't write: %s", st->name, strerror(errno)));
}

static bool is_ascii(const char *text) {
  for (; *text; text++)
    if ((unsigned char)*text >= 128) return false;
  return true;
}

static void write_picture(png_state *st, int width, int height, const uint8_t *rgb, const char *text) {
  png_set_write_fn(st->png, st, on_write, on_flush);
  png_set_IHDR(st->png, st->info, (png_uint_32)width, (png_uint_32)height, 8, PNG_COLOR_TYPE_RGB,
               PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (text) { /* tEXt is Latin-1, iTXt is UTF-8 and less widely read */
    png_text entry = {.compression = is_ascii(text) ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE,
                      .key = (char *)(uintptr_t) "Comment",
                      .text = (char *)(uintptr_t)text,
                      .lang = (char *)(uintptr_t) "",
                      .lang_key = (char *)(uintptr_t) ""};
    png_set_text(st->png, st->info, &entry, 1);
  }
  png_write_info(st->png, st->info);
  for (int y = 0; y < height; y++) png_write_row(st->png, rgb + (size_t)y * (size_t)width * 3);
  png_write_end(st->png, st->info);
  on_flush(st->png);
}

wan_status png_encode(core_ctx *ctx, FILE *file, const char *name, int width, int height, const uint8_t *rgb,
                      const char *text) {
  png_state st = {.ctx = ctx, .name = name, .file = file};
  CORE_TRY(picture_check_size(ctx, name, width < 0 ? 0 : (uint64_t)width, height < 0 ? 0 : (uint64_t)height));
  st.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &st, on_error, on_warning);
  st.info = st.png ? png_create_info_struct(st.png) : NULL;
  if (!st.info) {
    png_destroy_write_struct(&st.png, NULL);
    return core_fail(ctx, WAN_ERR_MEMORY, "%s: libpng could not be started", name);
  }
  if (!setjmp(png_jmpbuf(st.png))) write_picture(&st, width, height, rgb, text);
  png_destroy_write_struct(&st.png, &st.info);
  return st.status;
}

wan_status png_read_comment(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, char **out) {
  png_state st = {.ctx = ctx, .name = name, .data = data, .size = size};
  *out = NULL;
  if (!open_reader(&st)) return st.status;
  if (!setjmp(png_jmpbuf(st.png))) {
    set_limits(&st);
    png_read_info(st.png, st.info);
    png_textp text;
    int n = 0;
    png_get_text(st.png, st.info, &text, &n);
    for (int i = 0; i < n && !*out; i++)
      if (strcmp(text[i].key, "Comment") == 0 && !(*out = core_strdup(ctx, text[i].text)))
        give_up(&st, WAN_ERR_MEMORY);
  }
  png_destroy_read_struct(&st.png, &st.info, NULL);
  return st.status;
}

#else

static wan_status no_images(core_ctx *ctx, const char *name) {
  return core_fail(ctx, WAN_ERR_UNSUPPORTED, "%s: this build has no picture support (libpng is missing)",
                   name);
}

wan_status png_decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out) {
  (void)data, (void)size, (void)out;
  return no_images(ctx, name);
}

wan_status png_encode(core_ctx *ctx, FILE *file, const char *name, int width, int height, const uint8_t *rgb,
                      const char *text) {
  (void)file, (void)width, (void)height, (void)rgb, (void)text;
  return no_images(ctx, name);
}

wan_status png_read_comment(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, char **out) {
  (void)data, (void)size;
  *out = NULL;
  return no_images(ctx, name);
}
#endif
