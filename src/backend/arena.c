/* arena.c: scopes. A stack of chunks of backend memory; scope_begin() notes the top, scope_end()
 * pops back to it. Chunks stay cached between scopes (allocation costs nothing in a denoising loop)
 * until scope_trim(). A chunk is at least CHUNK_MIN bytes or as large as the tensor that needs it. */
#include "backend/backend.h"

enum { ALIGN = 256, CHUNK_MIN = 4 << 20 };

struct backend_scope_chunk {
  backend_scope_chunk *prev, *next;
  char *data;
  size_t size, used;
};

scope_mark scope_begin(backend *be) {
  return (scope_mark){be->top, be->top ? be->top->used : 0};
}

void scope_end(backend *be, scope_mark mark) {
  for (backend_scope_chunk *c = be->top; c && c != mark.chunk; c = c->prev) c->used = 0;
  be->top = mark.chunk;
  if (mark.chunk) mark.chunk->used = mark.used;
}

static void chunk_free(backend *be, backend_scope_chunk *c) {
  if (c->prev) c->prev->next = c->next;
  if (c->next) c->next->prev = c->prev;
  if (be->chunks == c) be->chunks = c->next;
  be->ops->mem_free(be, c->data, c->size);
  core_free(be->ctx, c);
}

void scope_trim(backend *be) {
  while (be->chunks && !be->top) chunk_free(be, be->chunks);
  if (be->ops->mem_trim) be->ops->mem_trim(be);
}

/* The next chunk above the top that holds `bytes`; smaller cached ones in the way are replaced. */
static backend_scope_chunk *chunk_for(backend *be, size_t bytes) {
  backend_scope_chunk *above = be->top ? be->top->next : be->chunks;
  while (above && above->size < bytes) {
    backend_scope_chunk *next = above->next;
    chunk_free(be, above);
    above = next;
  }
  if (above) return above;
  backend_scope_chunk *c = core_calloc(be->ctx, 1, sizeof *c);
  if (!c) return NULL;
  c->size = bytes > CHUNK_MIN ? bytes : CHUNK_MIN;
  c->data = be->ops->mem_alloc(be, c->size);
  if (!c->data) {
    core_free(be->ctx, c);
    return NULL;
  }
  c->prev = be->top;
  if (be->top) be->top->next = c;
  if (!be->chunks) be->chunks = c;
  return c;
}

wan_status scope_reserve(backend *be, size_t bytes) {
  if (!bytes || be->top || be->chunks) return WAN_OK;
  return chunk_for(be, bytes) ? WAN_OK : WAN_ERR_MEMORY;
}

static void note_peak(backend *be) {
  size_t used = 0;
  for (const backend_scope_chunk *c = be->top; c; c = c->prev) used += c->used;
  if (used > be->scope_peak) be->scope_peak = used;
}

static tensor describe(backend *be, dtype type, int ndim, const int64_t *dim, size_t *bytes) {
  if (type == DT_NONE) type = be->act;
  tensor t = tensor_of(type, NULL, ndim, dim);
  int64_t count = 0;
  if (!tensor_dims_count(ndim, dim, &count) || count > INT64_MAX / 8) {
    char shape[128];
    backend_fail(be, WAN_ERR_ARGUMENT, "a tensor of shape %s is too large",
                 tensor_shape_text(&t, shape, sizeof shape));
    return (tensor){0};
  }
  *bytes = tensor_bytes(&t);
  return t;
}

tensor tensor_new(backend *be, dtype type, int ndim, const int64_t *dim) {
  if (be->failed) return (tensor){0};
  size_t bytes = 0;
  tensor t = describe(be, type, ndim, dim, &bytes);
  if (t.type == DT_NONE) return t;
  bytes = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
  if (!be->top || be->top->size - be->top->used < bytes) {
    backend_scope_chunk *c = chunk_for(be, bytes);
    if (!c) {
      be->failed = WAN_ERR_MEMORY;
      return (tensor){0};
    }
    c->used = 0;
    be->top = c;
  }
  t.data = be->top->data + be->top->used;
  be->top->used += bytes;
  if (be->dry) note_peak(be);
  return t;
}

tensor tensor_alloc(backend *be, dtype type, int ndim, const int64_t *dim) {
  if (be->failed) return (tensor){0};
  size_t bytes = 0;
  tensor t = describe(be, type, ndim, dim, &bytes);
  if (t.type == DT_NONE) return t;
  t.data = be->ops->mem_alloc(be, bytes);
  if (!t.data) {
    be->failed = WAN_ERR_MEMORY;
    return (tensor){0};
  }
  return t;
}

void tensor_free(backend *be, tensor *t) {
  if (t->type != DT_NONE) be->ops->mem_free(be, t->data, tensor_bytes(t));
  *t = (tensor){0};
}
