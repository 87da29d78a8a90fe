/* The denoising loop against the official pipelines' loop and diffusers' own pipelines: every step's latent.
 *
 * Limit: one forward pass agrees to 1e-5 relative L2 in f32 (test_dit.c); guidance of up to 5 amplifies the
 * difference of two passes, and up to six steps add up: 6 * 5 * 1e-5 = 3e-4 at worst, where errors of random
 * sign stay below 1e-4. */
#include "parity.h"

#include "pipeline/denoise.h"
#include "pipeline/latent.h"

typedef struct walk {
  denoiser *d;
  tensor want;  /* [steps+1, C, T, h, w] */
  int64_t skip; /* leading latent frames that are not compared before the end */
  double worst;
  float *host;
} walk;

static double number(json_t *c, const char *key) {
  return json_number_value(json_object_get(c, key));
}

/* Relative L2 of the sample and wanted [C, T, h, w], from latent frame `skip` on. */
static double distance(denoiser *d, const float *want, int64_t skip, float *host) {
  const run_settings *s = d->s;
  int64_t n = s->T * s->h * s->w, plane = s->h * s->w;
  tensor_download(d->be, host, d->slot[SLOT_X]);
  double diff = 0, sum = 0;
  for (int64_t c = 0; c < s->C; c++)
    for (int64_t i = skip * plane; i < n; i++) {
      double w = (double)want[c * n + i], g = (double)host[i * s->C + c] - w;
      diff += g * g;
      sum += w * w;
    }
  return sqrt(diff / sum);
}

static wan_status on_step(void *user, int done) {
  walk *w = user;
  size_t one = (size_t)(tensor_count(&w->want) / w->want.dim[0]);
  double e = distance(w->d, (const float *)w->want.data + (size_t)done * one, w->skip, w->host);
  if (!(e <= w->worst)) w->worst = e;
  return WAN_OK;
}

static tensor last(core_ctx *ctx, backend *be, tensor x) {
  float *host = core_alloc(ctx, tensor_bytes(&x));
  channels_last(x.data, x.dim[0], tensor_count(&x) / x.dim[0], host);
  tensor t = TENSOR_ALLOC(be, DT_F32, x.dim[1], x.dim[2], x.dim[3], x.dim[0]);
  tensor_upload(be, t, host);
  core_free(ctx, host);
  return t;
}

static void give_first(core_ctx *ctx, denoiser *d, tensor first) {
  tensor one = last(ctx, d->be, first);
  d->first = tensor_alloc(d->be, DT_F32, 4, (int64_t[]){d->s->T, d->s->h, d->s->w, d->s->C});
  tensor_copy(d->be, tensor_slice(d->first, 0, 1), one);
  tensor_free(d->be, &one);
  d->given = core_calloc(ctx, (size_t)d->s->T, sizeof *d->given);
  d->given[0] = true;
}

static void run_case(core_ctx *ctx, json_t *c, void *user) {
  const parity_setting *setting = user;
  backend *be = parity_backend(ctx, setting);
  safetensors *st = case_open(ctx, c);
  char dir[512];
  snprintf(dir, sizeof dir, PARITY_DATA "ckpt/%s", case_text(c, "ckpt"));
  wan_model *m;
  MUST(ctx, model_open(be, dir, &m));
  tensor noise = safetensors_find(st, "noise"), first = safetensors_find(st, "first");
  tensor y = safetensors_find(st, "y"), want = safetensors_find(st, "latents");
  const char *solver = case_text(c, "solver");
  bool diffusers = strncmp(solver, "diffusers", 9) == 0;
  wan_generate_params p = {.size = sizeof p, .guidance_end = 1, .seed = 0};
  p.steps = (int)number(c, "steps");
  p.shift = number(c, "shift");
  p.guidance_low = number(c, "guide_low");
  p.guidance_high = number(c, "guide_high");
  p.boundary = number(c, "boundary") / 1000;
  p.sampler = strstr(solver, "dpmpp") ? WAN_SAMPLER_DPMPP : WAN_SAMPLER_UNIPC;
  p.schedule = diffusers ? WAN_SCHEDULE_DIFFUSERS : WAN_SCHEDULE_OFFICIAL;
  p.frames = (int)(noise.dim[1] - 1) * 4 + 1;
  p.height = (int)noise.dim[2] * m->vae_stride;
  p.width = (int)noise.dim[3] * m->vae_stride;
  run_settings s;
  MUST(ctx, settings_resolve(m, &p, true, &s));
  json_t *experts = json_object_get(c, "experts");
  for (int k = 0; experts && k < s.steps; k++) {
    const char *e = json_string_value(json_array_get(experts, (size_t)k));
    assert_int_equal(settings_step(&s, k).expert, strcmp(e, "low") == 0 ? EXPERT_LOW : EXPERT_HIGH);
  }

  denoiser d;
  walk w = {.d = &d, .want = want};
  denoiser_init(&d, be, &m->dir, &s);
  d.keep_bytes = UINT64_MAX;
  d.context[0] = safetensors_find(st, "context");
  d.context[1] = safetensors_find(st, "context_null");
  d.on_step = on_step;
  d.user = &w;
  if (y.type != DT_NONE) d.y = last(ctx, be, y);
  if (first.type != DT_NONE) give_first(ctx, &d, first);
  /* diffusers leaves the first frame of its own latents alone until the end; the model sees the same. */
  w.skip = diffusers && first.type != DT_NONE ? 1 : 0;
  w.host = core_alloc(ctx, tensor_bytes(&noise));
  float *start = core_alloc(ctx, tensor_bytes(&noise));
  channels_last(noise.data, noise.dim[0], tensor_count(&noise) / noise.dim[0], start);
  MUST(ctx, denoiser_start(&d, start));
  MUST(ctx, denoiser_run(&d));
  tensor result = safetensors_find(st, "result");
  double end = result.type == DT_NONE ? 0 : distance(&d, result.data, 0, w.host);
  print_message("%s %s %s: steps %.2e, end %.2e\n", setting->backend,
                setting->precision == WAN_PRECISION_F32 ? "f32" : "bf16", case_text(c, "file"), w.worst, end);
  if (!(w.worst <= setting->limit && end <= setting->limit)) fail_msg("limit %.1e", setting->limit);
  core_free(ctx, start);
  core_free(ctx, w.host);
  denoiser_free(&d);
  settings_free(ctx, &s);
  model_close(m);
  safetensors_close(st);
  backend_close(be);
}

static void run_setting(const parity_setting *s) {
  if (s->precision != WAN_PRECISION_F32) return;
  assert_int_equal(parity_cases("loop", run_case, (void *)(uintptr_t)s), 6);
  assert_int_equal(parity_cases("pipe", run_case, (void *)(uintptr_t)s), 4);
}

static void test_loop(void **state) {
  (void)state;
  parity_each_backend(1e-4, 0, run_setting);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_loop)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
