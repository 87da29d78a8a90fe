/* api.c: the calls of wan.h on models, runs and files: adopt the caller's structure, call the pipeline,
 * leave the context clean. */
#include <string.h>

#include "api/context.h"
#include "media/media.h"
#include "pipeline/bench.h"
#include "pipeline/checkpoint.h"
#include "pipeline/generate.h"
#include "pipeline/plan.h"
#include "pipeline/stage.h"

/* The context is found from the model's core_ctx: it is the first member. */
static wan_context *context_of(wan_model *m) {
  _Static_assert(offsetof(wan_context, core) == 0, "a core_ctx of this library is a wan_context");
  return (wan_context *)(void *)m->ctx;
}

wan_status wan_model_open(wan_context *c, const char *dir, wan_model **out) {
  return context_done(c, model_open(c->be, dir, out));
}

void wan_model_close(wan_model *m) {
  model_close(m);
}

wan_status wan_model_get_info(wan_model *m, wan_model_info *info) {
  uint64_t fingerprint;
  wan_status s = model_fingerprint(m, &fingerprint);
  if (s == WAN_OK) {
    wan_model_info full = model_info(m);
    size_t size = info->size;
    memcpy(info, &full, size < sizeof full ? size : sizeof full);
    info->size = size;
  }
  return context_done(context_of(m), s);
}

wan_status wan_model_describe(wan_context *c, const char *dir, bool json, char **out) {
  char *text = NULL;
  wan_status s = model_describe(&c->core, dir, json, &text);
  return context_hand_out(c, s, text, out);
}

static wan_generate_params adopt(const wan_generate_params *params) {
  wan_generate_params p;
  wan_generate_params_init(&p);
  CONTEXT_ADOPT(p, params);
  return p;
}

wan_status wan_generate(wan_model *m, const wan_generate_params *params, wan_generate_result *result) {
  wan_generate_params p = adopt(params);
  wan_generate_result full = {0};
  wan_context *c = context_of(m);
  wan_status s = generate_run(m, &p, &full);
  if (result) {
    size_t size = result->size;
    memcpy(result, &full, size < sizeof full ? size : sizeof full);
    result->size = size;
  }
  for (int i = 0; i < WAN_STAGE_COUNT; i++) {
    if (full.memory_peak[i] > c->peak) c->peak = full.memory_peak[i];
    if (full.device_memory_peak[i] > c->device_peak) c->device_peak = full.device_memory_peak[i];
  }
  atomic_store(&c->core.cancelled, false); /* one that came too late was for this run, not for the next */
  return context_done(c, s);
}

wan_status wan_generate_params_from_json(wan_context *c, const char *json, wan_generate_params *params,
                                         void **storage) {
  wan_generate_params p;
  wan_generate_params_init(&p);
  wan_status s = settings_from_json(&c->core, json, &p, storage);
  if (s == WAN_OK) {
    size_t size = params->size;
    memcpy(params, &p, size < sizeof p ? size : sizeof p);
    params->size = size;
  }
  return context_done(c, s);
}

wan_status wan_video_settings(wan_context *c, const char *path, char **json) {
  char *text = NULL;
  wan_status s = video_read_metadata(&c->core, path, &text);
  return context_hand_out(c, s, text, json);
}

wan_status wan_checkpoint_settings(wan_context *c, const char *path, char **json) {
  char *text = NULL;
  wan_status s = checkpoint_settings(&c->core, path, &text);
  return context_hand_out(c, s, text, json);
}

typedef struct frame_search {
  wan_context *c;
  const char *png;
  int index, count;
} frame_search;

static wan_status count_frame(void *user, int index, int width, int height, const uint8_t *rgb) {
  frame_search *f = user;
  (void)width, (void)height, (void)rgb;
  f->count = index + 1;
  return WAN_OK;
}

static wan_status save_frame(void *user, int index, int width, int height, const uint8_t *rgb) {
  frame_search *f = user;
  f->count = index + 1;
  return index == f->index ? picture_save_png(&f->c->core, f->png, width, height, rgb) : WAN_OK;
}

wan_status wan_video_frame(wan_context *c, const char *path, int index, const char *png_path) {
  frame_search f = {c, png_path, index, 0};
  wan_status s = WAN_OK;
  if (index < 0) { /* the number of frames is only known after decoding them */
    s = video_read_frames(&c->core, path, count_frame, &f, NULL);
    f.index += f.count;
  }
  if (s == WAN_OK) s = video_read_frames(&c->core, path, save_frame, &f, NULL);
  if (s == WAN_OK && (f.index < 0 || f.index >= f.count))
    s = core_fail(&c->core, WAN_ERR_ARGUMENT, "%s: has %d frames, there is no frame %d", path, f.count,
                  index);
  return context_done(c, s);
}

wan_status wan_write_png(wan_context *c, const char *path, int width, int height, const uint8_t *rgb) {
  return context_done(c, picture_save_png(&c->core, path, width, height, rgb));
}

wan_status wan_plan_generate(wan_model *m, const wan_generate_params *params, wan_plan *out) {
  wan_generate_params p = adopt(params);
  run_settings settings;
  wan_plan full = {.size = sizeof full};
  wan_status s = settings_resolve(m, &p, true, &settings);
  if (s == WAN_OK) {
    s = plan_make(m, &settings, &full);
    settings_free(m->ctx, &settings);
  }
  size_t size = out->size;
  if (s == WAN_OK) memcpy(out, &full, size < sizeof full ? size : sizeof full);
  out->size = size;
  return context_done(context_of(m), s);
}

wan_status wan_plan_steps(wan_model *m, const wan_generate_params *params, char **out) {
  wan_generate_params p = adopt(params);
  run_settings settings;
  char *text = NULL;
  wan_status s = settings_resolve(m, &p, true, &settings);
  if (s == WAN_OK) {
    s = settings_table(m->ctx, &settings, &text);
    settings_free(m->ctx, &settings);
  }
  return context_hand_out(context_of(m), s, text, out);
}

wan_status wan_bench(wan_context *c, const wan_bench_params *params, wan_bench_fn row, void *user) {
  wan_bench_params p;
  wan_bench_params_init(&p);
  CONTEXT_ADOPT(p, params);
  return context_done(c, bench_run(c->be, &p, row, user));
}

wan_status wan_stage_run(wan_context *c, const wan_stage_params *params, char **out) {
  wan_stage_params p;
  char *text = NULL, *unused;
  wan_stage_params_init(&p);
  CONTEXT_ADOPT(p, params);
  wan_status s = stage_run(c->be, &p, &text);
  s = context_hand_out(c, s, text, out ? out : &unused);
  if (!out) core_free(NULL, unused);
  return s;
}
