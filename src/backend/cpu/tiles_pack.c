/* tiles_pack.c: weights into the panels of tiles.h, 16 columns of the product (rows of the weight) at a time.
 * A bf16 matrix is read straight from the file. Everything else passes through a buffer of a thread's own:
 * some lines of 16 rows, converted, the taps of a kernel brought in front of its channels. */
#include "backend/cpu/cpu.h"

enum { GROUP = 16 }; /* lines of a matrix in the buffer: 512 values of each row */

typedef struct pack_job {
  const cpu_tiles *k;
  const cpu_rows *rows;
  dtype from;
  const char *src;
  tiled *w;
  int64_t taps, group; /* lines in the buffer for each tap */
  size_t panel;        /* bytes */
} pack_job;

static int64_t at_most(int64_t n, int64_t most) {
  return n < most ? n : most;
}

/* Which step of a panel takes line l through tap t = (time and row, column). */
static int64_t step_of(const tiled *w, int64_t taps, int64_t l, int64_t t) {
  int64_t first = l / w->part * w->part, width = at_most(w->lines - first, w->part);
  return first * taps + (t / w->kw * width + l - first) * w->kw + t % w->kw;
}

static char *tile_of(const pack_job *j, int64_t n, int64_t step) {
  return j->w->data + (size_t)(n / TILE_COLUMNS) * j->panel + (size_t)step * TILE_STEP +
         (n % TILE_COLUMNS ? TILE_B_BYTES : 0);
}

/* Lines l.. of row n into lines[tap][row r][group * 32] */
static void buffer_row(const pack_job *j, int64_t n, int64_t r, int64_t l, float *wide, uint16_t *lines) {
  int64_t c0 = l * TILE_K, count = at_most(j->w->C - c0, j->group * TILE_K), row = j->group * TILE_K;
  const char *from = j->src + (size_t)((n * j->w->C + c0) * j->taps) * dtype_size(j->from);
  cpu_widen(j->from, from, wide, count * j->taps);
  if (j->taps == 1) {
    j->rows->to_bf16(wide, lines + r * row, count);
    return;
  }
  for (int64_t t = 0; t < j->taps; t++) {
    float tap[TILE_K];
    for (int64_t c = 0; c < count; c++) tap[c] = wide[c * j->taps + t];
    j->rows->to_bf16(tap, lines + (t * TILE + r) * row, count);
  }
}

static void pack_group(const pack_job *j, int64_t n, float *wide, uint16_t *lines) {
  const tiled *w = j->w;
  int64_t rows = at_most(w->N - n, TILE);
  if (j->from == DT_BF16 && j->taps == 1) {
    j->k->pack_weight(j->src + (size_t)(n * w->C) * 2, (size_t)w->C * 2, rows, w->C, w->lines, TILE_STEP,
                      tile_of(j, n, 0));
    return;
  }
  size_t stride = (size_t)j->group * TILE_LINE;
  for (int64_t l = 0; l < w->lines; l += j->group) {
    for (int64_t r = 0; r < rows; r++) buffer_row(j, n + r, r, l, wide, lines);
    for (int64_t t = 0; t < j->taps; t++)
      j->k->pack_weight((const char *)lines + (size_t)t * TILE * stride, stride, rows, w->C - l * TILE_K,
                        at_most(w->lines - l, j->group), TILE_STEP, tile_of(j, n, step_of(w, j->taps, l, t)));
  }
}

static void pack_all(backend *be, const pack_job *j, char *buffers, size_t lines_bytes, size_t bytes) {
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
  for (int64_t n = 0; n < j->w->N; n += TILE) {
    char *at = buffers + (size_t)cpu_thread() * bytes;
    pack_group(j, n, (float *)(void *)(at + lines_bytes), (uint16_t *)(void *)at);
  }
}

wan_status tiles_pack(backend *be, dtype from, const void *src, int64_t N, int64_t C, const int64_t kernel[3],
                      tiled **out) {
  int64_t taps = kernel[0] * kernel[1] * kernel[2], lines = (C + TILE_K - 1) / TILE_K;
  int64_t parts = (lines + TILE_PART_MAX - 1) / TILE_PART_MAX;
  tiled *w = core_calloc(be->ctx, 1, sizeof *w);
  if (!w) return WAN_ERR_MEMORY;
  *w = (tiled){.N = N,
               .C = C,
               .kt = kernel[0],
               .kh = kernel[1],
               .kw = kernel[2],
               .lines = lines,
               .part = taps == 1 ? lines : (lines + parts - 1) / parts};
  pack_job j = {.k = cpu_of(be)->isa.tiles,
                .rows = cpu_of(be)->isa.rows,
                .from = from,
                .src = src,
                .w = w,
                .taps = taps,
                .group = taps == 1 ? GROUP : 1,
                .panel = (size_t)(taps * lines) * TILE_STEP};
  size_t lines_bytes = (size_t)(taps * TILE * j.group) * TILE_LINE,
         bytes = lines_bytes + (size_t)(taps * j.group * TILE_K) * sizeof(float);
  w->bytes = (size_t)((N + TILE_COLUMNS - 1) / TILE_COLUMNS) * j.panel;
  w->data = core_alloc(be->ctx, w->bytes);
  char *buffers = w->data ? core_alloc(be->ctx, (size_t)be->threads * bytes) : NULL;
  if (!buffers) {
    tiles_free(be, w);
    return WAN_ERR_MEMORY;
  }
  pack_all(be, &j, buffers, lines_bytes, bytes);
  core_free(be->ctx, buffers);
  *out = w;
  return WAN_OK;
}

void tiles_free(backend *be, tiled *w) {
  if (!w) return;
  core_free(be->ctx, w->data);
  core_free(be->ctx, w);
}
