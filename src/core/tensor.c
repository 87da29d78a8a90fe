#include "core/tensor.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
  const char *name;
  size_t size;
  bool is_float;
} dtypes[DT_COUNT] = {
    [DT_NONE] = {"none", 0, false},     [DT_F32] = {"F32", 4, true},
    [DT_F16] = {"F16", 2, true},        [DT_BF16] = {"BF16", 2, true},
    [DT_F8E4M3] = {"F8_E4M3", 1, true}, [DT_F8E5M2] = {"F8_E5M2", 1, true},
    [DT_F64] = {"F64", 8, true},        [DT_I8] = {"I8", 1, false},
    [DT_U8] = {"U8", 1, false},         [DT_I16] = {"I16", 2, false},
    [DT_I32] = {"I32", 4, false},       [DT_I64] = {"I64", 8, false},
    [DT_BOOL] = {"BOOL", 1, false},     [DT_E4M3_ROWS] = {"e4m3 rows", 1, false},
};

size_t dtype_size(dtype type) {
  return dtypes[type].size;
}
const char *dtype_name(dtype type) {
  return dtypes[type].name;
}
bool dtype_is_float(dtype type) {
  return dtypes[type].is_float;
}

bool tensor_dims_count(int ndim, const int64_t *dim, int64_t *count) {
  int64_t n = 1;
  for (int i = 0; i < ndim; i++) {
    if (dim[i] < 0) return false;
    if (dim[i] && n > INT64_MAX / dim[i]) return false;
    n *= dim[i];
  }
  *count = n;
  return true;
}

int64_t tensor_count(const tensor *t) {
  int64_t n = 0;
  if (t->type == DT_NONE || !tensor_dims_count(t->ndim, t->dim, &n)) return 0;
  return n;
}

/* Scales start on 16 bytes. */
static size_t scales_at(const tensor *t) {
  return ((size_t)tensor_count(t) + 15) / 16 * 16;
}

size_t tensor_bytes(const tensor *t) {
  if (t->type == DT_E4M3_ROWS) return scales_at(t) + (size_t)tensor_rows(t) * sizeof(float);
  return (size_t)tensor_count(t) * dtype_size(t->type);
}

float *tensor_scales(const tensor *t) {
  return (float *)(void *)((char *)t->data + scales_at(t));
}

int64_t tensor_cols(const tensor *t) {
  return t->ndim ? t->dim[t->ndim - 1] : 1;
}

int64_t tensor_rows(const tensor *t) {
  int64_t n = 1;
  for (int i = 0; i + 1 < t->ndim; i++) n *= t->dim[i];
  return t->type == DT_NONE ? 0 : n;
}

bool tensor_same_shape(const tensor *a, const tensor *b) {
  return a->ndim == b->ndim && memcmp(a->dim, b->dim, (size_t)a->ndim * sizeof a->dim[0]) == 0;
}

char *tensor_shape_text(const tensor *t, char *buf, size_t size) {
  size_t used = 0;
  if (!size) return buf;
  used += (size_t)snprintf(buf, size, "[");
  for (int i = 0; i < t->ndim && used < size; i++)
    used += (size_t)snprintf(buf + used, size - used, "%s%lld", i ? ", " : "", (long long)t->dim[i]);
  if (used < size) snprintf(buf + used, size - used, "]");
  return buf;
}

tensor tensor_of(dtype type, void *data, int ndim, const int64_t *dim) {
  tensor t = {.type = type, .ndim = ndim, .data = data};
  for (int i = 0; i < ndim; i++) t.dim[i] = dim[i];
  return t;
}

tensor tensor_view(tensor t, int ndim, const int64_t *dim) {
  if (t.type == DT_NONE) return t;
  tensor v = tensor_of(t.type, t.data, ndim, dim);
  if (tensor_count(&v) != tensor_count(&t)) return (tensor){0};
  if (t.type == DT_E4M3_ROWS && tensor_cols(&v) != tensor_cols(&t)) return (tensor){0};
  return v;
}

tensor tensor_slice(tensor t, int64_t begin, int64_t count) {
  if (t.type == DT_NONE || t.type == DT_E4M3_ROWS || t.ndim < 1 || begin < 0 || count < 0 ||
      begin > t.dim[0] || count > t.dim[0] - begin)
    return (tensor){0};
  int64_t inner = t.dim[0] ? tensor_count(&t) / t.dim[0] : 0;
  t.data = (char *)t.data + (size_t)(begin * inner) * dtype_size(t.type);
  t.dim[0] = count;
  return t;
}

static uint32_t bits_of(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

static float float_of(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

uint16_t f32_to_bf16(float f) {
  uint32_t u = bits_of(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u); /* keep NaN a NaN */
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float bf16_to_f32(uint16_t h) {
  return float_of((uint32_t)h << 16);
}

uint16_t f32_to_f16(float f) {
  uint32_t u = bits_of(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to 65536 or more: infinity */
  if (a < 0x38800000u) {                                   /* below 2^-14: subnormal in f16 */
    float scaled = float_of(a) * 16777216.0f;              /* 2^24: the unit of f16 subnormals */
    return (uint16_t)(sign | (uint32_t)lrintf(scaled));    /* rounds to nearest even */
  }
  uint32_t r = a + 0xfffu + ((a >> 13) & 1u);
  return (uint16_t)(sign | ((r - 0x38000000u) >> 13));
}

float f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
  if (e == 31) return float_of(sign | 0x7f800000u | (m << 13));
  if (e) return float_of(sign | ((e + 112u) << 23) | (m << 13));
  float v = (float)m * (1.0f / 16777216.0f);
  return sign ? -v : v;
}

float f8e4m3_to_f32(uint8_t b) {
  int e = (b >> 3) & 15, m = b & 7;
  float v = (e == 15 && m == 7) ? NAN : e ? ldexpf((float)(8 + m), e - 10) : ldexpf((float)m, -9);
  return (b & 0x80) ? -v : v;
}

float f8e5m2_to_f32(uint8_t b) {
  return f16_to_f32((uint16_t)((uint16_t)b << 8)); /* e5m2 is the upper byte of f16 */
}

uint8_t f32_to_f8e4m3(float f) {
  uint32_t u = bits_of(f), sign = (u >> 24) & 0x80u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return 0x7f;
  if (a >= 0x43e80000u) return (uint8_t)(sign | 0x7eu);              /* from 464, midway to 480, on: 448 */
  if (a < 0x3c800000u)                                               /* below 2^-6: subnormal */
    return (uint8_t)(sign | (uint32_t)lrintf(float_of(a) * 512.0f)); /* 2^9: their unit */
  return (uint8_t)(sign | ((a + 0x7ffffu + ((a >> 20) & 1u) - 0x3c000000u) >> 20));
}

float e4m3_row_quantise(const float *src, uint8_t *dst, int64_t n) {
  float top = 0;
  for (int64_t i = 0; i < n; i++) {
    float a = fabsf(src[i]);
    if (!(a <= FLT_MAX)) a = INFINITY;
    if (a > top) top = a;
  }
  float scale = top * (1.0f / 448.0f), inverse = 0;
  if (scale < FLT_MIN) scale = 0; /* its inverse would be infinite */
  if (scale > 0) inverse = 1.0f / scale;
  for (int64_t i = 0; i < n; i++) dst[i] = f32_to_f8e4m3(src[i] * inverse);
  return scale;
}

/* Files may keep values at any address, so they are copied out, not read through a pointer to their type;
 * compilers make plain (vector) loads of it. */
#define CONVERT(type, to_f32)                               \
  for (size_t i = 0; i < n; i++) {                          \
    type value;                                             \
    memcpy(&value, bytes + i * sizeof value, sizeof value); \
    dst[i] = to_f32(value);                                 \
  }                                                         \
  break

void convert_to_f32(dtype from, const void *src, float *dst, size_t n) {
  const unsigned char *bytes = src;
  switch (from) {
  case DT_F32:
    if (n) memcpy(dst, src, n * sizeof *dst);
    break;
  case DT_BF16:
    CONVERT(uint16_t, bf16_to_f32);
  case DT_F16:
    CONVERT(uint16_t, f16_to_f32);
  case DT_F8E4M3:
    CONVERT(uint8_t, f8e4m3_to_f32);
  case DT_F8E5M2:
    CONVERT(uint8_t, f8e5m2_to_f32);
  case DT_F64:
    CONVERT(double, (float));
  default:
    for (size_t i = 0; i < n; i++) dst[i] = NAN; /* not a float type: never silently a number */
  }
}
#undef CONVERT

void convert_from_f32(dtype to, const float *src, void *dst, size_t n) {
  switch (to) {
  case DT_F32:
    memcpy(dst, src, n * sizeof *src);
    break;
  case DT_BF16:
    for (size_t i = 0; i < n; i++) ((uint16_t *)dst)[i] = f32_to_bf16(src[i]);
    break;
  case DT_F16:
    for (size_t i = 0; i < n; i++) ((uint16_t *)dst)[i] = f32_to_f16(src[i]);
    break;
  default:
    break;
  }
}
