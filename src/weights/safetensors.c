/* safetensors.c: the reader trusts nothing in the file.
 *
 * Layout: u64 little-endian N, N bytes of JSON, then the data area. The JSON maps each tensor's name to
 * its dtype, shape and byte range [begin, end) in the data area; "__metadata__" maps strings to strings.
 * The ranges have to tile the data area: no overlap, no hole, nothing after the last one. That is the
 * format's own rule, and it is what makes a cut or padded file visible before any tensor is used.
 */
#include "weights/safetensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PREFIX = 8 };                                  /* bytes of the header length */
static const uint64_t HEADER_MAX = 100 * 1000 * 1000; /* the limit of the reference reader */
static const char METADATA[] = "__metadata__";

typedef struct span { /* a tensor's bytes in the data area */
  uint64_t begin, end;
  const char *name;
} span;

typedef struct by_name {
  const char *name;
  int64_t i;
} by_name;

struct safetensors {
  core_ctx *ctx;
  char *path;
  core_map map;
  json_t *header; /* owns every name and the metadata */
  named_tensor *item;
  by_name *index; /* sorted */
  int64_t count;
};

/* ---- Reading ---- */

static dtype dtype_of(const char *name) {
  for (int t = DT_NONE + 1; t < DT_E4M3_ROWS; t++) /* the others are in no file */
    if (strcmp(name, dtype_name((dtype)t)) == 0) return (dtype)t;
  return DT_NONE;
}

static int compare_spans(const void *a, const void *b) {
  const span *x = a, *y = b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return x->end < y->end ? -1 : x->end > y->end; /* empty tensors come first */
}

static int compare_names(const void *a, const void *b) {
  return strcmp(((const by_name *)a)->name, ((const by_name *)b)->name);
}

/* Find the header in the mapping and parse it; *data and *data_size describe the data area. */
static wan_status read_header(safetensors *s, const unsigned char **data, uint64_t *data_size) {
  if (s->map.size < PREFIX)
    return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: %zu bytes are too few for a safetensors file", s->path,
                     s->map.size);
  uint64_t n = 0, room = s->map.size - PREFIX;
  for (int i = PREFIX - 1; i >= 0; i--) n = n << 8 | s->map.data[i];
  if (n > HEADER_MAX)
    return core_fail(
        s->ctx, WAN_ERR_FORMAT,
        "%s: the header would be %llu bytes long, more than the %llu a safetensors file may have; "
        "is it another format?",
        s->path, (unsigned long long)n, (unsigned long long)HEADER_MAX);
  if (n > room)
    return core_fail(s->ctx, WAN_ERR_FORMAT,
                     "%s: the header is %llu bytes long but only %llu follow: the file is cut off", s->path,
                     (unsigned long long)n, (unsigned long long)room);
  json_error_t e;
  s->header = json_loadb((const char *)s->map.data + PREFIX, (size_t)n, JSON_REJECT_DUPLICATES, &e);
  if (!s->header && json_error_code(&e) == json_error_out_of_memory)
    return core_fail(s->ctx, WAN_ERR_MEMORY, "%s: out of memory reading the header", s->path);
  if (!s->header)
    return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: the header is not valid JSON: %s (byte %d)", s->path,
                     e.text, e.position + PREFIX);
  if (!json_is_object(s->header))
    return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: the header is not a JSON object", s->path);
  *data = s->map.data + PREFIX + n;
  *data_size = room - n;
  return WAN_OK;
}

static wan_status check_metadata(const safetensors *s, const json_t *metadata) {
  const char *key;
  json_t *value;
  if (metadata && !json_is_object(metadata))
    return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: %s is not a JSON object", s->path, METADATA);
  json_object_foreach((json_t *)(uintptr_t)metadata, key, value) {
    if (!json_is_string(value))
      return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: %s entry \"%s\" is not a string", s->path, METADATA, key);
  }
  return WAN_OK;
}

static wan_status read_shape(const safetensors *s, const char *name, const json_t *shape, tensor *t) {
  if (!json_is_array(shape))
    return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: tensor %s: no \"shape\" array", s->path, name);
  size_t n = json_array_size(shape);
  if (n > TENSOR_MAX_DIMS)
    return core_fail(s->ctx, WAN_ERR_UNSUPPORTED,
                     "%s: tensor %s has %zu dimensions, at most %d are supported", s->path, name, n,
                     TENSOR_MAX_DIMS);
  t->ndim = (int)n;
  for (size_t i = 0; i < n; i++) {
    const json_t *d = json_array_get(shape, i);
    if (!json_is_integer(d) || json_integer_value(d) < 0)
      return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: tensor %s: dimension %zu is not a whole number >= 0",
                       s->path, name, i);
    t->dim[i] = json_integer_value(d);
  }
  return WAN_OK;
}

static wan_status read_span(const safetensors *s, const char *name, const json_t *offsets, uint64_t data_size,
                            span *out) {
  const json_t *b = json_array_get(offsets, 0), *e = json_array_get(offsets, 1);
  if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(e))
    return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: tensor %s: \"data_offsets\" is not a pair of whole numbers",
                     s->path, name);
  int64_t begin = json_integer_value(b), end = json_integer_value(e);
  if (begin < 0 || end < begin)
    return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: tensor %s: data offsets [%lld, %lld) are not a range",
                     s->path, name, (long long)begin, (long long)end);
  if ((uint64_t)end > data_size)
    return core_fail(
        s->ctx, WAN_ERR_FORMAT,
        "%s: tensor %s ends at byte %lld of the data, which has only %llu bytes: the file is cut off",
        s->path, name, (long long)end, (unsigned long long)data_size);
  *out = (span){(uint64_t)begin, (uint64_t)end, name};
  return WAN_OK;
}

static wan_status read_entry(const safetensors *s, const char *name, const json_t *entry,
                             const unsigned char *data, uint64_t data_size, tensor *t, span *where) {
  const char *type = json_string_value(json_object_get(entry, "dtype"));
  if (!type) return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: tensor %s: no \"dtype\" string", s->path, name);
  *t = (tensor){.type = dtype_of(type)};
  if (t->type == DT_NONE)
    return core_fail(s->ctx, WAN_ERR_UNSUPPORTED,
                     "%s: tensor %s has the dtype \"%s\", which is not supported", s->path, name, type);
  CORE_TRY(read_shape(s, name, json_object_get(entry, "shape"), t));
  CORE_TRY(read_span(s, name, json_object_get(entry, "data_offsets"), data_size, where));
  int64_t count;
  uint64_t bytes = where->end - where->begin;
  size_t size = dtype_size(t->type);
  char shape[128];
  if (!tensor_dims_count(t->ndim, t->dim, &count) || (uint64_t)count > UINT64_MAX / size ||
      (uint64_t)count * size != bytes)
    return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: tensor %s: shape %s of %s does not fill its %llu bytes",
                     s->path, name, tensor_shape_text(t, shape, sizeof shape), type,
                     (unsigned long long)bytes);
  t->data = (void *)(uintptr_t)(data + where->begin);
  return WAN_OK;
}

/* The spans, sorted, must tile the data area. */
static wan_status check_tiling(const safetensors *s, span *spans, uint64_t data_size) {
  qsort(spans, (size_t)s->count, sizeof *spans, compare_spans);
  uint64_t at = 0;
  for (int64_t i = 0; i < s->count; i++) {
    if (spans[i].begin < at)
      return core_fail(s->ctx, WAN_ERR_FORMAT, "%s: tensors %s and %s overlap at byte %llu of the data",
                       s->path, spans[i - 1].name, spans[i].name, (unsigned long long)spans[i].begin);
    if (spans[i].begin > at)
      return core_fail(s->ctx, WAN_ERR_FORMAT,
                       "%s: bytes %llu to %llu of the data, before tensor %s, belong to no tensor", s->path,
                       (unsigned long long)at, (unsigned long long)spans[i].begin, spans[i].name);
    at = spans[i].end;
  }
  if (at != data_size)
    return core_fail(s->ctx, WAN_ERR_FORMAT,
                     "%s: the data goes on for %llu bytes after its last tensor, which ends at byte %llu",
                     s->path, (unsigned long long)(data_size - at), (unsigned long long)at);
  return WAN_OK;
}

static wan_status read_tensors(safetensors *s, const unsigned char *data, uint64_t data_size) {
  json_t *metadata = json_object_get(s->header, METADATA), *entry;
  CORE_TRY(check_metadata(s, metadata));
  size_t n = json_object_size(s->header) - (metadata != NULL);
  span *spans = core_calloc(s->ctx, n, sizeof *spans);
  s->item = core_calloc(s->ctx, n, sizeof *s->item);
  s->index = core_calloc(s->ctx, n, sizeof *s->index);
  wan_status status = spans && s->item && s->index ? WAN_OK : WAN_ERR_MEMORY;
  const char *name;
  json_object_foreach(s->header, name, entry) {
    if (status != WAN_OK) break;
    if (entry == metadata) continue;
    int64_t i = s->count++;
    s->item[i].name = name;
    s->index[i] = (by_name){name, i};
    status = read_entry(s, name, entry, data, data_size, &s->item[i].value, &spans[i]);
  }
  if (status == WAN_OK) status = check_tiling(s, spans, data_size);
  if (status == WAN_OK) qsort(s->index, (size_t)s->count, sizeof *s->index, compare_names);
  core_free(s->ctx, spans);
  return status;
}

wan_status safetensors_open(core_ctx *ctx, const char *path, safetensors **out) {
  *out = NULL;
  const unsigned char *data = NULL;
  uint64_t data_size = 0;
  safetensors *s = core_calloc(ctx, 1, sizeof *s);
  if (!s) return WAN_ERR_MEMORY;
  s->ctx = ctx;
  s->path = core_strdup(ctx, path);
  wan_status status = s->path ? core_map_open(ctx, path, &s->map) : WAN_ERR_MEMORY;
  if (status == WAN_OK) status = read_header(s, &data, &data_size);
  if (status == WAN_OK) status = read_tensors(s, data, data_size);
  if (status != WAN_OK) {
    safetensors_close(s);
    return status;
  }
  *out = s;
  return WAN_OK;
}

void safetensors_close(safetensors *s) {
  if (!s) return;
  core_map_close(&s->map);
  json_decref(s->header);
  core_free(s->ctx, s->item);
  core_free(s->ctx, s->index);
  core_free(s->ctx, s->path);
  core_free(s->ctx, s);
}

int64_t safetensors_count(const safetensors *s) {
  return s->count;
}

const char *safetensors_name(const safetensors *s, int64_t i) {
  return s->item[i].name;
}

tensor safetensors_tensor(const safetensors *s, int64_t i) {
  return s->item[i].value;
}

tensor safetensors_find(const safetensors *s, const char *name) {
  by_name key = {name, 0};
  const by_name *hit = bsearch(&key, s->index, (size_t)s->count, sizeof *s->index, compare_names);
  return hit ? s->item[hit->i].value : (tensor){0};
}

const char *safetensors_metadata(const safetensors *s, const char *key) {
  return json_string_value(json_object_get(json_object_get(s->header, METADATA), key));
}

/* ---- Writing ---- */

/* {"dtype": .., "shape": [..], "data_offsets": [begin, end]}; NULL when memory is short. */
static json_t *describe(const tensor *t, uint64_t begin) {
  json_t *shape = json_array();
  for (int i = 0; i < t->ndim; i++)
    if (json_array_append_new(shape, json_integer(t->dim[i])) != 0) {
      json_decref(shape);
      return NULL;
    }
  return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(t->type), "shape", shape, "data_offsets",
                   (json_int_t)begin, (json_int_t)(begin + tensor_bytes(t)));
}

/* The header as text; *text is freed with free(). */
static wan_status make_header(core_ctx *ctx, const char *path, int n, const named_tensor *tensors,
                              const char *const *metadata, char **text) {
  wan_status status = WAN_OK;
  uint64_t at = 0;
  bool ok = true;
  json_t *root = json_object(), *meta = NULL;
  if (metadata) ok = json_object_set_new(root, METADATA, meta = json_object()) == 0;
  for (; ok && metadata && metadata[0]; metadata += 2)
    ok = json_object_set_new(meta, metadata[0], json_string(metadata[1])) == 0;
  for (int i = 0; ok && i < n; i++) {
    const char *name = tensors[i].name;
    if (json_object_get(root, name) || strcmp(name, METADATA) == 0) {
      status =
          core_fail(ctx, WAN_ERR_ARGUMENT, "%s: the tensor name %s is reserved or used twice", path, name);
      goto done;
    }
    if (tensors[i].value.type == DT_NONE) {
      status = core_fail(ctx, WAN_ERR_ARGUMENT, "%s: tensor %s has no dtype", path, name);
      goto done;
    }
    ok = json_object_set_new(root, name, describe(&tensors[i].value, at)) == 0;
    at += tensor_bytes(&tensors[i].value);
  }
  if (ok) *text = json_dumps(root, JSON_COMPACT);
  if (!ok || !*text)
    status = core_fail(ctx, WAN_ERR_MEMORY,
                       "%s: the header could not be made (out of memory, or a name or a "
                       "metadata text that is not UTF-8)",
                       path);
done:
  json_decref(root);
  return status;
}

static bool write_all(FILE *f, const char *header, int n, const named_tensor *tensors) {
  size_t length = strlen(header), padded = (length + 7) & ~(size_t)7; /* the data starts aligned */
  unsigned char prefix[PREFIX];
  for (int i = 0; i < PREFIX; i++) prefix[i] = (unsigned char)((uint64_t)padded >> (8 * i));
  bool ok = fwrite(prefix, 1, PREFIX, f) == PREFIX && fwrite(header, 1, length, f) == length;
  for (; ok && length < padded; length++) ok = fputc(' ', f) != EOF;
  for (int i = 0; ok && i < n; i++) {
    size_t bytes = tensor_bytes(&tensors[i].value);
    ok = !bytes || fwrite(tensors[i].value.data, 1, bytes, f) == bytes;
  }
  return ok;
}

wan_status safetensors_write(core_ctx *ctx, const char *path, int n, const named_tensor *tensors,
                             const char *const *metadata) {
  char *header = NULL;
  CORE_TRY(make_header(ctx, path, n, tensors, metadata, &header));
  core_outfile file;
  wan_status status = core_outfile_begin(ctx, path, &file);
  if (status != WAN_OK) goto done;
  FILE *f = fopen(file.temp, "wb");
  bool ok = f && write_all(f, header, n, tensors);
  int error = errno;
  if (f && fclose(f) != 0 && ok) {
    ok = false;
    error = errno;
  }
  if (ok) {
    status = core_outfile_commit(ctx, &file);
  } else {
    status = core_fail(ctx, WAN_ERR_IO, "%s: can't write: %s", path, strerror(error));
    core_outfile_abort(ctx, &file);
  }
done:
  free(header);
  return status;
}
