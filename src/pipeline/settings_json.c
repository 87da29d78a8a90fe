/* settings_json.c: the settings of a run as JSON: stored in every video and checkpoint file, read
 * back by --replay. One table of simple fields serves both directions; the rest is spelled out. */
#define _GNU_SOURCE /* realpath */
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/settings.h"

typedef enum field_kind { FIELD_TEXT, FIELD_INT, FIELD_REAL, FIELD_BOOL } field_kind;
typedef struct field {
  const char *key;
  field_kind kind;
  size_t offset;
} field;
#define FIELD(key, kind, member) \
  { key, kind, offsetof(wan_generate_params, member) }

/* Copied from the parameters as they are, read back as they are. */
static const field fields[] = {
    FIELD("no_exif", FIELD_BOOL, no_exif),
    FIELD("video_frames", FIELD_INT, video_frames),
    FIELD("guidance_start", FIELD_REAL, guidance_start),
    FIELD("guidance_end", FIELD_REAL, guidance_end),
    FIELD("steps_high", FIELD_INT, steps_high),
    FIELD("steps_low", FIELD_INT, steps_low),
    FIELD("cfg_zero_star", FIELD_BOOL, cfg_zero_star),
    FIELD("zero_init_steps", FIELD_INT, zero_init_steps),
    FIELD("apg", FIELD_BOOL, apg),
    FIELD("apg_eta", FIELD_REAL, apg_eta),
    FIELD("apg_norm", FIELD_REAL, apg_norm),
    FIELD("apg_momentum", FIELD_REAL, apg_momentum),
    FIELD("skip_layer_scale", FIELD_REAL, skip_layer_scale),
    FIELD("skip_layer_start", FIELD_REAL, skip_layer_start),
    FIELD("skip_layer_end", FIELD_REAL, skip_layer_end),
    FIELD("crf", FIELD_INT, crf),
};
/* Given after resolution under these keys, read back into these members. */
static const field resolved[] = {
    FIELD("prompt", FIELD_TEXT, prompt),
    FIELD("original_prompt", FIELD_TEXT, original_prompt),
    FIELD("negative", FIELD_TEXT, negative),
    FIELD("image", FIELD_TEXT, image_path),
    FIELD("last_image", FIELD_TEXT, last_image_path),
    FIELD("video", FIELD_TEXT, video_path),
    FIELD("noise", FIELD_TEXT, noise_path),
    FIELD("ask_width", FIELD_INT, width),
    FIELD("ask_height", FIELD_INT, height),
    FIELD("frames", FIELD_INT, frames),
    FIELD("steps", FIELD_INT, steps),
    FIELD("shift", FIELD_REAL, shift),
    FIELD("guidance_low", FIELD_REAL, guidance_low),
    FIELD("guidance_high", FIELD_REAL, guidance_high),
    FIELD("boundary", FIELD_REAL, boundary),
    FIELD("fps", FIELD_REAL, fps),
};
#define COUNT(a) (sizeof(a) / sizeof *(a))
static const char *const rng_names[] = {"torch-cpu", "philox"};
static const char *const precision_names[] = {
    [WAN_PRECISION_BF16] = "bf16", [WAN_PRECISION_F32] = "f32", [WAN_PRECISION_FP8] = "fp8"};
static const char *const on_nan_names[] = {"fail", "retry"};
static const char *const schedule_names[] = {"official", "diffusers"};

static json_t *field_value(const wan_generate_params *p, const field *f) {
  const char *at = (const char *)p + f->offset;
  switch (f->kind) {
  case FIELD_TEXT:
    return json_string(*(const char *const *)(const void *)at);
  case FIELD_INT:
    return json_integer(*(const int *)(const void *)at);
  case FIELD_REAL:
    return json_real(*(const double *)(const void *)at);
  default:
    return json_boolean(*(const bool *)(const void *)at);
  }
}

/* ---- To JSON ---- */

static int put_lists(json_t *o, const run_settings *s) {
  const wan_generate_params *p = s->params;
  int bad = 0;
  if (p->sigmas) {
    json_t *list = json_array();
    for (int i = 0; i < s->steps; i++) bad |= json_array_append_new(list, json_real((double)p->sigmas[i]));
    bad |= json_object_set_new(o, "sigmas", list);
  }
  if (p->skip_layer_count) {
    json_t *list = json_array();
    for (int i = 0; i < p->skip_layer_count; i++)
      bad |= json_array_append_new(list, json_integer(p->skip_layers[i]));
    bad |= json_object_set_new(o, "skip_layers", list);
  }
  if (p->frame_image_count) {
    json_t *list = json_array();
    for (int i = 0; i < p->frame_image_count; i++)
      bad |= json_array_append_new(
          list, json_pack("{s:i, s:s}", "frame", p->frame_images[i].frame, "path", p->frame_images[i].path));
    bad |= json_object_set_new(o, "frame_images", list);
  }
  return bad;
}

/* A path as it can be found again from elsewhere. */
static int put_path(json_t *o, const char *key, const char *path) {
  if (!path) return 0;
  char *full = realpath(path, NULL);
  json_t *text = json_string(full ? full : path);
  free(full);
  return json_object_set_new(o, key, text);
}

static int put_hash(json_t *o, const char *key, uint64_t hash) {
  char text[24];
  snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
  return hash ? json_object_set_new(o, key, json_string(text)) : 0;
}

static json_t *settings_object(const wan_model *m, const run_settings *s) {
  const wan_generate_params *p = s->params;
  json_t *o = json_object();
  int bad = json_object_set_new(o, "wan.c", json_string(WAN_VERSION));
  bad |= json_object_set_new(o, "model", json_string(family_name(m->family)));
  bad |= put_hash(o, "fingerprint", m->fingerprint);
  bad |= json_object_set_new(o, "prompt", json_string(s->prompt));
  if (p->original_prompt) bad |= json_object_set_new(o, "original_prompt", json_string(p->original_prompt));
  bad |= json_object_set_new(o, "negative", json_string(s->negative));
  bad |= put_path(o, "image", p->image_path);
  bad |= put_path(o, "last_image", p->last_image_path);
  bad |= put_path(o, "video", p->video_path);
  bad |= put_hash(o, "pictures_hash", s->given_hash);
  bad |= put_path(o, "noise", p->noise_path);
  bad |= put_hash(o, "noise_hash", s->noise_hash);
  const struct {
    const char *key;
    json_int_t value;
  } ints[] = {{"width", s->width},
              {"height", s->height},
              {"ask_width", s->ask_width},
              {"ask_height", s->ask_height},
              {"frames", s->frames},
              {"steps", s->steps},
              {"seed", s->seed}};
  for (size_t i = 0; i < COUNT(ints); i++)
    bad |= json_object_set_new(o, ints[i].key, json_integer(ints[i].value));
  const struct {
    const char *key;
    double value;
  } reals[] = {{"shift", s->shift},
               {"guidance_low", s->guidance[s->experts - 1]},
               {"guidance_high", s->guidance[EXPERT_HIGH]},
               {"boundary", s->boundary},
               {"fps", s->fps}};
  for (size_t i = 0; i < COUNT(reals); i++)
    bad |= json_object_set_new(o, reals[i].key, json_real(reals[i].value));
  bad |= json_object_set_new(o, "sampler", json_string(sampler_kind_name(s->sampler)));
  bad |=
      json_object_set_new(o, "schedule", json_string(schedule_names[p->schedule == WAN_SCHEDULE_DIFFUSERS]));
  bad |= json_object_set_new(o, "rng", json_string(rng_names[p->rng == WAN_RNG_PHILOX]));
  bad |= json_object_set_new(o, "on_nan", json_string(on_nan_names[p->on_nan == WAN_ON_NAN_RETRY]));
  for (size_t i = 0; i < COUNT(fields); i++)
    bad |= json_object_set_new(o, fields[i].key, field_value(p, &fields[i]));
  bad |= put_lists(o, s);
  bad |= json_object_set_new(o, "backend", json_string(m->be->ops->name));
  bad |= json_object_set_new(o, "precision", json_string(precision_names[m->be->precision]));
  if (!bad) return o;
  json_decref(o);
  return NULL;
}

wan_status settings_to_json(wan_model *m, const run_settings *s, char **out) {
  uint64_t fingerprint;
  CORE_TRY(model_fingerprint(m, &fingerprint));
  json_t *o = settings_object(m, s);
  char *text = o ? json_dumps(o, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(17)) : NULL;
  json_decref(o);
  if (!text)
    return core_fail(
        m->ctx, WAN_ERR_ARGUMENT,
        "the settings can't be written as JSON: a prompt or a path is not valid UTF-8, or memory is "
        "short");
  *out = core_strdup(m->ctx, text);
  free(text);
  return *out ? WAN_OK : WAN_ERR_MEMORY;
}

/* ---- From JSON ---- */

static json_t *parse(const char *json) {
  json_t *o = json_loads(json, 0, NULL);
  if (o && json_is_object(o)) return o;
  json_decref(o);
  return NULL;
}

/* The storage block: what needs alignment first, strings behind it. */
typedef struct string_pool {
  char *next;
} string_pool;

static void *pool_take(string_pool *p, const void *data, size_t size) {
  void *at = p->next;
  memcpy(at, data, size);
  p->next += size;
  return at;
}

static bool get_field(const json_t *o, const field *f, wan_generate_params *params, string_pool *pool) {
  const json_t *v = json_object_get(o, f->key);
  char *at = (char *)params + f->offset;
  if (!v) return true;
  if (f->kind == FIELD_TEXT && json_is_string(v)) {
    const char *text = json_string_value(v);
    *(const char **)(void *)at = pool_take(pool, text, strlen(text) + 1);
  } else if (f->kind == FIELD_INT && json_is_integer(v) && json_integer_value(v) >= INT_MIN &&
             json_integer_value(v) <= INT_MAX) {
    *(int *)(void *)at = (int)json_integer_value(v);
  } else if (f->kind == FIELD_REAL && json_is_number(v)) {
    *(double *)(void *)at = json_number_value(v);
  } else if (f->kind == FIELD_BOOL && json_is_boolean(v)) {
    *(bool *)(void *)at = json_is_true(v);
  } else {
    return false;
  }
  return true;
}

static int name_index(const json_t *o, const char *key, const char *const names[2]) {
  const char *text = json_string_value(json_object_get(o, key));
  return text && strcmp(text, names[1]) == 0;
}

static bool get_lists(const json_t *o, wan_generate_params *p, string_pool *pool) {
  const json_t *sigmas = json_object_get(o, "sigmas"), *skip = json_object_get(o, "skip_layers");
  const json_t *images = json_object_get(o, "frame_images");
  size_t i, n = json_array_size(images);
  wan_frame_image *list = (wan_frame_image *)(void *)pool->next;
  for (i = 0; i < n; i++) pool_take(pool, &(wan_frame_image){0}, sizeof *list);
  if (json_array_size(sigmas)) p->sigmas = (const float *)(const void *)pool->next;
  if (p->sigmas && json_array_size(sigmas) != (size_t)p->steps) return false;
  for (i = 0; i < json_array_size(sigmas); i++)
    pool_take(pool, &(float){(float)json_number_value(json_array_get(sigmas, i))}, sizeof(float));
  if (json_array_size(skip)) p->skip_layers = (const int *)(const void *)pool->next;
  for (i = 0; i < json_array_size(skip); i++)
    pool_take(pool, &(int){(int)json_integer_value(json_array_get(skip, i))}, sizeof(int));
  p->skip_layer_count = (int)json_array_size(skip);
  for (i = 0; i < n; i++) {
    const json_t *item = json_array_get(images, i);
    const char *path = json_string_value(json_object_get(item, "path"));
    if (!path) return false;
    list[i].frame = (int)json_integer_value(json_object_get(item, "frame"));
    list[i].path = pool_take(pool, path, strlen(path) + 1);
  }
  p->frame_images = n ? list : NULL;
  p->frame_image_count = (int)n;
  return true;
}

static bool fill(const json_t *o, wan_generate_params *p, string_pool *pool) {
  const json_t *steps = json_object_get(o, "steps");
  p->steps = (int)json_integer_value(steps); /* get_lists() compares the number of sigmas with it */
  if (!get_lists(o, p, pool)) return false;
  for (size_t i = 0; i < COUNT(fields); i++)
    if (!get_field(o, &fields[i], p, pool)) return false;
  for (size_t i = 0; i < COUNT(resolved); i++)
    if (!get_field(o, &resolved[i], p, pool)) return false;
  const char *solver = json_string_value(json_object_get(o, "sampler"));
  sampler_kind kind = SAMPLER_UNIPC;
  if (solver && !sampler_kind_parse(solver, &kind)) return false;
  p->sampler = kind == SAMPLER_DPMPP   ? WAN_SAMPLER_DPMPP
               : kind == SAMPLER_EULER ? WAN_SAMPLER_EULER
                                       : WAN_SAMPLER_UNIPC;
  p->schedule = name_index(o, "schedule", schedule_names) ? WAN_SCHEDULE_DIFFUSERS : WAN_SCHEDULE_OFFICIAL;
  p->on_nan = name_index(o, "on_nan", on_nan_names) ? WAN_ON_NAN_RETRY : WAN_ON_NAN_FAIL;
  p->rng = name_index(o, "rng", rng_names) ? WAN_RNG_PHILOX : WAN_RNG_TORCH_CPU;
  if (json_is_integer(json_object_get(o, "seed"))) p->seed = json_integer_value(json_object_get(o, "seed"));
  return true;
}

wan_status settings_from_json(core_ctx *ctx, const char *json, wan_generate_params *params, void **storage) {
  *storage = NULL;
  json_t *o = parse(json);
  if (!o || !json_is_string(json_object_get(o, "wan.c"))) {
    json_decref(o);
    return core_fail(ctx, WAN_ERR_FORMAT,
                     "these are not settings written by wan.c (a JSON object with \"wan.c\")");
  }
  /* No string or list is longer inside the block than as text, except small lists: 16 bytes an item. */
  size_t items = json_array_size(json_object_get(o, "frame_images")) +
                 json_array_size(json_object_get(o, "sigmas")) +
                 json_array_size(json_object_get(o, "skip_layers"));
  string_pool pool = {core_calloc(NULL, strlen(json) + 64 + items * sizeof(wan_frame_image), 1)};
  wan_status s = WAN_ERR_MEMORY;
  *storage = pool.next;
  if (pool.next)
    s = fill(o, params, &pool)
            ? WAN_OK
            : core_fail(ctx, WAN_ERR_FORMAT, "the stored settings have a value of the wrong type");
  json_decref(o);
  if (s != WAN_OK) {
    core_free(NULL, *storage);
    *storage = NULL;
  }
  return s;
}

int64_t settings_json_seed(const char *json) {
  json_t *o = parse(json);
  const json_t *seed = json_object_get(o, "seed");
  int64_t value = json_is_integer(seed) ? json_integer_value(seed) : -1;
  json_decref(o);
  return value;
}

/* ---- Comparison ---- */

static bool ignored(const char *key) {
  static const char *const names[] = {"wan.c", "crf", "fps", "image", "last_image", "video", "noise"};
  for (size_t i = 0; i < COUNT(names); i++)
    if (strcmp(key, names[i]) == 0) return true; /* files count by their content's hash */
  return false;
}

static const char *first_difference(json_t *a, json_t *b) {
  const char *key;
  json_t *value;
  json_object_foreach(a, key,
                      value) if (!ignored(key) && !json_equal(value, json_object_get(b, key))) return key;
  json_object_foreach(b, key, value) if (!ignored(key) && !json_object_get(a, key)) return key;
  return NULL;
}

static char *value_text(json_t *o, const char *key) {
  json_t *v = json_object_get(o, key);
  return v ? json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) : NULL;
}

wan_status settings_compare(core_ctx *ctx, const char *saved, const char *now, const char *file) {
  json_t *a = parse(saved), *b = parse(now);
  wan_status s = WAN_OK;
  const char *key = a && b ? first_difference(a, b) : NULL;
  if (!a || !b) {
    s = core_fail(ctx, WAN_ERR_FORMAT, "%s: the stored settings are not JSON; delete the file to start over",
                  file);
  } else if (key) {
    char *was = value_text(a, key), *is = value_text(b, key);
    s = core_fail(ctx, WAN_ERR_ARGUMENT,
                  "%s: was saved by a run with other settings: %s was %.200s, now it is %.200s; use the same "
                  "settings to resume, or delete the file to start over",
                  file, key, was ? was : "not set", is ? is : "not set");
    free(was);
    free(is);
  }
  json_decref(a);
  json_decref(b);
  return s;
}
