/* geometry.c: which size a conditioning picture leads to. The official code computes in Python floats,
 * so floor divisions act on doubles and round() sends ties to even; both are kept, because a size
 * that sits on the edge of a multiple must fall on the same side.
 */
#include "media/internal.h"

#include <math.h>
#include <string.h>

/* Python's x // d for floats, d > 0, x >= 0. */
static double floor_div(double x, double d) {
  double quotient = (x - fmod(x, d)) / d, whole = floor(quotient);
  return quotient - whole > 0.5 ? whole + 1 : whole;
}

/* The multiple of `step` at or below x, at least one step. */
static int multiple_below(double x, int step) {
  double m = floor_div(x, step) * step;
  return m < step ? step : m > INT32_MAX / 2 ? INT32_MAX / 2 / step * step : (int)m;
}

/* How far two aspects are apart, as a factor >= 1. */
static double distance(double a, double b) {
  return fmax(a / b, b / a);
}

void best_output_size(int width, int height, int dw, int dh, int64_t area, int *out_width, int *out_height) {
  double pixels = (double)area, ratio = (double)width / height;
  double w = pow(pixels * ratio, 0.5), h = pixels / w;
  int w1 = multiple_below(w, dw), h1 = multiple_below(pixels / w1, dh);
  int h2 = multiple_below(h, dh), w2 = multiple_below(pixels / h2, dw);
  bool first = distance(ratio, (double)w1 / h1) < distance(ratio, (double)w2 / h2);
  *out_width = first ? w1 : w2;
  *out_height = first ? h1 : h2;
}

void i2v_output_size(int width, int height, int64_t area, int *out_width, int *out_height) {
  double aspect = (double)height / width, pixels = (double)area;
  *out_height = 8 * multiple_below(floor_div(sqrt(pixels * aspect), 8), 2);
  *out_width = 8 * multiple_below(floor_div(sqrt(pixels / aspect), 8), 2);
}

wan_status picture_cover(core_ctx *ctx, const picture *in, int width, int height, picture *out) {
  *out = (picture){0};
  double scale = fmax((double)width / in->width, (double)height / in->height);
  double w = rint(in->width * scale), h = rint(in->height * scale); /* ties to even, as Python's round */
  if (width < 1 || height < 1 || w * h > (double)PICTURE_SIDE_MAX * PICTURE_SIDE_MAX)
    return core_fail(ctx, WAN_ERR_ARGUMENT,
                     "a picture of %dx%d can't cover %dx%d: its aspect is too extreme, crop it first",
                     in->width, in->height, width, height);
  picture scaled;
  CORE_TRY(picture_resize(ctx, in, (int)w, (int)h, RESIZE_LANCZOS, &scaled));
  int left = (scaled.width - width) / 2, top = (scaled.height - height) / 2;
  size_t row = (size_t)width * 3;
  uint8_t *rgb = core_alloc(ctx, row * (size_t)height);
  for (int y = 0; rgb && y < height; y++)
    memcpy(rgb + (size_t)y * row, scaled.rgb + ((size_t)(y + top) * (size_t)scaled.width + (size_t)left) * 3,
           row);
  picture_free(ctx, &scaled);
  if (!rgb) return WAN_ERR_MEMORY;
  *out = (picture){width, height, rgb};
  return WAN_OK;
}
