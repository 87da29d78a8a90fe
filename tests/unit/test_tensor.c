/* Number formats, each against an oracle that knows only the list of representable values, and the
 * arithmetic of shapes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"

/* ---- Decoding, from the definition: sign, exponent with bias, fraction ---- */

static double decode(unsigned bits, int exponent_bits, int fraction_bits) {
  int bias = (1 << (exponent_bits - 1)) - 1, e_max = (1 << exponent_bits) - 1;
  int e = (int)(bits >> fraction_bits) & e_max, m = (int)(bits & ((1u << fraction_bits) - 1));
  double sign = bits >> (exponent_bits + fraction_bits) & 1 ? -1 : 1;
  if (e == e_max) return m ? NAN : sign * INFINITY;
  if (e == 0) return sign * ldexp(m, 1 - bias - fraction_bits);
  return sign * ldexp(m + (1 << fraction_bits), e - bias - fraction_bits);
}

static void same_value(double expected, double found, unsigned bits) {
  bool ok = isnan(expected) ? isnan(found) : expected == found && signbit(expected) == signbit(found);
  if (!ok) fail_msg("pattern %#x: expected %.17g, found %.17g", bits, expected, found);
}

static void test_decode_all(void **state) {
  (void)state;
  for (unsigned b = 0; b < 65536; b++) {
    same_value(decode(b, 8, 7), (double)bf16_to_f32((uint16_t)b), b);
    same_value(decode(b, 5, 10), (double)f16_to_f32((uint16_t)b), b);
  }
  for (unsigned b = 0; b < 256; b++) {
    same_value(decode(b, 5, 2), (double)f8e5m2_to_f32((uint8_t)b), b);
    /* e4m3 "fn" has no infinities: its largest exponent holds numbers, but for one NaN of each sign */
    double e4m3 = (b & 127) == 127 ? NAN : (b & 0x78) == 0x78 ? decode(b - 8, 4, 3) * 2 : decode(b, 4, 3);
    same_value(e4m3, (double)f8e4m3_to_f32((uint8_t)b), b);
  }
  assert_true(f8e4m3_to_f32(0x7e) == 448.0f);
}

static void test_round_trip_all(void **state) {
  (void)state;
  for (unsigned b = 0; b < 65536; b++) {
    float bf = bf16_to_f32((uint16_t)b), h = f16_to_f32((uint16_t)b);
    if (isnan(bf))
      assert_true(isnan(bf16_to_f32(f32_to_bf16(bf))));
    else
      assert_int_equal(f32_to_bf16(bf), b);
    if (isnan(h))
      assert_true(isnan(f16_to_f32(f32_to_f16(h))));
    else
      assert_int_equal(f32_to_f16(h), b);
  }
}

/* ---- Encoding: rounding to nearest, ties to the even pattern ---- */

typedef struct format {
  const char *name;
  uint16_t (*encode)(float);
  float (*decode)(uint16_t);
  uint16_t infinity; /* pattern of +infinity; those below are the finite numbers, in rising order */
} format;

static const format formats[] = {
    {"bf16", f32_to_bf16, bf16_to_f32, 0x7f80},
    {"f16", f32_to_f16, f16_to_f32, 0x7c00},
};

static void expect_pattern(const format *f, float x, uint16_t expected) {
  uint16_t found = f->encode(x);
  if (found != expected) fail_msg("%s(%a): expected %#x, found %#x", f->name, (double)x, expected, found);
  found = f->encode(-x);
  if (found != (expected | 0x8000)) fail_msg("%s(%a): expected %#x", f->name, (double)-x, expected | 0x8000);
}

/* Between two neighbours: their middle goes to the even one, the floats beside the middle to the
 * nearer one. The middle of two 16-bit numbers is always a float. Beyond the largest number the
 * neighbour would be the next power of two, whose place infinity takes. */
static void test_rounding_all(void **state) {
  (void)state;
  for (size_t k = 0; k < sizeof formats / sizeof formats[0]; k++) {
    const format *f = &formats[k];
    double top =
        2 * (double)f->decode((uint16_t)(f->infinity - 1)) - (double)f->decode((uint16_t)(f->infinity - 2));
    for (uint16_t lo = 0; lo < f->infinity; lo++) {
      uint16_t hi = (uint16_t)(lo + 1);
      double upper = hi == f->infinity ? top : (double)f->decode(hi);
      float middle = (float)(((double)f->decode(lo) + upper) / 2);
      assert_true((double)middle == ((double)f->decode(lo) + upper) / 2);
      expect_pattern(f, middle, lo % 2 ? hi : lo);
      expect_pattern(f, nextafterf(middle, 0), lo);
      expect_pattern(f, nextafterf(middle, INFINITY), hi);
    }
    expect_pattern(f, INFINITY, f->infinity);
    expect_pattern(f, 3.4028235e38f, f->infinity); /* the largest float */
    expect_pattern(f, 1e-45f, 0);                  /* the smallest */
    assert_true(isnan(f->decode(f->encode(NAN))));
    assert_true(isnan(f->decode(f->encode(-NAN))));
  }
  uint32_t payload = 0x7f800001u; /* a NaN whose upper half alone would read as infinity */
  float nan;
  memcpy(&nan, &payload, sizeof nan);
  assert_true(isnan(bf16_to_f32(f32_to_bf16(nan))));
  assert_true(isnan(f16_to_f32(f32_to_f16(nan))));
}

/* ---- Arrays ---- */

static void test_convert_arrays(void **state) {
  (void)state;
  const double d[] = {1.5, -2, 0.25, 0, 3};
  float f[5], back[5];
  uint16_t h[5];
  uint8_t e4[] = {0x3c, 0xc0, 0x28, 0x80, 0x44}; /* 1.5 -2 0.25 -0 3 */
  convert_to_f32(DT_F64, d, f, 5);
  for (int i = 0; i < 5; i++) assert_true((double)f[i] == d[i]);
  const dtype halves[] = {DT_BF16, DT_F16};
  for (int k = 0; k < 2; k++) {
    convert_from_f32(halves[k], f, h, 5);
    convert_to_f32(halves[k], h, back, 5);
    assert_memory_equal(f, back, sizeof f);
  }
  convert_from_f32(DT_F32, f, back, 5);
  assert_memory_equal(f, back, sizeof f);
  convert_to_f32(DT_F8E4M3, e4, back, 5);
  for (int i = 0; i < 5; i++) assert_true(back[i] == f[i]);
  convert_to_f32(DT_I32, d, back, 5); /* not a float type: never silently a number */
  for (int i = 0; i < 5; i++) assert_true(isnan(back[i]));
}

/* Files may keep values at any address. */
static void test_convert_unaligned(void **state) {
  (void)state;
  enum { N = 37 }; /* more than a vector, not a multiple of one */
  const dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F8E4M3, DT_F8E5M2, DT_F64};
  _Alignas(8) unsigned char raw[8 * N], moved[8 * N + 8];
  for (size_t i = 0; i < sizeof raw; i++) raw[i] = (unsigned char)(i * 89 % 112); /* no exponent of ones */
  for (size_t k = 0; k < sizeof types / sizeof types[0]; k++) {
    float want[N], got[N];
    convert_to_f32(types[k], raw, want, N);
    for (size_t shift = 1; shift < 8; shift++) {
      memcpy(moved + shift, raw, sizeof raw);
      convert_to_f32(types[k], moved + shift, got, N);
      assert_memory_equal(got, want, sizeof want);
    }
  }
}

static void test_dtypes(void **state) {
  (void)state;
  const size_t sizes[DT_COUNT] = {0, 4, 2, 2, 1, 1, 8, 1, 1, 2, 4, 8, 1, 1};
  for (int t = 0; t < DT_COUNT; t++) {
    assert_int_equal(dtype_size((dtype)t), sizes[t]);
    assert_int_equal(dtype_is_float((dtype)t), t >= DT_F32 && t <= DT_F64);
    assert_true(strlen(dtype_name((dtype)t)) > 0);
  }
  assert_string_equal(dtype_name(DT_F8E4M3), "F8_E4M3");
  assert_string_equal(dtype_name(DT_BF16), "BF16");
}

/* ---- Shapes ---- */

static void test_counts(void **state) {
  (void)state;
  int64_t n = -1;
  assert_true(tensor_dims_count(0, NULL, &n));
  assert_int_equal(n, 1); /* a scalar */
  assert_true(tensor_dims_count(3, (int64_t[]){2, 3, 4}, &n));
  assert_int_equal(n, 24);
  assert_true(tensor_dims_count(3, (int64_t[]){0, INT64_MAX, INT64_MAX}, &n));
  assert_int_equal(n, 0);
  assert_true(tensor_dims_count(2, (int64_t[]){INT64_MAX, 1}, &n));
  assert_true(n == INT64_MAX);
  assert_false(tensor_dims_count(2, (int64_t[]){INT64_MAX, 2}, &n));
  assert_false(tensor_dims_count(3, (int64_t[]){(int64_t)1 << 32, (int64_t)1 << 31, 1}, &n));
  assert_false(tensor_dims_count(2, (int64_t[]){3, -1}, &n));
  tensor t = TENSOR_OF(DT_F16, NULL, 2, 3, 4), none = {0}, scalar = tensor_of(DT_F32, NULL, 0, NULL);
  assert_int_equal(tensor_count(&t), 24);
  assert_int_equal(tensor_bytes(&t), 48);
  assert_int_equal(tensor_rows(&t), 6);
  assert_int_equal(tensor_cols(&t), 4);
  assert_int_equal(tensor_count(&none), 0);
  assert_int_equal(tensor_bytes(&none), 0);
  assert_int_equal(tensor_count(&scalar), 1);
}

static void test_views_and_slices(void **state) {
  (void)state;
  uint16_t data[24];
  tensor t = TENSOR_OF(DT_BF16, data, 4, 3, 2);
  tensor v = TENSOR_VIEW(t, 2, 12);
  assert_int_equal(v.ndim, 2);
  assert_int_equal(v.dim[1], 12);
  assert_ptr_equal(v.data, data);
  assert_int_equal(TENSOR_VIEW(t, 5, 5).type, DT_NONE);
  assert_int_equal(TENSOR_VIEW((tensor){0}, 1).type, DT_NONE);
  tensor s = tensor_slice(t, 1, 2);
  assert_int_equal(s.dim[0], 2);
  assert_ptr_equal(s.data, data + 6);
  assert_int_equal(tensor_slice(t, 4, 0).dim[0], 0);
  assert_int_equal(tensor_slice(t, 2, 3).type, DT_NONE);
  assert_int_equal(tensor_slice(t, -1, 1).type, DT_NONE);
  assert_int_equal(tensor_slice(t, 1, -1).type, DT_NONE);
  assert_int_equal(tensor_slice(t, INT64_MAX, INT64_MAX).type, DT_NONE);
  assert_int_equal(tensor_slice((tensor){0}, 0, 0).type, DT_NONE);
  assert_true(tensor_same_shape(&t, &t));
  assert_false(tensor_same_shape(&t, &v));
  assert_false(tensor_same_shape(&t, &s));
}

static void test_shape_text(void **state) {
  (void)state;
  char buf[64], small[8];
  tensor t = TENSOR_OF(DT_F32, NULL, 12, 345, 6), none = {0};
  assert_string_equal(tensor_shape_text(&t, buf, sizeof buf), "[12, 345, 6]");
  assert_string_equal(tensor_shape_text(&none, buf, sizeof buf), "[]");
  assert_string_equal(tensor_shape_text(&t, small, sizeof small), "[12, 34"); /* cut, terminated */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_decode_all),
      cmocka_unit_test(test_round_trip_all),
      cmocka_unit_test(test_rounding_all),
      cmocka_unit_test(test_convert_arrays),
      cmocka_unit_test(test_convert_unaligned),
      cmocka_unit_test(test_dtypes),
      cmocka_unit_test(test_counts),
      cmocka_unit_test(test_views_and_slices),
      cmocka_unit_test(test_shape_text),
  };
  return cmocka_run_group_tests_name("tensor", tests, NULL, NULL);
}
