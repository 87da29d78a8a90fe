/* vision.c: sizes and frame numbers. Python's semantics, step by step: round() takes ties to even, divisions
 * are in double precision, linspace() in single precision. */
#include "prompt/vision.h"

#include <math.h>

/* qwen_vl_utils.py: tokens of factor x factor pixels a picture, or a frame, may have. */
enum { IMAGE_MIN = 4, IMAGE_MAX = 16384, FRAME_MAX = 768, TOTAL_MAX = 24576 };
enum { RATIO_MAX = 200, FRAMES_MIN = 4, FRAMES_MAX = 768 };
static const double FPS_DEFAULT = 2;

static double or_default(double given, double tokens, int factor) {
  return given > 0 ? given : tokens * factor * factor;
}

wan_status vision_smart_resize(core_ctx *ctx, int width, int height, int factor, double min_pixels,
                               double max_pixels, int *out_width, int *out_height) {
  if (factor == 0) factor = VISION_FACTOR;
  if (width < 1 || height < 1 || factor < 1 || factor > 1 << 14)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "a size of %dx%d in multiples of %d: positive numbers are needed",
                     width, height, factor);
  double w = width, h = height, f = factor;
  double least = or_default(min_pixels, IMAGE_MIN, factor), most = or_default(max_pixels, IMAGE_MAX, factor);
  if (min_pixels > 0 && max_pixels > 0 && most < least)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "at most %.0f pixels contradicts at least %.0f", most, least);
  if (fmax(h, w) / fmin(h, w) > RATIO_MAX)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%dx%d: one side is more than %d times the other", width, height,
                     RATIO_MAX);
  double tall = fmax(f, rint(h / f) * f), wide = fmax(f, rint(w / f) * f);
  if (tall * wide > most) {
    double shrink = sqrt(h * w / most);
    tall = floor(h / shrink / f) * f;
    wide = floor(w / shrink / f) * f;
  } else if (tall * wide < least) {
    double grow = sqrt(least / (h * w));
    tall = ceil(h * grow / f) * f;
    wide = ceil(w * grow / f) * f;
  }
  if (tall < 1 || wide < 1 || tall > INT32_MAX || wide > INT32_MAX)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%dx%d does not fit into %.0f to %.0f pixels in multiples of %d",
                     width, height, least, most, factor);
  *out_width = (int)wide;
  *out_height = (int)tall;
  return WAN_OK;
}

wan_status vision_smart_nframes(core_ctx *ctx, const wan_vision_params *p, int total, double video_fps,
                                int *out) {
  const double pair = VISION_FRAME_FACTOR;
  double n;
  if (p->fps > 0 && p->frames > 0)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "a number of frames and a rate are both given: only one can be");
  if (p->frames > 0) {
    n = rint(p->frames / pair) * pair;
  } else {
    if (!(video_fps > 0) || !isfinite(video_fps))
      return core_fail(ctx, WAN_ERR_ARGUMENT, "a clip of %g frames a second: a positive rate is needed",
                       video_fps);
    double least = ceil((p->frames_min > 0 ? p->frames_min : FRAMES_MIN) / pair) * pair;
    double most = p->frames_max > 0 ? p->frames_max : total < FRAMES_MAX ? total : FRAMES_MAX;
    most = floor(most / pair) * pair;
    n = total / video_fps * (p->fps > 0 ? p->fps : FPS_DEFAULT);
    n = fmin(fmax(n, least), most);
    n = rint(n / pair) * pair;
  }
  if (!(n >= pair && n <= total))
    return core_fail(ctx, WAN_ERR_ARGUMENT,
                     "%.0f frames would be taken of a clip of %d: %d to %d are possible", n, total,
                     VISION_FRAME_FACTOR, total);
  *out = (int)n;
  return WAN_OK;
}

/* torch.linspace on floats counts from the nearer end (ATen/native/cpu/RangeFactoriesKernel.cpp). */
void vision_frame_indices(int first, int last, int n, int *index) {
  float a = (float)first, b = (float)last, step = n > 1 ? (b - a) / (float)(n - 1) : 0;
  for (int i = 0; i < n; i++) {
    float at = i < n / 2 ? fmaf(step, (float)i, a) : fmaf(-step, (float)(n - 1 - i), b);
    index[i] = (int)rintf(n > 1 ? at : a);
  }
}

double vision_clip_max_pixels(const wan_vision_params *p, int n) {
  int f = p->factor > 0 ? p->factor : VISION_FACTOR;
  if (p->max_pixels > 0) return (double)p->max_pixels;
  double total = or_default((double)p->total_pixels, TOTAL_MAX, f);
  double least = or_default((double)p->min_pixels, VISION_CLIP_MIN, f);
  double most = fmin(or_default(0, FRAME_MAX, f), total / n * VISION_FRAME_FACTOR);
  /* A little above the smallest area, so that there is a size between the two. */
  return fmax(most, trunc(least * 1.05));
}
