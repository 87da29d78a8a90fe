/* I2V conditioning: the mask's layout, and that grey chunks may be left out once the encoder's history is
 * full of grey (the count is derived in pipeline/condition_picture.c; here it is compared bit by bit). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "pipeline/condition.h"
#include "vae/vae.h"

#define CKPT WAN_SOURCE_DIR "/tests/parity/data/ckpt/"
enum { SIDE = 16, GREY_PUSHES = 29, T = 36, Z = 16 };
#define MUST(expr)                                                 \
  do {                                                             \
    if ((expr) != WAN_OK) fail_msg("%s: %s", #expr, ctx->message); \
  } while (0)

static const uint8_t red[3 * 4] = {200, 10, 30, 0, 255, 9, 90, 80, 70, 1, 2, 3}; /* 2x2 pixels */

/* Every latent frame of picture + grey, nothing left out. */
static void encode_all(core_ctx *ctx, wan_model *m, const float *frame, float *out) {
  backend *be = m->be;
  vae *v;
  vae_encoder *e;
  MUST(vae_open(be, m->dir.part[MODEL_VAE], UINT64_MAX, &v));
  MUST(vae_encoder_open(v, SIDE, SIDE, &e));
  for (int t = 0; t < T; t++) {
    scope_mark mark = scope_begin(be);
    tensor in = TENSOR_NEW(be, DT_F32, t ? 4 : 1, SIDE, SIDE, 3), latent;
    tensor_zero(be, in);
    if (t == 0) tensor_upload(be, in, frame);
    MUST(vae_encoder_push(e, in, &latent));
    tensor_download(be, out + t * 2 * 2 * Z, latent);
    scope_end(be, mark);
  }
  vae_encoder_close(e);
  vae_close(v);
}

static void test_grey(void **state) {
  (void)state;
  core_ctx core, *ctx = &core;
  core_ctx_init(ctx);
  backend *be;
  wan_model *m;
  backend_config config = {.name = "ref", .precision = WAN_PRECISION_F32};
  MUST(backend_open(ctx, &config, &be));
  MUST(model_open(be, CKPT "i2v", &m));
  wan_generate_params p;
  wan_generate_params_init(&p);
  p.image = (wan_image){2, 2, red};
  p.width = p.height = SIDE;
  p.frames = (T - 1) * 4 + 1;
  run_settings s;
  MUST(settings_resolve(m, &p, false, &s));
  assert_int_equal(s.width, SIDE);
  denoiser d;
  denoiser_init(&d, be, &m->dir, &s);
  MUST(condition_pictures(m, &d, UINT64_MAX));

  static float frame[SIDE * SIDE * 3], want[T * 4 * Z], got[T * 4 * (Z + 4)];
  MUST(condition_pixels(ctx, WAN_FAMILY_I2V, &s.given[0].pixels, SIDE, SIDE, frame));
  encode_all(ctx, m, frame, want);
  tensor_download(be, got, d.y);
  for (int t = 0; t < T; t++)
    for (int i = 0; i < 4; i++) {
      const float *y = got + (t * 4 + i) * (Z + 4);
      for (int c = 0; c < 4; c++) assert_true(y[c] == (t == 0 ? 1.0f : 0.0f));
      assert_memory_equal(y + 4, want + (t * 4 + i) * Z, Z * sizeof *y);
    }
  /* The picture is still felt one push before the bound, and never after it. */
  const size_t one = 4 * Z * sizeof *want;
  assert_memory_not_equal(want + 2 * 4 * Z, want + 3 * 4 * Z, one);
  for (int t = GREY_PUSHES; t < T; t++) assert_memory_equal(want + t * 4 * Z, want + (T - 1) * 4 * Z, one);
  denoiser_free(&d);
  settings_free(ctx, &s);
  model_close(m);
  backend_close(be);
  assert_int_equal(core_mem_current(ctx), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_grey)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
