/* Noise: known answers, and the properties that the pipeline relies on. The bits of PyTorch's generator
 * are checked against PyTorch's own output in parity/test_solver.c. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"

enum { MANY = 1 << 18 };

static double moment(const float *x, size_t n, int power) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += pow((double)x[i], power);
  return sum / (double)n;
}

/* The sampling error of the k-th moment is sqrt(var(x^k)/n): 1, 1.41, 3.87, 9.80 for k = 1..4 over
 * sqrt(n) = 512. Five of them. */
static void assert_normal(const float *x) {
  assert_true(fabs(moment(x, MANY, 1)) < 5 * 1.0 / 512);
  assert_true(fabs(moment(x, MANY, 2) - 1) < 5 * 1.41 / 512);
  assert_true(fabs(moment(x, MANY, 3)) < 5 * 3.87 / 512);
  assert_true(fabs(moment(x, MANY, 4) - 3) < 5 * 9.80 / 512);
}

static void philox(void **state) {
  (void)state;
  static float x[MANY], y[MANY];
  rng_normal_philox(7, x, MANY);
  assert_normal(x);
  for (size_t n = 0; n < 70; n++) { /* a value depends on its index alone */
    y[n] = 99;
    rng_normal_philox(7, y, n);
    assert_memory_equal(x, y, n * sizeof *x);
    assert_true(y[n] == 99);
  }
  rng_normal_philox(7 + (1ull << 32), y, MANY); /* all 64 bits of the seed count */
  double correlation = 0;
  for (size_t i = 0; i < MANY; i++) correlation += (double)x[i] * (double)y[i];
  assert_true(fabs(correlation / MANY) < 5.0 / 512);
}

/* The cipher's published answer for key 0, counter 0 is 6627e8d5 e169c58d bc57ac4c 9b00dbd8. */
static void philox_known_answer(void **state) {
  (void)state;
  static const uint32_t u[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  float x[4];
  rng_normal_philox(0, x, 4);
  for (int p = 0; p < 4; p += 2) {
    double radius = sqrt(-2 * log((u[p] + 1.0) / 4294967296.0)),
           theta = 2 * acos(-1) * u[p + 1] / 4294967296.0;
    assert_true(fabs((double)x[p] - radius * cos(theta)) < 1e-6);
    assert_true(fabs((double)x[p + 1] - radius * sin(theta)) < 1e-6);
  }
}

static void torch_cpu(void **state) {
  (void)state;
  static float x[MANY];
  assert_int_equal(rng_normal_torch_cpu(NULL, 1234, x, MANY), WAN_OK);
  assert_normal(x);
  /* torch.randn(2) with seed 0, as everyone has seen it printed */
  assert_int_equal(rng_normal_torch_cpu(NULL, 0, x, 2), WAN_OK);
  assert_true(fabs((double)x[0] - 1.5410) < 5e-5 && fabs((double)x[1] + 0.2934) < 5e-5);
  assert_int_equal(rng_normal_torch_cpu(NULL, 0, x, 0), WAN_OK);
  for (size_t n = 1; n < 40; n++) { /* nothing is written past the end */
    x[n] = 99;
    assert_int_equal(rng_normal_torch_cpu(NULL, 5, x, n), WAN_OK);
    assert_true(x[n] == 99);
    for (size_t i = 0; i < n; i++) assert_true(isfinite(x[i]));
  }
}

static void random_seed(void **state) {
  (void)state;
  uint64_t a = rng_random_seed(), b = rng_random_seed();
  assert_true(a != b && a >> 63 == 0 && b >> 63 == 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(philox),
      cmocka_unit_test(philox_known_answer),
      cmocka_unit_test(torch_cpu),
      cmocka_unit_test(random_seed),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
