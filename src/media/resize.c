/* resize.c: resampling as the two libraries of the original pipelines do it. Both are separable; what
 * makes them equal to the last bit is where they round: Pillow keeps 8 bits between its passes and
 * 22-bit fixed-point weights, PyTorch computes everything in f32.
 */
#include "media/internal.h"

#include <math.h>
#include <string.h>

/* ---- Pillow ---- */

enum { WEIGHT_BITS = 22 }; /* Pillow, Resample.c: 32 bits less 8 of the pixel, less 2 for overshoot */

/* For each output position: `first`, how many input positions, and their weights. */
typedef struct windows {
  int width; /* weights kept a position */
  int *first, *count;
  int32_t *weight; /* [out][width] */
} windows;

static double sinc(double x) {
  const double pi = 3.14159265358979323846;
  return x == 0 ? 1 : sin(x * pi) / (x * pi);
}

static double filter_lanczos(double x) {
  return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
}

static double filter_bicubic(double x) {
  const double a = -0.5;
  x = fabs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

static void windows_free(core_ctx *ctx, windows *w) {
  core_free(ctx, w->first);
  core_free(ctx, w->count);
  core_free(ctx, w->weight);
  *w = (windows){0};
}

static wan_status windows_make(core_ctx *ctx, int in, int out, resize_filter filter, windows *w) {
  double scale = (double)in / out, stretch = scale < 1 ? 1 : scale;
  double support = (filter == RESIZE_LANCZOS ? 3.0 : 2.0) * stretch;
  *w = (windows){.width = (int)ceil(support) * 2 + 1};
  w->first = core_calloc(ctx, (size_t)out, sizeof *w->first);
  w->count = core_calloc(ctx, (size_t)out, sizeof *w->count);
  w->weight = core_calloc(ctx, (size_t)out * (size_t)w->width, sizeof *w->weight);
  double *raw = core_calloc(ctx, (size_t)w->width, sizeof *raw);
  if (!w->first || !w->count || !w->weight || !raw) {
    core_free(ctx, raw);
    windows_free(ctx, w);
    return WAN_ERR_MEMORY;
  }
  for (int o = 0; o < out; o++) {
    double centre = (o + 0.5) * scale, sum = 0, inverse = 1.0 / stretch;
    int lo = (int)(centre - support + 0.5), hi = (int)(centre + support + 0.5);
    if (lo < 0) lo = 0;
    if (hi > in) hi = in;
    for (int i = lo; i < hi; i++) {
      double x = (i - centre + 0.5) * inverse;
      raw[i - lo] = filter == RESIZE_LANCZOS ? filter_lanczos(x) : filter_bicubic(x);
      sum += raw[i - lo];
    }
    w->first[o] = lo;
    w->count[o] = hi - lo;
    for (int i = 0; i < hi - lo; i++) {
      double k = sum != 0 ? raw[i] / sum : raw[i];
      w->weight[(size_t)o * (size_t)w->width + (size_t)i] =
          (int32_t)(k * (1 << WEIGHT_BITS) + (k < 0 ? -0.5 : 0.5));
    }
  }
  core_free(ctx, raw);
  return WAN_OK;
}

/* One pass: every output position is the weighted sum over `count` inputs `stride` bytes apart. */
static uint8_t weighted(const uint8_t *in, size_t stride, const int32_t *weight, int count) {
  int64_t sum = (int64_t)1 << (WEIGHT_BITS - 1);
  for (int i = 0; i < count; i++) sum += (int64_t)in[(size_t)i * stride] * weight[i];
  sum >>= WEIGHT_BITS;
  return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static void pass_horizontal(const uint8_t *in, int in_width, int rows, const windows *w, int out_width,
                            uint8_t *out) {
  for (int y = 0; y < rows; y++) {
    const uint8_t *row = in + (size_t)y * (size_t)in_width * 3;
    for (int x = 0; x < out_width; x++)
      for (int c = 0; c < 3; c++)
        *out++ = weighted(row + (size_t)w->first[x] * 3 + c, 3, w->weight + (size_t)x * (size_t)w->width,
                          w->count[x]);
  }
}

static void pass_vertical(const uint8_t *in, int width, const windows *w, int out_height, uint8_t *out) {
  size_t row = (size_t)width * 3;
  for (int y = 0; y < out_height; y++)
    for (size_t x = 0; x < row; x++)
      *out++ = weighted(in + (size_t)w->first[y] * row + x, row, w->weight + (size_t)y * (size_t)w->width,
                        w->count[y]);
}

/* Which pass comes first changes the result, because 8 bits are kept between them. Pillow 13 starts with
 * the rows when it loses more than twice as many of them as columns; Pillow up to 12 never did. */
static bool vertical_first(const picture *in, int width, int height) {
  return height < in->height && in->height - height > 2 * (in->width - width);
}

static wan_status resize_across(core_ctx *ctx, const picture *in, int width, resize_filter filter,
                                picture *out) {
  windows w;
  CORE_TRY(windows_make(ctx, in->width, width, filter, &w));
  *out = (picture){width, in->height, core_alloc(ctx, (size_t)width * (size_t)in->height * 3)};
  if (out->rgb) pass_horizontal(in->rgb, in->width, in->height, &w, width, out->rgb);
  windows_free(ctx, &w);
  return out->rgb ? WAN_OK : WAN_ERR_MEMORY;
}

static wan_status resize_down(core_ctx *ctx, const picture *in, int height, resize_filter filter,
                              picture *out) {
  windows w;
  CORE_TRY(windows_make(ctx, in->height, height, filter, &w));
  *out = (picture){in->width, height, core_alloc(ctx, (size_t)in->width * (size_t)height * 3)};
  if (out->rgb) pass_vertical(in->rgb, in->width, &w, height, out->rgb);
  windows_free(ctx, &w);
  return out->rgb ? WAN_OK : WAN_ERR_MEMORY;
}

wan_status picture_resize(core_ctx *ctx, const picture *in, int width, int height, resize_filter filter,
                          picture *out) {
  *out = (picture){0};
  if (width < 1 || height < 1 || (int64_t)width * height > (int64_t)PICTURE_SIDE_MAX * PICTURE_SIDE_MAX)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "can't resize a picture of %dx%d to %dx%d: out of range",
                     in->width, in->height, width, height);
  bool across = width != in->width, down = height != in->height;
  if (!across && !down) {
    size_t size = (size_t)width * (size_t)height * 3;
    uint8_t *copy = core_alloc(ctx, size);
    if (!copy) return WAN_ERR_MEMORY;
    memcpy(copy, in->rgb, size);
    *out = (picture){width, height, copy};
    return WAN_OK;
  }
  if (!down) return resize_across(ctx, in, width, filter, out);
  if (!across) return resize_down(ctx, in, height, filter, out);
  picture middle = {0};
  bool vertical = vertical_first(in, width, height);
  wan_status s = vertical ? resize_down(ctx, in, height, filter, &middle)
                          : resize_across(ctx, in, width, filter, &middle);
  if (s == WAN_OK)
    s = vertical ? resize_across(ctx, &middle, width, filter, out)
                 : resize_down(ctx, &middle, height, filter, out);
  picture_free(ctx, &middle);
  return s;
}

/* ---- PyTorch ---- */

/* Cubic convolution (Keys 1981) with a = -0.75; weights of the taps at -1, 0, 1, 2 for a fraction t. */
static void cubic_weights(float t, float w[4]) {
  const float a = -0.75f;
  float x0 = t + 1, x1 = t, x2 = 1 - t, x3 = x2 + 1;
  w[0] = ((a * x0 - 5 * a) * x0 + 8 * a) * x0 - 4 * a;
  w[1] = ((a + 2) * x1 - (a + 3)) * x1 * x1 + 1;
  w[2] = ((a + 2) * x2 - (a + 3)) * x2 * x2 + 1;
  w[3] = ((a * x3 - 5 * a) * x3 + 8 * a) * x3 - 4 * a;
}

typedef struct cubic_tap {
  int at[4]; /* clamped to the border */
  float weight[4];
} cubic_tap;

static cubic_tap *cubic_taps(core_ctx *ctx, int in, int out) {
  cubic_tap *taps = core_calloc(ctx, (size_t)out, sizeof *taps);
  if (!taps) return NULL;
  float scale = (float)in / (float)out;
  for (int o = 0; o < out; o++) {
    float at = fmaf(scale, (float)o + 0.5f, -0.5f), whole = floorf(at);
    float fraction = fminf(fmaxf(at - whole, 0), 1);
    cubic_weights(fraction, taps[o].weight);
    for (int i = 0; i < 4; i++) {
      int p = (int)whole - 1 + i;
      taps[o].at[i] = p < 0 ? 0 : p >= in ? in - 1 : p;
    }
  }
  return taps;
}

wan_status resize_bicubic_torch(core_ctx *ctx, const float *in, int channels, int height, int width,
                                float *out, int out_height, int out_width) {
  if (channels < 1 || height < 1 || width < 1 || out_height < 1 || out_width < 1)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "can't resize %dx%dx%d to %dx%d: sizes must be positive",
                     channels, height, width, out_height, out_width);
  cubic_tap *across = cubic_taps(ctx, width, out_width), *down = cubic_taps(ctx, height, out_height);
  wan_status s = across && down ? WAN_OK : WAN_ERR_MEMORY;
  for (int c = 0; s == WAN_OK && c < channels; c++) {
    const float *plane = in + (size_t)c * (size_t)height * (size_t)width;
    for (int y = 0; y < out_height; y++)
      for (int x = 0; x < out_width; x++) {
        float sum = 0;
        for (int j = 0; j < 4; j++) {
          const float *row = plane + (size_t)down[y].at[j] * (size_t)width;
          float line = 0;
          for (int i = 0; i < 4; i++) line += row[across[x].at[i]] * across[x].weight[i];
          sum += line * down[y].weight[j];
        }
        *out++ = sum;
      }
  }
  core_free(ctx, across);
  core_free(ctx, down);
  return s;
}
