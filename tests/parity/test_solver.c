/* Schedules, solver steps and noise against the official scheduler classes, diffusers and PyTorch. */
#include "parity.h"

#include "core/rng.h"
#include "sampler/sampler.h"

static void parse_solver(const char *name, sampler_kind *solver, schedule_kind *kind) {
  *kind = strncmp(name, "diffusers-", 10) == 0 ? SCHEDULE_DIFFUSERS : SCHEDULE_OFFICIAL;
  assert_true(sampler_kind_parse(strchr(name, '-') + 1, solver));
}

static tensor find(const safetensors *st, const char *prefix, const char *name) {
  char full[128];
  snprintf(full, sizeof full, "%s%s", prefix ? prefix : "", name);
  tensor t = safetensors_find(st, full);
  if (t.type == DT_NONE) fail_msg("no tensor %s", full);
  return t;
}

/* Sigmas to the bit and timesteps exactly; the caller gets the schedule. */
static void check_schedule(core_ctx *ctx, json_t *c, const safetensors *st, sampler_kind *solver,
                           schedule *plan) {
  schedule_kind kind;
  const char *prefix = case_text(c, "prefix");
  parse_solver(case_text(c, "solver"), solver, &kind);
  int n = (int)json_integer_value(json_object_get(c, "n"));
  MUST(ctx, schedule_make(ctx, *solver, kind, n, json_number_value(json_object_get(c, "shift")), plan));
  tensor s = find(st, prefix, "sigmas"), t = find(st, prefix, "timesteps");
  assert_int_equal(tensor_count(&s), n + 1);
  assert_int_equal(tensor_count(&t), n);
  for (int i = 0; i <= n; i++) {
    float want;
    memcpy(&want, (const char *)s.data + 4 * i, 4);
    if (plan->sigma[i] != want)
      fail_msg("%s %s sigma %d: %.9g, expected %.9g", case_text(c, "file"), prefix ? prefix : "", i,
               (double)plan->sigma[i], (double)want);
  }
  for (int i = 0; i < n; i++) {
    double want;
    if (t.type == DT_F32) {
      float f;
      memcpy(&f, (const char *)t.data + 4 * i, 4);
      want = (double)f;
    } else {
      int64_t v;
      assert_int_equal(t.type, DT_I64);
      memcpy(&v, (const char *)t.data + 8 * i, 8);
      want = (double)v;
    }
    if (plan->timestep[i] != want)
      fail_msg("%s %s timestep %d: %.9g, expected %.9g", case_text(c, "file"), prefix ? prefix : "", i,
               plan->timestep[i], want);
  }
}

static void schedule_case(core_ctx *ctx, json_t *c, void *user) {
  (void)user;
  schedule plan;
  sampler_kind solver;
  safetensors *st = case_open(ctx, c);
  check_schedule(ctx, c, st, &solver, &plan);
  safetensors_close(st);
}

static void schedules(void **state) {
  (void)state;
  assert_int_equal(parity_cases("schedule", schedule_case, NULL), 4 * 8 * 5);
}

enum { VALUES = 2 * 3 * 4 * 5 };

typedef struct slots {
  float v[SLOT_COUNT][VALUES];
} slots;

static wan_status combine(void *user, sampler_slot dst, int n, const sampler_slot *src, const float *coef) {
  slots *s = user;
  for (int i = 0; i < VALUES; i++) {
    float sum = 0;
    for (int k = 0; k < n; k++) sum += coef[k] * s->v[src[k]][i];
    s->v[dst][i] = sum;
  }
  return WAN_OK;
}

/* The reference computes its scalars in f32, lambda = ln(1-s) - ln(s) among them, and solves UniPC's 2x2
 * system in f32; near s = 1 the rounding of 1-s alone is worth some 1e-7 relative. A wrong coefficient
 * shows as 1e-3 and more (second-order terms are that large even at 20 steps). */
static const double solver_limit = 1e-6;

static void solver_case(core_ctx *ctx, json_t *c, void *user) {
  double *worst = user;
  schedule plan;
  sampler_kind solver;
  safetensors *st = case_open(ctx, c);
  check_schedule(ctx, c, st, &solver, &plan);
  tensor x = find(st, NULL, "x"), v = find(st, NULL, "velocity");
  assert_int_equal(tensor_count(&x), (plan.steps + 1) * VALUES);
  static slots s;
  for (int k = 0; k < SLOT_COUNT; k++)
    for (int i = 0; i < VALUES; i++) s.v[k][i] = NAN; /* reading a dead slot must show */
  memcpy(s.v[SLOT_X], x.data, sizeof s.v[0]);
  sampler run;
  sampler_init(&run, solver, &plan);
  for (int k = 0; k < plan.steps; k++) {
    static float want[VALUES];
    memcpy(s.v[SLOT_V], (const char *)v.data + (size_t)k * sizeof want, sizeof want);
    memcpy(want, (const char *)x.data + (size_t)(k + 1) * sizeof want, sizeof want);
    MUST(ctx, sampler_step(&run, combine, &s));
    double e = relative_l2(s.v[SLOT_X], want, VALUES);
    if (e > *worst) *worst = e;
    if (!(e < solver_limit)) fail_msg("%s step %d: relative error %.2e", case_text(c, "file"), k, e);
    for (int slot = 0; slot < SLOT_COUNT; slot++) /* what is not live may be lost */
      if (!sampler_slot_live(&run, (sampler_slot)slot))
        for (int i = 0; i < VALUES; i++) s.v[slot][i] = NAN;
  }
  safetensors_close(st);
}

static void solvers(void **state) {
  (void)state;
  double worst = 0;
  assert_int_equal(parity_cases("solver", solver_case, &worst), 4 * 7);
  print_message("worst relative L2 of a solver step: %.2e\n", worst);
}

static float *noise(core_ctx *ctx, json_t *c, size_t *n) {
  *n = (size_t)json_integer_value(json_object_get(c, "size"));
  float *x = core_alloc(ctx, *n * sizeof *x);
  assert_non_null(x);
  MUST(ctx, rng_normal_torch_cpu(ctx, (uint64_t)json_integer_value(json_object_get(c, "seed")), x, *n));
  return x;
}

static void noise_case(core_ctx *ctx, json_t *c, void *user) {
  (void)user;
  if (!case_text(c, "key")) return; /* noise_large.json, below */
  safetensors *st = case_open(ctx, c);
  tensor want = find(st, NULL, case_text(c, "key"));
  size_t n;
  float *x = noise(ctx, c, &n);
  assert_int_equal(tensor_count(&want), n);
  if (n >= 16) {
    assert_memory_equal(x, want.data, n * sizeof *x); /* to the bit */
  } else {
    /* doubles from libm, rounded to f32: an ulp of the double can move the rounding */
    assert_true(relative_l2(x, want.data, n) < 1e-7);
  }
  core_free(ctx, x);
  safetensors_close(st);
}

static void check_values(json_t *c, const char *key, const float *x, size_t stride) {
  size_t i;
  json_t *v;
  json_array_foreach(json_object_get(c, key), i, v) assert_true(x[i * stride] == (float)json_number_value(v));
}

static void large_noise(void) {
  json_error_t error;
  json_t *all = json_load_file(PARITY_DATA "noise_large.json", 0, &error), *c;
  assert_non_null(all);
  size_t i;
  json_array_foreach(json_object_get(all, "cases"), i, c) {
    core_ctx ctx;
    core_ctx_init(&ctx);
    size_t n;
    float *x = noise(&ctx, c, &n);
    check_values(c, "first", x, 1);
    check_values(c, "last", x + n - json_array_size(json_object_get(c, "last")), 1);
    check_values(c, "strided", x, (size_t)json_integer_value(json_object_get(c, "stride")));
    double sum = 0;
    for (size_t k = 0; k < n; k++) sum += (double)x[k];
    assert_true(fabs(sum / (double)n - json_number_value(json_object_get(c, "mean"))) < 1e-12);
    core_free(&ctx, x);
  }
  assert_true(i >= 4);
  json_decref(all);
}

static void torch_noise(void **state) {
  (void)state;
  assert_true(parity_cases("noise", noise_case, NULL) > 10);
  large_noise();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(schedules),
      cmocka_unit_test(solvers),
      cmocka_unit_test(torch_noise),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
