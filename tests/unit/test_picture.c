/* Picture files: every format and pixel layout, orientation, damage, limits, failing allocations. Pillow's
 * pixels are compared in parity/test_media.c; here files are made with the libraries' own encoders. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "media/media.h"
#include "scratch.h"

#ifdef WAN_HAVE_IMAGES
#include <jpeglib.h>
#include <png.h>
#include <webp/encode.h>

typedef struct blob {
  uint8_t data[1 << 16];
  size_t size;
} blob;

static core_ctx ctx;
static blob file;

static int setup(void **state) {
  (void)state;
  core_ctx_init(&ctx);
  file.size = 0;
  return 0;
}

static int teardown(void **state) {
  (void)state;
  return core_mem_current(&ctx) == 0 ? 0 : -1;
}

static void append(blob *b, const void *data, size_t n) {
  assert_true(b->size + n <= sizeof b->data);
  memcpy(b->data + b->size, data, n);
  b->size += n;
}

/* An EXIF block with nothing but the orientation, big-endian. */
static const uint8_t *exif(int orientation, size_t *n) {
  static uint8_t block[] = {'E',  'x',  'i', 'f', 0, 0, 'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1,
                            0x01, 0x12, 0,   3,   0, 0, 0,   1,   0, 0,  0, 0, 0, 0, 0, 0};
  block[25] = (uint8_t)orientation;
  *n = sizeof block;
  return block;
}

static void png_out(png_structp png, png_bytep data, size_t n) {
  append(png_get_io_ptr(png), data, n);
}

static void png_done(png_structp png) {
  (void)png;
}

typedef struct png_layout {
  int colour, depth, channels;
  bool interlaced, key; /* key: tRNS */
  int orientation;
} png_layout;

/* rows: packed as the layout stores them. */
static void make_png(const png_layout *l, int w, int h, const uint8_t *rows, size_t row_bytes) {
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
  png_infop info = png_create_info_struct(png);
  file.size = 0;
  png_set_write_fn(png, &file, png_out, png_done);
  png_set_IHDR(png, info, (png_uint_32)w, (png_uint_32)h, l->depth, l->colour,
               l->interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, 0, 0);
  png_color palette[4] = {{10, 20, 30}, {200, 100, 0}, {0, 0, 255}, {255, 255, 255}};
  png_byte alpha[4] = {255, 128, 255, 0};
  png_color_16 key = {.gray = 1, .red = 1, .green = 2, .blue = 3};
  if (l->colour == PNG_COLOR_TYPE_PALETTE) {
    png_set_PLTE(png, info, palette, 4);
    if (l->key) png_set_tRNS(png, info, alpha, 4, NULL);
  } else if (l->key) {
    png_set_tRNS(png, info, NULL, 0, &key);
  }
  if (l->orientation) {
    size_t n;
    const uint8_t *block = exif(l->orientation, &n);
    png_set_eXIf_1(png, info, (png_uint_32)(n - 6), (png_bytep)(uintptr_t)(block + 6));
  }
  png_bytep lines[64];
  for (int y = 0; y < h; y++) lines[y] = (png_bytep)(uintptr_t)rows + (size_t)y * row_bytes;
  png_write_info(png, info);
  png_write_image(png, lines);
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
}

static void make_jpeg(int w, int h, int channels, const uint8_t *rows, int orientation, bool progressive) {
  struct jpeg_compress_struct jpeg;
  struct jpeg_error_mgr errors;
  unsigned char *out = NULL;
  unsigned long n = 0;
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  jpeg_mem_dest(&jpeg, &out, &n);
  jpeg.image_width = (JDIMENSION)w;
  jpeg.image_height = (JDIMENSION)h;
  jpeg.input_components = channels;
  jpeg.in_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&jpeg);
  jpeg_set_quality(&jpeg, 100, TRUE);
  if (progressive) jpeg_simple_progression(&jpeg);
  jpeg_start_compress(&jpeg, TRUE);
  if (orientation) {
    size_t size;
    const uint8_t *block = exif(orientation, &size);
    jpeg_write_marker(&jpeg, JPEG_APP0 + 1, block, (unsigned)size);
  }
  for (int y = 0; y < h; y++) {
    JSAMPROW row = (JSAMPROW)(uintptr_t)(rows + (size_t)y * (size_t)w * (size_t)channels);
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
  file.size = 0;
  append(&file, out, n);
  free(out);
}

static void make_webp(int w, int h, int channels, const uint8_t *rows) {
  uint8_t *out;
  size_t n = channels == 4 ? WebPEncodeLosslessRGBA(rows, w, h, 4 * w, &out)
                           : WebPEncodeLosslessRGB(rows, w, h, 3 * w, &out);
  assert_true(n > 0);
  file.size = 0;
  append(&file, out, n);
  WebPFree(out);
}

static picture load(void) {
  picture p;
  wan_status s = picture_load_memory(&ctx, file.data, file.size, "test", NULL, &p);
  if (s != WAN_OK) fail_msg("%s", ctx.message);
  return p;
}

static void expect(const uint8_t *rgb, int w, int h) {
  picture p = load();
  assert_int_equal(p.width, w);
  assert_int_equal(p.height, h);
  assert_memory_equal(p.rgb, rgb, (size_t)w * (size_t)h * 3);
  picture_free(&ctx, &p);
}

enum { W = 13, H = 9 };

static void pattern(uint8_t *to, size_t n) {
  for (size_t i = 0; i < n; i++) to[i] = (uint8_t)(i * 37 + i * i * 11);
}

static void png_layouts(void **state) {
  (void)state;
  static uint8_t rows[W * H * 8], want[W * H * 3];
  for (int interlaced = 0; interlaced < 2; interlaced++) {
    bool il = interlaced;
    pattern(rows, sizeof rows);
    make_png(&(png_layout){PNG_COLOR_TYPE_RGB, 8, 3, il, false, 0}, W, H, rows, W * 3);
    expect(rows, W, H);

    make_png(&(png_layout){PNG_COLOR_TYPE_RGB, 16, 3, il, false, 0}, W, H, rows, W * 6);
    for (int i = 0; i < W * H * 3; i++) want[i] = rows[2 * i];
    expect(want, W, H);

    make_png(&(png_layout){PNG_COLOR_TYPE_GRAY, 8, 1, il, false, 0}, W, H, rows, W);
    for (int i = 0; i < W * H * 3; i++) want[i] = rows[i / 3];
    expect(want, W, H);

    make_png(&(png_layout){PNG_COLOR_TYPE_GRAY, 16, 1, il, false, 0}, W, H, rows, W * 2);
    for (int i = 0; i < W * H * 3; i++) want[i] = rows[i / 3 * 2];
    expect(want, W, H);

    make_png(&(png_layout){PNG_COLOR_TYPE_RGB_ALPHA, 8, 4, il, false, 0}, W, H, rows, W * 4);
    for (int i = 0; i < W * H * 3; i++) {
      int a = rows[i / 3 * 4 + 3], v = rows[i / 3 * 4 + i % 3];
      want[i] = (uint8_t)((v * a + 255 * (255 - a) + 127) / 255);
    }
    expect(want, W, H);

    make_png(&(png_layout){PNG_COLOR_TYPE_GRAY_ALPHA, 8, 2, il, false, 0}, W, H, rows, W * 2);
    for (int i = 0; i < W * H * 3; i++) {
      int a = rows[i / 3 * 2 + 1], v = rows[i / 3 * 2];
      want[i] = (uint8_t)((v * a + 255 * (255 - a) + 127) / 255);
    }
    expect(want, W, H);
  }
}

static void png_small_depths(void **state) {
  (void)state;
  /* 4 pixels of 2 bits: 0 1 2 3 */
  static const uint8_t row[] = {0x1b};
  static const uint8_t grey[] = {0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255};
  static const uint8_t palette[] = {10, 20, 30, 200, 100, 0, 0, 0, 255, 255, 255, 255};
  static const uint8_t half[] = {10, 20, 30, 227, 177, 127, 0, 0, 255, 255, 255, 255};
  static const uint8_t keyed[] = {0, 0, 0, 255, 255, 255, 170, 170, 170, 255, 255, 255};
  make_png(&(png_layout){PNG_COLOR_TYPE_GRAY, 2, 1, false, false, 0}, 4, 1, row, 1);
  expect(grey, 4, 1);
  make_png(&(png_layout){PNG_COLOR_TYPE_PALETTE, 2, 1, false, false, 0}, 4, 1, row, 1);
  expect(palette, 4, 1);
  make_png(&(png_layout){PNG_COLOR_TYPE_PALETTE, 2, 1, false, true, 0}, 4, 1, row, 1);
  expect(half, 4, 1); /* alpha 128 over white */
  make_png(&(png_layout){PNG_COLOR_TYPE_GRAY, 2, 1, false, true, 0}, 4, 1, row, 1);
  expect(keyed, 4, 1); /* grey 1 is transparent */
  static const uint8_t rgb[] = {1, 2, 3, 3, 2, 1}, rgb_keyed[] = {255, 255, 255, 3, 2, 1};
  make_png(&(png_layout){PNG_COLOR_TYPE_RGB, 8, 3, false, true, 0}, 2, 1, rgb, 6);
  expect(rgb_keyed, 2, 1);
}

static void webp(void **state) {
  (void)state;
  static uint8_t rows[W * H * 4], want[W * H * 3];
  pattern(rows, sizeof rows);
  make_webp(W, H, 3, rows);
  expect(rows, W, H);
  for (int i = 0; i < W * H; i++) rows[4 * i + 3] = i % 2 ? 255 : 0;
  make_webp(W, H, 4, rows);
  for (int i = 0; i < W * H * 3; i++) want[i] = i / 3 % 2 ? rows[i / 3 * 4 + i % 3] : 255;
  expect(want, W, H);
}

static void near(const picture *p, int x, int y, int r, int g, int b) {
  const uint8_t *v = p->rgb + ((size_t)y * (size_t)p->width + (size_t)x) * 3;
  assert_true(abs(v[0] - r) <= 2 && abs(v[1] - g) <= 2 && abs(v[2] - b) <= 2);
}

static void jpeg(void **state) {
  (void)state;
  static uint8_t rows[32 * 16 * 4];
  for (int progressive = 0; progressive < 2; progressive++) {
    for (int i = 0; i < 32 * 16; i++) memcpy(rows + 3 * i, "\xc8\x50\x20", 3);
    make_jpeg(32, 16, 3, rows, 0, progressive);
    picture p = load();
    near(&p, 31, 15, 0xc8, 0x50, 0x20);
    picture_free(&ctx, &p);
    memset(rows, 77, sizeof rows);
    make_jpeg(32, 16, 1, rows, 0, progressive);
    p = load();
    near(&p, 5, 5, 77, 77, 77);
    picture_free(&ctx, &p);
    for (int i = 0; i < 32 * 16; i++) memcpy(rows + 4 * i, "\xff\x80\x00\x80", 4); /* inverted inks */
    make_jpeg(32, 16, 4, rows, 0, progressive);
    p = load();
    assert_int_equal(p.width, 32);
    near(&p, 5, 5, 128, 64, 0);
    picture_free(&ctx, &p);
  }
}

/* A 3x2 picture numbered 1..6; how it has to look after each orientation. */
static void orientations(void **state) {
  (void)state;
  static const uint8_t stored[] = {1, 2, 3, 4, 5, 6};
  static const struct {
    int w, h;
    uint8_t look[6];
  } upright[9] = {{0},
                  {3, 2, {1, 2, 3, 4, 5, 6}},
                  {3, 2, {3, 2, 1, 6, 5, 4}},
                  {3, 2, {6, 5, 4, 3, 2, 1}},
                  {3, 2, {4, 5, 6, 1, 2, 3}},
                  {2, 3, {1, 4, 2, 5, 3, 6}},
                  {2, 3, {4, 1, 5, 2, 6, 3}},
                  {2, 3, {6, 3, 5, 2, 4, 1}},
                  {2, 3, {3, 6, 2, 5, 1, 4}}};
  for (int o = 1; o <= 8; o++) {
    uint8_t want[18];
    make_png(&(png_layout){PNG_COLOR_TYPE_GRAY, 8, 1, false, false, o}, 3, 2, stored, 3);
    for (int i = 0; i < 18; i++) want[i] = upright[o].look[i / 3];
    expect(want, upright[o].w, upright[o].h);
    picture p;
    assert_int_equal(
        picture_load_memory(&ctx, file.data, file.size, "test", &(picture_options){.ignore_exif = true}, &p),
        WAN_OK);
    for (int i = 0; i < 18; i++) assert_int_equal(p.rgb[i], stored[i / 3]);
    picture_free(&ctx, &p);
  }
  /* A JPEG, dark left and bright right, that has to be turned to the right: dark on top. */
  static uint8_t rows[32 * 16];
  for (int i = 0; i < 32 * 16; i++) rows[i] = i % 32 < 16 ? 20 : 230;
  make_jpeg(32, 16, 1, rows, 6, false);
  picture p = load();
  assert_int_equal(p.width, 16);
  assert_int_equal(p.height, 32);
  near(&p, 8, 2, 20, 20, 20);
  near(&p, 8, 30, 230, 230, 230);
  picture_free(&ctx, &p);
}

/* Build one file of each kind for the tests that damage it. */
static void make(int kind) {
  static uint8_t rows[W * H * 4];
  pattern(rows, sizeof rows);
  switch (kind) {
  case 0:
    make_png(&(png_layout){PNG_COLOR_TYPE_RGB_ALPHA, 8, 4, true, false, 6}, W, H, rows, W * 4);
    break;
  case 1:
    make_jpeg(W, H, 3, rows, 6, false);
    break;
  case 2:
    make_jpeg(W, H, 3, rows, 0, true);
    break;
  default:
    make_webp(W, H, 4, rows);
    break;
  }
}

static void cut_short(void **state) {
  (void)state;
  for (int kind = 0; kind < 4; kind++) {
    make(kind);
    for (size_t n = 0; n < file.size; n++) {
      uint8_t *exact = malloc(n + !n); /* so that a sanitizer sees reads past the end */
      picture p;
      memcpy(exact, file.data, n);
      wan_status s = picture_load_memory(&ctx, exact, n, "the-name", NULL, &p);
      free(exact);
      assert_int_equal(s, WAN_ERR_FORMAT);
      assert_non_null(strstr(ctx.message, "the-name"));
    }
  }
}

static void bits_flipped(void **state) {
  (void)state;
  for (int kind = 0; kind < 4; kind++) {
    make(kind);
    for (size_t i = 0; i < file.size * 8; i++) { /* an error or a picture */
      picture p;
      file.data[i / 8] ^= (uint8_t)(1 << i % 8);
      ctx.mem_limit = 64 << 20;
      if (picture_load_memory(&ctx, file.data, file.size, "test", NULL, &p) == WAN_OK) picture_free(&ctx, &p);
      assert_int_equal(core_mem_current(&ctx), 0);
      file.data[i / 8] ^= (uint8_t)(1 << i % 8);
    }
  }
}

static void no_memory(void **state) {
  (void)state;
  for (int kind = 0; kind < 4; kind++) {
    make(kind);
    wan_status s = WAN_ERR_MEMORY;
    for (int k = 0; s != WAN_OK; k++) {
      picture p;
      atomic_store(&ctx.mem_fail_in, k);
      s = picture_load_memory(&ctx, file.data, file.size, "test", NULL, &p);
      atomic_store(&ctx.mem_fail_in, -1);
      if (s == WAN_OK)
        picture_free(&ctx, &p);
      else
        assert_int_equal(s, WAN_ERR_MEMORY);
      assert_int_equal(core_mem_current(&ctx), 0);
    }
  }
}

static void limits(void **state) {
  (void)state;
  static uint8_t rows[W * H * 4];
  picture p;
  make_png(&(png_layout){PNG_COLOR_TYPE_GRAY, 8, 1, false, false, 0}, W, H, rows, W);
  uint8_t *ihdr = file.data + 12; /* type, width, height, ... then the CRC */
  ihdr[6] = 0x40, ihdr[7] = 1;    /* 16385 wide */
  uint32_t crc = 0xffffffffu;
  for (int i = 0; i < 17; i++) {
    crc ^= ihdr[i];
    for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  for (int i = 0; i < 4; i++) ihdr[17 + i] = (uint8_t)(~crc >> (24 - 8 * i));
  assert_int_equal(picture_load_memory(&ctx, file.data, file.size, "wide", NULL, &p), WAN_ERR_FORMAT);
  assert_non_null(strstr(ctx.message, "16385"));
  assert_int_equal(picture_load_memory(&ctx, "GIF89a", 6, "a.gif", NULL, &p), WAN_ERR_FORMAT);
  assert_int_equal(picture_load_memory(&ctx, "", 0, "empty", NULL, &p), WAN_ERR_FORMAT);
  assert_int_equal(picture_load(&ctx, "/nonexistent/x.png", NULL, &p), WAN_ERR_IO);
}

static void animated_webp(void **state) {
  (void)state;
  static const uint8_t animated[] = {'R', 'I', 'F', 'F', 32,  0,   0, 0, 'W', 'E', 'B', 'P', 'V', 'P',
                                     '8', 'X', 10,  0,   0,   0,   2, 0, 0,   0,   0,   0,   0,   0,
                                     0,   0,   'A', 'N', 'I', 'M', 2, 0, 0,   0,   0,   0};
  picture p;
  assert_int_equal(picture_load_memory(&ctx, animated, sizeof animated, "moving", NULL, &p),
                   WAN_ERR_UNSUPPORTED);
  assert_non_null(strstr(ctx.message, "animated"));
}

static void save_and_load(void **state) {
  (void)state;
  scratch dir;
  uint8_t rgb[W * H * 3];
  picture p;
  pattern(rgb, sizeof rgb);
  scratch_open(&dir);
  const char *path = scratch_path(&dir, "a.png");
  assert_int_equal(picture_save_png(&ctx, path, W, H, rgb), WAN_OK);
  assert_int_equal(picture_load(&ctx, path, NULL, &p), WAN_OK);
  assert_memory_equal(p.rgb, rgb, sizeof rgb);
  picture_free(&ctx, &p);
  assert_int_equal(picture_save_png(&ctx, scratch_path(&dir, "b.png"), 0, H, rgb), WAN_ERR_FORMAT);
  assert_false(core_path_exists(scratch_path(&dir, "b.png")));
  assert_int_equal(picture_save_png(&ctx, "/dev/full/x.png", W, H, rgb), WAN_ERR_IO);
  scratch_close(&dir);
}
#endif

static void resize_arguments(void **state) {
  (void)state;
  core_ctx c;
  core_ctx_init(&c);
  uint8_t pixel[] = {1, 2, 3};
  picture one = {1, 1, pixel}, out;
  assert_int_equal(picture_resize(&c, &one, 0, 5, RESIZE_BICUBIC, &out), WAN_ERR_ARGUMENT);
  assert_int_equal(picture_resize(&c, &one, 5, -1, RESIZE_BICUBIC, &out), WAN_ERR_ARGUMENT);
  assert_int_equal(picture_resize(&c, &one, 1 << 20, 1 << 20, RESIZE_LANCZOS, &out), WAN_ERR_ARGUMENT);
  picture thin = {16384, 1, pixel}; /* refused before a pixel is read */
  assert_int_equal(picture_cover(&c, &thin, 16384, 16384, &out), WAN_ERR_ARGUMENT);
  float f = 1;
  assert_int_equal(resize_bicubic_torch(&c, &f, 1, 1, 1, &f, 0, 1), WAN_ERR_ARGUMENT);
  assert_int_equal(picture_resize(&c, &one, 7, 3, RESIZE_LANCZOS, &out), WAN_OK);
  for (int i = 0; i < 7 * 3 * 3; i++) assert_int_equal(out.rgb[i], pixel[i % 3]);
  picture_free(&c, &out);
  for (int k = 0;; k++) { /* every allocation fails once */
    atomic_store(&c.mem_fail_in, k);
    wan_status s = picture_cover(&c, &one, 9, 5, &out);
    atomic_store(&c.mem_fail_in, -1);
    if (s == WAN_OK) break;
    assert_int_equal(s, WAN_ERR_MEMORY);
    assert_int_equal(core_mem_current(&c), 0);
  }
  picture_free(&c, &out);
  int w, h;
  best_output_size(1, 100000, 32, 32, 1024, &w, &h); /* the official code divides by zero here */
  assert_true(w >= 32 && h >= 32);
  i2v_output_size(100000, 1, 256, &w, &h);
  assert_true(w >= 16 && h >= 16);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
  const struct CMUnitTest tests[] = {
#ifdef WAN_HAVE_IMAGES
      T(png_layouts),
      T(png_small_depths),
      T(webp),
      T(jpeg),
      T(orientations),
      T(cut_short),
      T(bits_flipped),
      T(no_memory),
      T(limits),
      T(animated_webp),
      T(save_and_load),
#endif
      cmocka_unit_test(resize_arguments),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
