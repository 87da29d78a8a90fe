/* What a step does, and settings through JSON and back. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "pipeline/settings.h"

#define CKPT WAN_SOURCE_DIR "/tests/parity/data/ckpt/"

static run_settings two_experts(wan_generate_params *p, const double *t, int steps) {
  *p = (wan_generate_params){.size = sizeof *p, .guidance_end = 1};
  run_settings s = {.params = p, .experts = 2, .steps = steps, .boundary = 0.875, .guidance = {4, 3}};
  for (int k = 0; k < steps; k++) s.plan.timestep[k] = t[k];
  return s;
}

static void test_expert_switch(void **state) {
  (void)state;
  wan_generate_params p;
  const double t[] = {999, 876, 875, 874, 1};
  run_settings s = two_experts(&p, t, 5);
  const int want[] = {EXPERT_HIGH, EXPERT_HIGH, EXPERT_HIGH, EXPERT_LOW, EXPERT_LOW};
  for (int k = 0; k < 5; k++) {
    assert_int_equal(settings_step(&s, k).expert, want[k]);
    assert_true(settings_step(&s, k).guidance == (want[k] == EXPERT_HIGH ? 4 : 3));
  }
  /* Euler's timesteps are not whole: the integer part decides */
  const double fractions[] = {875.0, 875.9, 874.999, 900.0, 899.999};
  s = two_experts(&p, fractions, 5);
  for (int k = 0; k < 3; k++) assert_int_equal(settings_step(&s, k).expert, k < 2 ? EXPERT_HIGH : EXPERT_LOW);
  s.boundary = 0.9;
  assert_int_equal(settings_step(&s, 3).expert, EXPERT_HIGH);
  assert_int_equal(settings_step(&s, 4).expert, EXPERT_LOW);
  /* an explicit split takes the place of the boundary */
  p.steps_high = 1;
  p.steps_low = 4;
  for (int k = 0; k < 5; k++) assert_int_equal(settings_step(&s, k).expert, k < 1 ? EXPERT_HIGH : EXPERT_LOW);
  s.experts = 1;
  assert_int_equal(settings_step(&s, 4).expert, EXPERT_HIGH); /* the only one */
}

static void test_passes(void **state) {
  (void)state;
  wan_generate_params p;
  const double t[] = {999, 900, 800, 700, 600, 500, 400, 300, 200, 100};
  run_settings s = two_experts(&p, t, 10);
  assert_int_equal(settings_passes(&s), 20);
  p.guidance_start = 0.1, p.guidance_end = 0.5; /* steps 1..4 of 0..9 */
  int guided = 0;
  for (int k = 0; k < 10; k++) {
    assert_true(settings_step(&s, k).uncond == (k >= 1 && k < 5));
    guided += settings_step(&s, k).uncond;
  }
  assert_int_equal(guided, 4);
  assert_int_equal(settings_passes(&s), 14);
  p.zero_init_steps = 2; /* no pass in steps 0 and 1 */
  assert_true(settings_step(&s, 1).zero && !settings_step(&s, 1).uncond && !settings_step(&s, 2).zero);
  assert_int_equal(settings_passes(&s), 11);
  p.zero_init_steps = 0;
  s.skip_mask = 2, p.skip_layer_scale = 1, p.skip_layer_start = 0.8, p.skip_layer_end = 1;
  assert_true(!settings_step(&s, 7).skip && settings_step(&s, 8).skip && settings_step(&s, 9).skip);
  s.skip_mask = 0;
  s.guidance[0] = s.guidance[1] = 1;
  assert_int_equal(settings_passes(&s), 10);
  assert_false(settings_use_negative(&s));
}

typedef struct opened {
  core_ctx ctx;
  backend *be;
  wan_model *m;
} opened;

static void open_model(opened *o, const char *name) {
  char dir[512];
  snprintf(dir, sizeof dir, CKPT "%s", name);
  core_ctx_init(&o->ctx);
  backend_config config = {.name = "ref"};
  assert_int_equal(backend_open(&o->ctx, &config, &o->be), WAN_OK);
  if (model_open(o->be, dir, &o->m) != WAN_OK) fail_msg("%s", o->ctx.message);
}

static void close_model(opened *o) {
  model_close(o->m);
  backend_close(o->be);
  assert_int_equal(core_mem_current(&o->ctx), 0);
}

static void test_defaults(void **state) {
  (void)state;
  const struct {
    const char *name;
    int width, height, frames, steps;
    double fps, shift, low, high;
  } want[] = {{"ti2v", 1280, 704, 121, 50, 24, 5, 5, 5},
              {"t2v", 1280, 720, 81, 40, 16, 12, 3, 4},
              {"i2v", 1280, 720, 81, 40, 16, 5, 3.5, 3.5}};
  for (int i = 0; i < 3; i++) {
    opened o;
    open_model(&o, want[i].name);
    wan_generate_params p;
    run_settings s;
    wan_generate_params_init(&p);
    assert_int_equal(settings_resolve(o.m, &p, true, &s), WAN_OK);
    assert_true(s.width == want[i].width && s.height == want[i].height && s.frames == want[i].frames);
    assert_true(s.steps == want[i].steps && s.fps == want[i].fps && s.shift == want[i].shift);
    assert_true(s.guidance[o.m->experts - 1] == want[i].low && s.guidance[0] == want[i].high);
    assert_string_equal(s.negative, model_negative);
    assert_true(s.seed >= 0);
    settings_free(&o.ctx, &s);
    close_model(&o);
  }
}

static void test_json(void **state) {
  (void)state;
  opened o;
  open_model(&o, "t2v");
  const float sigmas[] = {1, 0.9f, 0.4f};
  const int layers[] = {0, 1};
  wan_generate_params p, q;
  wan_generate_params_init(&p);
  p.prompt = "two \"cats\"\n\xe4\xb8\xad", p.negative = "";
  p.width = 48, p.height = 32, p.frames = 9, p.steps = 3, p.sigmas = sigmas, p.shift = 7.25;
  p.guidance_low = 2, p.guidance_high = 1.1, p.sampler = WAN_SAMPLER_EULER, p.rng = WAN_RNG_PHILOX;
  p.skip_layers = layers, p.skip_layer_count = 2, p.skip_layer_scale = 1.5, p.skip_layer_end = 0.75;
  p.apg = true, p.apg_eta = 0.1, p.seed = INT64_C(9007199254740993), p.boundary = 0.8, p.no_exif = true;
  run_settings s, t;
  char *one, *two;
  void *storage;
  assert_int_equal(settings_resolve(o.m, &p, false, &s), WAN_OK);
  assert_int_equal(settings_to_json(o.m, &s, &one), WAN_OK);
  wan_generate_params_init(&q);
  if (settings_from_json(&o.ctx, one, &q, &storage) != WAN_OK) fail_msg("%s", o.ctx.message);
  assert_string_equal(q.prompt, p.prompt);
  assert_memory_equal(q.sigmas, sigmas, sizeof sigmas);
  assert_memory_equal(q.skip_layers, layers, sizeof layers);
  assert_true(q.seed == p.seed && q.no_exif && q.apg && q.sampler == p.sampler && q.rng == p.rng);
  assert_int_equal(settings_resolve(o.m, &q, false, &t), WAN_OK);
  assert_int_equal(settings_to_json(o.m, &t, &two), WAN_OK);
  assert_string_equal(one, two); /* a replayed run has the settings of the first */
  assert_int_equal(settings_compare(&o.ctx, one, two, "c"), WAN_OK);
  core_free(&o.ctx, two);
  settings_free(&o.ctx, &t);

  q.shift = 7;
  assert_int_equal(settings_resolve(o.m, &q, false, &t), WAN_OK);
  assert_int_equal(settings_to_json(o.m, &t, &two), WAN_OK);
  assert_int_equal(settings_compare(&o.ctx, one, two, "c.safetensors"), WAN_ERR_ARGUMENT);
  assert_non_null(strstr(o.ctx.message, "c.safetensors"));
  assert_non_null(strstr(o.ctx.message, "shift was 7.25, now it is 7"));
  core_free(&o.ctx, two);
  settings_free(&o.ctx, &t);

  assert_int_equal(settings_json_seed(one), p.seed);
  const char *bad[] = {"",
                       "[]",
                       "{}",
                       "{\"wan.c\":\"1\",\"steps\":\"x\"}",
                       "{\"wan.c\":\"1\",\"sigmas\":[1,2]}",
                       "{\"wan.c\":\"1\",\"sampler\":\"heun\"}",
                       "{\"wan.c\":\"1\",\"frames\":1e30}"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    void *none;
    assert_int_equal(settings_from_json(&o.ctx, bad[i], &q, &none), WAN_ERR_FORMAT);
    assert_null(none);
  }
  core_free(NULL, storage);
  core_free(&o.ctx, one);
  settings_free(&o.ctx, &s);
  close_model(&o);
}

static void test_fingerprint(void **state) {
  (void)state;
  const char *names[] = {"ti2v", "t2v", "i2v"};
  uint64_t seen[3];
  for (int i = 0; i < 3; i++) {
    opened o;
    open_model(&o, names[i]);
    assert_int_equal(model_fingerprint(o.m, &seen[i]), WAN_OK);
    assert_true(seen[i] != 0);
    for (int k = 0; k < i; k++) assert_true(seen[k] != seen[i]);
    close_model(&o);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_expert_switch), cmocka_unit_test(test_passes),
                                     cmocka_unit_test(test_defaults), cmocka_unit_test(test_json),
                                     cmocka_unit_test(test_fingerprint)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
