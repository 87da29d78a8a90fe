/* pth.c: a PyTorch checkpoint is a zip file of stored entries: NAME/data.pkl, a pickle that describes the
 * tensors, and NAME/data/KEY, the bytes of each storage. Reading one is a matter of believing nothing:
 * zip.c finds the entries, pickle.c reads the description without running it, and this file checks that
 * every tensor lies inside its storage, contiguously.
 */
#include "weights/pth.h"

#include "core/file.h"
#include "weights/pickle.h"
#include "weights/zip.h"

#include <stdio.h>
#include <string.h>

enum {
  PICKLE_LIMIT = 16 << 20, /* bytes; the official encoder's description has 40 kB */
  KEY_LIMIT = 64,          /* bytes of a storage's key, in practice a small number */
};

typedef struct item {
  char *name;
  tensor value;
} item;

struct pth {
  core_ctx *ctx;
  char *path;
  core_map map;
  item *item;
  int64_t count;
};

typedef struct archive {
  pth *file;
  zip_directory zip;
  const char *prefix; /* "NAME/" in front of data.pkl, prefix_size bytes */
  int prefix_size;
  pickle pickle;
} archive;

static bool begins(const core_map *map, const char *magic, size_t n) {
  return map->size >= n && memcmp(map->data, magic, n) == 0;
}

bool pth_probe(const char *path) {
  unsigned char head[9] = {0}; /* byte 8 of a safetensors file begins its header: "{" */
  FILE *f = core_path_is_file(path) ? fopen(path, "rb") : NULL;
  size_t n = f ? fread(head, 1, sizeof head, f) : 0;
  if (f) fclose(f);
  if (n < sizeof head || head[8] == '{') return false;
  return memcmp(head, "PK\003\004", 4) == 0 ||
         memcmp(head, "\x80\x02\x8a\x0a", 4) == 0; /* or the old magic */
}

/* Anything but a zip file gets the message that helps. */
static wan_status check_magic(const pth *p) {
  if (begins(&p->map, "PK\003\004", 4)) return WAN_OK;
  if (begins(&p->map, "\x80", 1) || (p->map.size > 262 && memcmp(p->map.data + 257, "ustar", 5) == 0))
    return core_fail(
        p->ctx, WAN_ERR_UNSUPPORTED,
        "%s: written by torch.save() of PyTorch before 1.6 (not a zip file), which is not supported; "
        "load it in PyTorch and save it again, or convert it to safetensors",
        p->path);
  return core_fail(p->ctx, WAN_ERR_FORMAT, "%s: not a PyTorch checkpoint: it does not begin as a zip file",
                   p->path);
}

static const zip_entry *entry_of(const archive *a, const char *name, int name_size) {
  char full[512];
  int n = snprintf(full, sizeof full, "%.*s%.*s", a->prefix_size, a->prefix, name_size, name);
  return n > 0 && n < (int)sizeof full ? zip_find(&a->zip, full) : NULL;
}

/* The one entry NAME/data.pkl gives the prefix of all others. */
static wan_status find_prefix(archive *a) {
  static const char tail[] = "/data.pkl";
  const size_t tail_size = sizeof tail - 1;
  pth *p = a->file;
  for (int64_t i = 0; i < a->zip.count; i++) {
    const char *name = a->zip.item[i].name;
    size_t n = strlen(name);
    if (n < tail_size || strcmp(name + n - tail_size, tail) != 0) continue;
    if (a->prefix) return core_fail(p->ctx, WAN_ERR_FORMAT, "%s: more than one data.pkl inside", p->path);
    a->prefix = name;
    a->prefix_size = (int)(n - tail_size) + 1;
  }
  if (!a->prefix)
    return core_fail(p->ctx, WAN_ERR_FORMAT,
                     "%s: a zip file, but no PyTorch checkpoint: there is no data.pkl in it", p->path);
  if (entry_of(a, "constants.pkl", 13))
    return core_fail(
        p->ctx, WAN_ERR_UNSUPPORTED,
        "%s: a TorchScript program, which is not supported; a state dict saved with torch.save() is",
        p->path);
  return WAN_OK;
}

static wan_status require_stored(const archive *a) {
  for (int64_t i = 0; i < a->zip.count; i++)
    if (!a->zip.item[i].stored)
      return core_fail(
          a->file->ctx, WAN_ERR_UNSUPPORTED,
          "%s: the entry %.200s is compressed or encrypted; torch.save() stores entries as they are, "
          "and only that is supported",
          a->file->path, a->zip.item[i].name);
  return WAN_OK;
}

static wan_status check_byte_order(const archive *a) {
  const zip_entry *e = entry_of(a, "byteorder", 9);
  if (!e || (e->size == 6 && memcmp(e->data, "little", 6) == 0)) return WAN_OK;
  return core_fail(a->file->ctx, WAN_ERR_UNSUPPORTED, "%s: not in little-endian byte order", a->file->path);
}

static wan_status read_pickle(archive *a) {
  pth *p = a->file;
  const zip_entry *e = entry_of(a, "data.pkl", 8);
  if (!e || e->size > PICKLE_LIMIT)
    return core_fail(p->ctx, WAN_ERR_FORMAT, "%s: data.pkl has more than %d bytes", p->path, PICKLE_LIMIT);
  return pickle_read(p->ctx, p->path, e->data, (size_t)e->size, &a->pickle);
}

/* The bytes of a storage, whose size must be the one the pickle states. */
static wan_status find_storage(const archive *a, const char *name, const pickle_value *s,
                               const zip_entry **out) {
  const pth *p = a->file;
  char key[KEY_LIMIT + 8];
  if (s->size > KEY_LIMIT || memchr(s->text, 0, s->size) || memchr(s->text, '/', s->size))
    return core_fail(p->ctx, WAN_ERR_FORMAT, "%s: tensor %s: its storage has an impossible key", p->path,
                     name);
  int n = snprintf(key, sizeof key, "data/%.*s", (int)s->size, s->text);
  const zip_entry *e = entry_of(a, key, n);
  if (!e)
    return core_fail(p->ctx, WAN_ERR_FORMAT, "%s: tensor %s: its storage %s is not in the file", p->path,
                     name, key);
  uint64_t unit = s->dtype == DT_NONE ? 1 : dtype_size(s->dtype);
  if (s->number < 0 || (uint64_t)s->number > UINT64_MAX / unit || (uint64_t)s->number * unit != e->size)
    return core_fail(
        p->ctx, WAN_ERR_FORMAT,
        "%s: tensor %s: its storage %s has %llu bytes, but %lld elements of %llu bytes are announced",
        p->path, name, key, (unsigned long long)e->size, (long long)s->number, (unsigned long long)unit);
  *out = e;
  return WAN_OK;
}

static wan_status read_shape(const pth *p, const char *name, const pickle_value *v, tensor *t) {
  const pickle_value *size = v->child[1], *stride = v->child[2];
  if (size->count > TENSOR_MAX_DIMS)
    return core_fail(p->ctx, WAN_ERR_UNSUPPORTED,
                     "%s: tensor %s has %lld dimensions, at most %d are supported", p->path, name,
                     (long long)size->count, TENSOR_MAX_DIMS);
  bool ok = stride->count == size->count;
  for (int64_t i = 0; ok && i < size->count; i++) {
    ok = size->child[i]->type == PICKLE_INT && stride->child[i]->type == PICKLE_INT &&
         size->child[i]->number >= 0;
    t->dim[i] = ok ? size->child[i]->number : 0;
  }
  int64_t count;
  t->ndim = (int)size->count;
  if (!ok || !tensor_dims_count(t->ndim, t->dim, &count))
    return core_fail(p->ctx, WAN_ERR_FORMAT, "%s: tensor %s: impossible shape", p->path, name);
  int64_t step = 1; /* what the stride has to be; irrelevant where nothing is stepped over */
  for (int i = t->ndim - 1; i >= 0 && count > 0; i--) {
    if (t->dim[i] != 1 && stride->child[i]->number != step)
      return core_fail(p->ctx, WAN_ERR_UNSUPPORTED,
                       "%s: tensor %s is not contiguous (stride %lld instead of %lld in dimension %d); call "
                       ".contiguous() before saving it",
                       p->path, name, (long long)stride->child[i]->number, (long long)step, i);
    step *= t->dim[i];
  }
  return WAN_OK;
}

static wan_status read_tensor(const archive *a, const char *name, const pickle_value *v, tensor *out) {
  const pth *p = a->file;
  const zip_entry *e = NULL;
  tensor t = {.type = v->dtype};
  CORE_TRY(find_storage(a, name, v->child[0], &e));
  CORE_TRY(read_shape(p, name, v, &t));
  uint64_t unit = dtype_size(t.type), room = e->size / unit, count = (uint64_t)tensor_count(&t);
  if (v->number < 0 || (uint64_t)v->number > room || count > room - (uint64_t)v->number)
    return core_fail(p->ctx, WAN_ERR_FORMAT,
                     "%s: tensor %s: %llu elements from element %lld on exceed its storage", p->path, name,
                     (unsigned long long)count, (long long)v->number);
  t.data = (void *)(uintptr_t)(e->data + (uint64_t)v->number * unit);
  *out = t;
  return WAN_OK;
}

static int64_t tensors_in(const pickle_value *dict) {
  int64_t n = 0;
  for (int64_t i = 0; i < dict->count; i += 2) n += dict->child[i + 1]->type == PICKLE_TENSOR;
  return n;
}

/* The dict that holds the tensors: the root or its "state_dict". */
static wan_status find_state(const archive *a, const pickle_value **out) {
  const pickle_value *root = a->pickle.root, *state = root;
  if (root->type == PICKLE_DICT && !tensors_in(root))
    for (int64_t i = 0; i < root->count; i += 2) {
      const pickle_value *key = root->child[i], *value = root->child[i + 1];
      if (key->type == PICKLE_STRING && key->size == 10 && memcmp(key->text, "state_dict", 10) == 0)
        state = value;
    }
  if (state->type != PICKLE_DICT || !tensors_in(state))
    return core_fail(a->file->ctx, WAN_ERR_FORMAT,
                     "%s: no tensors: expected a dict of them, or one under the key \"state_dict\"",
                     a->file->path);
  *out = state;
  return WAN_OK;
}

static wan_status read_state(archive *a) {
  const pickle_value *state = NULL;
  pth *p = a->file;
  CORE_TRY(find_state(a, &state));
  p->item = core_calloc(p->ctx, (size_t)tensors_in(state), sizeof *p->item);
  if (!p->item) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < state->count; i += 2) {
    const pickle_value *key = state->child[i], *value = state->child[i + 1];
    if (value->type != PICKLE_TENSOR) continue; /* an epoch, a version: no weights */
    if (key->type != PICKLE_STRING || memchr(key->text, 0, key->size))
      return core_fail(p->ctx, WAN_ERR_FORMAT, "%s: a tensor whose name is not a text", p->path);
    item *it = &p->item[p->count];
    it->name = core_asprintf(p->ctx, "%.*s", (int)key->size, key->text);
    if (!it->name) return WAN_ERR_MEMORY;
    p->count++;
    CORE_TRY(read_tensor(a, it->name, value, &it->value));
  }
  return WAN_OK;
}

wan_status pth_open(core_ctx *ctx, const char *path, pth **out) {
  *out = NULL;
  pth *p = core_calloc(ctx, 1, sizeof *p);
  if (!p) return WAN_ERR_MEMORY;
  p->ctx = ctx;
  p->path = core_strdup(ctx, path);
  archive a = {.file = p};
  wan_status status = p->path ? core_map_open(ctx, path, &p->map) : WAN_ERR_MEMORY;
  if (status == WAN_OK) status = check_magic(p);
  if (status == WAN_OK) status = zip_open(ctx, path, p->map, &a.zip);
  if (status == WAN_OK) status = find_prefix(&a);
  if (status == WAN_OK) status = require_stored(&a);
  if (status == WAN_OK) status = check_byte_order(&a);
  if (status == WAN_OK) status = read_pickle(&a);
  if (status == WAN_OK) status = read_state(&a);
  pickle_free(ctx, &a.pickle);
  zip_close(ctx, &a.zip);
  if (status == WAN_OK)
    *out = p;
  else
    pth_close(p);
  return status;
}

void pth_close(pth *p) {
  if (!p) return;
  for (int64_t i = 0; i < p->count; i++) core_free(p->ctx, p->item[i].name);
  core_free(p->ctx, p->item);
  core_map_close(&p->map);
  core_free(p->ctx, p->path);
  core_free(p->ctx, p);
}

int64_t pth_count(const pth *p) {
  return p->count;
}

const char *pth_name(const pth *p, int64_t i) {
  return p->item[i].name;
}

tensor pth_tensor(const pth *p, int64_t i) {
  return p->item[i].value;
}
