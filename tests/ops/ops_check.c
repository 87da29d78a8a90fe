#include "ops/ops_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POISON_BYTES = 8 << 20, ALIGN = 256 /* of results in a scope, arena.c */ };

/* ---- Random choices ---- */

uint64_t rig_bits(rig *r) { /* splitmix64 (Steele, Lea, Flood 2014) */
  uint64_t z = r->state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

double rig_uniform(rig *r) {
  return (double)(rig_bits(r) >> 11) * 0x1p-53;
}

int64_t rig_int(rig *r, int64_t lo, int64_t hi) {
  return lo + (int64_t)(rig_bits(r) % (uint64_t)(hi - lo + 1));
}

bool rig_chance(rig *r, double p) {
  return rig_uniform(r) < p;
}

double rig_normal(rig *r) {
  double u = 1 - rig_uniform(r), v = rig_uniform(r);
  return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

int64_t rig_size(rig *r, int64_t lo, int64_t hi) {
  if (rig_chance(r, 0.1)) return lo;
  int64_t n = lo + (int64_t)exp(rig_uniform(r) * log((double)(hi - lo + 1))) - 1;
  if (rig_chance(r, 0.5)) {
    int64_t block = (int64_t)8 << rig_int(r, 0, 4);
    n = (n + block - 1) / block * block + rig_int(r, -1, 1);
  }
  return n < lo ? lo : n > hi ? hi : n;
}

dtype rig_type(rig *r) {
  return rig_chance(r, 0.5) ? DT_F32 : r->act;
}

fill rig_fill(rig *r) {
  return rig_chance(r, 0.5) ? FILL_NORMAL : (fill)rig_int(r, FILL_NORMAL, FILL_COUNT - 1);
}

static double value(rig *r, fill how) {
  switch (how) {
  case FILL_LARGE:
    return 1e4 * rig_normal(r);
  case FILL_TINY:
    return 1e-15 * rig_normal(r);
  case FILL_OFFSET:
    return 100 + rig_normal(r);
  case FILL_ZEROS:
    return rig_chance(r, 0.5) ? 0.0 : -0.0;
  case FILL_MIXED:
    return value(r, (fill)rig_int(r, FILL_NORMAL, FILL_ZEROS));
  default:
    return rig_normal(r);
  }
}

/* ---- Failing ---- */

void rig_fail(rig *r, const char *fmt, ...) {
  char text[512];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  print_error("%s on %s %s, case %d (%s): %s\nrepeat with WAN_TEST_SEED=%llu WAN_TEST_BACKEND=%s\n", r->op,
              r->be->ops->name, dtype_name(r->act), r->cases, r->note, text, (unsigned long long)r->seed,
              r->be->ops->name);
  fail();
}

static void check_status(rig *r) {
  if (backend_status(r->ref)) rig_fail(r, "ref failed: %s", r->ref_ctx.message);
  if (backend_status(r->be)) rig_fail(r, "failed: %s", r->ctx.message);
}

/* ---- Making things ---- */

static void *must(void *p) {
  if (!p) fail_msg("the test itself is out of memory");
  return p;
}

/* Fill the memory that the next scope hands out with NaN (all bits set, in every float dtype). */
static scope_mark poison(backend *be) {
  scope_mark mark = scope_begin(be);
  tensor t = TENSOR_NEW(be, DT_U8, POISON_BYTES);
  void *ones = must(malloc(POISON_BYTES));
  memset(ones, 0xff, POISON_BYTES);
  tensor_upload(be, t, ones);
  backend_sync(be);
  free(ones);
  scope_end(be, mark);
  return scope_begin(be);
}

static void release(rig *r) {
  for (int i = 0; i < r->inputs; i++) {
    tensor_free(r->ref, &r->input[i].t.ref);
    tensor_free(r->be, &r->input[i].t.sub);
    free(r->input[i].host);
  }
  for (int i = 0; i < r->weight_count; i++) {
    backend_weight_unload(r->ref, &r->weights[i].ref);
    backend_weight_unload(r->be, &r->weights[i].sub);
    free(r->weights[i].block);
    free(r->weights[i].copy);
  }
  r->inputs = r->weight_count = 0;
  if (r->open) {
    scope_end(r->ref, r->ref_mark);
    scope_end(r->be, r->mark);
  }
  r->open = false;
}

void rig_begin(rig *r, const char *op) {
  release(r); /* of a case that failed half way */
  backend_clear(r->ref);
  backend_clear(r->be);
  r->op = op;
  r->cases++;
  r->note[0] = 0;
  r->ref_mark = poison(r->ref);
  r->mark = poison(r->be);
  r->open = true;
  check_status(r);
}

void rig_note(rig *r, const char *fmt, ...) {
  size_t used = strlen(r->note);
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(r->note + used, sizeof r->note - used, fmt, ap);
  va_end(ap);
}

twin rig_tensor_from(rig *r, dtype type, const void *host, int ndim, const int64_t *dim) {
  rig_input *in = &r->input[r->inputs];
  if (r->inputs == RIG_INPUTS) rig_fail(r, "the test makes too many tensors");
  in->t.ref = tensor_alloc(r->ref, type, ndim, dim);
  in->t.sub = tensor_alloc(r->be, type, ndim, dim);
  size_t bytes = tensor_bytes(&in->t.ref);
  in->host = must(malloc(bytes + 1));
  memcpy(in->host, host, bytes);
  r->inputs++;
  tensor_upload(r->ref, in->t.ref, host);
  tensor_upload(r->be, in->t.sub, host);
  check_status(r);
  return in->t;
}

twin rig_tensor(rig *r, dtype type, fill how, int ndim, const int64_t *dim) {
  tensor shape = tensor_of(type, NULL, ndim, dim);
  int64_t n = tensor_count(&shape), cols = tensor_cols(&shape);
  float *f = must(malloc(((size_t)n + 1) * sizeof *f));
  void *host = must(malloc(tensor_bytes(&shape) + 1));
  for (int64_t i = 0; i < n; i++) f[i] = how == FILL_EQUAL_ROWS && i % cols ? f[i - 1] : (float)value(r, how);
  convert_from_f32(type, f, host, (size_t)n);
  char text[96];
  static const char *const names[FILL_COUNT] = {"normal", "large", "tiny", "equal",
                                                "offset", "zeros", "mixed"};
  rig_note(r, " %s %s %s", dtype_name(type), tensor_shape_text(&shape, text, sizeof text), names[how]);
  twin t = rig_tensor_from(r, type, host, ndim, dim);
  free(f);
  free(host);
  return t;
}

void rig_may_change(rig *r, twin t) {
  for (int i = 0; i < r->inputs; i++)
    if (r->input[i].t.ref.data == t.ref.data) {
      free(r->input[i].host);
      r->input[i].host = NULL;
    }
}

twin twin_slice(twin t, int64_t begin, int64_t count) {
  return (twin){tensor_slice(t.ref, begin, count), tensor_slice(t.sub, begin, count)};
}

/* A byte whose value in the f8 dtype is in [-2, 2], so that no entry outweighs all others. */
static uint8_t f8_byte(rig *r, dtype type) {
  for (;;) {
    uint8_t b = (uint8_t)rig_bits(r);
    float v = type == DT_F8E4M3 ? f8e4m3_to_f32(b) : f8e5m2_to_f32(b);
    if (fabsf(v) <= 2) return b;
  }
}

const twin_weight *rig_weight(rig *r, weight_role role, double mean, double scale, int ndim,
                              const int64_t *dim) {
  static const dtype file_types[] = {DT_F32, DT_BF16, DT_F16, DT_F8E4M3, DT_F8E5M2, DT_F64};
  if (r->weight_count == RIG_WEIGHTS) rig_fail(r, "the test makes too many weights");
  twin_weight *w = &r->weights[r->weight_count];
  dtype type = file_types[rig_chance(r, 0.6) ? rig_int(r, 0, 1) : rig_int(r, 2, 5)];
  size_t skew = rig_chance(r, 0.3) ? 1 : 0; /* a safetensors header may have any length */
  tensor src = tensor_of(type, NULL, ndim, dim);
  int64_t n = tensor_count(&src);
  char text[96];
  rig_note(r, " weight %s%s %s", dtype_name(type), skew ? " misaligned" : "",
           tensor_shape_text(&src, text, sizeof text));
  *w = (twin_weight){.src_bytes = tensor_bytes(&src)};
  w->block = must(malloc(w->src_bytes + 64));
  w->copy = must(malloc(w->src_bytes));
  r->weight_count++;
  src.data = (char *)w->block + skew;
  for (int64_t i = 0; i < n; i++) {
    double v = mean + scale * rig_normal(r);
    float f = (float)v;
    char element[8];
    if (type == DT_F8E4M3 || type == DT_F8E5M2)
      element[0] = (char)f8_byte(r, type);
    else if (type == DT_F64)
      memcpy(element, &v, 8);
    else
      convert_from_f32(type, &f, element, 1);
    memcpy((char *)src.data + (size_t)i * dtype_size(type), element, dtype_size(type));
  }
  memcpy(w->copy, src.data, w->src_bytes);
  w->ref = w->sub = (weight){.name = "w", .role = role, .src = src};
  if (backend_weight_load(r->ref, &w->ref)) rig_fail(r, "ref: %s", r->ref_ctx.message);
  if (backend_weight_load(r->be, &w->sub)) rig_fail(r, "weight_load: %s", r->ctx.message);
  return w;
}

const weight *ref_of(const twin_weight *w) {
  return w ? &w->ref : NULL;
}

const weight *sub_of(const twin_weight *w) {
  return w ? &w->sub : NULL;
}

void rig_end(rig *r) {
  check_status(r);
  for (int i = 0; i < r->inputs; i++) {
    rig_input *in = &r->input[i];
    if (!in->host) continue;
    size_t bytes = tensor_bytes(&in->t.sub);
    void *now = must(malloc(bytes + 1));
    tensor_download(r->be, now, in->t.sub);
    bool same = memcmp(now, in->host, bytes) == 0;
    free(now);
    if (!same) rig_fail(r, "input %d was changed", i);
    if (memcmp(in->t.ref.data, in->host, bytes) != 0) rig_fail(r, "ref changed input %d", i);
  }
  for (int i = 0; i < r->weight_count; i++)
    if (memcmp(r->weights[i].ref.src.data, r->weights[i].copy, r->weights[i].src_bytes) != 0)
      rig_fail(r, "the source of weight %d was changed", i);
  release(r);
}

/* ---- Judging ----
 * u is the unit roundoff: 2^-24 for f32, 2^-8 for bf16 (8 significant bits).
 *
 * Two correct results, rounded from values that nearly agree, are at most one unit in the last place
 * apart: rel = 2u of the result's dtype.
 * Summing `depth` random terms one after the other in f32 leaves an error of about 0.4 sqrt(depth) u
 * of the sum's size (partial sums grow like sqrt(k), each rounding adds u/sqrt(3) of its partial sum);
 * l2 allows twice that, and 2u for the few operations around it. A single element's error is taken as
 * Gaussian and may reach eight times the rms error (one in 10^15 does by chance).
 * A sum of equal squares, where all roundings of a stretch go the same way, is off by up to depth u/2 in a
 * plain loop, of which its root keeps half; a quarter of that is allowed, depth u/16 (5040 equal values:
 * 0.058 u depth was measured in a plain loop, sixteen lanes do sixteen times better).
 * Where operands may be rounded to bf16, each product errs by at most u, 0.4 u in the rms (uniform in
 * half a unit, averaged over a binade), independently: 0.4 u of the sum's size. The rounded results
 * themselves differ by at most sqrt(2) 0.4 u in the rms. Together 0.7 u; l2 is twice that, because the
 * smallest tensors it is asked of have few elements. One element again gets eight times 0.4 u. */

static const double u_f32 = 0x1p-24, u_bf16 = 0x1p-8;

limit limit_exact(void) {
  return (limit){0};
}

limit limit_f32(dtype out, double depth) {
  double sum = u_f32 * (2 + 0.8 * sqrt(depth));
  if (out == DT_BF16) return (limit){.l2 = 0.8 * u_bf16, .rel = 2 * u_bf16, .slack = 8 * sum};
  return (limit){.l2 = 2 * u_f32 + sum, .rel = 2 * u_f32, .slack = 8 * sum};
}

limit limit_squares(dtype out, double depth) {
  limit l = limit_f32(out, depth);
  double sum = u_f32 * depth / 16;
  l.slack += 8 * sum;
  l.l2 += sum;
  return l;
}

limit limit_act(const rig *r, dtype out, double depth) {
  limit l = limit_f32(out, depth);
  if (r->act != DT_BF16) return l;
  l.l2 = 1.4 * u_bf16;
  l.slack += 8 * 0.4 * u_bf16;
  return l;
}

/* Bytes between the end of a result and the next place where the arena may put something. */
static void check_padding(rig *r, tensor t) {
  unsigned char gap[ALIGN];
  size_t bytes = tensor_bytes(&t), length = (ALIGN - bytes % ALIGN) % ALIGN;
  for (int i = 0; i < r->inputs; i++) { /* not a scope's memory */
    const tensor *in = &r->input[i].t.sub;
    uintptr_t begin = (uintptr_t)in->data, at = (uintptr_t)t.data;
    if (at >= begin && at <= begin + tensor_bytes(in)) return;
  }
  if (!length) return;
  if (r->be->ops->download(r->be, gap, (char *)t.data + bytes, length)) rig_fail(r, "download failed");
  for (size_t i = 0; i < length; i++)
    if (gap[i] != 0xff) rig_fail(r, "byte %zu behind the result was written", i);
}

static double element(dtype type, const void *data, int64_t i) {
  float f;
  if (type == DT_U8) return ((const uint8_t *)data)[i];
  convert_to_f32(type, (const char *)data + (size_t)i * dtype_size(type), &f, 1);
  return (double)f;
}

double max_abs(tensor t) {
  double max = 0;
  for (int64_t i = 0; i < tensor_count(&t); i++) max = fmax(max, fabs(element(t.type, t.data, i)));
  return max;
}

double max_norm(tensor t, int64_t parts) {
  double max = 0, squares = 0;
  int64_t n = tensor_count(&t), cols = tensor_cols(&t) / parts;
  for (int64_t i = 0; i < n; i++) {
    if (i % cols == 0) squares = 0;
    squares += element(t.type, t.data, i) * element(t.type, t.data, i);
    max = fmax(max, squares);
  }
  return sqrt(max);
}

double weight_rms(const twin_weight *w) {
  double squares = 0;
  int64_t n = tensor_count(&w->ref.src);
  for (int64_t i = 0; i < n; i++) squares += pow(element(w->ref.type, w->ref.data, i), 2);
  return sqrt(squares / (double)n);
}

static double row_rms(dtype type, const void *data, int64_t row, int64_t cols) {
  double squares = 0;
  for (int64_t i = row * cols; i < (row + 1) * cols; i++)
    squares += element(type, data, i) * element(type, data, i);
  return sqrt(squares / (double)cols);
}

void rig_compare(rig *r, tensor expected, tensor found, limit l) {
  check_status(r);
  if (expected.type != found.type || !tensor_same_shape(&expected, &found))
    rig_fail(r, "the result has another shape or dtype than ref's");
  check_padding(r, found);
  int64_t n = tensor_count(&expected), cols = tensor_cols(&expected);
  void *got = must(malloc(tensor_bytes(&found) + 1));
  tensor_download(r->be, got, found);
  check_status(r);
  double error = 0, norm = 0, rms = 0;
  char text[256] = "";
  for (int64_t i = 0; i < n && !text[0]; i++) {
    if (i % cols == 0) rms = row_rms(expected.type, expected.data, i / cols, cols);
    double e = element(expected.type, expected.data, i), g = element(found.type, got, i);
    double allowed = l.rel * fabs(e) + l.slack * (rms + l.scale) + l.abs;
    if (!isfinite(e))
      snprintf(text, sizeof text, "ref itself gives %g at element %lld", e, (long long)i);
    else if (!(fabs(g - e) <= allowed))
      snprintf(text, sizeof text,
               "element %lld (row %lld, column %lld): expected %.9g, found %.9g, limit %.3g", (long long)i,
               (long long)(i / cols), (long long)(i % cols), e, g, allowed);
    error += (g - e) * (g - e);
    norm += e * e;
  }
  bool averages = cols >= 16 && n >= 64; /* fewer elements say little about an rms error */
  if (!text[0] && averages && sqrt(error) > l.l2 * sqrt(norm) + (l.l2 * l.scale + l.abs) * sqrt((double)n))
    snprintf(text, sizeof text, "relative L2 error %.3g, limit %.3g", sqrt(error / norm), l.l2);
  free(got);
  if (text[0]) rig_fail(r, "%s", text);
}

/* ---- Running ---- */

static void skipped(void **state) {
  print_message("skipped: %s\n", (const char *)*state);
  skip();
}

static int run_group(const char *group, const ops_test *tests, int count, void *state) {
  struct CMUnitTest list[count];
  for (int i = 0; i < count; i++)
    list[i] = (struct CMUnitTest){tests[i].name, tests[i].run, NULL, NULL, state};
  return cmocka_run_group_tests_name(group, list, NULL, NULL);
}

static const char *const precision_names[] = {
    [WAN_PRECISION_BF16] = "bf16", [WAN_PRECISION_F32] = "f32", [WAN_PRECISION_FP8] = "fp8"};

static int run_backend(const char *program, const char *name, wan_precision precision, uint64_t seed,
                       const ops_test *tests, int count) {
  backend_config config = {.name = "ref", .precision = precision};
  char group[128];
  snprintf(group, sizeof group, "%s %s %s", program, name, precision_names[precision]);
  rig *r = calloc(1, sizeof *r);
  if (!r) return 1;
  core_ctx_init(&r->ref_ctx);
  core_ctx_init(&r->ctx);
  r->seed = r->state = seed;
  r->act = precision == WAN_PRECISION_F32 ? DT_F32 : DT_BF16;
  int failures = backend_open(&r->ref_ctx, &config, &r->ref) != WAN_OK;
  config.name = name;
  if (!failures && backend_open(&r->ctx, &config, &r->be) != WAN_OK) {
    ops_test only = {"backend can't be opened", skipped};
    failures = run_group(group, &only, 1, r->ctx.message);
  } else if (!failures) {
    failures = run_group(group, tests, count, r);
    release(r);
  }
  backend_close(r->be);
  backend_close(r->ref);
  if (core_mem_current(&r->ctx) || core_mem_current(&r->ref_ctx)) {
    print_error("%s: %llu bytes (ref: %llu) still held after closing\n", group,
                (unsigned long long)core_mem_current(&r->ctx),
                (unsigned long long)core_mem_current(&r->ref_ctx));
    failures++;
  }
  free(r);
  return failures;
}

static int run_all(const char *program, const wan_precision *precisions, int precision_count,
                   const ops_test *tests, int count) {
  const char *only = getenv("WAN_TEST_BACKEND"), *fixed = getenv("WAN_TEST_SEED");
  uint64_t seed = fixed ? strtoull(fixed, NULL, 0) : (uint64_t)(core_now() * 1e9);
  int failures = 0, ran = 0;
  for (int i = 0; backend_name(i); i++) {
    const char *name = backend_name(i);
    if (only ? strcmp(only, name) != 0 : strcmp(name, "ref") == 0) continue;
    for (int p = 0; p < precision_count; p++)
      failures += run_backend(program, name, precisions[p], seed, tests, count);
    ran++;
  }
  if (!ran) {
    ops_test none = {"no backend to compare with ref", skipped};
    failures += run_group(program, &none, 1, (void *)(uintptr_t) "this build has only ref");
  }
  return failures;
}

int ops_run(const char *program, const ops_test *tests, int count) {
  const wan_precision both[] = {WAN_PRECISION_F32, WAN_PRECISION_BF16};
  return run_all(program, both, 2, tests, count);
}

int ops_run_fp8(const char *program, const ops_test *tests, int count) {
  const wan_precision fp8 = WAN_PRECISION_FP8;
  return run_all(program, &fp8, 1, tests, count);
}
