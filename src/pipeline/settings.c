/* settings.c: completing a request. Everything that can be refused is refused here, before weights
 * are read or a file is created. */
#include "pipeline/settings.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/rng.h"
#include "pipeline/hash.h"

/* 2^31 tokens: far above what fits any machine, far below what would overflow a byte count. */
static const int64_t TOKENS_MAX = INT64_C(1) << 31;
enum { SIDE_MAX = 16384, FRAMES_MAX = 1 << 20, CLIP_DEFAULT = 5 };

#define REFUSE(...) return core_fail(ctx, WAN_ERR_ARGUMENT, __VA_ARGS__)

/* ---- Given frames ---- */

static wan_status given_add(core_ctx *ctx, run_settings *s, int frame, picture *p) {
  for (int i = 0; i < s->given_count; i++)
    if (s->given[i].frame == frame) {
      picture_free(ctx, p);
      REFUSE("two pictures are given for frame %d", frame);
    }
  run_frame *grown = core_realloc(ctx, s->given, (size_t)(s->given_count + 1) * sizeof *grown);
  if (!grown) {
    picture_free(ctx, p);
    return WAN_ERR_MEMORY;
  }
  s->given = grown;
  int at = s->given_count++;
  for (; at > 0 && grown[at - 1].frame > frame; at--) grown[at] = grown[at - 1];
  grown[at] = (run_frame){frame, *p};
  return WAN_OK;
}

static wan_status given_file(core_ctx *ctx, run_settings *s, int frame, const char *path) {
  picture p = {0};
  uint64_t hash;
  CORE_TRY(hash_file(ctx, path, &hash));
  CORE_TRY(picture_load(ctx, path, &(picture_options){s->params->no_exif}, &p));
  s->given_hash = hash_bytes(s->given_hash ? s->given_hash : HASH_START, &hash, sizeof hash);
  return given_add(ctx, s, frame, &p);
}

static wan_status given_memory(core_ctx *ctx, run_settings *s, const wan_image *image) {
  if (image->width < 1 || image->height < 1 || image->width > SIDE_MAX || image->height > SIDE_MAX)
    REFUSE("the given picture is %d x %d, between 1 and %d pixels a side are possible", image->width,
           image->height, SIDE_MAX);
  size_t bytes = (size_t)image->width * (size_t)image->height * 3;
  picture p = {image->width, image->height, core_alloc(ctx, bytes)};
  if (!p.rgb) return WAN_ERR_MEMORY;
  memcpy(p.rgb, image->rgb, bytes);
  s->given_hash = hash_bytes(HASH_START, p.rgb, bytes);
  return given_add(ctx, s, 0, &p);
}

/* The last frames of a clip, kept in a ring while it is decoded. */
typedef struct clip_tail {
  core_ctx *ctx;
  picture *ring;
  int want, seen;
} clip_tail;

static wan_status tail_push(void *user, int index, int width, int height, const uint8_t *rgb) {
  clip_tail *t = user;
  (void)index;
  size_t bytes = (size_t)width * (size_t)height * 3;
  picture *p = &t->ring[t->seen % t->want];
  if (p->rgb && (p->width != width || p->height != height)) picture_free(t->ctx, p);
  if (!p->rgb && !(p->rgb = core_alloc(t->ctx, bytes))) return WAN_ERR_MEMORY;
  p->width = width;
  p->height = height;
  memcpy(p->rgb, rgb, bytes);
  t->seen++;
  return core_check_cancel(t->ctx);
}

static wan_status given_clip(core_ctx *ctx, run_settings *s) {
  const wan_generate_params *p = s->params;
  int want = p->video_frames ? p->video_frames : CLIP_DEFAULT;
  if (want < 1 || want % 4 != 1 || want >= s->frames)
    REFUSE("%d frames of the clip: 4n+1 (1, 5, 9, ...) and fewer than the %d frames of the result are needed",
           want, s->frames);
  clip_tail t = {ctx, core_calloc(ctx, (size_t)want, sizeof(picture)), want, 0};
  if (!t.ring) return WAN_ERR_MEMORY;
  double fps;
  wan_status st = hash_file(ctx, p->video_path, &s->given_hash);
  if (st == WAN_OK) st = video_read_frames(ctx, p->video_path, tail_push, &t, &fps);
  int have = t.seen < want ? (t.seen > 0 ? (t.seen - 1) / 4 * 4 + 1 : 0) : want;
  if (st == WAN_OK && have == 0) st = core_fail(ctx, WAN_ERR_FORMAT, "%s: holds no frame", p->video_path);
  if (st == WAN_OK && have < want)
    core_log(ctx, WAN_LOG_NOTICE, "%s: has %d frames, the last %d are used", p->video_path, t.seen, have);
  for (int i = 0; i < have && st == WAN_OK; i++) {
    picture *from = &t.ring[(t.seen - have + i) % want], moved = *from;
    *from = (picture){0};
    st = given_add(ctx, s, i, &moved);
  }
  s->given_clip = have;
  for (int i = 0; i < want; i++) picture_free(ctx, &t.ring[i]);
  core_free(ctx, t.ring);
  return st;
}

static wan_status given_collect(core_ctx *ctx, run_settings *s) {
  const wan_generate_params *p = s->params;
  if (p->video_path && (p->image_path || p->image.rgb))
    REFUSE("a first picture and a clip to continue are both given: they would both be the first frame");
  if (p->video_path) CORE_TRY(given_clip(ctx, s));
  if (p->image_path)
    CORE_TRY(given_file(ctx, s, 0, p->image_path));
  else if (p->image.rgb)
    CORE_TRY(given_memory(ctx, s, &p->image));
  for (int i = 0; i < p->frame_image_count; i++) {
    int frame = p->frame_images[i].frame;
    if (frame < 0) frame += s->frames;
    if (frame < 0 || frame >= s->frames)
      REFUSE("a picture is given for frame %d, but the frames are 0 to %d", p->frame_images[i].frame,
             s->frames - 1);
    CORE_TRY(given_file(ctx, s, frame, p->frame_images[i].path));
  }
  if (p->last_image_path) CORE_TRY(given_file(ctx, s, s->frames - 1, p->last_image_path));
  return WAN_OK;
}

/* ---- Sizes ---- */

static wan_status resolve_frames(core_ctx *ctx, const wan_model_info *info, run_settings *s) {
  int frames = s->params->frames ? s->params->frames : info->frames;
  if (frames < 1 || frames > FRAMES_MAX)
    REFUSE("%d frames: between 1 and %d are possible", frames, FRAMES_MAX);
  s->frames = (frames - 1) / 4 * 4 + 1;
  if (s->frames != frames)
    core_log(ctx, WAN_LOG_NOTICE, "%d frames: the model makes 4n+1 frames, %d are made", frames, s->frames);
  s->T = (s->frames - 1) / 4 + 1;
  return WAN_OK;
}

/* Pixels the official models were trained for (wan/configs/__init__.py, SUPPORTED_SIZES). */
static void notice_size(wan_model *m, const run_settings *s) {
  static const int a14b[][2] = {{1280, 720}, {832, 480}}, ti2v[][2] = {{1280, 704}, {0, 0}};
  int64_t dim = m->config[0].dim;
  if (dim != 3072 && dim != 5120) return; /* not an official model: nothing is known about it */
  const int(*list)[2] = m->family == WAN_FAMILY_TI2V ? ti2v : a14b;
  int64_t area = (int64_t)s->ask_width * s->ask_height;
  for (int i = 0; i < 2; i++) {
    if (s->given_count ? area == (int64_t)list[i][0] * list[i][1]
                       : (s->width == list[i][0] && s->height == list[i][1]) ||
                             (s->width == list[i][1] && s->height == list[i][0]))
      return;
  }
  core_log(m->ctx, WAN_LOG_NOTICE,
           "%dx%d is not a size this model was trained for (%s): expect a weaker result", s->ask_width,
           s->ask_height,
           m->family == WAN_FAMILY_TI2V ? "1280x704, 704x1280" : "1280x720, 832x480 and their transposes");
}

static wan_status resolve_size(wan_model *m, const wan_model_info *info, run_settings *s) {
  core_ctx *ctx = m->ctx;
  const wan_generate_params *p = s->params;
  if (!p->width != !p->height) REFUSE("width and height have to be given together");
  s->ask_width = p->width ? p->width : info->width;
  s->ask_height = p->height ? p->height : info->height;
  if (s->ask_width < 1 || s->ask_height < 1 || s->ask_width > SIDE_MAX || s->ask_height > SIDE_MAX)
    REFUSE("size %dx%d: between 1 and %d pixels a side are possible", s->ask_width, s->ask_height, SIDE_MAX);
  int q = info->multiple;
  int64_t area = (int64_t)s->ask_width * s->ask_height;
  if (s->given_count) {
    const picture *first = &s->given[0].pixels;
    if (m->family == WAN_FAMILY_I2V)
      i2v_output_size(first->width, first->height, area, &s->width, &s->height);
    else
      best_output_size(first->width, first->height, q, q, area, &s->width, &s->height);
    if (s->width < q || s->height < q)
      REFUSE("size %dx%d: its area is too small for a picture of %dx%d (multiples of %d are needed)",
             s->ask_width, s->ask_height, first->width, first->height, q);
  } else {
    s->width = (s->ask_width + q / 2) / q * q;
    s->height = (s->ask_height + q / 2) / q * q;
    if (s->width < q) s->width = q;
    if (s->height < q) s->height = q;
    if (s->width != s->ask_width || s->height != s->ask_height)
      core_log(ctx, WAN_LOG_NOTICE, "size %dx%d: the model makes multiples of %d, %dx%d is made",
               s->ask_width, s->ask_height, q, s->width, s->height);
  }
  notice_size(m, s);
  s->w = s->width / m->vae_stride;
  s->h = s->height / m->vae_stride;
  s->C = m->vae_z;
  if (s->T * (s->h / 2) * (s->w / 2) > TOKENS_MAX)
    REFUSE("%dx%d with %d frames: too large to compute", s->width, s->height, s->frames);
  return WAN_OK;
}

static wan_status check_task(wan_model *m, bool bare, const run_settings *s) {
  core_ctx *ctx = m->ctx;
  if (m->family == WAN_FAMILY_T2V && s->given_count)
    REFUSE("%s: is a text-to-video model, it takes no picture; use a TI2V or I2V checkpoint", m->dir.root);
  if (m->family == WAN_FAMILY_I2V && !bare && !s->given_count)
    REFUSE("%s: is an image-to-video model and needs a picture to start from (--image)", m->dir.root);
  if (s->given_count && s->frames < 5)
    REFUSE("%d frame%s: picture to video needs at least 5 (--frames 5 or more)", s->frames,
           s->frames == 1 ? "" : "s");
  return WAN_OK;
}

/* ---- Steps ---- */

static wan_status resolve_steps(wan_model *m, const wan_model_info *info, run_settings *s) {
  core_ctx *ctx = m->ctx;
  const wan_generate_params *p = s->params;
  if (p->steps < 0 || p->steps_high < 0 || p->steps_low < 0) REFUSE("the number of steps can't be negative");
  if (p->steps_high > SAMPLER_STEPS_MAX || p->steps_low > SAMPLER_STEPS_MAX)
    REFUSE("at most %d steps are possible", SAMPLER_STEPS_MAX);
  int split = p->steps_high + p->steps_low;
  if (split) {
    if (m->experts < 2) REFUSE("%s: has one expert, steps can't be split between two", m->dir.root);
    if (p->steps && p->steps != split)
      REFUSE("%d steps in all, but %d for the high-noise and %d for the low-noise expert", p->steps,
             p->steps_high, p->steps_low);
  }
  s->steps = split ? split : p->steps ? p->steps : info->steps;
  if (s->steps > SAMPLER_STEPS_MAX) REFUSE("%d steps: at most %d are possible", s->steps, SAMPLER_STEPS_MAX);
  if (p->sigmas && !p->steps && !split) REFUSE("explicit sigmas need the number of steps");
  static const sampler_kind kinds[] = {SAMPLER_UNIPC, SAMPLER_DPMPP, SAMPLER_EULER};
  if ((unsigned)p->sampler > WAN_SAMPLER_EULER) REFUSE("unknown sampler %d", (int)p->sampler);
  s->sampler = kinds[p->sampler];
  s->shift = p->shift > 0 ? p->shift : info->shift;
  if (!(p->shift >= 0) || !isfinite(p->shift)) REFUSE("shift %g: a positive number is needed", p->shift);
  s->boundary = p->boundary > 0 ? p->boundary : info->boundary;
  if (!(p->boundary >= 0 && p->boundary <= 1)) REFUSE("boundary %g: between 0 and 1 is needed", p->boundary);
  if (p->sigmas) return schedule_from_sigmas(ctx, s->sampler, p->sigmas, s->steps, &s->plan);
  return schedule_make(ctx, s->sampler,
                       p->schedule == WAN_SCHEDULE_DIFFUSERS ? SCHEDULE_DIFFUSERS : SCHEDULE_OFFICIAL,
                       s->steps, s->shift, &s->plan);
}

static bool is_part(double x) {
  return x >= 0 && x <= 1;
}

static wan_status resolve_guidance(wan_model *m, const wan_model_info *info, run_settings *s) {
  core_ctx *ctx = m->ctx;
  const wan_generate_params *p = s->params;
  if (isnan(p->guidance_low) || isnan(p->guidance_high)) REFUSE("guidance has to be a finite number");
  s->guidance[EXPERT_LOW] = p->guidance_low >= 0 ? p->guidance_low : info->guidance_low;
  s->guidance[EXPERT_HIGH] = p->guidance_high >= 0 ? p->guidance_high : info->guidance_high;
  if (m->experts == 1) s->guidance[EXPERT_HIGH] = s->guidance[EXPERT_LOW]; /* the only expert's index */
  if (!isfinite(s->guidance[0]) || !isfinite(s->guidance[1])) REFUSE("guidance has to be a finite number");
  if (!is_part(p->guidance_start) || !is_part(p->guidance_end) || p->guidance_start > p->guidance_end)
    REFUSE("guidance interval %g,%g: two parts of the run between 0 and 1 in order are needed",
           p->guidance_start, p->guidance_end);
  if (p->apg && p->cfg_zero_star)
    REFUSE("CFG-Zero* and adaptive projected guidance both redefine guidance: choose one");
  if (p->apg && !(isfinite(p->apg_eta) && p->apg_norm >= 0 && isfinite(p->apg_momentum)))
    REFUSE("adaptive projected guidance: eta and momentum have to be finite, the norm at least 0");
  if (p->zero_init_steps < 0 || (p->zero_init_steps > 0 && p->zero_init_steps >= s->steps))
    REFUSE("zero-init: %d of %d steps", p->zero_init_steps, s->steps);
  if (!p->skip_layer_count) return WAN_OK;
  if (!is_part(p->skip_layer_start) || !is_part(p->skip_layer_end) ||
      p->skip_layer_start > p->skip_layer_end || !isfinite(p->skip_layer_scale))
    REFUSE(
        "skip-layer guidance: a finite scale and two parts of the run between 0 and 1 in order are needed");
  for (int i = 0; i < p->skip_layer_count; i++) {
    if (p->skip_layers[i] < 0 || p->skip_layers[i] >= m->config[0].layers)
      REFUSE("skip-layer guidance: block %d does not exist, the model has blocks 0 to %d", p->skip_layers[i],
             m->config[0].layers - 1);
    s->skip_mask |= UINT64_C(1) << p->skip_layers[i];
  }
  return WAN_OK;
}

/* Before hours of work: cleaning refuses the same, but the settings are stored as JSON earlier. */
static wan_status check_text(core_ctx *ctx, const char *what, const char *text) {
  utf8proc_int32_t c;
  for (size_t at = 0; text[at];) {
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text + at, -1, &c);
    if (n < 1) REFUSE("the %s is not valid UTF-8 at byte %zu", what, at);
    at += (size_t)n;
  }
  return WAN_OK;
}

static wan_status resolve(wan_model *m, bool bare, run_settings *s) {
  core_ctx *ctx = m->ctx;
  const wan_generate_params *p = s->params;
  wan_model_info info = model_info(m);
  s->experts = m->experts;
  s->prompt = p->prompt ? p->prompt : "";
  s->negative = p->negative ? p->negative : model_negative;
  CORE_TRY(check_text(ctx, "prompt", s->prompt));
  CORE_TRY(check_text(ctx, "negative prompt", s->negative));
  s->fps = p->fps > 0 ? p->fps : info.fps;
  if (!(p->fps >= 0 && p->fps <= 1000)) REFUSE("%g frames a second: between 0 and 1000 are possible", p->fps);
  s->seed = p->seed >= 0 ? p->seed : (int64_t)(rng_random_seed() & INT64_MAX);
  if ((unsigned)p->rng > WAN_RNG_PHILOX) REFUSE("unknown noise generator %d", (int)p->rng);
  if ((unsigned)p->on_nan > WAN_ON_NAN_RETRY) REFUSE("unknown choice %d for on_nan", (int)p->on_nan);
  CORE_TRY(resolve_frames(ctx, &info, s));
  CORE_TRY(given_collect(ctx, s));
  CORE_TRY(check_task(m, bare, s));
  CORE_TRY(resolve_size(m, &info, s));
  CORE_TRY(resolve_steps(m, &info, s));
  CORE_TRY(resolve_guidance(m, &info, s));
  if (p->noise_path) CORE_TRY(hash_file(ctx, p->noise_path, &s->noise_hash));
  return WAN_OK;
}

wan_status settings_resolve(wan_model *m, const wan_generate_params *params, bool bare, run_settings *out) {
  *out = (run_settings){.params = params};
  wan_status s = resolve(m, bare, out);
  if (s != WAN_OK) settings_free(m->ctx, out);
  return s;
}

void settings_free(core_ctx *ctx, run_settings *s) {
  for (int i = 0; i < s->given_count; i++) picture_free(ctx, &s->given[i].pixels);
  core_free(ctx, s->given);
  *s = (run_settings){0};
}
