/* Both autoencoders against diffusers' AutoencoderKLWan (which has the same bits as the official code).
 *
 * Limits: f32: about 40 convolutions in a row, each rounding at 2^-24 times the square root of its few
 * hundred products, amplified by the normalisations between them: 1e-4. bf16: every activation rounds at
 * 2^-9, operands only, some 60 in a row: sqrt(60) * 2^-9 = 1.5e-2; 2e-2. The fixtures are very narrow, and
 * the norm divides by the length of a vector of k channels: for Gaussian channels the mean of k/|x|^2 is
 * k/(k-2), so squared errors grow by that factor against a wide network (1.02 at the official 96 channels, 2
 * at 4). That is the mean; at k = 4 the variance of k/|x|^2 is infinite, and one short vector can decide a
 * fixture of a few hundred pixels: equally exact kernels gave 1.3e-2 to 2.8e-2 on one file, each the best on
 * another. Hence 1.5 times the mean for bf16. */
#include "parity.h"

#include "vae/vae.h"

typedef struct vae_run {
  const parity_setting *setting;
} vae_run;

/* Channels of the narrowest norm. */
static double narrowest(const vae *v) {
  tensor head = weight_set_find(vae_weights(v), "decoder.head.0.gamma");
  tensor first = weight_set_find(vae_weights(v), "encoder.conv1.bias");
  return (double)(head.dim[0] < first.dim[0] ? head.dim[0] : first.dim[0]);
}

static void check(const vae *v, json_t *c, vae_run *run, const float *got, tensor want) {
  const bool f32 = run->setting->precision == WAN_PRECISION_F32;
  const double k = narrowest(v), limit = run->setting->limit * (f32 ? 1 : 1.5 * sqrt(k / (k - 2)));
  double e = relative_l2(got, want.data, (size_t)tensor_count(&want));
  print_message("%s %s %s: %.2e\n", run->setting->backend, f32 ? "f32" : "bf16", case_text(c, "file"), e);
  if (!(e <= limit)) fail_msg("%s: relative L2 %.3e, limit %.1e", case_text(c, "file"), e, limit);
}

static void decode(core_ctx *ctx, json_t *c, vae_run *run, vae *v, backend *be, safetensors *st) {
  tensor z = safetensors_find(st, "latent"), want = safetensors_find(st, "video");
  const int64_t C = z.dim[0], T = z.dim[1], h = z.dim[2], w = z.dim[3];
  const size_t pixels = (size_t)(want.dim[2] * want.dim[3]), rest = (size_t)(T * h * w);
  float *last = core_alloc(ctx, tensor_bytes(&z)), *video = core_alloc(ctx, tensor_bytes(&want));
  float *out = core_alloc(ctx, tensor_bytes(&want));
  to_channels_last(z.data, last, (size_t)C, rest);
  vae_decoder *d;
  MUST(ctx, vae_decoder_open(v, h, w, &d));
  size_t frame = 0;
  for (int64_t t = 0; t < T; t++) {
    scope_mark mark = scope_begin(be);
    tensor x = TENSOR_NEW(be, DT_F32, 1, h, w, C), y;
    tensor_upload(be, x, last + (size_t)(t * h * w * C));
    MUST(ctx, vae_decoder_push(d, x, &y));
    tensor_download(be, video + frame * pixels * 3, y);
    frame += (size_t)y.dim[0];
    scope_end(be, mark);
  }
  assert_int_equal(frame, want.dim[1]);
  for (size_t i = 0; i < (size_t)tensor_count(&want); i++) video[i] = fminf(1, fmaxf(-1, video[i]));
  to_channels_first(video, out, 3, frame * pixels);
  check(v, c, run, out, want);
  vae_decoder_close(d);
  core_free(ctx, out);
  core_free(ctx, video);
  core_free(ctx, last);
}

static void encode(core_ctx *ctx, json_t *c, vae_run *run, vae *v, backend *be, safetensors *st) {
  tensor video = safetensors_find(st, "video"), want = safetensors_find(st, "latent");
  const int64_t F = video.dim[1], H = video.dim[2], W = video.dim[3], C = want.dim[0];
  const size_t pixels = (size_t)(H * W), latent = (size_t)(want.dim[2] * want.dim[3] * C);
  float *last = core_alloc(ctx, tensor_bytes(&video)), *z = core_alloc(ctx, tensor_bytes(&want));
  float *out = core_alloc(ctx, tensor_bytes(&want));
  to_channels_last(video.data, last, 3, (size_t)F * pixels);
  vae_encoder *e;
  MUST(ctx, vae_encoder_open(v, H, W, &e));
  int64_t frame = 0;
  for (int64_t t = 0; t < want.dim[1]; t++) {
    scope_mark mark = scope_begin(be);
    int64_t n = t ? 4 : 1;
    tensor x = TENSOR_NEW(be, DT_F32, n, H, W, 3), y;
    tensor_upload(be, x, last + (size_t)frame * pixels * 3);
    MUST(ctx, vae_encoder_push(e, x, &y));
    tensor_download(be, z + (size_t)t * latent, y);
    frame += n;
    scope_end(be, mark);
  }
  to_channels_first(z, out, (size_t)C, (size_t)(want.dim[1] * want.dim[2] * want.dim[3]));
  check(v, c, run, out, want);
  vae_encoder_close(e);
  core_free(ctx, out);
  core_free(ctx, z);
  core_free(ctx, last);
}

static void run_case(core_ctx *ctx, json_t *c, void *user) {
  vae_run *run = user;
  backend *be = parity_backend(ctx, run->setting);
  safetensors *st = case_open(ctx, c);
  char path[512];
  bool v22 = strcmp(case_text(c, "stage"), "vae22") == 0;
  snprintf(path, sizeof path, PARITY_DATA "ckpt/%s/Wan2.%d_VAE.pth", case_text(c, "ckpt"), v22 ? 2 : 1);
  vae *v;
  MUST(ctx, vae_open(be, path, UINT64_MAX, &v));
  if (strstr(case_text(c, "file"), "encode"))
    encode(ctx, c, run, v, be, st);
  else
    decode(ctx, c, run, v, be, st);
  vae_close(v);
  safetensors_close(st);
  backend_close(be);
}

static void run_setting(const parity_setting *s) {
  vae_run run = {.setting = s};
  assert_true(parity_cases("vae21", run_case, &run) > 0);
  assert_true(parity_cases("vae22", run_case, &run) > 0);
}

static void test_vae(void **state) {
  (void)state;
  parity_each_backend(1e-4, 2e-2, run_setting);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_vae)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
