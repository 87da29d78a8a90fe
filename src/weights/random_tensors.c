/* random_tensors.c: 28 GB of random weights in a few hundred megabytes. Tensors of one spread share a block
 * of values as large as the largest of them, each from a start of its own, and a block repeats its first 2
 * MiB. Neither time nor memory of a run can tell: a backend copies each tensor as it would from a file.
 *
 * The blocks are a shared mapping, as a file's pages are: streaming hands pages back to the system, which
 * keeps those of a shared mapping and forgets those of a private one. */
#include "weights/random_tensors.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"

enum {
  NAME_MAX_LEN = 96,
  BLOCKS_MAX = 64,
  PERIOD = 1 << 20,  /* values until a block repeats */
  STARTS = 64,       /* different places at which tensors start in it... */
  START_STEP = 16000 /* ...so many values apart: whole 64-byte lines, and no matrix's row */
};

typedef struct item {
  char name[NAME_MAX_LEN];
  tensor value;
  int block;
} item;

/* Values of one mean and standard deviation. */
typedef struct block {
  float mean, deviation;
  int64_t count; /* of the largest tensor */
  uint16_t *data;
} block;

struct random_tensors {
  core_ctx *ctx;
  item *item;
  int64_t count, room;
  block block[BLOCKS_MAX];
  int blocks;
  core_map map;
  wan_status status;
};

wan_status random_tensors_create(core_ctx *ctx, random_tensors **out) {
  *out = core_calloc(ctx, 1, sizeof **out);
  if (!*out) return WAN_ERR_MEMORY;
  (*out)->ctx = ctx;
  return WAN_OK;
}

void random_tensors_close(random_tensors *r) {
  if (!r) return;
  core_map_close(&r->map);
  core_free(r->ctx, r->item);
  core_free(r->ctx, r);
}

static bool ends_with(const char *name, const char *end) {
  size_t n = strlen(name), m = strlen(end);
  return n >= m && strcmp(name + n - m, end) == 0;
}

/* How an official network's values are spread. */
static block law(const char *name, const tensor *t) {
  if (ends_with(name, "gamma") || (ends_with(name, ".weight") && t->ndim == 1))
    return (block){1, 0.1f, 0, NULL};
  if (ends_with(name, "bias")) return (block){0, 0.1f, 0, NULL};
  if (ends_with(name, "embedding.weight") && t->ndim == 2) return (block){0, 1, 0, NULL}; /* tables of UMT5 */
  if (ends_with(name, "modulation")) return (block){0, 1 / sqrtf((float)t->dim[t->ndim - 1]), 0, NULL};
  return (block){0, 1 / sqrtf((float)(tensor_count(t) / t->dim[0])), 0, NULL};
}

static int find_block(random_tensors *r, block want) {
  for (int i = 0; i < r->blocks; i++)
    if (r->block[i].mean == want.mean && r->block[i].deviation == want.deviation) return i;
  if (r->blocks == BLOCKS_MAX) return -1;
  r->block[r->blocks] = want;
  return r->blocks++;
}

void random_tensors_add(random_tensors *r, int ndim, const int64_t *dim, const char *name_fmt, ...) {
  if (r->status != WAN_OK) return;
  if (r->count == r->room) {
    int64_t room = r->room ? 2 * r->room : 256;
    item *more = core_realloc(r->ctx, r->item, (size_t)room * sizeof *more);
    if (!more) {
      r->status = WAN_ERR_MEMORY;
      return;
    }
    r->item = more;
    r->room = room;
  }
  item *e = &r->item[r->count++];
  *e = (item){.value = tensor_of(DT_BF16, NULL, ndim, dim)};
  va_list ap;
  va_start(ap, name_fmt);
  vsnprintf(e->name, sizeof e->name, name_fmt, ap);
  va_end(ap);
  e->block = find_block(r, law(e->name, &e->value));
  if (e->block < 0) {
    r->status =
        core_fail(r->ctx, WAN_ERR_ARGUMENT, "random weights: more than %d kinds of layers", BLOCKS_MAX);
    return;
  }
  block *b = &r->block[e->block];
  if (tensor_count(&e->value) > b->count) b->count = tensor_count(&e->value);
}

static int64_t block_room(const block *b) {
  return b->count + (int64_t)STARTS * START_STEP;
}

/* Uniform, which has the deviation sqrt(1/3) of its half width. The generator is Knuth's MMIX. */
static void fill_block(block *b, uint64_t state) {
  int64_t n = block_room(b), first = n < PERIOD ? n : PERIOD;
  for (int64_t i = 0; i < first; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    float u = (float)(int32_t)(state >> 32) * 0x1p-31f;
    b->data[i] = f32_to_bf16(b->mean + b->deviation * 1.7320508f * u);
  }
  for (int64_t at = first; at < n; at += first)
    memcpy(b->data + at, b->data, (size_t)(n - at < first ? n - at : first) * sizeof *b->data);
}

wan_status random_tensors_fill(random_tensors *r) {
  CORE_TRY(r->status);
  size_t bytes = 0;
  for (int i = 0; i < r->blocks; i++) bytes += (size_t)block_room(&r->block[i]) * sizeof(uint16_t);
  CORE_TRY(core_map_scratch(r->ctx, bytes, &r->map));
  uint16_t *at = (uint16_t *)(uintptr_t)r->map.data;
  for (int i = 0; i < r->blocks; i++) {
    r->block[i].data = at;
    fill_block(&r->block[i], (uint64_t)i + 1);
    at += block_room(&r->block[i]);
  }
  for (int64_t i = 0; i < r->count; i++)
    r->item[i].value.data = r->block[r->item[i].block].data + i % STARTS * START_STEP;
  return WAN_OK;
}

int64_t random_tensors_count(const random_tensors *r) {
  return r->count;
}

const char *random_tensors_name(const random_tensors *r, int64_t i) {
  return r->item[i].name;
}

tensor random_tensors_tensor(const random_tensors *r, int64_t i) {
  return r->item[i].value;
}
