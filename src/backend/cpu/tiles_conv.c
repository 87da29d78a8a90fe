/* tiles_conv.c: convolutions on tiles. A task is a box of output pixels (frames, rows, columns) and all
 * output channels. The box's input, with its halo and zeros outside the picture, is copied into lines once:
 * 32 channels of a pixel are a line, neighbouring pixels of a row lie one behind the other, so a tap is
 * nothing but another place in the copy. With strides, the pixels of one residue lie together. Kernels with
 * many channels are taken in parts of them, and the sums wait in memory from part to part. */
#include "backend/cpu/cpu.h"

#include <math.h>

typedef struct box {
  int64_t t, h, w;
} box;

typedef struct conv_job {
  tensor x;
  const void *const *frame; /* as in conv_spec */
  tile_job base;
  const tiled *const *w; /* one, or the four phases of an upsampling */
  int phases;
  int64_t T, H, W;               /* of the result, or of one phase */
  int64_t st, sh, sw, top, left; /* strides, padding */
  box in, out;                   /* of a task */
  int64_t wide;                  /* pixels of a row in the copy, `sw` residues of wide / sw each */
  int64_t nt, nh, nw;            /* tasks in each direction */
  int64_t pairs_max;
  uint32_t *step; /* [phase][TILE_STEPS] */
  int64_t step_count;
  size_t a_bytes, c_bytes, bytes;
  char *local;
  int64_t upsample; /* 2 when the result's pixels are every other one, else 1 */
} conv_job;

static int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

static int64_t at_most(int64_t n, int64_t most) {
  return n < most ? n : most;
}

/* The input a box of output pixels needs. */
static box halo(const conv_job *j, box o) {
  const tiled *w = j->w[0];
  int64_t around =
      j->phases > 1 ? 1 : 0; /* the four phases' kernels together see a pixel more on each side */
  return (box){(o.t - 1) * j->st + w->kt, (o.h - 1) * j->sh + w->kh + around,
               (o.w - 1) * j->sw + w->kw + around};
}

static int64_t row_pixels(const conv_job *j, box in) {
  return divide_up(in.w, j->sw) * j->sw;
}

/* Cost of a box for each useful output pixel, in copied lines and multiplied tiles: the fewest copies, the
 * fewest panels read again, no idle rows of tiles, and enough tasks for all threads. */
static double box_cost(const conv_job *j, box o, int threads) {
  const tiled *w = j->w[0];
  box in = halo(j, o);
  int64_t taps = w->kt * w->kh * w->kw, part = w->part;
  int64_t tiles = o.t * o.h * divide_up(o.w, TILE), pairs = divide_up(tiles, 2);
  if (pairs > TILE_PAIRS_MAX) return INFINITY;
  double lines = (double)(in.t * in.h * row_pixels(j, in) * part), bytes = lines * TILE_LINE;
  if (bytes > TILE_BLOCK_BYTES && tiles > 1) return INFINITY;
  double tasks = (double)(divide_up(j->T, o.t) * divide_up(j->H, o.h) * divide_up(j->W, o.w));
  double panels = (double)divide_up(w->N, TILE_COLUMNS), steps = (double)(taps * part) * j->phases;
  /* in cycles: a step of four tiles 90, a line copied 20, a step of a panel from beyond the second cache 60
   */
  double cycles = (double)pairs * steps * panels * 90 + lines * 20 + steps * panels * 60;
  double rounds = ceil(tasks / threads) * threads;
  return cycles * (tasks > 16.0 * threads ? tasks : rounds);
}

static void choose_box(conv_job *j, int threads) {
  static const int64_t frames[] = {1, 2, 4}, rows[] = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32};
  double best = INFINITY;
  for (size_t a = 0; a < sizeof frames / sizeof *frames; a++)
    for (size_t b = 0; b < sizeof rows / sizeof *rows; b++)
      for (int64_t w = TILE; w <= 20 * TILE; w += TILE) {
        box o = {frames[a], rows[b], at_most(w, j->W)};
        if ((a && o.t > j->T) || (b && o.h > j->H) || (w > TILE && w - TILE >= j->W)) continue;
        double cost = box_cost(j, o, threads);
        if (cost < best) {
          best = cost;
          j->out = o;
        }
      }
  if (best == INFINITY) j->out = (box){1, 1, at_most(TILE, j->W)};
  j->in = halo(j, j->out);
  j->wide = row_pixels(j, j->in);
  j->nt = divide_up(j->T, j->out.t);
  j->nh = divide_up(j->H, j->out.h);
  j->nw = divide_up(j->W, j->out.w);
  j->pairs_max = divide_up(j->out.t * j->out.h * divide_up(j->out.w, TILE), 2);
}

/* Bytes from a box's first pixel to the one at (t, y, x) of the input box; x counts input columns. */
static int64_t pixel_at(const conv_job *j, int64_t t, int64_t y, int64_t x) {
  return ((t * j->in.h + y) * j->wide + x % j->sw * (j->wide / j->sw) + x / j->sw) * TILE_LINE;
}

static int64_t plane(const conv_job *j) {
  return j->in.t * j->in.h * j->wide * TILE_LINE;
}

/* Steps in the order of tiles.h: time, row, line, column. All parts but the last have the same. */
static void list_steps(const conv_job *j, int phase, int64_t part, uint32_t *step) {
  const tiled *w = j->w[phase];
  int64_t y0 = j->phases > 1 ? phase / 2 : 0, x0 = j->phases > 1 ? phase % 2 : 0;
  for (int64_t t = 0; t < w->kt; t++)
    for (int64_t y = 0; y < w->kh; y++)
      for (int64_t l = 0; l < part; l++)
        for (int64_t x = 0; x < w->kw; x++)
          *step++ = (uint32_t)(l * plane(j) + pixel_at(j, t, y + y0, x + x0));
}

/* Frame t of the input; NULL: zeros. */
static const uint16_t *frame_at(const conv_job *j, int64_t t) {
  if (j->frame) return j->frame[t];
  return (const uint16_t *)j->x.data + t * j->x.dim[1] * j->x.dim[2] * j->x.dim[3];
}

/* The box at `at` of the output: `part` lines from line l on of every input pixel. */
static void copy_box(const conv_job *j, const cpu_tiles *k, box at, int64_t l, int64_t part, char *to) {
  int64_t H = j->x.dim[1], W = j->x.dim[2], C = j->x.dim[3];
  int64_t t0 = at.t * j->st, y0 = at.h * j->sh - j->top, x0 = at.w * j->sw - j->left;
  for (int64_t t = 0; t < j->in.t; t++) {
    const uint16_t *frame = t0 + t < j->x.dim[0] ? frame_at(j, t0 + t) : NULL;
    for (int64_t y = 0; y < j->in.h; y++)
      for (int64_t x = 0; x < j->wide; x++) {
        int64_t yi = y0 + y, xi = x0 + x;
        bool inside = frame && yi >= 0 && yi < H && xi >= 0 && xi < W;
        k->pack_pixel(inside ? frame + (yi * W + xi) * C + l * TILE_K : NULL, C - l * TILE_K, part,
                      (size_t)plane(j), to + pixel_at(j, t, y, x));
      }
  }
}

/* The tiles of a box, and how many pairs of them; pixels beyond the result are no rows. */
static int64_t place_tiles(const conv_job *j, box at, int phase, tile_place *place) {
  int64_t n = 0, N = j->w[0]->N, u = j->upsample;
  for (int64_t t = 0; t < j->out.t && at.t + t < j->T; t++)
    for (int64_t y = 0; y < j->out.h && at.h + y < j->H; y++)
      for (int64_t x = 0; x < j->out.w && at.w + x < j->W; x += TILE) {
        int64_t row = ((at.t + t) * j->H + at.h + y) * u + phase / 2, column = (at.w + x) * u + phase % 2;
        place[n++] = (tile_place){.a = (uint32_t)pixel_at(j, t * j->st, y * j->sh, x * j->sw),
                                  .rows = (int32_t)at_most(at_most(j->W - at.w, j->out.w) - x, TILE),
                                  .out = (row * j->W * u + column) * N};
      }
  if (n % 2) {
    place[n] = place[n - 1];
    place[n++].rows = 0;
  }
  return n / 2;
}

static void run_task(const conv_job *j, const cpu_tiles *k, int64_t task) {
  char *a = j->local + (size_t)cpu_thread() * j->bytes;
  tile_place *place = (tile_place *)(void *)(a + j->a_bytes + j->c_bytes);
  box at = {task / j->nw / j->nh * j->out.t, task / j->nw % j->nh * j->out.h, task % j->nw * j->out.w};
  const tiled *w = j->w[0];
  int64_t taps = w->kt * w->kh * w->kw, panels = divide_up(w->N, TILE_COLUMNS);
  tile_job t = j->base;
  t.a = a;
  t.place = place;
  for (int64_t l = 0; l < w->lines; l += w->part) {
    int64_t part = at_most(w->lines - l, w->part);
    copy_box(j, k, at, l, part, a);
    t.steps = taps * part;
    t.first = l == 0;
    t.last = l + part == w->lines;
    for (int phase = 0; phase < j->phases; phase++) {
      t.pairs = place_tiles(j, at, phase, place);
      t.step = j->step + (phase * 2 + (part < w->part)) * j->step_count;
      t.b = j->w[phase]->data + (size_t)(l * taps) * TILE_STEP;
      t.c = (float *)(void *)(a + j->a_bytes) + (t.parts ? phase * panels * j->pairs_max * TILE_C : 0);
      k->multiply(&t);
    }
  }
}

static wan_status run(backend *be, conv_job *j, const float *bias, const void *residual, tensor out) {
  const cpu_tiles *k = cpu_of(be)->isa.tiles;
  const tiled *w = j->w[0];
  int64_t taps = w->kt * w->kh * w->kw, panels = divide_up(w->N, TILE_COLUMNS);
  choose_box(j, be->threads);
  j->base = (tile_job){.reuse = w->kw > 1 && j->sw == 1,
                       .panel_bytes = (size_t)(taps * w->lines) * TILE_STEP,
                       .n1 = w->N,
                       .parts = w->part < w->lines,
                       .bias = bias,
                       .add = residual,
                       .out = out.data,
                       .type = out.type,
                       .stride = w->N * j->upsample};
  size_t sums = (size_t)j->pairs_max * TILE_C * sizeof(float);
  int64_t spill = TILE * TILE_LINE; /* a tile at the end of a row reads lines behind it */
  j->a_bytes = (size_t)(w->part * plane(j) + spill);
  j->c_bytes = j->base.parts ? sums * (size_t)(panels * j->phases) : sums;
  j->bytes =
      j->a_bytes + j->c_bytes + (size_t)divide_up(2 * j->pairs_max * (int64_t)sizeof(tile_place), 64) * 64;
  j->step_count = taps * w->part;
  size_t step_bytes = (size_t)(j->phases * 2 * j->step_count) * sizeof *j->step;
  j->local = cpu_scratch_get(be, SCRATCH_TILES, (size_t)be->threads * j->bytes + step_bytes);
  if (!j->local) return WAN_ERR_MEMORY;
  j->step = (uint32_t *)(void *)(j->local + (size_t)be->threads * j->bytes);
  for (int phase = 0; phase < j->phases; phase++) {
    list_steps(j, phase, w->part, j->step + phase * 2 * j->step_count);
    if (w->lines % w->part)
      list_steps(j, phase, w->lines % w->part, j->step + (phase * 2 + 1) * j->step_count);
  }
#pragma omp parallel num_threads(be->threads)
  {
    k->enter();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < j->nt * j->nh * j->nw; i++) run_task(j, k, i);
    k->leave();
  }
  return WAN_OK;
}

wan_status tiles_conv(backend *be, tensor x, const tiled *w, const float *bias, const conv_spec *spec,
                      const void *residual, tensor out) {
  conv_job j = {.x = x,
                .frame = spec->frame,
                .w = &w,
                .phases = 1,
                .upsample = 1,
                .T = out.dim[0],
                .H = out.dim[1],
                .W = out.dim[2],
                .st = spec->stride_t,
                .sh = spec->stride_h,
                .sw = spec->stride_w,
                .top = spec->pad_top,
                .left = spec->pad_left};
  return run(be, &j, bias, residual, out);
}

wan_status tiles_upsample(backend *be, tensor x, tiled *const w[4], const float *bias, tensor out) {
  const tiled *phases[] = {w[0], w[1], w[2], w[3]};
  conv_job j = {.x = x,
                .w = phases,
                .phases = 4,
                .upsample = 2,
                .T = x.dim[0],
                .H = x.dim[1],
                .W = x.dim[2],
                .st = 1,
                .sh = 1,
                .sw = 1,
                .top = 1,
                .left = 1};
  return run(be, &j, bias, NULL, out);
}
