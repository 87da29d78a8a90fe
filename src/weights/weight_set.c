/* weight_set.c: the tensors of one network, from however many files, under one set of names. */
#include "weights/weights.h"

#include "weights/safetensors.h"
#include "weights/sources.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 256 };

typedef struct entry {
  const char *name; /* canonical */
  tensor value;
  int64_t file; /* index into sources */
  bool bound;
} entry;

struct weight_set {
  core_ctx *ctx;
  char *path;
  sources files;
  safetensors **opened; /* one a file */
  entry *item;
  entry **index; /* sorted by name */
  int64_t count;
};

/* ---- Opening ---- */

static int compare_entries(const void *a, const void *b) {
  return strcmp((*(entry *const *)a)->name, (*(entry *const *)b)->name);
}

static entry *find(const weight_set *set, const char *name) {
  entry key = {.name = name}, *want = &key;
  entry **hit = bsearch(&want, set->index, (size_t)set->count, sizeof *set->index, compare_entries);
  return hit ? *hit : NULL;
}

static wan_status open_files(weight_set *set) {
  CORE_TRY(sources_find(set->ctx, set->path, &set->files));
  set->opened = core_calloc(set->ctx, (size_t)set->files.count, sizeof *set->opened);
  if (!set->opened) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < set->files.count; i++) {
    CORE_TRY(safetensors_open(set->ctx, set->files.path[i], &set->opened[i]));
    set->count += safetensors_count(set->opened[i]);
  }
  return WAN_OK;
}

static wan_status list_tensors(weight_set *set) {
  set->item = core_calloc(set->ctx, (size_t)set->count, sizeof *set->item);
  set->index = core_calloc(set->ctx, (size_t)set->count, sizeof *set->index);
  if (!set->item || !set->index) return WAN_ERR_MEMORY;
  entry *e = set->item;
  for (int64_t f = 0; f < set->files.count; f++)
    for (int64_t i = 0; i < safetensors_count(set->opened[f]); i++, e++)
      *e = (entry){.name = safetensors_name(set->opened[f], i),
                   .value = safetensors_tensor(set->opened[f], i),
                   .file = f};
  return WAN_OK;
}

static wan_status sort_names(weight_set *set) {
  for (int64_t i = 0; i < set->count; i++) set->index[i] = &set->item[i];
  qsort(set->index, (size_t)set->count, sizeof *set->index, compare_entries);
  for (int64_t i = 1; i < set->count; i++) {
    const entry *a = set->index[i - 1], *b = set->index[i];
    if (strcmp(a->name, b->name) == 0)
      return core_fail(set->ctx, WAN_ERR_FORMAT, "tensor %s is in %s and again in %s", a->name,
                       set->files.path[a->file], set->files.path[b->file]);
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

wan_status weight_set_open(core_ctx *ctx, const char *path, weight_kind kind, weight_set **out) {
  *out = NULL;
  (void)kind;
  weight_set *set = core_calloc(ctx, 1, sizeof *set);
  if (!set) return WAN_ERR_MEMORY;
  set->ctx = ctx;
  set->path = core_strdup(ctx, path);
  wan_status status = set->path ? open_files(set) : WAN_ERR_MEMORY;
  if (status == WAN_OK) status = list_tensors(set);
  if (status == WAN_OK) status = sort_names(set);
  if (status == WAN_OK) status = check_promises(set);
  if (status != WAN_OK) {
    weight_set_close(set);
    return status;
  }
  *out = set;
  return WAN_OK;
}

void weight_set_close(weight_set *set) {
  if (!set) return;
  for (int64_t i = 0; set->opened && i < set->files.count; i++) safetensors_close(set->opened[i]);
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
    *status = core_fail(set->ctx, WAN_ERR_FORMAT, "%s: tensor %s has the shape %s, expected %s", file, name,
                        tensor_shape_text(&e->value, found, sizeof found), expected);
    return NULL;
  }
  return e;
}

static wan_status bind(weight_set *set, weight *w, weight_role role, int ndim, const int64_t *dim,
                       const char *fmt, va_list ap, int64_t row0, int64_t rows) {
  char name[NAME_MAX_BYTES];
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
  char names[SHOWN * (NAME_MAX_BYTES + 2) + 8] = "";
  size_t used = 0;
  int64_t extra = 0;
  for (int64_t i = 0; i < set->count; i++) {
    if (set->item[i].bound) continue;
    if (extra++ < SHOWN)
      used += (size_t)snprintf(names + used, sizeof names - used, "%s%.*s", used ? ", " : "", NAME_MAX_BYTES,
                               set->item[i].name);
  }
  if (!extra) return WAN_OK;
  return core_fail(set->ctx, WAN_ERR_FORMAT, "%s: %lld tensor%s this model does not have: %s%s", set->path,
                   (long long)extra, extra == 1 ? "" : "s", names, extra > SHOWN ? ", ..." : "");
}
