/* Eight-bit floats: the scalar conversion against the list of all values, rows, and a transformer in fp8 on
 * the reference backend. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"

/* The nearest of the 127 magnitudes, the one with the even code where two are as near. */
static uint8_t nearest(float f) {
  int best = 0;
  for (int b = 1; b < 127; b++) {
    double d = fabs((double)f8e4m3_to_f32((uint8_t)b) - fabs((double)f)),
           old = fabs((double)f8e4m3_to_f32((uint8_t)best) - fabs((double)f));
    if (d < old || (d == old && b % 2 == 0)) best = b;
  }
  return (uint8_t)(best | (signbit(f) ? 0x80 : 0));
}

static void test_conversion(void **state) {
  (void)state;
  for (int b = 0; b < 256; b++) {
    if ((b & 0x7f) == 0x7f) continue; /* NaN */
    float v = f8e4m3_to_f32((uint8_t)b);
    assert_int_equal(f32_to_f8e4m3(v), b);
  }
  for (int b = 0; b < 126; b++) { /* midways, and their neighbours */
    float low = f8e4m3_to_f32((uint8_t)b), high = f8e4m3_to_f32((uint8_t)(b + 1)), mid = (low + high) / 2;
    const float around[] = {mid, nextafterf(mid, low), nextafterf(mid, high), -mid};
    for (int i = 0; i < 4; i++) assert_int_equal(f32_to_f8e4m3(around[i]), nearest(around[i]));
  }
  const float large[] = {449, 463, 464, 480, 1e30f, INFINITY};
  for (int i = 0; i < 6; i++) {
    assert_int_equal(f32_to_f8e4m3(large[i]), 0x7e);
    assert_int_equal(f32_to_f8e4m3(-large[i]), 0xfe);
  }
  assert_true(isnan(f8e4m3_to_f32(f32_to_f8e4m3(NAN))));
  assert_int_equal(f32_to_f8e4m3(1e-20f), 0);
}

static void test_row(void **state) {
  (void)state;
  enum { N = 300 };
  float x[N];
  uint8_t q[N];
  for (int i = 0; i < N; i++) x[i] = (float)(i - 150) * 0.37f;
  float scale = e4m3_row_quantise(x, q, N);
  assert_float_equal(scale, 150 * 0.37f / 448, 1e-6);
  for (int i = 0; i < N; i++) { /* half a step: 2^-4 of the value, or of the smallest normal one */
    float back = scale * f8e4m3_to_f32(q[i]);
    assert_true(fabsf(back - x[i]) <= fmaxf(fabsf(x[i]), scale * 0x1p-6f) * 0.0626f);
  }
  memset(x, 0, sizeof x);
  assert_true(e4m3_row_quantise(x, q, N) == 0);
  for (int i = 0; i < N; i++) assert_int_equal(q[i], 0);
  x[7] = FLT_MIN / 2; /* its scale would have no inverse */
  assert_true(e4m3_row_quantise(x, q, N) == 0);
  const float bad[] = {INFINITY, -INFINITY, NAN};
  for (int i = 0; i < 3; i++) {
    x[7] = bad[i];
    assert_true(isinf(e4m3_row_quantise(x, q, N)));
  }
}

static void test_tensor(void **state) {
  (void)state;
  tensor t = TENSOR_OF(DT_E4M3_ROWS, NULL, 3, 5);
  assert_int_equal(tensor_bytes(&t), 16 + 3 * sizeof(float)); /* the scales start on 16 bytes */
  char data[64];
  t.data = data;
  assert_ptr_equal(tensor_scales(&t), data + 16);
  assert_int_equal(tensor_slice(t, 0, 1).type, DT_NONE);
  assert_int_equal(TENSOR_VIEW(t, 5, 3).type, DT_NONE);
  assert_int_equal(TENSOR_VIEW(t, 3, 1, 5).type, DT_E4M3_ROWS);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_conversion),
      cmocka_unit_test(test_row),
      cmocka_unit_test(test_tensor),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
