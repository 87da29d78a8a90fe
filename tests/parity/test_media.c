/* Pictures and their sizes against Pillow, PyTorch and the official code. */
#include "parity.h"

#include <stdlib.h>

#include "media/media.h"

static tensor need(const safetensors *st, const char *name) {
  tensor t = safetensors_find(st, name);
  if (t.type == DT_NONE) fail_msg("no tensor %s", name);
  return t;
}

static int number(json_t *c, const char *key) {
  json_t *v = json_object_get(c, key);
  if (!json_is_integer(v)) fail_msg("no number %s", key);
  return (int)json_integer_value(v);
}

static void assert_bytes(json_t *c, const picture *got, const tensor *want) {
  assert_int_equal(want->type, DT_U8);
  assert_int_equal(want->dim[0], got->height);
  assert_int_equal(want->dim[1], got->width);
  size_t n = tensor_bytes(want), wrong = 0;
  for (size_t i = 0; i < n; i++) wrong += got->rgb[i] != ((const uint8_t *)want->data)[i];
  if (wrong) fail_msg("%s: %zu of %zu bytes differ", case_text(c, "file"), wrong, n);
}

/* The interpolation of f32 data of size 1: 16 products, each a few ulps off (torch fuses differently), and
 * the sampling position, whose error of 1e-6 pixels meets slopes of a few units a pixel. */
static const double torch_limit = 5e-6;

static void resize_torch(core_ctx *ctx, json_t *c, const safetensors *st) {
  tensor in = need(st, "source"), want = need(st, "result");
  size_t n = (size_t)tensor_count(&want);
  float *source = core_alloc(ctx, tensor_bytes(&in)), *got = core_alloc(ctx, n * sizeof *got);
  float *expected = core_alloc(ctx, n * sizeof *got);
  memcpy(source, in.data, tensor_bytes(&in)); /* the file's may be unaligned */
  memcpy(expected, want.data, n * sizeof *got);
  MUST(ctx, resize_bicubic_torch(ctx, source, (int)in.dim[0], (int)in.dim[1], (int)in.dim[2], got,
                                 number(c, "out_h"), number(c, "out_w")));
  double e = relative_l2(got, expected, n);
  if (!(e < torch_limit)) fail_msg("%s: relative error %.2e", case_text(c, "file"), e);
  core_free(ctx, source);
  core_free(ctx, got);
  core_free(ctx, expected);
}

static void resize_case(core_ctx *ctx, json_t *c, void *user) {
  (void)user;
  safetensors *st = case_open(ctx, c);
  const char *op = case_text(c, "op");
  if (strcmp(op, "torch-bicubic") == 0) {
    resize_torch(ctx, c, st);
    safetensors_close(st);
    return;
  }
  tensor in = need(st, "source"), want = need(st, "result");
  picture source = {(int)in.dim[1], (int)in.dim[0], in.data}, got;
  int w = number(c, "out_w"), h = number(c, "out_h");
  if (strcmp(op, "fit") == 0) {
    int ow, oh;
    best_output_size(source.width, source.height, 32, 32, number(c, "area"), &ow, &oh);
    assert_int_equal(ow, w);
    assert_int_equal(oh, h);
    MUST(ctx, picture_cover(ctx, &source, w, h, &got));
  } else {
    resize_filter filter = strcmp(op, "lanczos") == 0 ? RESIZE_LANCZOS : RESIZE_BICUBIC;
    MUST(ctx, picture_resize(ctx, &source, w, h, filter, &got));
  }
  assert_bytes(c, &got, &want);
  picture_free(ctx, &got);
  safetensors_close(st);
}

static void resizes(void **state) {
  (void)state;
  assert_true(parity_cases("resize", resize_case, NULL) >= 37);
}

static void geometry(void **state) {
  (void)state;
  json_error_t error;
  json_t *all = json_load_file(PARITY_DATA "geometry.json", 0, &error), *c;
  assert_non_null(all);
  size_t i;
  json_array_foreach(json_object_get(all, "cases"), i, c) {
    int w, h;
    json_t *ti2v = json_object_get(c, "ti2v"), *i2v = json_object_get(c, "i2v");
    best_output_size(number(c, "w"), number(c, "h"), 32, 32, number(c, "area"), &w, &h);
    assert_true(w >= 32 && h >= 32 && w % 32 == 0 && h % 32 == 0); /* also where the official code raises */
    if (!json_is_null(ti2v)) {
      assert_int_equal(w, number(ti2v, "out_w"));
      assert_int_equal(h, number(ti2v, "out_h"));
    }
    i2v_output_size(number(c, "w"), number(c, "h"), number(c, "area"), &w, &h);
    assert_true(w >= 16 && h >= 16 && w % 16 == 0 && h % 16 == 0);
    if (!json_is_null(i2v) && number(i2v, "lat_w") && number(i2v, "lat_h")) {
      assert_int_equal(w, 8 * number(i2v, "lat_w"));
      assert_int_equal(h, 8 * number(i2v, "lat_h"));
    }
  }
  assert_true(i > 10);
  json_decref(all);
}

#ifdef WAN_HAVE_IMAGES
/* Pillow drops the alpha channel, we composite over white: nothing may get darker, opaque stays. */
static void assert_not_darker(const picture *got, const tensor *want) {
  const uint8_t *pillow = want->data;
  for (size_t i = 0; i < tensor_bytes(want); i++) assert_true(got->rgb[i] >= pillow[i]);
}

/* JPEG decoders may differ by one in the inverse transform, and by two after chroma and colour. */
static void assert_close(const picture *got, const tensor *want) {
  const uint8_t *pillow = want->data;
  for (size_t i = 0; i < tensor_bytes(want); i++) assert_true(abs(got->rgb[i] - pillow[i]) <= 4);
}

static void picture_case(core_ctx *ctx, json_t *c, void *user) {
  (void)user;
  char path[512];
  safetensors *st;
  snprintf(path, sizeof path, PARITY_DATA "%s", case_text(c, "pixels"));
  MUST(ctx, safetensors_open(ctx, path, &st));
  tensor want = need(st, case_text(c, "key"));
  picture got;
  snprintf(path, sizeof path, PARITY_DATA "%s", case_text(c, "file"));
  MUST(ctx, picture_load(ctx, path, &(picture_options){.ignore_exif = true}, &got));
  bool transparent = strstr(path, "rgba") || strstr(path, "alpha");
  if (transparent)
    assert_not_darker(&got, &want);
  else if (json_is_true(json_object_get(c, "exact")))
    assert_bytes(c, &got, &want);
  else
    assert_close(&got, &want);
  picture_free(ctx, &got);
  safetensors_close(st);
}

static void pictures(void **state) {
  (void)state;
  assert_true(parity_cases("picture", picture_case, NULL) >= 11);
}
#endif

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(resizes),
      cmocka_unit_test(geometry),
#ifdef WAN_HAVE_IMAGES
      cmocka_unit_test(pictures),
#endif
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
