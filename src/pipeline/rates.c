/* rates.c: see rates.h. The calls that matter most are timed first; those left when the time for measuring is
 * spent get the mean rate of their kind. */
#include "pipeline/rates.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/dry.h"
#include "weights/weights.h"

enum {
  KNOWN_FIRST = 64,
  PATTERN = 4096,         /* random values that are repeated */
  PROBE = 1024,           /* side of the product that tells how large a sample may be */
  ROW_ELEMENTS = 8 << 20, /* of the operations that move memory: more than caches hold */
  ROW_CHANNELS = 1024,
  RUNS_MOST = 20,
  LOAD_LEAST = 1 << 20, /* bytes of a weight whose loading can be timed once; smaller ones get the mean */
  ROWS_LEAST = 16       /* of a sampled picture: work for every thread */
};
static const double SAMPLE_SECONDS = 0.02; /* a sample's length, */
static const double SAMPLE_MOST = 0.3; /* at most, where it can't be made smaller without changing its rate */
static const double BUDGET_SECONDS = 1.5; /* for those of a stage */

typedef struct timed {
  dry_call call;
  double seconds; /* of the whole call */
} timed;

struct rates {
  backend *be;
  timed *known;
  int64_t count, capacity;
  double flops;                                 /* a second, of a product: for the size of samples */
  double seconds[PROF_COUNT], work[PROF_COUNT]; /* of the samples: mean rates; work is FLOPs or bytes */
};

/* ---- What a call is ---- */

static double work_of(const dry_call *c) {
  const tensor *w = &c->w.src;
  switch (c->op) {
  case PROF_LINEAR:
    return 2.0 * (double)tensor_rows(&c->x) * (double)tensor_count(w);
  case PROF_ATTENTION:
    return 4.0 * (double)tensor_count(&c->x) * (double)c->keys.dim[0];
  case PROF_CONV:
  case PROF_UPSAMPLE_CONV:
    return 2.0 * (double)tensor_rows(&c->out) * (double)tensor_count(w);
  default: /* a weight */
    return (double)tensor_bytes(w);
  }
}

static bool same_tensor(const tensor *a, const tensor *b) {
  return a->type == b->type && tensor_same_shape(a, b);
}

/* Of one rate: whatever differs in the count, the activation and the names is the same. */
static bool same_price(const dry_call *a, const dry_call *b) {
  return a->op == b->op && a->w.role == b->w.role && a->spec.heads == b->spec.heads &&
         same_tensor(&a->x, &b->x) && same_tensor(&a->out, &b->out) && same_tensor(&a->keys, &b->keys) &&
         same_tensor(&a->w.src, &b->w.src) && a->conv.stride_t == b->conv.stride_t &&
         a->conv.stride_h == b->conv.stride_h && a->add == b->add;
}

static const timed *find(const rates *r, const dry_call *c) {
  for (int64_t i = 0; i < r->count; i++)
    if (same_price(&r->known[i].call, c)) return &r->known[i];
  return NULL;
}

static wan_status remember(rates *r, const dry_call *c, double seconds) {
  if (r->count == r->capacity) {
    int64_t capacity = r->capacity ? 2 * r->capacity : KNOWN_FIRST;
    timed *more = core_realloc(r->be->ctx, r->known, (size_t)capacity * sizeof *more);
    if (!more) return WAN_ERR_MEMORY;
    r->known = more;
    r->capacity = capacity;
  }
  r->known[r->count++] = (timed){*c, seconds};
  r->seconds[c->op] += seconds;
  r->work[c->op] += work_of(c);
  return WAN_OK;
}

/* ---- Operands ---- */

/* Zeros run faster than real data on some hardware: values of unit variance. */
static void fill(backend *be, tensor t) {
  if (be->failed) return;
  float value[PATTERN];
  uint64_t state = 1;
  for (int i = 0; i < PATTERN; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value[i] = ((float)(state >> 40) / 8388608.0f - 1.0f) * 1.7320508f;
  }
  size_t bytes = tensor_bytes(&t), block = PATTERN * dtype_size(t.type);
  char *host = core_alloc(be->ctx, bytes + block);
  if (!host) {
    be->failed = WAN_ERR_MEMORY;
    return;
  }
  convert_from_f32(t.type, value, host, PATTERN);
  for (size_t at = block; at < bytes; at += block) memcpy(host + at, host, block);
  tensor_upload(be, t, host);
  backend_sync(be);
  core_free(be->ctx, host);
}

static tensor operand(backend *be, dtype type, int ndim, const int64_t *dim) {
  tensor t = tensor_new(be, type, ndim, dim);
  fill(be, t);
  return t;
}

/* ---- Samples ---- */

/* A call made smaller: `part` of its work. */
typedef struct sample {
  const dry_call *call;
  tensor x, keys, out;
  const void *frame[CONV_FRAMES_MAX];
  attention_spec spec;
  conv_spec conv;
  weight *w;
  double part;
} sample;

/* As large as the time for a sample allows, `least` at least: n entries that take `work` together. */
static int64_t fewer(const rates *r, int64_t n, double work, int64_t least) {
  double fits = (double)n * r->flops * SAMPLE_SECONDS / work;
  int64_t k = fits < (double)n ? (int64_t)fits : n;
  if (k < least) k = least;
  return k < n ? k : n;
}

static void sample_linear(rates *r, sample *s) {
  const dry_call *c = s->call;
  const int64_t rows = tensor_rows(&c->x), n = fewer(r, rows, work_of(c), 32);
  s->x = operand(r->be, c->x.type, 2, (const int64_t[]){n, tensor_cols(&c->x)});
  s->out = tensor_new(r->be, c->out.type, 2, (const int64_t[]){n, tensor_cols(&c->out)});
  s->part = (double)n / (double)rows;
}

/* Fewer heads take as much less time. Where one for each thread takes too long already, fewer tokens do. */
static void sample_attention(rates *r, sample *s) {
  const dry_call *c = s->call;
  backend *be = r->be;
  const int64_t d = c->x.dim[1] / c->spec.heads;
  int64_t lq = c->x.dim[0], lk = c->keys.dim[0], threads = be->threads > 0 ? be->threads : 1;
  int64_t heads = fewer(r, c->spec.heads, work_of(c), threads);
  double seconds = work_of(c) * (double)heads / (double)c->spec.heads / r->flops;
  if (seconds > SAMPLE_MOST) {
    double side = sqrt(SAMPLE_MOST / seconds);
    if (lq > 1024) lq = (int64_t)((double)lq * side);
    if (lk > 1024) lk = (int64_t)((double)lk * side);
  }
  s->x = operand(be, c->x.type, 2, (const int64_t[]){lq, heads * d});
  s->keys = operand(be, c->keys.type, 2, (const int64_t[]){lk, heads * d});
  s->spec = c->spec;
  s->spec.heads = (int)heads;
  if (c->spec.key_bias.type != DT_NONE) {
    s->spec.key_bias = TENSOR_NEW(be, DT_F32, lk);
    tensor_zero(be, s->spec.key_bias);
  }
  if (c->spec.rel_bias.type != DT_NONE) {
    s->spec.rel_bias = TENSOR_NEW(be, DT_F32, heads, lq + lk - 1);
    tensor_zero(be, s->spec.rel_bias);
  }
  s->part =
      (double)(lq * heads) * (double)lk / ((double)(c->x.dim[0] * c->spec.heads) * (double)c->keys.dim[0]);
}

/* Fewer rows of pixels. */
static void sample_conv(rates *r, sample *s) {
  const dry_call *c = s->call;
  backend *be = r->be;
  const tensor *k = &c->w.src;
  const bool up = c->op == PROF_UPSAMPLE_CONV;
  const int64_t step = up ? 1 : c->conv.stride_h, kh = k->dim[k->ndim - 2];
  const int64_t per = up ? 2 : 1, rows = c->out.dim[1] / per, n = fewer(r, rows, work_of(c), ROWS_LEAST);
  const int64_t h = n == rows ? c->x.dim[1]
                    : up      ? n
                              : (n - 1) * step + kh - c->conv.pad_top - c->conv.pad_bottom;
  s->x = operand(be, c->x.type, 4, (const int64_t[]){c->x.dim[0], h, c->x.dim[2], c->x.dim[3]});
  s->out =
      operand(be, c->out.type, 4, (const int64_t[]){c->out.dim[0], n * per, c->out.dim[2], c->out.dim[3]});
  s->conv = c->conv;
  for (int64_t t = 0; c->frames && !be->failed && t < s->x.dim[0]; t++)
    s->frame[t] = tensor_slice(s->x, t, 1).data;
  s->conv.frame = c->frames ? s->frame : NULL;
  s->part = (double)n / (double)rows;
}

static void run_sample(backend *be, const sample *s) {
  switch (s->call->op) {
  case PROF_LINEAR:
    op_linear_into(be, s->x, s->w, NULL, s->call->act, s->out);
    break;
  case PROF_ATTENTION:
    op_attention(be, s->x, s->keys, s->keys, &s->spec);
    break;
  case PROF_CONV:
    op_conv_into(be, s->x, s->w, NULL, &s->conv, s->call->add ? s->out : (tensor){0}, s->out);
    break;
  default:
    op_upsample_conv_into(be, s->x, s->w, NULL, s->out);
  }
}

/* Seconds of the fastest of some runs, after one that compiles kernels and touches memory: others disturb a
 * short one now and then by more than its length. */
static double clock_sample(backend *be, const sample *s) {
  double best = INFINITY, begin = core_now();
  for (int i = 0; !be->failed && i <= RUNS_MOST; i++) {
    double start = core_now();
    scope_mark mark = scope_begin(be);
    run_sample(be, s);
    scope_end(be, mark);
    backend_sync(be);
    double end = core_now();
    if (i > 0 && end - start < best) best = end - start;
    if (i > 0 && end - begin > 2 * SAMPLE_SECONDS) break;
  }
  return best;
}

/* Time the call. */
static wan_status measure_call(rates *r, const dry_call *c, weight *w) {
  backend *be = r->be;
  sample s = {.call = c, .w = w};
  scope_mark mark = scope_begin(be);
  if (c->op == PROF_LINEAR)
    sample_linear(r, &s);
  else if (c->op == PROF_ATTENTION)
    sample_attention(r, &s);
  else
    sample_conv(r, &s);
  double seconds = clock_sample(be, &s);
  scope_end(be, mark);
  CORE_TRY(backend_status(be));
  return remember(r, c, seconds / s.part);
}

/* Time the call, and on the way how long its weight takes to load. */
static wan_status measure(rates *r, const dry_call *c) {
  if (c->op == PROF_ATTENTION) return measure_call(r, c, NULL);
  weight w = {.name = c->w.name, .role = c->w.role, .src = c->w.src};
  const dry_call load = {.op = PROF_WEIGHT_LOAD, .w = {.role = w.role, .src = w.src}};
  weight_group group = {0};
  weight_group_add(&group, &w);
  double start = core_now();
  CORE_TRY(weight_group_acquire(r->be, &group));
  wan_status s = backend_sync(r->be);
  if (s == WAN_OK && work_of(&load) >= LOAD_LEAST && !find(r, &load))
    s = remember(r, &load, core_now() - start);
  if (s == WAN_OK) s = measure_call(r, c, &w);
  weight_group_release(r->be, &group, RESIDENCY_STREAM);
  return s;
}

/* ---- Yardsticks ---- */

/* FLOP/s of a middling product. */
static wan_status probe_product(rates *r) {
  backend *be = r->be;
  float *values = core_alloc(be->ctx, (size_t)PROBE * PROBE * sizeof *values);
  if (!values) return WAN_ERR_MEMORY;
  for (int i = 0; i < PROBE * PROBE; i++) values[i] = (float)(i % 7 - 3) * 0.01f;
  const dry_call call = {.op = PROF_LINEAR};
  weight w = {.name = "probe", .role = WEIGHT_LINEAR, .src = TENSOR_OF(DT_F32, values, PROBE, PROBE)};
  sample s = {.call = &call, .w = &w};
  scope_mark mark = scope_begin(be);
  wan_status st = backend_weight_load(be, &w);
  s.x = operand(be, DT_NONE, 2, (const int64_t[]){PROBE, PROBE});
  s.out = TENSOR_NEW(be, DT_NONE, PROBE, PROBE);
  if (st == WAN_OK) r->flops = 2.0 * PROBE * PROBE * PROBE / clock_sample(be, &s);
  backend_weight_unload(be, &w);
  scope_end(be, mark);
  core_free(be->ctx, values);
  return st == WAN_OK ? backend_status(be) : st;
}

/* One of the operations that move memory. */
static wan_status probe_rows(rates *r, profile_op op, weight *gamma) {
  backend *be = r->be;
  const int64_t rows = ROW_ELEMENTS / ROW_CHANNELS, dim[2] = {rows, ROW_CHANNELS};
  scope_mark mark = scope_begin(be);
  tensor x = operand(be, op == PROF_CHANNEL_NORM ? DT_NONE : DT_F32, 2, dim);
  tensor y = operand(be, op == PROF_TRANSFER ? DT_F32 : DT_NONE, 2, dim);
  double best = INFINITY;
  for (int i = 0; i < 5 && !be->failed; i++) {
    double start = core_now();
    scope_mark inner = scope_begin(be);
    if (op == PROF_CHANNEL_NORM)
      op_channel_norm(be, x, gamma, ACT_SILU, y);
    else if (op == PROF_LAYER_NORM)
      op_layer_norm(be, x, gamma, gamma, 1e-6f, DT_NONE);
    else
      tensor_copy(be, y, x);
    scope_end(be, inner);
    backend_sync(be);
    double seconds = core_now() - start;
    if (i && seconds < best) best = seconds;
  }
  r->seconds[op] = best;
  r->work[op] = (double)tensor_bytes(&x) + (double)tensor_bytes(&y);
  scope_end(be, mark);
  return backend_status(be);
}

static wan_status probe_memory(rates *r) {
  backend *be = r->be;
  float one[ROW_CHANNELS];
  for (int i = 0; i < ROW_CHANNELS; i++) one[i] = 1;
  weight gamma = {.name = "probe", .role = WEIGHT_VECTOR, .src = TENSOR_OF(DT_F32, one, ROW_CHANNELS)};
  wan_status s = backend_weight_load(be, &gamma);
  if (s == WAN_OK) s = probe_rows(r, PROF_LAYER_NORM, &gamma);
  if (s == WAN_OK) s = probe_rows(r, PROF_CHANNEL_NORM, &gamma);
  if (s == WAN_OK) s = probe_rows(r, PROF_TRANSFER, &gamma);
  backend_weight_unload(be, &gamma);
  return s;
}

static bool sampled(profile_op op) {
  return op == PROF_LINEAR || op == PROF_ATTENTION || op == PROF_CONV || op == PROF_UPSAMPLE_CONV ||
         op == PROF_WEIGHT_LOAD;
}

/* What stands for the operations that are not timed themselves. */
static profile_op yardstick(profile_op op) {
  switch (op) {
  case PROF_ADA_NORM:
  case PROF_LAYER_NORM:
  case PROF_RMS_NORM:
  case PROF_QK_NORM_ROPE:
    return PROF_LAYER_NORM;
  case PROF_CHANNEL_NORM:
    return PROF_CHANNEL_NORM;
  default:
    return PROF_TRANSFER;
  }
}

/* ---- Prices ---- */

wan_status rates_open(backend *be, rates **out) {
  *out = core_calloc(be->ctx, 1, sizeof **out);
  if (!*out) return WAN_ERR_MEMORY;
  (*out)->be = be;
  wan_status s = probe_product(*out);
  if (s == WAN_OK) s = probe_memory(*out);
  scope_trim(be);
  if (s == WAN_OK) return s;
  rates_close(*out);
  *out = NULL;
  return s;
}

void rates_close(rates *r) {
  if (!r) return;
  core_free(r->be->ctx, r->known);
  core_free(r->be->ctx, r);
}

static int by_work(const void *a, const void *b) {
  const dry_call *x = *(const dry_call *const *)a, *y = *(const dry_call *const *)b;
  double p = work_of(x) * (double)x->count, q = work_of(y) * (double)y->count;
  return (p < q) - (p > q);
}

/* Seconds of one call: its own sample's, or the mean of its kind's. */
static double price(const rates *r, const dry_call *c) {
  const timed *t = find(r, c);
  if (t) return t->seconds;
  if (r->work[c->op] > 0) return work_of(c) * r->seconds[c->op] / r->work[c->op];
  if (c->op != PROF_WEIGHT_LOAD) return work_of(c) / r->flops;
  return work_of(c) * r->seconds[PROF_TRANSFER] / r->work[PROF_TRANSFER];
}

/* Samples of the calls, those that matter most first. Memory that does not suffice for them is no failure:
 * then the rates known so far have to do. */
static wan_status measure_all(rates *r, const dry_call *calls, int64_t n) {
  const dry_call **order = core_alloc(r->be->ctx, (size_t)(n + 1) * sizeof *order);
  if (!order) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++) order[i] = &calls[i];
  qsort(order, (size_t)n, sizeof *order, by_work);
  wan_status s = WAN_OK;
  const double start = core_now();
  for (int64_t i = 0; i < n && s == WAN_OK && core_now() - start < BUDGET_SECONDS; i++)
    if (order[i]->op != PROF_WEIGHT_LOAD && !find(r, order[i])) s = measure(r, order[i]);
  core_free(r->be->ctx, order);
  scope_trim(r->be);
  if (s != WAN_ERR_MEMORY) return s;
  backend_clear(r->be);
  return WAN_OK;
}

wan_status rates_price(rates *r, const backend *dry, run_time *out) {
  const dry_call *calls;
  const int64_t n = backend_dry_calls(dry, &calls);
  *out = (run_time){0};
  CORE_TRY(measure_all(r, calls, n));
  for (int64_t i = 0; i < n; i++) {
    double *sum = calls[i].op == PROF_WEIGHT_LOAD ? &out->load : &out->compute;
    *sum += (double)calls[i].count * price(r, &calls[i]);
  }
  for (int i = 0; i < PROF_COUNT; i++) {
    const profile_op y = yardstick((profile_op)i);
    if (!sampled((profile_op)i)) out->compute += dry->profile->row[i].bytes * r->seconds[y] / r->work[y];
  }
  return WAN_OK;
}
