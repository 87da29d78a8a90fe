/* tiles_linear.c: a matrix product on tiles. A task is a block of rows by a range of columns: it copies its
 * rows into lines once and lets its panels pass. Long rows are taken in parts; the sums then wait in memory
 * from part to part. */
#include "backend/cpu/cpu.h"

enum {
  PART_LINES = 96,      /* a part of a row: 3072 values. 160 rows of it fill TILE_BLOCK_BYTES */
  TASKS_PER_THREAD = 4, /* so that the last tasks don't leave threads idle for long */
  PANELS_MIN = 4        /* of a task: below that, copying the rows would cost too much */
};

typedef struct linear_job {
  tensor x;
  const tiled *w;
  tile_job base; /* what all tasks share */
  int64_t M, pairs, blocks, splits, panels;
  int64_t part, pairs_max; /* lines, pairs of a task at most */
  uint32_t *step;
  size_t a_bytes, c_bytes, bytes; /* of a thread: lines, sums, both and the places */
  char *local;
} linear_job;

static int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

static int64_t clamp(int64_t n, int64_t lo, int64_t hi) {
  return n < lo ? lo : n > hi ? hi : n;
}

static void plan(linear_job *j, int threads) {
  int64_t lines = j->w->lines, tasks = (int64_t)threads * TASKS_PER_THREAD;
  j->pairs = divide_up(j->M, 2 * TILE);
  j->panels = divide_up(j->w->N, TILE_COLUMNS);
  j->part = divide_up(lines, divide_up(lines, PART_LINES));
  j->blocks = divide_up(j->pairs, clamp(TILE_BLOCK_BYTES / (j->part * TILE_STEP), 1, TILE_PAIRS_MAX));
  j->pairs_max = divide_up(j->pairs, j->blocks);
  j->splits =
      j->blocks >= tasks ? 1 : clamp(divide_up(tasks, j->blocks), 1, divide_up(j->panels, PANELS_MIN));
  if (threads == 1) j->splits = 1;
}

static void place_rows(const linear_job *j, int64_t first, int64_t pairs, int64_t lines, tile_place *place) {
  for (int64_t t = 0; t < 2 * pairs; t++) {
    int64_t m = (2 * first + t) * TILE;
    place[t] = (tile_place){.a = (uint32_t)(t / 2 * lines * TILE_STEP + t % 2 * TILE * TILE_LINE),
                            .rows = (int32_t)clamp(j->M - m, 0, TILE),
                            .out = m * j->w->N};
  }
}

static void run_task(const linear_job *j, const cpu_tiles *k, int64_t block, int64_t split) {
  char *a = j->local + (size_t)cpu_thread() * j->bytes;
  tile_place *place = (tile_place *)(void *)(a + j->a_bytes + j->c_bytes);
  int64_t first = block * j->pairs / j->blocks, pairs = (block + 1) * j->pairs / j->blocks - first;
  int64_t p0 = split * j->panels / j->splits, p1 = (split + 1) * j->panels / j->splits;
  int64_t K = j->w->C, size = (int64_t)dtype_size(j->x.type);
  tile_job t = j->base;
  t.a = a;
  t.place = place;
  t.pairs = pairs;
  t.n0 = p0 * TILE_COLUMNS;
  t.n1 = clamp(p1 * TILE_COLUMNS, 0, j->w->N);
  t.c = (float *)(void *)(a + j->a_bytes);
  for (int64_t l = 0; l < j->w->lines; l += j->part) {
    t.steps = clamp(j->w->lines - l, 0, j->part);
    t.first = l == 0;
    t.last = l + t.steps == j->w->lines;
    t.b = j->w->data + (size_t)l * TILE_STEP;
    place_rows(j, first, pairs, t.steps, place);
    for (int64_t p = 0; p < pairs; p++) {
      int64_t m = (first + p) * 2 * TILE;
      k->pack_rows((const char *)j->x.data + (m * K + l * TILE_K) * size, j->x.type, K,
                   clamp(j->M - m, 0, 2 * TILE), K - l * TILE_K, t.steps, a + p * t.steps * TILE_STEP);
    }
    k->multiply(&t);
  }
}

wan_status tiles_product(backend *be, tensor x, const tiled *w, const float *bias, op_act act,
                         const void *residual, tensor out) {
  const cpu_tiles *k = cpu_of(be)->isa.tiles;
  linear_job j = {.x = x,
                  .w = w,
                  .M = tensor_rows(&x),
                  .base = {.panel_bytes = (size_t)w->lines * TILE_STEP,
                           .parts = w->lines > PART_LINES,
                           .bias = bias,
                           .act = act,
                           .add = residual,
                           .out = out.data,
                           .type = out.type,
                           .stride = w->N}};
  plan(&j, be->threads);
  size_t panels = j.base.parts ? (size_t)divide_up(j.panels, j.splits) : 1;
  j.a_bytes = (size_t)(j.pairs_max * j.part) * TILE_STEP;
  j.c_bytes = panels * (size_t)j.pairs_max * TILE_C * sizeof(float);
  j.bytes = j.a_bytes + j.c_bytes + (size_t)divide_up(2 * j.pairs_max * (int64_t)sizeof(tile_place), 64) * 64;
  j.local = cpu_scratch_get(be, SCRATCH_TILES, (size_t)be->threads * j.bytes + PART_LINES * sizeof *j.step);
  if (!j.local) return WAN_ERR_MEMORY;
  j.step = (uint32_t *)(void *)(j.local + (size_t)be->threads * j.bytes);
  for (int64_t s = 0; s < j.part; s++) j.step[s] = (uint32_t)(s * TILE_STEP);
  j.base.step = j.step;
#pragma omp parallel num_threads(be->threads)
  {
    k->enter();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < j.blocks * j.splits; i++) run_task(&j, k, i / j.splits, i % j.splits);
    k->leave();
  }
  return WAN_OK;
}
