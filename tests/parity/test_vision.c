/* Sizes, frame numbers and pixels for vision-language models against the official code's answers. Everything
 * is exact but the resize of clips: PyTorch sums in single precision in its own order, so a value within 1e-4
 * of a half may round the other way. */
#include "parity.h"

#include <stdlib.h>

#include "pipeline/hash.h"
#include "prompt/base64.h"
#include "prompt/vision.h"

static double number(json_t *row, const char *key) {
  return json_number_value(json_object_get(row, key));
}

static int whole(json_t *row, const char *key) {
  return (int)json_integer_value(json_object_get(row, key));
}

static void check_hash(json_t *row, const void *data, size_t size) {
  char digits[24];
  snprintf(digits, sizeof digits, "%016llx", (unsigned long long)hash_bytes(HASH_START, data, size));
  assert_string_equal(digits, case_text(row, "fnv"));
}

static void check_resize(core_ctx *ctx, json_t *row) {
  int w = -1, h = -1;
  bool raises = json_is_null(json_object_get(row, "out_w"));
  wan_status s = vision_smart_resize(ctx, whole(row, "w"), whole(row, "h"), whole(row, "factor"),
                                     number(row, "min"), number(row, "max"), &w, &h);
  if (raises)
    assert_int_equal(s, WAN_ERR_ARGUMENT);
  else if (s != WAN_OK || w != whole(row, "out_w") || h != whole(row, "out_h"))
    fail_msg("%s: %dx%d", json_dumps(row, 0), w, h);
}

static void check_nframes(core_ctx *ctx, json_t *row) {
  int n = -1;
  bool raises = json_is_null(json_object_get(row, "out"));
  wan_vision_params p = {.size = sizeof p,
                         .fps = number(row, "fps"),
                         .frames = whole(row, "frames"),
                         .frames_min = whole(row, "min"),
                         .frames_max = whole(row, "max")};
  wan_status s = vision_smart_nframes(ctx, &p, whole(row, "total"), number(row, "video_fps"), &n);
  if (raises ? s != WAN_ERR_ARGUMENT : s != WAN_OK || n != whole(row, "out"))
    fail_msg("%s: status %d, %d", json_dumps(row, 0), (int)s, n);
}

static void check_all_indices(json_t *row) {
  int upto = whole(row, "upto");
  size_t room = (size_t)upto * (size_t)upto * (size_t)upto / 6, used = 0;
  int *all = malloc(room * sizeof *all); /* the sum over totals of about total^2/4 */
  for (int total = 2; total <= upto; total++)
    for (int n = 2; n <= total; used += (size_t)n, n += 2) {
      assert_true(used + (size_t)n <= room);
      vision_frame_indices(0, total - 1, n, all + used);
    }
  check_hash(row, all, used * sizeof *all);
  free(all);
}

static void check_indices(json_t *row) {
  json_t *out = json_object_get(row, "out");
  int n = whole(row, "n"), *index = malloc((size_t)n * sizeof *index);
  vision_frame_indices(0, whole(row, "total") - 1, n, index);
  for (int i = 0; i < n; i++) assert_int_equal(index[i], json_integer_value(json_array_get(out, (size_t)i)));
  free(index);
}

static void check_image(core_ctx *ctx, json_t *row) {
  wan_vision_params p = {.size = sizeof p,
                         .min_pixels = whole(row, "min"),
                         .max_pixels = whole(row, "max"),
                         .width = whole(row, "w"),
                         .height = whole(row, "h")};
  picture out;
  MUST(ctx, vision_picture(ctx, case_text(row, "source"), &p, &out));
  assert_int_equal(out.width, whole(row, "out_w"));
  assert_int_equal(out.height, whole(row, "out_h"));
  check_hash(row, out.rgb, (size_t)out.width * (size_t)out.height * 3);
  picture_free(ctx, &out);
}

static void check_planes(core_ctx *ctx, json_t *row) {
  uint8_t *source, *want;
  size_t n, off = 0;
  int w = whole(row, "out_w"), h = whole(row, "out_h");
  MUST(ctx, base64_decode(ctx, case_text(row, "source"), strlen(case_text(row, "source")), &source, &n));
  MUST(ctx, base64_decode(ctx, case_text(row, "out"), strlen(case_text(row, "out")), &want, &n));
  assert_int_equal(n, w * h * 3);
  float *got = malloc(n * sizeof *got);
  MUST(ctx, vision_resize_planes(ctx, source, whole(row, "w"), whole(row, "h"), w, h, got));
  for (size_t i = 0; i < n; i++) {
    assert_true(fabsf(got[i] - (float)want[i]) <= 1);
    off += got[i] != (float)want[i];
  }
  /* Values are spread evenly between two halves: about 2e-4 of them are that close to one. */
  if (off > n / 1000) fail_msg("%dx%d: %zu of %zu values differ", w, h, off, n);
  free(got);
  core_free(ctx, want);
  core_free(ctx, source);
}

static void check_limit(json_t *row) {
  wan_vision_params p = {.size = sizeof p,
                         .total_pixels = whole(row, "total"),
                         .min_pixels = whole(row, "min"),
                         .max_pixels = whole(row, "max")};
  double got = vision_clip_max_pixels(&p, whole(row, "frames"));
  if (got != number(row, "out")) fail_msg("%s: %.17g", json_dumps(row, 0), got);
}

static void run(core_ctx *ctx, json_t *c, void *user) {
  int *counts = user;
  static const char *const ops[] = {"resize", "nframes", "indices", "image", "planes", "limit"};
  char path[512];
  snprintf(path, sizeof path, PARITY_DATA "%s", case_text(c, "file"));
  json_t *file = json_load_file(path, 0, NULL), *row;
  assert_non_null(file);
  size_t i;
  json_array_foreach(json_object_get(file, "cases"), i, row) {
    const char *op = case_text(row, "op");
    for (int k = 0; k < 6; k++) counts[k] += strcmp(op, ops[k]) == 0;
    if (strcmp(op, "resize") == 0) check_resize(ctx, row);
    if (strcmp(op, "nframes") == 0) check_nframes(ctx, row);
    if (strcmp(op, "indices") == 0)
      json_object_get(row, "upto") ? check_all_indices(row) : check_indices(row);
    if (strcmp(op, "image") == 0) check_image(ctx, row);
    if (strcmp(op, "planes") == 0) check_planes(ctx, row);
    if (strcmp(op, "limit") == 0) check_limit(row);
  }
  json_decref(file);
}

static void test_vision(void **state) {
  (void)state;
  int counts[6] = {0};
  assert_int_equal(parity_cases("vision", run, counts), 1);
  assert_true(counts[0] > 100 && counts[1] > 100 && counts[2] > 4 && counts[3] >= 4 && counts[4] >= 4 &&
              counts[5] > 20);
}

/* The worked examples of the specification. */
static void test_examples(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  static const int sizes[][6] = {{1920, 1080, 1932, 1092, 0, 0},
                                 {42, 42, 56, 56, 0, 0},
                                 {98, 70, 112, 56, 0, 0},
                                 {10, 10, 56, 56, 0, 0},
                                 {5000, 5000, 3556, 3556, 0, 0},
                                 {2000, 14, 1988, 28, 0, 0},
                                 {1920, 1080, 1316, 728, 200704, 1003520}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    const int *s = sizes[i];
    int w, h;
    MUST(&ctx, vision_smart_resize(&ctx, s[0], s[1], 0, s[4], s[5], &w, &h));
    assert_true(w == s[2] && h == s[3]);
  }
  static const int frames[][3] = {{240, 24, 20}, {10, 30, 4}, {75, 25, 6}, {100000, 30, 768}};
  for (size_t i = 0; i < sizeof frames / sizeof *frames; i++) {
    int n;
    wan_vision_params p = {.size = sizeof p};
    MUST(&ctx, vision_smart_nframes(&ctx, &p, frames[i][0], frames[i][1], &n));
    assert_int_equal(n, frames[i][2]);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_vision), cmocka_unit_test(test_examples)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
