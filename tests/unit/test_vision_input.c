/* Pictures and clips for vision-language models through the public calls: what is handed out, what it is
 * counted as, wrong input, and every allocation failing in turn. Pixels and sizes are compared in
 * parity/test_vision.c. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "api/context.h"
#include "prompt/vision.h"
#include "scratch.h"

#define DATA WAN_SOURCE_DIR "/tests/parity/data/"

static scratch tmp;
static wan_context *context;
static const char *clip; /* 10 frames of 64 x 48 at 5 a second */

static void make_clip(core_ctx *ctx) {
  clip = strdup(scratch_path(&tmp, "clip.mp4"));
  video_params p = {.path = clip, .format = VIDEO_MP4, .width = 64, .height = 48, .fps = 5, .crf = -1};
  video_writer *w;
  uint8_t *rgb = malloc(64 * 48 * 3);
  assert_int_equal(video_writer_open(ctx, &p, &w), WAN_OK);
  for (int i = 0; i < 10; i++) {
    memset(rgb, 20 * i, 64 * 48 * 3);
    assert_int_equal(video_writer_push(w, rgb), WAN_OK);
  }
  assert_int_equal(video_writer_finish(w), WAN_OK);
  free(rgb);
}

static int start(void **state) {
  (void)state;
  wan_context_params p;
  wan_context_params_init(&p);
  p.backend = "ref";
  scratch_open(&tmp);
  if (wan_context_create(&p, &context) != WAN_OK) return -1;
  if (video_format_available(VIDEO_MP4)) make_clip(&context->core);
  return 0;
}

static int stop(void **state) {
  (void)state;
  wan_context_destroy(context);
  free((void *)(uintptr_t)clip);
  scratch_close(&tmp);
  return 0;
}

static void test_image(void **state) {
  (void)state;
  wan_vision_params p;
  int w, h;
  uint8_t *rgb;
  wan_vision_params_init(&p);
  uint64_t before = wan_context_memory(context);
  assert_int_equal(wan_vision_image(context, DATA "picture_rgb.png", NULL, &w, &h, &rgb), WAN_OK);
  assert_true(w == 84 && h == 56); /* of 33 x 17, grown to 3136 pixels */
  assert_int_equal(wan_context_memory(context), before);
  wan_free(rgb);
  p.width = 100;
  p.height = 60;
  assert_int_equal(wan_vision_image(context, "file://" DATA "picture_rgb.png", &p, &w, &h, &rgb), WAN_OK);
  assert_true(w == 112 && h == 56);
  wan_free(rgb);
  static const struct {
    const char *source;
    wan_status status;
  } bad[] = {{"/nowhere/x.png", WAN_ERR_IO},
             {DATA "clean.json", WAN_ERR_FORMAT},
             {"data:image/png,x", WAN_ERR_FORMAT},
             {"data:image/png;base64,%%%", WAN_ERR_FORMAT},
             {"data:image/png;base64,iVBORw0KGgo=", WAN_ERR_FORMAT},
             {"http://127.0.0.1:9/x.png", WAN_ERR_ARGUMENT}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_int_equal(wan_vision_image(context, bad[i].source, NULL, &w, &h, &rgb), bad[i].status);
    assert_null(rgb);
    assert_true(*wan_context_error(context));
  }
  assert_int_equal(wan_context_memory(context), before);
}

static void test_video(void **state) {
  (void)state;
  if (!clip) skip();
  wan_vision_params p;
  wan_vision_frames f;
  wan_vision_params_init(&p);
  wan_vision_frames_init(&f);
  uint64_t before = wan_context_memory(context);
  p.width = 56;
  p.height = 56;
  assert_int_equal(wan_vision_video(context, clip, &p, &f), WAN_OK);
  assert_true(f.frames == 4 && f.width == 56 && f.height == 56); /* 10 / 5 * 2 */
  static const int index[] = {0, 3, 6, 9};
  for (int i = 0; i < 4; i++) {
    assert_int_equal(f.index[i], index[i]);
    float at = f.pixels[(size_t)i * 3 * 56 * 56 + 56 * 28];
    assert_true(at > (float)(20 * index[i]) - 4 && at < (float)(20 * index[i]) + 4); /* the codec's loss */
  }
  assert_true(f.fps > 1.99 && f.fps < 2.01);
  wan_vision_frames_free(&f);
  assert_int_equal(wan_context_memory(context), before);
  p.start = 0.9; /* frames 5 to 7: two of them */
  p.end = 1.5;
  p.frames = 2;
  assert_int_equal(wan_vision_video(context, clip, &p, &f), WAN_OK);
  assert_true(f.frames == 2 && f.index[0] == 5 && f.index[1] == 7);
  wan_vision_frames_free(&f);
  static const wan_vision_params bad[] = {{.frames = 30},
                                          {.frames = 4, .fps = 1},
                                          {.start = 1.5, .end = 1},
                                          {.start = 5},
                                          {.frames = 4, .factor = -1}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    p = bad[i];
    p.size = sizeof p;
    wan_status s = wan_vision_video(context, clip, &p, &f);
    assert_int_equal(s, i < 4 ? WAN_ERR_ARGUMENT : WAN_OK); /* a factor below 1 is the default */
    if (s == WAN_OK) wan_vision_frames_free(&f);
    assert_null(f.pixels);
  }
  assert_int_equal(wan_context_memory(context), before);
}

static void test_pictures(void **state) {
  (void)state;
  const char *const same[] = {DATA "picture_rgb.png", DATA "picture_gray.png", DATA "picture_rgb.png"};
  const char *const other[] = {DATA "picture_rgb.png", DATA "picture_one_pixel.png"};
  wan_vision_frames f;
  wan_vision_frames_init(&f);
  assert_int_equal(wan_vision_pictures(context, same, 3, NULL, &f), WAN_OK);
  assert_true(f.frames == 4 && f.index[2] == 2 && f.index[3] == 2);
  wan_vision_frames_free(&f);
  assert_int_equal(wan_vision_pictures(context, other, 2, NULL, &f), WAN_ERR_ARGUMENT);
  assert_int_equal(wan_vision_pictures(context, same, 0, NULL, &f), WAN_ERR_ARGUMENT);
  assert_null(f.pixels);
}

/* Every allocation fails in turn: an error that says so, and nothing is left behind. */
static void test_memory(void **state) {
  (void)state;
  const char *const pictures[] = {DATA "picture_rgb.png", DATA "picture_gray.png"};
  core_ctx *ctx = &context->core;
  uint64_t before = core_mem_current(ctx);
  wan_vision_params p = {.size = sizeof p, .width = 56, .height = 56};
  for (int kind = clip ? 0 : 1; kind < 2; kind++) {
    wan_status s = WAN_ERR_MEMORY;
    int n = 0;
    for (; n < 500 && s != WAN_OK; n++) {
      wan_vision_frames f = {.size = sizeof f};
      atomic_store(&ctx->mem_fail_in, n);
      s = kind == 0 ? vision_clip(ctx, clip, &p, &f) : vision_clip_pictures(ctx, pictures, 2, &p, &f);
      atomic_store(&ctx->mem_fail_in, -1);
      if (s != WAN_OK) assert_int_equal(s, WAN_ERR_MEMORY);
      vision_clip_free(ctx, &f);
      assert_int_equal(core_mem_current(ctx), before);
    }
    assert_int_equal(s, WAN_OK);
    assert_true(n > 8);
  }
}

static void test_default_parameters(void **state) {
  (void)state;
  int w, h, n;
  assert_int_equal(wan_smart_resize(context, NULL, 1920, 1080, &w, &h), WAN_OK);
  assert_true(w == 1932 && h == 1092);
  assert_int_equal(wan_smart_nframes(context, NULL, 240, 24, &n), WAN_OK);
  assert_int_equal(n, 20);
  wan_extend_params p;
  wan_extend_result r;
  wan_extend_params_init(&p);
  wan_extend_result_init(&r);
  assert_true(p.seed < 0 && p.method == WAN_EXTEND_LOCAL_QWEN && !p.allow_remote);
  p.prompt = "";
  assert_int_equal(wan_extend(context, &p, &r), WAN_ERR_ARGUMENT);
  assert_int_equal(r.size, sizeof r);
  assert_true(!r.status && r.seed >= 0 && !strcmp(r.prompt, ""));
  assert_string_equal(r.message, wan_context_error(context));
  wan_extend_result_free(&r);
  assert_null(r.message);
  assert_ptr_equal(wan_extend_system_prompt(WAN_FAMILY_I2V, WAN_LANGUAGE_EN, false, true),
                   wan_extend_system_prompt(WAN_FAMILY_I2V, WAN_LANGUAGE_EN, false, false));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_image), cmocka_unit_test(test_video),
                                     cmocka_unit_test(test_pictures), cmocka_unit_test(test_memory),
                                     cmocka_unit_test(test_default_parameters)};
  return cmocka_run_group_tests(tests, start, stop);
}
