/* checkpoint.c: saved are the solver's live slots, the guidance momentum, and the conditioning (both
 * contexts, given latents or y), so that resuming needs neither text encoder nor VAE. All tensors are in
 * the engine's order [T, h, w, C]; the file is for resuming only. A hash of their bytes tells a damaged file,
 * which would otherwise make another video than the run that it belongs to. */
#include "pipeline/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/hash.h"
#include "weights/safetensors.h"

static const char *const slot_names[SLOT_COUNT] = {"x", "v", "m0", "m1", "last"};
enum { TENSORS_MAX = SLOT_COUNT + 6 };

/* Host copies to be written. */
typedef struct snapshot {
  backend *be;
  named_tensor t[TENSORS_MAX];
  bool owned[TENSORS_MAX];
  int n;
} snapshot;

static wan_status snap(snapshot *s, const char *name, tensor x) {
  if (x.type == DT_NONE) return WAN_OK;
  void *host = core_alloc(s->be->ctx, tensor_bytes(&x));
  if (!host) return WAN_ERR_MEMORY;
  tensor_download(s->be, host, x);
  s->owned[s->n] = true;
  s->t[s->n++] = (named_tensor){name, tensor_of(x.type, host, x.ndim, x.dim)};
  return backend_status(s->be);
}

static wan_status snap_all(snapshot *s, denoiser *d) {
  for (int i = 0; i < SLOT_COUNT; i++)
    if (i == SLOT_X || sampler_slot_live(&d->solver, (sampler_slot)i))
      CORE_TRY(snap(s, slot_names[i], d->slot[i]));
  CORE_TRY(snap(s, "momentum", d->momentum));
  CORE_TRY(snap(s, "first", d->first));
  CORE_TRY(snap(s, "y", d->y));
  if (d->given) s->t[s->n++] = (named_tensor){"given", TENSOR_OF(DT_BOOL, d->given, d->s->T)};
  if (d->context[0].type != DT_NONE) s->t[s->n++] = (named_tensor){"context", d->context[0]};
  if (d->context[1].type != DT_NONE) s->t[s->n++] = (named_tensor){"context_null", d->context[1]};
  return WAN_OK;
}

/* Of the settings, the position, and all tensors in the order of the file. */
typedef struct digest {
  uint64_t value;
  char text[17];
} digest;

static void digest_start(digest *d, const char *settings, const char *done) {
  *d = (digest){.value = hash_text(hash_text(HASH_START, settings), done)};
}

static void digest_add(digest *d, const char *name, tensor t) {
  d->value = hash_bytes(hash_text(d->value, name), t.data, tensor_bytes(&t));
  snprintf(d->text, sizeof d->text, "%016llx", (unsigned long long)d->value);
}

wan_status checkpoint_save(denoiser *d, const char *path, const char *settings) {
  snapshot s = {.be = d->be};
  char done[16];
  snprintf(done, sizeof done, "%d", d->solver.done);
  digest sum;
  digest_start(&sum, settings, done);
  const char *metadata[] = {"wan.c checkpoint", "1", "settings", settings, "done", done, "hash",
                            sum.text,           NULL};
  wan_status st = snap_all(&s, d);
  for (int i = 0; i < s.n; i++) digest_add(&sum, s.t[i].name, s.t[i].value);
  if (st == WAN_OK) st = safetensors_write(d->ctx, path, s.n, s.t, metadata);
  for (int i = 0; i < s.n; i++)
    if (s.owned[i]) core_free(d->ctx, s.t[i].value.data);
  return st;
}

/* ---- Loading ---- */

typedef struct source {
  denoiser *d;
  const char *path;
  const safetensors *file;
} source;

static wan_status damaged(const source *s, const char *what) {
  return core_fail(s->d->ctx, WAN_ERR_FORMAT,
                   "%s: is not a usable checkpoint of this run (%s); delete the file to start over", s->path,
                   what);
}

/* An F32 [T, h, w, channels] tensor into backend memory; absent ones stay null. */
static wan_status load_latent(const source *s, const char *name, int64_t channels, tensor *out) {
  const run_settings *r = s->d->s;
  tensor t = safetensors_find(s->file, name);
  if (t.type == DT_NONE) return WAN_OK;
  if (t.type != DT_F32 || t.ndim != 4 || t.dim[0] != r->T || t.dim[1] != r->h || t.dim[2] != r->w ||
      t.dim[3] != channels)
    return damaged(s, name);
  *out = tensor_alloc(s->d->be, DT_F32, 4, t.dim);
  tensor_upload(s->d->be, *out, t.data);
  return backend_status(s->d->be);
}

/* The file keeps the order in which its tensors were written. */
static bool intact(const source *s, const char *settings, const char *done) {
  const char *hash = safetensors_metadata(s->file, "hash");
  digest sum;
  digest_start(&sum, settings, done);
  for (int64_t i = 0; i < safetensors_count(s->file); i++)
    digest_add(&sum, safetensors_name(s->file, i), safetensors_tensor(s->file, i));
  return hash && strcmp(hash, sum.text) == 0;
}

static wan_status load_host(const source *s, const char *name, tensor *out) {
  tensor t = safetensors_find(s->file, name);
  if (t.type == DT_NONE) return WAN_OK;
  if (t.type != DT_F32 || t.ndim != 2 || t.dim[0] < 1) return damaged(s, name);
  void *data = core_alloc(s->d->ctx, tensor_bytes(&t));
  if (!data) return WAN_ERR_MEMORY;
  memcpy(data, t.data, tensor_bytes(&t));
  *out = tensor_of(DT_F32, data, 2, t.dim);
  return WAN_OK;
}

static wan_status load_all(const source *s) {
  denoiser *d = s->d;
  for (int i = 0; i < SLOT_COUNT; i++) {
    CORE_TRY(load_latent(s, slot_names[i], d->s->C, &d->slot[i]));
    if (d->slot[i].type == DT_NONE && (i == SLOT_X || sampler_slot_live(&d->solver, (sampler_slot)i)))
      return damaged(s, slot_names[i]);
  }
  CORE_TRY(load_latent(s, "momentum", d->s->C, &d->momentum));
  CORE_TRY(load_latent(s, "first", d->s->C, &d->first));
  CORE_TRY(load_latent(s, "y", d->s->C + 4, &d->y));
  CORE_TRY(load_host(s, "context", &d->context[0]));
  CORE_TRY(load_host(s, "context_null", &d->context[1]));
  if (d->context[0].type == DT_NONE) return damaged(s, "context");
  if (d->context[1].type == DT_NONE && settings_use_negative(d->s)) return damaged(s, "context_null");
  tensor given = safetensors_find(s->file, "given");
  if (d->first.type == DT_NONE) return WAN_OK;
  if (given.type != DT_BOOL || given.ndim != 1 || given.dim[0] != d->s->T) return damaged(s, "given");
  if (!(d->given = core_calloc(d->ctx, (size_t)d->s->T, sizeof *d->given))) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < d->s->T; i++) d->given[i] = ((const unsigned char *)given.data)[i] != 0;
  return WAN_OK;
}

static wan_status load(const source *s, const char *settings) {
  denoiser *d = s->d;
  const char *saved = safetensors_metadata(s->file, "settings");
  const char *done = safetensors_metadata(s->file, "done");
  if (!safetensors_metadata(s->file, "wan.c checkpoint") || !saved || !done)
    return damaged(s, "it was not written by --checkpoint");
  CORE_TRY(settings_compare(d->ctx, saved, settings, s->path));
  d->solver.done = (int)strtol(done, NULL, 10);
  if (d->solver.done < 1 || d->solver.done > d->s->steps) return damaged(s, "the step number");
  if (!intact(s, saved, done)) return damaged(s, "its data was changed since it was written");
  return load_all(s);
}

wan_status checkpoint_load(denoiser *d, const char *path, const char *settings) {
  safetensors *file = NULL;
  CORE_TRY(safetensors_open(d->ctx, path, &file));
  wan_status st = load(&(source){d, path, file}, settings);
  safetensors_close(file);
  return st;
}

wan_status checkpoint_settings(core_ctx *ctx, const char *path, char **settings) {
  safetensors *file = NULL;
  CORE_TRY(safetensors_open(ctx, path, &file));
  const char *saved = safetensors_metadata(file, "settings");
  wan_status s = WAN_OK;
  if (!saved)
    s = core_fail(ctx, WAN_ERR_FORMAT, "%s: holds no settings, it is not a checkpoint of a run", path);
  else if (!(*settings = core_strdup(ctx, saved)))
    s = WAN_ERR_MEMORY;
  safetensors_close(file);
  return s;
}

int64_t checkpoint_seed(core_ctx *ctx, const char *path) {
  safetensors *file = NULL;
  if (safetensors_open(ctx, path, &file) != WAN_OK) return -1;
  const char *saved = safetensors_metadata(file, "settings");
  int64_t seed = saved ? settings_json_seed(saved) : -1;
  safetensors_close(file);
  return seed;
}
