/* weight_set.c: the tensors of one network, from however many files, under one set of names. */
#include "weights/weights.h"

#include "weights/names.h"
#include "weights/pth.h"
#include "weights/random_tensors.h"
#include "weights/safetensors.h"
#include "weights/sources.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One opened file, or what stands for one: exactly one of the three is set. */
typedef struct container {
  safetensors *st;
  pth *pth;
  random_tensors *random;
} container;

typedef struct entry {
  const char *name;   /* canonical */
  const char *stored; /* as the file has it */
  char *own;          /* name's memory, when it is not part of stored */
  tensor value;
  int64_t file; /* index into files and opened */
  bool bound;
} entry;

struct weight_set {
  core_ctx *ctx;
  char *path;
  weight_kind kind;
  sources files;
  container *opened;
  const name_family *family;
  entry *item;
  entry **index; /* sorted by name */
  int64_t count;
};

/* ---- Opening ---- */

static wan_status container_open(core_ctx *ctx, const char *path, container *c) {
  const char *dot = strrchr(sources_base_name(path), '.');
  bool torch = (dot && (strcmp(dot, ".pth") == 0 || strcmp(dot, ".pt") == 0)) || pth_probe(path);
  return torch ? pth_open(ctx, path, &c->pth) : safetensors_open(ctx, path, &c->st);
}

static int64_t container_count(const container *c) {
  return c->st ? safetensors_count(c->st) : c->pth ? pth_count(c->pth) : random_tensors_count(c->random);
}

static entry container_entry(const container *c, int64_t i) {
  const char *name;
  tensor value;
  if (c->st) {
    name = safetensors_name(c->st, i);
    value = safetensors_tensor(c->st, i);
  } else if (c->pth) {
    name = pth_name(c->pth, i);
    value = pth_tensor(c->pth, i);
  } else {
    name = random_tensors_name(c->random, i);
    value = random_tensors_tensor(c->random, i);
  }
  return (entry){.name = name, .stored = name, .value = value};
}

static wan_status open_files(weight_set *set) {
  CORE_TRY(sources_find(set->ctx, set->path, &set->files));
  set->opened = core_calloc(set->ctx, (size_t)set->files.count, sizeof *set->opened);
  if (!set->opened) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < set->files.count; i++)
    CORE_TRY(container_open(set->ctx, set->files.path[i], &set->opened[i]));
  return WAN_OK;
}

static wan_status list_tensors(weight_set *set) {
  int64_t n = 0;
  for (int64_t i = 0; i < set->files.count; i++) n += container_count(&set->opened[i]);
  set->item = core_calloc(set->ctx, (size_t)n, sizeof *set->item);
  set->index = core_calloc(set->ctx, (size_t)n, sizeof *set->index);
  if (!set->item || !set->index) return WAN_ERR_MEMORY;
  for (int64_t f = 0; f < set->files.count; f++)
    for (int64_t i = 0; i < container_count(&set->opened[f]); i++) {
      set->item[set->count] = container_entry(&set->opened[f], i);
      set->item[set->count++].file = f;
    }
  return WAN_OK;
}

static int compare_entries(const void *a, const void *b) {
  return strcmp((*(entry *const *)a)->name, (*(entry *const *)b)->name);
}

static entry *find(const weight_set *set, const char *name) {
  entry key = {.name = name}, *want = &key;
  entry **hit = bsearch(&want, set->index, (size_t)set->count, sizeof *set->index, compare_entries);
  return hit ? *hit : NULL;
}

static wan_status sort_names(weight_set *set) {
  for (int64_t i = 0; i < set->count; i++) set->index[i] = &set->item[i];
  qsort(set->index, (size_t)set->count, sizeof *set->index, compare_entries);
  for (int64_t i = 1; i < set->count; i++) {
    const entry *a = set->index[i - 1], *b = set->index[i];
    if (strcmp(a->name, b->name) == 0)
      return core_fail(set->ctx, WAN_ERR_FORMAT, "tensor %s is in %s (as %s) and again in %s (as %s)",
                       a->name, set->files.path[a->file], a->stored, set->files.path[b->file], b->stored);
  }
  return WAN_OK;
}

/* Every tensor that the index promises must be in the file it names. */
static wan_status check_promises(const weight_set *set) {
  const char *name;
  json_t *value;
  json_object_foreach((json_t *)(uintptr_t)set->files.weight_map, name, value) {
    const char *file = json_string_value(value);
    const entry *e = find(set, name);
    const char *found = e ? sources_base_name(set->files.path[e->file]) : NULL;
    if (!found || strcmp(found, file) != 0)
      return core_fail(set->ctx, WAN_ERR_FORMAT, "%s: the index promises tensor %s in %s, but %s%s",
                       set->path, name, file, found ? "it is in " : "it is not there", found ? found : "");
  }
  return WAN_OK;
}

static const name_family *detect_family(const weight_set *set) {
  const name_family *family;
  for (int f = 1; (family = name_family_at(set->kind, f)); f++)
    for (int64_t i = 0; i < set->count; i++)
      if (name_family_signed(family, name_without_prefix(set->kind, set->item[i].stored))) return family;
  return name_family_at(set->kind, 0);
}

/* Is e a second copy of a tensor that the set has under its usual name, with the same form? */
static bool is_copy(const weight_set *set, const entry *e) {
  char official[NAMES_MAX], usual[NAMES_MAX];
  if (!name_to_official(set->family, e->stored, official) ||
      !name_from_official(set->family, official, usual))
    return false;
  const entry *first = find(set, usual);
  return first && first->value.type == e->value.type && tensor_same_shape(&first->value, &e->value);
}

/* Leave out what is no weight. The index, of stored names, is void afterwards. */
static wan_status drop_others(weight_set *set) {
  bool *drop = core_calloc(set->ctx, (size_t)set->count, sizeof *drop);
  if (!drop) return WAN_ERR_MEMORY;
  wan_status status = WAN_OK;
  for (int64_t i = 0; status == WAN_OK && i < set->count; i++) {
    const entry *e = &set->item[i];
    name_use use = name_use_of(set->kind, name_without_prefix(set->kind, e->stored));
    drop[i] = use == NAME_IGNORED || (use == NAME_TIED && is_copy(set, e));
    if (use == NAME_SCALED)
      status =
          core_fail(set->ctx, WAN_ERR_UNSUPPORTED,
                    "%s: holds weights with separate scales (tensor %s), which is not supported; use the "
                    "bf16 or fp16 file of this model",
                    set->files.path[e->file], e->stored);
  }
  int64_t kept = 0;
  for (int64_t i = 0; status == WAN_OK && i < set->count; i++)
    if (!drop[i]) set->item[kept++] = set->item[i];
  if (status == WAN_OK) set->count = kept;
  core_free(set->ctx, drop);
  return status;
}

static wan_status rename_entry(const weight_set *set, entry *e) {
  char official[NAMES_MAX];
  const char *bare = name_without_prefix(set->kind, e->stored);
  if (!name_to_official(set->family, bare, official))
    return core_fail(set->ctx, WAN_ERR_FORMAT, "%s: a tensor name of more than %d bytes: %.80s...",
                     set->files.path[e->file], NAMES_MAX - 1, e->stored);
  e->name = bare;
  if (strcmp(official, bare) == 0) return WAN_OK;
  e->name = e->own = core_strdup(set->ctx, official);
  return e->own ? WAN_OK : WAN_ERR_MEMORY;
}

/* From the files' names to the official ones. */
static wan_status canonicalise(weight_set *set) {
  CORE_TRY(sort_names(set));
  CORE_TRY(check_promises(set));
  set->family = detect_family(set);
  CORE_TRY(drop_others(set));
  for (int64_t i = 0; i < set->count; i++) CORE_TRY(rename_entry(set, &set->item[i]));
  return sort_names(set);
}

static wan_status set_create(core_ctx *ctx, const char *path, weight_kind kind, weight_set **out) {
  weight_set *set = core_calloc(ctx, 1, sizeof *set);
  *out = set;
  if (!set) return WAN_ERR_MEMORY;
  set->ctx = ctx;
  set->kind = kind;
  set->path = core_strdup(ctx, path);
  return set->path ? WAN_OK : WAN_ERR_MEMORY;
}

static wan_status set_complete(weight_set *set, wan_status status, weight_set **out) {
  *out = set;
  if (status == WAN_OK) status = list_tensors(set);
  if (status == WAN_OK) status = canonicalise(set);
  if (status == WAN_OK) return WAN_OK;
  weight_set_close(set);
  *out = NULL;
  return status;
}

wan_status weight_set_open(core_ctx *ctx, const char *path, weight_kind kind, weight_set **out) {
  wan_status status = set_create(ctx, path, kind, out);
  if (status == WAN_OK) status = open_files(*out);
  return set_complete(*out, status, out);
}

/* One file, whose container is the tensors. */
static wan_status adopt_random(weight_set *set, random_tensors *tensors) {
  set->files.path = core_calloc(set->ctx, 1, sizeof *set->files.path);
  set->opened = core_calloc(set->ctx, 1, sizeof *set->opened);
  set->files.count = set->files.path != NULL;
  if (!set->files.path || !set->opened) {
    random_tensors_close(tensors);
    return WAN_ERR_MEMORY;
  }
  set->opened[0].random = tensors;
  set->files.path[0] = core_strdup(set->ctx, set->path);
  return set->files.path[0] ? WAN_OK : WAN_ERR_MEMORY;
}

wan_status weight_set_open_random(core_ctx *ctx, random_tensors *tensors, weight_kind kind,
                                  weight_set **out) {
  wan_status status = set_create(ctx, "random weights", kind, out);
  if (status == WAN_OK)
    status = adopt_random(*out, tensors);
  else
    random_tensors_close(tensors);
  return set_complete(*out, status, out);
}

void weight_set_close(weight_set *set) {
  if (!set) return;
  for (int64_t i = 0; set->item && i < set->count; i++) core_free(set->ctx, set->item[i].own);
  for (int64_t i = 0; set->opened && i < set->files.count; i++) {
    safetensors_close(set->opened[i].st);
    pth_close(set->opened[i].pth);
    random_tensors_close(set->opened[i].random);
  }
  core_free(set->ctx, set->opened);
  core_free(set->ctx, set->item);
  core_free(set->ctx, set->index);
  sources_free(set->ctx, &set->files);
  core_free(set->ctx, set->path);
  core_free(set->ctx, set);
}

/* ---- Asking ---- */

const char *weight_set_path(const weight_set *set) {
  return set->path;
}

const char *weight_set_family(const weight_set *set) {
  return name_family_name(set->family);
}

int64_t weight_set_count(const weight_set *set) {
  return set->count;
}

const char *weight_set_name(const weight_set *set, int64_t i) {
  return set->item[i].name;
}

tensor weight_set_tensor(const weight_set *set, int64_t i) {
  return set->item[i].value;
}

tensor weight_set_find(const weight_set *set, const char *name) {
  const entry *e = find(set, name);
  return e ? e->value : (tensor){0};
}

int64_t weight_set_parameters(const weight_set *set) {
  int64_t n = 0;
  for (int64_t i = 0; i < set->count; i++) n += tensor_count(&set->item[i].value);
  return n;
}

/* ---- Binding ---- */

/* The entry that has this name, a float type and exactly these dims; NULL with a message and *status
 * otherwise. */
static entry *expect(weight_set *set, int ndim, const int64_t *dim, const char *name, wan_status *status) {
  tensor want = tensor_of(DT_F32, NULL, ndim, dim);
  char expected[128], found[128];
  tensor_shape_text(&want, expected, sizeof expected);
  entry *e = find(set, name);
  if (!e) {
    *status = core_fail(set->ctx, WAN_ERR_FORMAT, "%s: tensor %s is missing (expected shape %s)", set->path,
                        name, expected);
    return NULL;
  }
  const char *file = set->files.path[e->file];
  if (!dtype_is_float(e->value.type)) {
    *status = core_fail(set->ctx, WAN_ERR_FORMAT, "%s: tensor %s has the dtype %s, expected a float type",
                        file, name, dtype_name(e->value.type));
    return NULL;
  }
  if (!tensor_same_shape(&e->value, &want)) {
    *status = core_fail(set->ctx, WAN_ERR_FORMAT, "%s: tensor %s%s%s%s has the shape %s, expected %s", file,
                        name, e->own ? " (stored as " : "", e->own ? e->stored : "", e->own ? ")" : "",
                        tensor_shape_text(&e->value, found, sizeof found), expected);
    return NULL;
  }
  return e;
}

static wan_status bind(weight_set *set, weight *w, weight_role role, int ndim, const int64_t *dim,
                       const char *fmt, va_list ap, int64_t row0, int64_t rows) {
  char name[NAMES_MAX];
  vsnprintf(name, sizeof name, fmt, ap);
  int64_t whole[TENSOR_MAX_DIMS] = {0};
  if (ndim < 1 || ndim > TENSOR_MAX_DIMS || row0 < 0 || dim[0] < 0 || row0 > rows - dim[0])
    return core_fail(set->ctx, WAN_ERR_ARGUMENT, "%s: rows %lld of tensor %s: out of its %lld rows",
                     set->path, (long long)row0, name, (long long)rows);
  memcpy(whole, dim, (size_t)ndim * sizeof *dim);
  whole[0] = rows;
  wan_status status = WAN_OK;
  entry *e = expect(set, ndim, whole, name, &status);
  if (!e) return status;
  e->bound = true;
  *w = (weight){.name = e->name, .role = role, .src = tensor_slice(e->value, row0, dim[0])};
  return WAN_OK;
}

wan_status weight_set_bind(weight_set *set, weight *w, weight_role role, int ndim, const int64_t *dim,
                           const char *name_fmt, ...) {
  va_list ap;
  va_start(ap, name_fmt);
  wan_status status = bind(set, w, role, ndim, dim, name_fmt, ap, 0, dim[0]);
  va_end(ap);
  return status;
}

wan_status weight_set_bind_rows(weight_set *set, weight *w, weight_role role, int ndim, const int64_t *dim,
                                int64_t row0, int64_t rows, const char *name_fmt, ...) {
  va_list ap;
  va_start(ap, name_fmt);
  wan_status status = bind(set, w, role, ndim, dim, name_fmt, ap, row0, rows);
  va_end(ap);
  return status;
}

wan_status weight_set_finish(weight_set *set) {
  enum { SHOWN = 5 };
  char names[SHOWN * (NAMES_MAX + 2) + 8] = "";
  size_t used = 0;
  int64_t extra = 0;
  for (int64_t i = 0; i < set->count; i++) {
    if (set->item[i].bound) continue;
    if (extra++ < SHOWN)
      used += (size_t)snprintf(names + used, sizeof names - used, "%s%.*s", used ? ", " : "", NAMES_MAX,
                               set->item[i].name);
  }
  if (!extra) return WAN_OK;
  return core_fail(set->ctx, WAN_ERR_FORMAT, "%s: %lld tensor%s this model does not have: %s%s", set->path,
                   (long long)extra, extra == 1 ? "" : "s", names, extra > SHOWN ? ", ..." : "");
}
