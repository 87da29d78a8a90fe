/* Guidance against its formulas, written out in double. The engine combines in f32: a handful of roundings of
 * 2^-24 on values of up to about ten give 1e-5. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "core/rng.h"
#include "pipeline/guidance.h"

enum { N = 60 };
static const double LIMIT = 1e-5;

typedef struct fixture {
  core_ctx ctx;
  backend *be;
  float x[N], c[N], u[N], s[N], m[N], out[N];
} fixture;

static fixture *begin(void) {
  static fixture f;
  core_ctx_init(&f.ctx);
  backend_config config = {.name = "ref", .precision = WAN_PRECISION_F32};
  assert_int_equal(backend_open(&f.ctx, &config, &f.be), WAN_OK);
  float *all[] = {f.x, f.c, f.u, f.s};
  for (uint64_t i = 0; i < 4; i++) rng_normal_philox(40 + i, all[i], N);
  memset(f.m, 0, sizeof f.m);
  return &f;
}

static void end(fixture *f) {
  backend_close(f->be);
  assert_int_equal(core_mem_current(&f->ctx), 0);
}

static tensor up(fixture *f, const float *host) {
  tensor t = TENSOR_NEW(f->be, DT_F32, 3, 4, 5);
  tensor_upload(f->be, t, host);
  return t;
}

/* Runs the engine; momentum is read and written through f->m. */
static void run(fixture *f, const guidance_params *p, bool uncond, bool skip) {
  scope_mark mark = scope_begin(f->be);
  tensor c = up(f, f->c), m = up(f, f->m), none = {0};
  guidance_combine(f->be, p, up(f, f->x), c, uncond ? up(f, f->u) : none, skip ? up(f, f->s) : none,
                   p->apg ? m : none, c);
  tensor_download(f->be, f->out, c);
  tensor_download(f->be, f->m, m);
  assert_int_equal(backend_status(f->be), WAN_OK);
  scope_end(f->be, mark);
}

static double dot(const double *a, const double *b) {
  double s = 0;
  for (int i = 0; i < N; i++) s += a[i] * b[i];
  return s;
}

static void expect(const fixture *f, const double *want) {
  for (int i = 0; i < N; i++)
    if (!(fabs(f->out[i] - want[i]) <= LIMIT * (1 + fabs(want[i]))))
      fail_msg("element %d: %.9g, expected %.9g", i, (double)f->out[i], want[i]);
}

static void test_plain(void **state) {
  (void)state;
  fixture *f = begin();
  double want[N];
  guidance_params p = {.scale = 5, .sigma = 0.7f};
  run(f, &p, true, false);
  for (int i = 0; i < N; i++) want[i] = f->u[i] + 5.0 * ((double)f->c[i] - f->u[i]);
  expect(f, want);
  p.scale = 1;
  run(f, &p, false, false);
  assert_memory_equal(f->out, f->c, sizeof f->out); /* one pass: untouched */
  p.scale = 0;
  run(f, &p, true, false);
  for (int i = 0; i < N; i++) want[i] = f->u[i];
  expect(f, want);
  end(f);
}

static void test_skip(void **state) {
  (void)state;
  fixture *f = begin();
  double want[N];
  guidance_params p = {.scale = 4, .sigma = 0.7f, .skip_scale = 2.5};
  run(f, &p, true, true);
  for (int i = 0; i < N; i++)
    want[i] = f->u[i] + 4.0 * ((double)f->c[i] - f->u[i]) + 2.5 * ((double)f->c[i] - f->s[i]);
  expect(f, want);
  p.scale = 1; /* skip-layer guidance alone */
  run(f, &p, false, true);
  for (int i = 0; i < N; i++) want[i] = f->c[i] + 2.5 * ((double)f->c[i] - f->s[i]);
  expect(f, want);
  end(f);
}

static void test_zero_star(void **state) {
  (void)state;
  fixture *f = begin();
  double want[N], c[N], u[N];
  for (int i = 0; i < N; i++) c[i] = f->c[i], u[i] = f->u[i];
  double a = dot(c, u) / dot(u, u);
  guidance_params p = {.scale = 5, .sigma = 0.7f, .zero_star = true};
  run(f, &p, true, false);
  for (int i = 0; i < N; i++) want[i] = a * u[i] + 5 * (c[i] - a * u[i]);
  expect(f, want);
  memset(f->u, 0, sizeof f->u); /* no direction to project on: a = 0 */
  run(f, &p, true, false);
  for (int i = 0; i < N; i++) want[i] = 5 * c[i];
  expect(f, want);
  end(f);
}

/* Three steps with momentum, the paper's formulas on denoised predictions. */
static void apg_steps(double eta, double norm, double momentum) {
  fixture *f = begin();
  double m[N] = {0};
  for (int step = 0; step < 3; step++) {
    const double sigma = 0.9 - 0.25 * step, g = 5;
    double dc[N], d[N], want[N];
    for (int i = 0; i < N; i++) {
      double du = f->x[i] - sigma * f->u[i];
      dc[i] = f->x[i] - sigma * f->c[i];
      m[i] = dc[i] - du + momentum * m[i];
    }
    double length = sqrt(dot(m, m)), cut = norm > 0 && length > norm ? norm / length : 1;
    for (int i = 0; i < N; i++) d[i] = m[i] * cut;
    double along = dot(d, dc) / dot(dc, dc);
    for (int i = 0; i < N; i++) {
      double parallel = along * dc[i], across = d[i] - parallel;
      double guided = dc[i] + (g - 1) * (across + eta * parallel);
      want[i] = (f->x[i] - guided) / sigma;
    }
    guidance_params p = {.scale = g,
                         .sigma = (float)sigma,
                         .apg = true,
                         .apg_eta = eta,
                         .apg_norm = norm,
                         .apg_momentum = momentum};
    run(f, &p, true, false);
    expect(f, want);
    f->c[step] += 1; /* another prediction in the next step */
  }
  end(f);
}

static void test_apg(void **state) {
  (void)state;
  apg_steps(0, 0, 0);
  apg_steps(0, 2.5, -0.5);
  apg_steps(0.3, 0, -0.75);
  /* eta 1 without cut and momentum is plain guidance */
  fixture *f = begin();
  guidance_params p = {.scale = 5, .sigma = 0.5f, .apg = true, .apg_eta = 1};
  run(f, &p, true, false);
  double want[N];
  for (int i = 0; i < N; i++) want[i] = f->u[i] + 5.0 * ((double)f->c[i] - f->u[i]);
  expect(f, want);
  end(f);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_plain), cmocka_unit_test(test_skip),
                                     cmocka_unit_test(test_zero_star), cmocka_unit_test(test_apg)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
