/* bench.c: two ceilings first, how fast the machine multiplies matrices and copies memory, then each stage
 * beside its floor: the time that its floating-point operations take at the first rate, or its weights at the
 * second, whichever is longer. What a stage will do and need is counted before by running it on a backend
 * that only counts, so that it is known whether it fits and which weights can stay loaded. */
#include "pipeline/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/profile.h"
#include "pipeline/bench_work.h"
#include "pipeline/plan.h"
#include "weights/random_tensors.h"

typedef struct video_size {
  int width, height, frames;
} video_size;

typedef struct bench_stage {
  const char *name;
  bench_kind kind;
  bench_net net;
  video_size official;
  video_size small; /* on a processor, where the official sizes take minutes to hours */
} bench_stage;

/* The sizes of the official examples. */
static const bench_stage random_stages[] = {
    {"dit-5b", BENCH_DIT, NET_DIT_5B, {1280, 704, 121}, {640, 352, 13}},
    {"dit-14b", BENCH_DIT, NET_DIT_14B, {832, 480, 81}, {416, 240, 13}},
    {"dit-14b", BENCH_DIT, NET_DIT_14B, {1280, 720, 81}, {0, 0, 0}},
    {"vae22-decode", BENCH_DECODE, NET_VAE22, {1280, 704, 121}, {320, 176, 13}},
    {"vae22-encode", BENCH_ENCODE, NET_VAE22, {1280, 704, 121}, {320, 176, 13}},
    {"vae21-decode", BENCH_DECODE, NET_VAE21, {832, 480, 81}, {208, 120, 13}},
    {"vae21-decode", BENCH_DECODE, NET_VAE21, {1280, 720, 81}, {0, 0, 0}},
    {"vae21-encode", BENCH_ENCODE, NET_VAE21, {832, 480, 81}, {208, 120, 13}},
    {"text", BENCH_TEXT, NET_TEXT, {0, 0, 0}, {0, 0, 0}}};
enum { STAGES = sizeof random_stages / sizeof *random_stages };

enum { SMALL_LAYERS = 2, TEXT_TOKENS = 512, RUNS_DEFAULT = 3 };

typedef struct bench {
  backend *be;
  core_ctx *ctx;
  const wan_bench_params *p;
  wan_bench_fn row;
  void *user;
  int runs;
  model_dir dir; /* with a checkpoint */
  /* The ceilings, 0: not measured. matrix8: with 8-bit operands, which only transformers use. */
  double matrix, matrix8, bandwidth; /* FLOP/s, FLOP/s, bytes/s */
} bench;

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void set_times(wan_bench_row *row, double *seconds, int runs) {
  qsort(seconds, (size_t)runs, sizeof *seconds, by_value);
  row->runs = runs;
  row->seconds = seconds[runs / 2];
  row->seconds_min = seconds[0];
  row->seconds_max = seconds[runs - 1];
}

static bool wanted(const bench *b, const char *name) {
  return !b->p->stage || strncmp(name, b->p->stage, strlen(b->p->stage)) == 0;
}

/* ---- Ceilings ---- */

enum { CEILING_RUNS = 5 };

/* Medians of batches: a batch hides the cost of waiting for a device. */
#define CEILING(b, times, operation)                                 \
  do {                                                               \
    const int batch_ = (b)->be->host_memory ? 1 : 10;                \
    for (int run_ = -1; run_ < CEILING_RUNS; run_++) {               \
      double start_ = core_now();                                    \
      for (int i_ = 0; i_ < batch_; i_++) operation;                 \
      CORE_TRY(backend_sync((b)->be));                               \
      if (run_ >= 0) (times)[run_] = (core_now() - start_) / batch_; \
    }                                                                \
  } while (0)

static wan_status time_product(bench *b, const weight *w, int64_t n, double times[CEILING_RUNS]) {
  backend *be = b->be;
  float *host = bench_random(b->ctx, n * n, 3);
  if (!host) return WAN_ERR_MEMORY;
  tensor x = TENSOR_NEW(be, DT_F32, n, n), y = TENSOR_NEW(be, DT_NONE, n, n);
  tensor_upload(be, x, host);
  wan_status s = backend_sync(be);
  core_free(b->ctx, host);
  CORE_TRY(s);
  x = op_cast(be, x, w->role == WEIGHT_PRODUCT ? be->product : be->act);
  CEILING(b, times, op_linear_into(be, x, w, NULL, ACT_NONE, y));
  qsort(times, CEILING_RUNS, sizeof *times, by_value);
  return WAN_OK;
}

static wan_status square_product(bench *b, weight_role role, int64_t n, double times[CEILING_RUNS]) {
  random_tensors *r;
  CORE_TRY(random_tensors_create(b->ctx, &r));
  random_tensors_add(r, WEIGHT_DIMS(n, n), "product.weight");
  wan_status s = random_tensors_fill(r);
  weight w = {.name = "product", .role = role};
  if (s == WAN_OK) {
    w.src = random_tensors_tensor(r, 0);
    s = backend_weight_load(b->be, &w);
  }
  scope_mark mark = scope_begin(b->be);
  if (s == WAN_OK) s = time_product(b, &w, n, times);
  scope_end(b->be, mark);
  backend_weight_unload(b->be, &w);
  random_tensors_close(r);
  return s;
}

/* Larger until it takes a while: that of a slow machine is as good a measure. */
static wan_status matrix_ceiling(bench *b, weight_role role, const char *name, double *rate) {
  enum { FIRST = 512, LAST = 8192 };
  double times[CEILING_RUNS] = {0};
  char what[64];
  int64_t n = FIRST;
  CORE_TRY(square_product(b, role, n, times));
  while (n < LAST && times[CEILING_RUNS / 2] < 0.02) CORE_TRY(square_product(b, role, n *= 2, times));
  snprintf(what, sizeof what, "%lld x %lld x %lld", (long long)n, (long long)n, (long long)n);
  wan_bench_row row = {.size = sizeof row, .stage = name, .what = what};
  row.flops = 2.0 * (double)n * (double)n * (double)n;
  set_times(&row, times, CEILING_RUNS);
  *rate = row.flops / row.seconds;
  b->row(b->user, &row);
  return WAN_OK;
}

static wan_status time_copy(bench *b, int64_t bytes, double times[CEILING_RUNS]) {
  backend *be = b->be;
  tensor from = TENSOR_NEW(be, DT_U8, bytes), to = TENSOR_NEW(be, DT_U8, bytes);
  tensor_zero(be, from);
  CEILING(b, times, tensor_copy(be, to, from));
  return WAN_OK;
}

static wan_status copy_ceiling(bench *b) {
  /* beyond any cache, and within any limit */
  const int64_t most = (int64_t)(memory_budget(b->be) >> 20) / 8, wish = b->be->host_memory ? 256 : 1024;
  const int64_t mib = wish < most ? wish : most > 1 ? most : 1;
  double times[CEILING_RUNS];
  scope_mark mark = scope_begin(b->be);
  wan_status s = time_copy(b, mib << 20, times);
  scope_end(b->be, mark);
  CORE_TRY(s);
  char what[64];
  snprintf(what, sizeof what, "%lld MiB, read + written", (long long)mib);
  wan_bench_row row = {.size = sizeof row, .stage = "copy", .what = what, .bytes = 2.0 * (double)(mib << 20)};
  set_times(&row, times, CEILING_RUNS);
  b->bandwidth = row.bytes / row.seconds;
  b->row(b->user, &row);
  return WAN_OK;
}

/* ---- Stages ---- */

/* What a stage does and needs, by running it without computing: with all weights kept, and with all streamed.
 */
typedef struct stage_cost {
  double flops;
  uint64_t weights, resident, streamed; /* the last two: peak bytes of the memory that the backend works in */
  uint64_t host;                        /* peak bytes of host memory */
  size_t scopes;                        /* bytes in scopes, reserved on a device */
} stage_cost;

static wan_status count_once(bench *b, const bench_work *w, uint64_t keep, bench_times *times,
                             stage_cost *out) {
  core_ctx seat;
  backend *dry;
  core_ctx_init(&seat);
  const backend_config config = {.name = b->be->ops->name, .precision = b->be->precision};
  wan_status s = backend_open_dry(&seat, &config, &dry);
  if (s == WAN_OK) s = scope_reserve(dry, out->scopes);
  if (s == WAN_OK) s = bench_work_run(dry, w, keep, 0, times);
  if (s == WAN_OK) {
    if (!b->be->host_memory) out->scopes = dry->scope_peak;
    uint64_t peak = b->be->host_memory ? core_mem_peak(&seat) : core_device_peak(&seat);
    *(keep ? &out->resident : &out->streamed) = peak;
    out->host = core_mem_peak(&seat);
    out->flops = 0;
    for (int i = 0; i < PROF_COUNT; i++) {
      /* Of the 9 taps on replicated pixels 4 are different ones. */
      out->flops += dry->profile->row[i].flops * (i == PROF_UPSAMPLE_CONV ? 4.0 / 9 : 1);
    }
    out->weights = times->weights;
  }
  backend_close(dry);
  return s == WAN_OK ? s : core_fail(b->ctx, s, "%s", seat.message);
}

static wan_status count_stage(bench *b, const bench_work *w, bench_times *times, stage_cost *out) {
  *out = (stage_cost){0};
  if (!b->be->host_memory) CORE_TRY(count_once(b, w, 0, times, out)); /* to see what scopes take */
  CORE_TRY(count_once(b, w, 0, times, out));
  return count_once(b, w, UINT64_MAX, times, out);
}

/* Which weights can stay loaded; false: not even streamed ones fit. */
static bool choose_keep(const bench *b, const stage_cost *c, uint64_t *keep) {
  const uint64_t budget = memory_budget(b->be);
  *keep = c->resident <= budget ? UINT64_MAX : budget > c->streamed ? budget - c->streamed : 0;
  return budget >= c->streamed;
}

static void describe(const bench_work *w, const bench_times *t, int all_layers, char out[96]) {
  size_t n = 0;
  if (w->kind == BENCH_TEXT)
    n += (size_t)snprintf(out, 96, "%lld tokens", (long long)t->tokens);
  else
    n += (size_t)snprintf(out, 96, "%dx%d, %d frames", w->width, w->height, w->frames);
  if (w->kind == BENCH_DIT) n += (size_t)snprintf(out + n, 96 - n, ", %lld tokens", (long long)t->tokens);
  if (all_layers && t->layers != all_layers)
    snprintf(out + n, 96 - n, ", %d of %d layers", t->layers, all_layers);
}

static int official_layers(bench_net net) {
  return net == NET_DIT_5B    ? DIT_5B_LAYERS
         : net == NET_DIT_14B ? DIT_14B_LAYERS
         : net == NET_TEXT    ? TEXT_LAYERS
                              : 0;
}

static wan_status measure(bench *b, const char *name, const bench_work *w, bench_times *times) {
  char what[96], why[96];
  stage_cost cost;
  uint64_t keep;
  CORE_TRY(count_stage(b, w, times, &cost));
  describe(w, times, w->path ? 0 : official_layers(w->net), what);
  wan_bench_row row = {.size = sizeof row, .stage = name, .what = what, .tokens = times->tokens};
  row.flops = cost.flops;
  row.bytes = (double)cost.weights;
  const double rate = w->kind == BENCH_DIT && b->matrix8 > b->matrix ? b->matrix8 : b->matrix;
  if (rate > 0) row.seconds_floor = cost.flops / rate;
  if (b->bandwidth > 0 && row.bytes / b->bandwidth > row.seconds_floor)
    row.seconds_floor = row.bytes / b->bandwidth;
  if (!choose_keep(b, &cost, &keep)) {
    snprintf(why, sizeof why, "needs %.1f GiB, %.1f are available", (double)cost.streamed / (1 << 30),
             (double)memory_budget(b->be) / (1 << 30));
    row.skipped = why;
    b->row(b->user, &row);
    return WAN_OK;
  }
  scope_trim(b->be);
  const run_cost all = {.streamed = {cost.streamed}, .resident = {cost.resident}, .host = {cost.host}};
  CORE_TRY(plan_reserve(b->be, &all));
  CORE_TRY(scope_reserve(b->be, cost.scopes));
  core_mem_reset_peak(b->ctx);
  wan_status s = bench_work_run(b->be, w, keep, b->runs, times);
  backend_reserve(b->be, 0, 0);
  CORE_TRY(s);
  set_times(&row, times->seconds, b->runs);
  row.memory_peak = core_mem_peak(b->ctx);
  row.device_memory_peak = core_device_peak(b->ctx);
  row.streamed = keep != UINT64_MAX;
  b->row(b->user, &row);
  return WAN_OK;
}

static wan_status run_stage(bench *b, const bench_stage *stage, const char *path) {
  const wan_bench_params *p = b->p;
  const bool small = b->be->host_memory;
  const video_size *size = small ? &stage->small : &stage->official;
  if (!wanted(b, stage->name)) return WAN_OK;
  bench_work w = {.kind = stage->kind, .path = path, .net = stage->net, .layers = p->layers};
  if (!w.layers && small && !path) w.layers = SMALL_LAYERS;
  w.width = p->width ? p->width : size->width;
  w.height = p->height ? p->height : size->height;
  w.frames = p->frames ? p->frames : size->frames;
  w.tokens = p->tokens ? p->tokens : TEXT_TOKENS;
  bench_times *times = core_alloc(b->ctx, sizeof *times);
  if (!times) return WAN_ERR_MEMORY;
  wan_status s = measure(b, stage->name, &w, times);
  core_free(b->ctx, times);
  return s;
}

/* A size asked for makes one row of those that differ in size only. */
static wan_status run_random(bench *b) {
  for (int i = 0; i < STAGES; i++) {
    const bench_stage *s = &random_stages[i];
    bool again = i > 0 && strcmp(s->name, s[-1].name) == 0;
    if (again && (b->p->width || b->be->host_memory)) continue;
    CORE_TRY(run_stage(b, s, NULL));
  }
  return WAN_OK;
}

static wan_status run_model(bench *b) {
  static const video_size small = {416, 240, 13};
  const model_dir *dir = &b->dir;
  const bool five = strcmp(dir->family, "ti2v") == 0;
  const video_size full = {1280, five ? 704 : 720, five ? 121 : 81};
  const video_size few = {five ? 640 : small.width, five ? 352 : small.height, small.frames};
  const struct {
    const char *name;
    bench_kind kind;
    model_part part;
  } stages[] = {{"text", BENCH_TEXT, MODEL_TEXT},
                {"dit", BENCH_DIT, MODEL_DIT},
                {"vae-decode", BENCH_DECODE, MODEL_VAE},
                {"vae-encode", BENCH_ENCODE, MODEL_VAE}};
  for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
    const bench_stage s = {.name = stages[i].name, .kind = stages[i].kind, .official = full, .small = few};
    if (dir->part[stages[i].part]) CORE_TRY(run_stage(b, &s, dir->part[stages[i].part]));
  }
  return WAN_OK;
}

/* Is there any stage of that name? */
static wan_status check_stage(bench *b) {
  static const char *const of_model[] = {"product", "copy", "text", "dit", "vae-decode", "vae-encode"};
  bool found = wanted(b, "product") || wanted(b, "copy");
  for (size_t i = 0; i < sizeof of_model / sizeof *of_model && b->p->model; i++)
    found |= wanted(b, of_model[i]);
  for (int i = 0; i < STAGES && !b->p->model; i++) found |= wanted(b, random_stages[i].name);
  if (found) return WAN_OK;
  return core_fail(b->ctx, WAN_ERR_ARGUMENT, "there is no stage \"%s\"; the stages are %s", b->p->stage,
                   b->p->model ? "product, copy, text, dit, vae-decode and vae-encode"
                               : "product, copy, dit-5b, dit-14b, vae22-decode, vae22-encode, vae21-decode, "
                                 "vae21-encode and text; the beginning of a name is enough");
}

wan_status bench_run(backend *be, const wan_bench_params *p, wan_bench_fn row, void *user) {
  bench b = {.be = be, .ctx = be->ctx, .p = p, .row = row, .user = user};
  b.runs = p->repeat ? p->repeat : RUNS_DEFAULT;
  if (b.runs < 1 || b.runs > BENCH_RUNS_MAX)
    return core_fail(b.ctx, WAN_ERR_ARGUMENT, "%d runs: 1 to %d are possible", b.runs, BENCH_RUNS_MAX);
  if (p->model && p->layers)
    return core_fail(b.ctx, WAN_ERR_ARGUMENT, "the number of layers is the checkpoint's own");
  if (be->dry)
    return core_fail(b.ctx, WAN_ERR_ARGUMENT, "this context was opened for planning only (plan_only)");
  CORE_TRY(check_stage(&b));
  CORE_TRY(matrix_ceiling(&b, WEIGHT_LINEAR, "product", &b.matrix));
  if (be->product != be->act) CORE_TRY(matrix_ceiling(&b, WEIGHT_PRODUCT, "product-8bit", &b.matrix8));
  CORE_TRY(copy_ceiling(&b));
  if (!p->model) return run_random(&b);
  CORE_TRY(model_dir_open(b.ctx, p->model, &b.dir));
  wan_status s = run_model(&b);
  model_dir_close(b.ctx, &b.dir);
  return s;
}
