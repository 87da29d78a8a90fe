/* Schedules and solvers against the tables and the scalar runs of the specification, and what must hold
 * beyond them: limits, odd arguments, resuming in the middle. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "sampler/sampler.h"

enum { TABLE_STEPS = 10 };

static const struct {
  sampler_kind solver;
  schedule_kind kind;
  int steps;
  double shift;
  double timestep[TABLE_STEPS];
  float sigma[TABLE_STEPS];
} tables[] = {
    {SAMPLER_UNIPC,
     SCHEDULE_OFFICIAL,
     4,
     5,
     {999, 937, 833, 624},
     {0.999799848f, 0.937265456f, 0.833055377f, 0.624687374f}},
    {SAMPLER_DPMPP, SCHEDULE_OFFICIAL, 4, 5, {1000, 937, 833, 625}, {1.0f, 0.9375f, 0.833333313f, 0.625f}},
    {SAMPLER_UNIPC,
     SCHEDULE_DIFFUSERS,
     4,
     5,
     {999, 937, 833, 625},
     {0.999998987f, 0.937578082f, 0.833610952f, 0.625936091f}},
    {SAMPLER_UNIPC,
     SCHEDULE_OFFICIAL,
     10,
     5,
     {999, 978, 952, 920, 882, 833, 768, 681, 555, 356},
     {0.999799848f, 0.978048027f, 0.95215404f, 0.920810103f, 0.882093251f, 0.833055377f, 0.768934727f,
      0.681508124f, 0.55524677f, 0.356887698f}},
    {SAMPLER_DPMPP,
     SCHEDULE_OFFICIAL,
     10,
     5,
     {1000, 978, 952, 921, 882, 833, 769, 681, 555, 357},
     {1.0f, 0.978260875f, 0.952380955f, 0.921052635f, 0.882352948f, 0.833333313f, 0.769230783f, 0.681818187f,
      0.555555582f, 0.357142866f}},
    {SAMPLER_UNIPC,
     SCHEDULE_DIFFUSERS,
     10,
     5,
     {999, 978, 952, 921, 882, 833, 769, 682, 556, 359},
     {0.999998987f, 0.978284478f, 0.952437639f, 0.921156466f, 0.882525861f, 0.833610952f, 0.769674122f,
      0.682540417f, 0.556787908f, 0.359432876f}},
    {SAMPLER_UNIPC,
     SCHEDULE_OFFICIAL,
     4,
     12,
     {999, 972, 922, 799},
     {0.999916613f, 0.972867668f, 0.922934771f, 0.799786508f}},
    {SAMPLER_DPMPP,
     SCHEDULE_OFFICIAL,
     4,
     12,
     {1000, 972, 923, 800},
     {1.0f, 0.972972989f, 0.923076928f, 0.800000012f}},
    {SAMPLER_UNIPC,
     SCHEDULE_DIFFUSERS,
     4,
     12,
     {999, 973, 923, 800},
     {0.999998987f, 0.973008037f, 0.923218787f, 0.800638616f}},
    {SAMPLER_UNIPC,
     SCHEDULE_OFFICIAL,
     10,
     12,
     {999, 990, 979, 965, 947, 922, 888, 837, 749, 571},
     {0.999916613f, 0.990734696f, 0.97949177f, 0.965406179f, 0.947243631f, 0.922934771f, 0.888724148f,
      0.837014437f, 0.749765456f, 0.571156323f}},
    {SAMPLER_DPMPP,
     SCHEDULE_OFFICIAL,
     10,
     12,
     {1000, 990, 979, 965, 947, 923, 888, 837, 750, 571},
     {1.0f, 0.990825713f, 0.979591846f, 0.965517223f, 0.947368443f, 0.923076928f, 0.888888896f, 0.837209284f,
      0.75f, 0.571428597f}},
    {SAMPLER_UNIPC,
     SCHEDULE_DIFFUSERS,
     10,
     12,
     {999, 990, 979, 965, 947, 923, 889, 837, 750, 573},
     {0.999998987f, 0.990835786f, 0.979616821f, 0.965564787f, 0.947451472f, 0.923218787f, 0.88913548f,
      0.837662816f, 0.750934958f, 0.573866069f}},
};

/* Toy model v(x, t) = 0.7 x - 0.3 + 0.0005 t from x = 1.25: the sample after each step, and for UniPC the
 * corrected sample that the step started from. */
static const struct {
  sampler_kind solver;
  int steps;
  double shift;
  double next[TABLE_STEPS], corrected[TABLE_STEPS];
} runs[] = {
    {SAMPLER_UNIPC,
     4,
     5.0,
     {1.1828067959, 1.0817653007, 0.9172502606, 0.5086577528},
     {1.2500000000, 1.1850941282, 1.0876209397, 0.9259111884}},
    {SAMPLER_DPMPP, 4, 5.0, {1.1828125000, 1.0790136521, 0.9103720065, 0.5042717537}, {0}},
    {SAMPLER_UNIPC,
     10,
     5.0,
     {1.2266276683, 1.1998377093, 1.1687011890, 1.1317019995, 1.0872235824, 1.0330958804, 0.9663888926,
      0.8836221903, 0.7856921542, 0.6329497483},
     {1.2500000000, 1.2269134464, 1.2002201828, 1.1689692071, 1.1319669104, 1.0875572423, 1.0335181861,
      0.9668492826, 0.8838784830, 0.7829614432}},
    {SAMPLER_DPMPP,
     10,
     5.0,
     {1.2266304404, 1.1995175676, 1.1680315202, 1.1307796881, 1.0861070798, 1.0317311272, 0.9646643707,
      0.8816839245, 0.7837516596, 0.6312065982},
     {0}},
    {SAMPLER_UNIPC,
     4,
     12.0,
     {1.2209359081, 1.1695548978, 1.0539996282, 0.3843385931},
     {1.2500000000, 1.2213812598, 1.1710484464, 1.0588867008}},
    {SAMPLER_DPMPP, 4, 12.0, {1.2209459633, 1.1690210195, 1.0521729035, 0.3829560676}, {0}},
    {SAMPLER_UNIPC,
     10,
     12.0,
     {1.2401340305, 1.2282439901, 1.2136018389, 1.1950451339, 1.1708105642, 1.1378830437, 1.0905663958,
      1.0171574290, 0.8908384508, 0.5429546078},
     {1.2500000000, 1.2401859149, 1.2283172887, 1.2136607537, 1.1951174977, 1.1709229295, 1.1380624877,
      1.0909364268, 1.0180855796, 0.8929217585}},
    {SAMPLER_DPMPP,
     10,
     12.0,
     {1.2401376411, 1.2281949590, 1.2134921794, 1.1948927717, 1.1706071154, 1.1375715191, 1.0901369209,
      1.0164499614, 0.8893457855, 0.5418931701},
     {0}},
};

static void table_rows(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
    schedule p;
    int n = tables[i].steps;
    assert_int_equal(schedule_make(&ctx, tables[i].solver, tables[i].kind, n, tables[i].shift, &p), WAN_OK);
    assert_int_equal(p.steps, n);
    for (int k = 0; k < n; k++) {
      assert_true(p.sigma[k] == tables[i].sigma[k]); /* 9 digits name an f32 */
      assert_true(p.timestep[k] == tables[i].timestep[k]);
    }
    assert_true(p.sigma[n] == 0);
  }
}

/* Steps on the high-noise expert with the default settings: t >= boundary. */
static void switch_points(void **state) {
  (void)state;
  static const struct {
    double shift, boundary;
    int high;
  } cases[] = {{12, 875, 26}, {5, 900, 15}};
  core_ctx ctx;
  core_ctx_init(&ctx);
  for (int i = 0; i < 2; i++)
    for (int solver = SAMPLER_UNIPC; solver <= SAMPLER_DPMPP; solver++) {
      schedule p;
      int high = 0;
      assert_int_equal(schedule_make(&ctx, (sampler_kind)solver, SCHEDULE_OFFICIAL, 40, cases[i].shift, &p),
                       WAN_OK);
      for (int k = 0; k < 40; k++) high += p.timestep[k] >= cases[i].boundary;
      assert_int_equal(high, cases[i].high);
    }
}

typedef struct scalars {
  float slot[SLOT_COUNT];
  int calls, fail_at;
} scalars;

static wan_status combine(void *user, sampler_slot dst, int n, const sampler_slot *src, const float *coef) {
  scalars *s = user;
  double sum = 0;
  if (s->calls++ == s->fail_at) return WAN_ERR_MEMORY;
  assert_in_range(n, 1, 5);
  for (int i = 0; i < n; i++) {
    assert_true(isfinite(coef[i]));
    sum += (double)coef[i] * (double)s->slot[src[i]];
  }
  s->slot[dst] = (float)sum;
  return WAN_OK;
}

static void toy(scalars *s, double t) {
  s->slot[SLOT_V] = (float)(0.7 * (double)s->slot[SLOT_X] - 0.3 + 0.0005 * t);
}

static void start(scalars *s) {
  *s = (scalars){.fail_at = -1};
  for (int i = 0; i < SLOT_COUNT; i++) s->slot[i] = NAN; /* reading history that is not there must show */
  s->slot[SLOT_X] = 1.25f;
}

/* Slots and coefficients are f32 here, the tables come from doubles: half an ulp of 1.25 (6e-8) for each of
 * up to 4 terms and 10 steps, damped by the model: 1e-6. */
static void golden_runs(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
    schedule p;
    sampler run;
    scalars s;
    int n = runs[i].steps;
    assert_int_equal(schedule_make(&ctx, runs[i].solver, SCHEDULE_OFFICIAL, n, runs[i].shift, &p), WAN_OK);
    sampler_init(&run, runs[i].solver, &p);
    start(&s);
    for (int k = 0; k < n; k++) {
      toy(&s, p.timestep[k]);
      assert_int_equal(sampler_step(&run, combine, &s), WAN_OK);
      assert_true(fabs((double)s.slot[SLOT_X] - runs[i].next[k]) < 1e-6);
      if (runs[i].solver == SAMPLER_UNIPC)
        assert_true(fabs((double)s.slot[SLOT_LAST] - runs[i].corrected[k]) < 1e-6);
    }
    assert_int_equal(sampler_step(&run, combine, &s), WAN_ERR_ARGUMENT);
  }
}

/* Any stop is survived by what sampler_slot_live() names, and by `done`. */
static void resume(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  for (int kind = SAMPLER_UNIPC; kind <= SAMPLER_EULER; kind++)
    for (int n = 1; n <= 6; n++) {
      schedule p;
      float end = 0;
      assert_int_equal(schedule_make(&ctx, (sampler_kind)kind, SCHEDULE_OFFICIAL, n, 5, &p), WAN_OK);
      for (int stop = -1; stop < n; stop++) { /* -1: the uninterrupted run */
        sampler run;
        scalars s;
        sampler_init(&run, (sampler_kind)kind, &p);
        start(&s);
        for (int k = 0; k < n; k++) {
          if (k == stop) {
            sampler again;
            for (int i = 0; i < SLOT_COUNT; i++)
              if (!sampler_slot_live(&run, (sampler_slot)i)) s.slot[i] = NAN;
            sampler_init(&again, (sampler_kind)kind, &p);
            again.done = run.done;
            run = again;
          }
          toy(&s, p.timestep[k]);
          assert_int_equal(sampler_step(&run, combine, &s), WAN_OK);
        }
        if (stop < 0) end = s.slot[SLOT_X];
        assert_true(s.slot[SLOT_X] == end);
        for (int i = 1; i < SLOT_COUNT; i++) assert_false(sampler_slot_live(&run, (sampler_slot)i));
      }
    }
}

/* With v = noise - x0 constant every solver has to arrive at x0, whatever the steps; UniPC and DPM-Solver++
 * because their x0 predictions all agree. */
static void straight_path(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  static const float sigmas[] = {1, 0.9f, 0.55f, 0.5f, 0.01f};
  for (int kind = SAMPLER_UNIPC; kind <= SAMPLER_EULER; kind++) {
    schedule p;
    sampler run;
    scalars s;
    assert_int_equal(schedule_from_sigmas(&ctx, (sampler_kind)kind, sigmas, 5, &p), WAN_OK);
    assert_true(p.timestep[0] == 1000 && p.timestep[1] == 900 && p.timestep[4] == 10);
    sampler_init(&run, (sampler_kind)kind, &p);
    start(&s);
    s.slot[SLOT_X] = 2; /* the noise; x0 = 0.5 */
    for (int k = 0; k < 5; k++) {
      s.slot[SLOT_V] = 1.5f;
      assert_int_equal(sampler_step(&run, combine, &s), WAN_OK);
      assert_true(fabs((double)s.slot[SLOT_X] - (0.5 + 1.5 * (double)p.sigma[k + 1])) < 2e-6);
    }
  }
}

static void failures_pass_through(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  for (int kind = SAMPLER_UNIPC; kind <= SAMPLER_EULER; kind++) {
    schedule p;
    assert_int_equal(schedule_make(&ctx, (sampler_kind)kind, SCHEDULE_OFFICIAL, 4, 5, &p), WAN_OK);
    for (int fail = 0;; fail++) {
      sampler run;
      scalars s;
      wan_status status = WAN_OK;
      sampler_init(&run, (sampler_kind)kind, &p);
      start(&s);
      s.fail_at = fail;
      for (int k = 0; k < 4 && status == WAN_OK; k++) {
        toy(&s, p.timestep[k]);
        status = sampler_step(&run, combine, &s);
        assert_int_equal(run.done, k + (status == WAN_OK));
      }
      if (status == WAN_OK) break;
      assert_int_equal(status, WAN_ERR_MEMORY);
    }
  }
}

static void bad_arguments(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  schedule p;
  static const struct {
    int steps;
    double shift;
  } bad[] = {{0, 5}, {-1, 5}, {1001, 5}, {4, 0}, {4, -1}, {4, NAN}, {4, INFINITY}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    assert_int_equal(schedule_make(&ctx, SAMPLER_UNIPC, SCHEDULE_OFFICIAL, bad[i].steps, bad[i].shift, &p),
                     WAN_ERR_ARGUMENT);
  static const float lists[][3] = {{1, 1, 0.5f},   {0.5f, 0.6f, 0.1f}, {1.1f, 1, 0.5f}, {1, 0.5f, 0},
                                   {1, NAN, 0.5f}, {NAN, 0.5f, 0.1f},  {1, 0.5f, -0.5f}};
  for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
    assert_int_equal(schedule_from_sigmas(&ctx, SAMPLER_UNIPC, lists[i], 3, &p), WAN_ERR_ARGUMENT);
  assert_int_equal(schedule_make(&ctx, SAMPLER_DPMPP, SCHEDULE_DIFFUSERS, SAMPLER_STEPS_MAX, 1, &p), WAN_OK);
}

/* Every rule gives strictly falling sigmas at every length: the solvers divide by their differences. */
static void strictly_falling(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  for (int kind = SAMPLER_UNIPC; kind <= SAMPLER_EULER; kind++)
    for (int rule = SCHEDULE_OFFICIAL; rule <= SCHEDULE_DIFFUSERS; rule++)
      for (int n = 1; n <= SAMPLER_STEPS_MAX; n += 1 + n / 3) {
        schedule p;
        assert_int_equal(schedule_make(&ctx, (sampler_kind)kind, (schedule_kind)rule, n, 5, &p), WAN_OK);
        for (int k = 0; k < n; k++) assert_true(p.sigma[k] > p.sigma[k + 1]);
      }
}

static void names(void **state) {
  (void)state;
  sampler_kind k;
  assert_true(sampler_kind_parse("dpmpp", &k) && k == SAMPLER_DPMPP);
  assert_false(sampler_kind_parse(NULL, &k));
  assert_false(sampler_kind_parse("UniPC", &k));
  for (int kind = SAMPLER_UNIPC; kind <= SAMPLER_EULER; kind++)
    assert_true(sampler_kind_parse(sampler_kind_name((sampler_kind)kind), &k) && (int)k == kind);
  assert_string_equal(sampler_kind_name(SAMPLER_DPMPP), "dpm++");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(table_rows),    cmocka_unit_test(switch_points),
      cmocka_unit_test(golden_runs),   cmocka_unit_test(resume),
      cmocka_unit_test(straight_path), cmocka_unit_test(failures_pass_through),
      cmocka_unit_test(bad_arguments), cmocka_unit_test(strictly_falling),
      cmocka_unit_test(names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
