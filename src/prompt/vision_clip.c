/* vision_clip.c: frames of a clip. The file is decoded twice: once to count its frames, once to take the
 * chosen ones, so that nothing is held but the result. */
#include <math.h>
#include <string.h>

#include "prompt/vision.h"

/* ---- Resizing as PyTorch does with antialias: Keys' cubic with a = -0.5, widened when shrinking ---- */

typedef struct taps {
  int first, count;
  float *weight;
} taps;

static double cubic(double x) {
  x = fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return 0;
}

/* Weights of every output position; NULL when memory is short. One block: taps, then weights. */
static taps *make_taps(core_ctx *ctx, int in, int out) {
  double scale = (double)in / out, stretch = scale > 1 ? scale : 1, support = 2 * stretch;
  size_t most = (size_t)ceil(support) * 2 + 1;
  taps *list = core_calloc(ctx, (size_t)out, sizeof(taps) + most * sizeof(float));
  if (!list) return NULL;
  float *weight = (float *)(void *)(list + out);
  for (int o = 0; o < out; o++, weight += most) {
    double centre = scale * (o + 0.5), sum = 0;
    int lo = (int)fmax(centre - support + 0.5, 0), hi = (int)fmin(centre + support + 0.5, in);
    for (int i = lo; i < hi; i++) sum += cubic((i - centre + 0.5) / stretch);
    for (int i = lo; i < hi; i++) weight[i - lo] = (float)(cubic((i - centre + 0.5) / stretch) / sum);
    list[o] = (taps){lo, hi - lo, weight};
  }
  return list;
}

wan_status vision_resize_planes(core_ctx *ctx, const uint8_t *rgb, int in_width, int in_height, int width,
                                int height, float *out) {
  taps *across = make_taps(ctx, in_width, width), *down = make_taps(ctx, in_height, height);
  float *rows = core_calloc(ctx, (size_t)in_height * (size_t)width, sizeof *rows); /* one plane, narrowed */
  wan_status s = across && down && rows ? WAN_OK : WAN_ERR_MEMORY;
  for (int c = 0; c < 3 && s == WAN_OK; c++) {
    for (int y = 0; y < in_height; y++)
      for (int x = 0; x < width; x++) {
        const uint8_t *from = rgb + ((size_t)y * (size_t)in_width + (size_t)across[x].first) * 3 + c;
        float sum = 0;
        for (int i = 0; i < across[x].count; i++) sum += across[x].weight[i] * from[3 * i];
        rows[(size_t)y * (size_t)width + (size_t)x] = sum;
      }
    for (int y = 0; y < height; y++)
      for (int x = 0; x < width; x++) {
        const float *from = rows + (size_t)down[y].first * (size_t)width + x;
        float sum = 0;
        for (int i = 0; i < down[y].count; i++) sum += down[y].weight[i] * from[(size_t)i * (size_t)width];
        *out++ = rintf(fminf(fmaxf(sum, 0), 255));
      }
  }
  core_free(ctx, rows);
  core_free(ctx, down);
  core_free(ctx, across);
  return s;
}

/* ---- Frames ---- */

static wan_status allocate(core_ctx *ctx, wan_vision_frames *f, int frames, int width, int height) {
  f->frames = frames;
  f->width = width;
  f->height = height;
  f->index = core_calloc(ctx, (size_t)frames, sizeof *f->index);
  f->pixels = core_calloc(ctx, (size_t)frames, (size_t)width * (size_t)height * 3 * sizeof *f->pixels);
  return f->index && f->pixels ? WAN_OK : WAN_ERR_MEMORY;
}

static size_t frame_size(const wan_vision_frames *f) {
  return (size_t)f->width * (size_t)f->height * 3;
}

void vision_clip_free(core_ctx *ctx, wan_vision_frames *f) {
  core_free(ctx, f->pixels);
  core_free(ctx, f->index);
  *f = (wan_vision_frames){.size = f->size};
}

/* ---- From a video file ---- */

typedef struct sampling {
  core_ctx *ctx;
  int count, width, height; /* of the file */
  wan_vision_frames *out;
  int taken;
} sampling;

static wan_status count_frame(void *user, int index, int width, int height, const uint8_t *rgb) {
  sampling *s = user;
  (void)rgb;
  s->count = index + 1;
  s->width = width;
  s->height = height;
  return core_check_cancel(s->ctx);
}

static wan_status take_frame(void *user, int index, int width, int height, const uint8_t *rgb) {
  sampling *s = user;
  CORE_TRY(core_check_cancel(s->ctx));
  wan_vision_frames *out = s->out;
  while (s->taken < out->frames && out->index[s->taken] == index) {
    float *to = out->pixels + (size_t)s->taken++ * frame_size(out);
    CORE_TRY(vision_resize_planes(s->ctx, rgb, width, height, out->width, out->height, to));
  }
  return WAN_OK;
}

/* The frames within start..end seconds; all of them where none is given. */
static wan_status frame_range(core_ctx *ctx, const char *path, const wan_vision_params *p, int count,
                              double fps, int *first, int *last) {
  double length = count / fps;
  *first = p->start > 0 ? (int)ceil(fmin(p->start, length) * fps) : 0;
  *last = p->end > 0 ? (int)fmin(floor(fmin(p->end, length) * fps), count - 1) : count - 1;
  if (*first <= *last && *first < count) return WAN_OK;
  return core_fail(ctx, WAN_ERR_ARGUMENT, "%s: has no frames between %g s and %g s, it is %.2f s long", path,
                   p->start, p->end > 0 ? p->end : length, length);
}

/* Chooses frames and their size, and makes room for them. */
static wan_status plan_clip(sampling *s, const char *path, const wan_vision_params *p, double fps) {
  int first, last, n, width, height;
  if (s->count == 0) return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: holds no frame", path);
  if (!(fps > 0) || !isfinite(fps))
    return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: does not say how many frames a second it has", path);
  CORE_TRY(frame_range(s->ctx, path, p, s->count, fps, &first, &last));
  wan_status st = vision_smart_nframes(s->ctx, p, last - first + 1, fps, &n);
  if (st != WAN_OK) return core_prefix(s->ctx, st, "%s", path);
  int f = p->factor > 0 ? p->factor : VISION_FACTOR;
  double least = p->min_pixels > 0 ? (double)p->min_pixels : (double)VISION_CLIP_MIN * f * f;
  if (p->width > 0 && p->height > 0)
    CORE_TRY(vision_smart_resize(s->ctx, p->width, p->height, f, 0, 0, &width, &height));
  else
    CORE_TRY(vision_smart_resize(s->ctx, s->width, s->height, f, least, vision_clip_max_pixels(p, n), &width,
                                 &height));
  CORE_TRY(allocate(s->ctx, s->out, n, width, height));
  vision_frame_indices(first, last, n, s->out->index);
  s->out->fps = n / (double)(last - first + 1) * fps;
  return WAN_OK;
}

wan_status vision_clip(core_ctx *ctx, const char *source, const wan_vision_params *p,
                       wan_vision_frames *out) {
  const char *path = strncmp(source, "file://", 7) == 0 ? source + 7 : source;
  sampling s = {.ctx = ctx, .out = out};
  double fps = 0;
  wan_status st = video_read_frames(ctx, path, count_frame, &s, &fps);
  if (st == WAN_OK) st = plan_clip(&s, path, p, fps);
  if (st == WAN_OK) st = video_read_frames(ctx, path, take_frame, &s, NULL);
  if (st == WAN_OK && s.taken < out->frames)
    st = core_fail(ctx, WAN_ERR_FORMAT, "%s: changed while it was read", path);
  if (st != WAN_OK) vision_clip_free(ctx, out);
  return st;
}

/* ---- From pictures ---- */

static void to_planes(const picture *p, float *out) {
  size_t n = (size_t)p->width * (size_t)p->height;
  for (size_t c = 0; c < 3; c++)
    for (size_t i = 0; i < n; i++) *out++ = p->rgb[i * 3 + c];
}

static wan_status add_picture(core_ctx *ctx, const char *source, const wan_vision_params *p, int frames,
                              int at, wan_vision_frames *out) {
  picture one;
  CORE_TRY(core_check_cancel(ctx));
  CORE_TRY(vision_picture(ctx, source, p, &one));
  wan_status s = at == 0 ? allocate(ctx, out, frames, one.width, one.height) : WAN_OK;
  if (s == WAN_OK && (one.width != out->width || one.height != out->height))
    s = core_fail(ctx, WAN_ERR_ARGUMENT,
                  "%.200s: becomes %dx%d, the first frame %dx%d; frames of one size are needed", source,
                  one.width, one.height, out->width, out->height);
  if (s == WAN_OK) to_planes(&one, out->pixels + (size_t)at * frame_size(out));
  picture_free(ctx, &one);
  return s;
}

wan_status vision_clip_pictures(core_ctx *ctx, const char *const *sources, int count,
                                const wan_vision_params *p, wan_vision_frames *out) {
  wan_status s = WAN_OK;
  if (count < 1 || count > 1 << 16)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%d frames: between 1 and %d are possible", count, 1 << 16);
  int frames = (count + VISION_FRAME_FACTOR - 1) / VISION_FRAME_FACTOR * VISION_FRAME_FACTOR;
  for (int i = 0; i < count && s == WAN_OK; i++) s = add_picture(ctx, sources[i], p, frames, i, out);
  for (int i = 0; i < frames && s == WAN_OK; i++) {
    size_t one = frame_size(out);
    out->index[i] = i < count ? i : count - 1;
    if (i >= count)
      memcpy(out->pixels + (size_t)i * one, out->pixels + (size_t)(count - 1) * one, one * sizeof(float));
  }
  out->fps = p->fps > 0 ? p->fps : 2;
  if (s != WAN_OK) vision_clip_free(ctx, out);
  return s;
}
