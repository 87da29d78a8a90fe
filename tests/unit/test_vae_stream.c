/* The autoencoder streams: memory does not grow with the length of the clip, a second stream starts afresh,
 * and wrong input is refused. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "vae/vae.h"

enum { H = 2, W = 3 };

typedef struct fixture {
  core_ctx ctx;
  backend *be;
  vae *v;
} fixture;

static void open_fixture(fixture *f, const char *file) {
  char path[512];
  snprintf(path, sizeof path, "%s/tests/parity/data/ckpt/%s", WAN_SOURCE_DIR, file);
  core_ctx_init(&f->ctx);
  backend_config config = {.name = "ref", .precision = WAN_PRECISION_F32};
  assert_int_equal(backend_open(&f->ctx, &config, &f->be), WAN_OK);
  if (vae_open(f->be, path, UINT64_MAX, &f->v) != WAN_OK) fail_msg("%s", f->ctx.message);
}

static void close_fixture(fixture *f) {
  vae_close(f->v);
  backend_close(f->be);
  assert_int_equal(core_mem_current(&f->ctx), 0);
}

/* A latent frame that differs from push to push. */
static tensor latent_frame(fixture *f, int t) {
  const int64_t z = vae_get_info(f->v).z;
  float host[H * W * 48];
  for (int64_t i = 0; i < H * W * z; i++) host[i] = sinf(0.37f * (float)i + 1.3f * (float)t);
  tensor x = TENSOR_NEW(f->be, DT_F32, 1, H, W, z);
  tensor_upload(f->be, x, host);
  return x;
}

/* Push latents number `first` to `end` - 1; the last frame's first pixels come back in `last`. */
static void push_all(fixture *f, vae_decoder *d, int first, int end, uint64_t *peak, float last[8]) {
  for (int t = first; t < end; t++) {
    scope_mark mark = scope_begin(f->be);
    tensor frames;
    if (vae_decoder_push(d, latent_frame(f, t), &frames) != WAN_OK) fail_msg("%s", f->ctx.message);
    assert_int_equal(frames.dim[0], t ? 4 : 1);
    memcpy(last, tensor_slice(frames, frames.dim[0] - 1, 1).data, 8 * sizeof *last);
    scope_end(f->be, mark);
  }
  *peak = core_mem_peak(&f->ctx);
}

static void check_decoder(const char *file) {
  fixture f;
  vae_decoder *d;
  uint64_t peak4, peak31;
  float a[8], b[8];
  open_fixture(&f, file);
  assert_int_equal(vae_decoder_open(f.v, H, W, &d), WAN_OK);
  push_all(&f, d, 0, 4, &peak4, a);   /* 13 frames */
  push_all(&f, d, 4, 31, &peak31, b); /* 121 frames */
  assert_int_equal(peak4, peak31);
  vae_decoder_close(d);
  assert_int_equal(vae_decoder_open(f.v, H, W, &d), WAN_OK);
  push_all(&f, d, 0, 4, &peak4, b);
  assert_memory_equal(a, b, sizeof a);
  vae_decoder_close(d);
  close_fixture(&f);
}

static void test_decoder_memory_and_restart(void **state) {
  (void)state;
  check_decoder("ti2v/Wan2.2_VAE.pth");
  check_decoder("t2v/Wan2.1_VAE.pth");
}

static void test_bad_input(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, "ti2v/Wan2.2_VAE.pth");
  vae_decoder *d;
  vae_encoder *e;
  assert_int_equal(vae_decoder_open(f.v, 0, W, &d), WAN_ERR_ARGUMENT);
  assert_int_equal(vae_encoder_open(f.v, 20, 32, &e), WAN_ERR_ARGUMENT);
  assert_non_null(strstr(f.ctx.message, "multiples of 16"));
  assert_int_equal(vae_decoder_open(f.v, H, W + 1, &d), WAN_OK);
  tensor frames;
  assert_int_equal(vae_decoder_push(d, latent_frame(&f, 0), &frames), WAN_ERR_ARGUMENT);
  vae_decoder_close(d);
  close_fixture(&f);
}

static void test_nan_is_found(void **state) {
  (void)state;
  fixture f;
  open_fixture(&f, "ti2v/Wan2.2_VAE.pth");
  vae_decoder *d;
  assert_int_equal(vae_decoder_open(f.v, H, W, &d), WAN_OK);
  tensor x = latent_frame(&f, 0), frames;
  ((float *)x.data)[5] = NAN;
  assert_int_equal(vae_decoder_push(d, x, &frames), WAN_ERR_NUMERIC);
  backend_clear(f.be);
  vae_decoder_close(d);
  close_fixture(&f);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_decoder_memory_and_restart),
                                     cmocka_unit_test(test_bad_input), cmocka_unit_test(test_nan_is_found)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
