/* bench_ops.c: single operations at the official layer sizes, as shares of what this machine can do.
 *
 *   wan_bench_ops [--backend NAME] [--precision bf16|f32] [--threads N] [--seconds S] [--json] [--only TEXT]
 *                 [--cpu-time]
 *
 * The yardsticks come first: the rate of a large matrix product in the same precision, and the rate of
 * copying memory. Work that multiplies is given as a share of the first, work that moves data as a share of
 * the second. Every line is the median of the repetitions that fit into S seconds (3 at least), and the
 * fastest. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "measure.h"

enum { RUNS_MAX = 1000, ROW_BYTES = 64 };

typedef struct bench {
  core_ctx ctx;
  backend *be;
  backend_config config;
  double budget; /* seconds a line */
  bool json, cpu_time;
  const char *only;
  double peak_flops, peak_bytes; /* per second, of the yardsticks; 0 while they are measured */
  int lines;
  uint64_t state; /* of the generator */
} bench;

static void die(const char *what) {
  fprintf(stderr, "wan_bench_ops: %s\n", what);
  exit(1);
}

static void check(bench *b) {
  if (backend_status(b->be) != WAN_OK) die(b->ctx.message);
}

/* ---- Operands: uniform with unit variance; zeros run faster than real data on some hardware ---- */

static float next_random(bench *b) {
  return measure_random(&b->state) * 1.7320508f;
}

static void *random_host(bench *b, dtype type, int64_t n, float scale) {
  char *p = core_alloc(&b->ctx, (size_t)n * dtype_size(type));
  if (!p) die(b->ctx.message);
  for (int64_t i = 0; i < n; i++) {
    float f = scale * next_random(b);
    convert_from_f32(type, &f, p + (size_t)i * dtype_size(type), 1);
  }
  return p;
}

static tensor random_tensor(bench *b, dtype type, int ndim, const int64_t *dim) {
  tensor t = tensor_alloc(b->be, type == DT_NONE ? b->be->act : type, ndim, dim);
  check(b);
  void *host = random_host(b, t.type, tensor_count(&t), 1.0f);
  tensor_upload(b->be, t, host);
  core_free(&b->ctx, host);
  return t;
}
#define RANDOM(b, type, ...)                                                            \
  random_tensor((b), (type), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
                (const int64_t[]){__VA_ARGS__})

/* In the dtype a checkpoint has it in: bf16 (f32 with --precision f32). */
static weight random_weight(bench *b, weight_role role, int ndim, const int64_t *dim) {
  tensor src = tensor_of(role == WEIGHT_VECTOR ? DT_F32 : b->be->act, NULL, ndim, dim);
  int64_t n = tensor_count(&src);
  src.data = random_host(b, src.type, n, sqrtf((float)dim[0] / (float)n));
  weight w = {.name = "bench", .role = role, .src = src};
  if (backend_weight_load(b->be, &w) != WAN_OK) die(b->ctx.message);
  return w;
}
#define WEIGHT(b, role, ...)                                                            \
  random_weight((b), (role), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
                (const int64_t[]){__VA_ARGS__})

static void drop(bench *b, tensor t) {
  tensor_free(b->be, &t);
}

static void drop_weight(bench *b, weight w) {
  backend_weight_unload(b->be, &w);
  core_free(&b->ctx, w.src.data);
}

/* ---- Timing ---- */

typedef struct timing {
  double median, fastest;
} timing;

typedef struct operands {
  tensor x, y, z;
  const weight *w, *bias;
  tensor mod;
  token_rows rows;
  attention_spec attention;
  conv_spec conv;
  op_act act;
} operands;
typedef void run_fn(bench *b, const operands *o);

static timing measure(bench *b, run_fn *run, const operands *o) {
  double s[RUNS_MAX], start = core_now();
  int n = -1; /* the first run is not counted: it compiles kernels and touches memory */
  for (; n < 3 || (n < RUNS_MAX && core_now() - start < b->budget); n++) {
    double t0 = measure_now(b->cpu_time);
    scope_mark mark = scope_begin(b->be);
    run(b, o);
    scope_end(b->be, mark);
    backend_sync(b->be);
    if (n >= 0) s[n] = measure_now(b->cpu_time) - t0;
  }
  check(b);
  qsort(s, (size_t)n, sizeof *s, measure_by_value);
  return (timing){s[n / 2], s[0]};
}

/* flops > 0: work that multiplies; otherwise it moves `bytes`. */
static timing line(bench *b, const char *name, run_fn *run, const operands *o, double flops, double bytes) {
  timing t = measure(b, run, o);
  double work = flops > 0 ? flops : bytes, peak = flops > 0 ? b->peak_flops : b->peak_bytes;
  double share = peak > 0 ? work / t.median / peak : 1;
  const char *unit = flops > 0 ? "GFLOP/s" : "GB/s";
  if (b->json)
    printf(
        "%s\n  {\"name\": \"%s\", \"median_s\": %.6g, \"fastest_s\": %.6g, \"rate\": %.6g, \"unit\": \"%s\", "
        "\"share\": %.4f}",
        b->lines++ ? "," : "", name, t.median, t.fastest, work / t.median / 1e9, unit, share);
  else
    printf("%-52s %10.3f %10.3f %9.1f %-7s %6.1f%%\n", name, t.median * 1e3, t.fastest * 1e3,
           work / t.median / 1e9, unit, share * 100);
  fflush(stdout);
  return t;
}

static bool wanted(const bench *b, const char *name) {
  return !b->only || strstr(name, b->only) != NULL;
}

/* ---- The operations ---- */

static void run_linear(bench *b, const operands *o) {
  op_linear_into(b->be, o->x, o->w, o->bias, o->act, o->y);
}

static void run_copy(bench *b, const operands *o) {
  tensor_copy(b->be, o->y, o->x);
}

static void run_attention(bench *b, const operands *o) {
  op_attention(b->be, o->x, o->y, o->z, &o->attention);
}

static void run_conv(bench *b, const operands *o) {
  op_conv(b->be, o->x, o->w, o->bias, &o->conv, (tensor){0});
}

static void run_upsample(bench *b, const operands *o) {
  tensor y = TENSOR_NEW(b->be, DT_NONE, 1, 2 * o->x.dim[1], 2 * o->x.dim[2], o->w->src.dim[0]);
  op_upsample_conv_into(b->be, o->x, o->w, o->bias, y);
}

static void run_ada_norm(bench *b, const operands *o) {
  op_ada_norm(b->be, o->x, o->mod, &o->rows, 0, 1, 1e-6f, DT_NONE);
}

static void run_gate_add(bench *b, const operands *o) {
  op_gate_add(b->be, o->x, o->y, o->mod, &o->rows, 2);
}

static void run_rope(bench *b, const operands *o) {
  op_qk_norm_rope(b->be, o->x, o->w, 1e-6f, o->y, o->attention.heads);
}

static void run_channel_norm(bench *b, const operands *o) {
  op_channel_norm(b->be, o->x, o->w, ACT_SILU, o->y);
}

static void run_weight(bench *b, const operands *o) {
  weight w = {.name = "bench", .role = o->w->role, .src = o->w->src};
  if (backend_weight_load(b->be, &w) != WAN_OK) die(b->ctx.message);
  backend_weight_unload(b->be, &w);
}

static double bytes_of(tensor t) {
  return (double)tensor_bytes(&t);
}

static timing linear(bench *b, const char *what, int64_t M, int64_t K, int64_t N, op_act act) {
  char name[ROW_BYTES];
  snprintf(name, sizeof name, "linear %s %lld x %lld -> %lld", what, (long long)M, (long long)K,
           (long long)N);
  if (b->peak_flops > 0 && !wanted(b, name)) return (timing){0, 0};
  weight w = WEIGHT(b, WEIGHT_LINEAR, N, K), bias = WEIGHT(b, WEIGHT_VECTOR, N);
  operands o = {
      .x = RANDOM(b, DT_NONE, M, K), .y = RANDOM(b, DT_NONE, M, N), .w = &w, .bias = &bias, .act = act};
  timing t = line(b, name, run_linear, &o, 2.0 * (double)(M * K) * (double)N, 0);
  drop(b, o.x);
  drop(b, o.y);
  drop_weight(b, w);
  drop_weight(b, bias);
  return t;
}

static void attention(bench *b, const char *what, int64_t lq, int64_t lk, int heads, int64_t dim) {
  char name[ROW_BYTES];
  snprintf(name, sizeof name, "attention %s %lld x %lld, %d heads of %lld", what, (long long)lq,
           (long long)lk, heads, (long long)dim);
  if (!wanted(b, name)) return;
  operands o = {.x = RANDOM(b, DT_NONE, lq, heads * dim),
                .y = RANDOM(b, DT_NONE, lk, heads * dim),
                .z = RANDOM(b, DT_NONE, lk, heads * dim),
                .attention = {.heads = heads, .scale = 1.0f / sqrtf((float)dim)}};
  line(b, name, run_attention, &o, 4.0 * (double)(lq * lk) * (double)(heads * dim), 0);
  drop(b, o.x);
  drop(b, o.y);
  drop(b, o.z);
}

static void conv(bench *b, const char *what, int64_t T, int64_t H, int64_t W, int64_t ci, int64_t co,
                 int64_t kt) {
  char name[ROW_BYTES];
  snprintf(name, sizeof name, "conv %s %lld x %lldx%lld, %lld -> %lld", what, (long long)T, (long long)H,
           (long long)W, (long long)ci, (long long)co);
  if (!wanted(b, name)) return;
  weight w = WEIGHT(b, WEIGHT_CONV, co, ci, kt, 3, 3), bias = WEIGHT(b, WEIGHT_VECTOR, co);
  operands o = {.x = RANDOM(b, DT_NONE, T + kt - 1, H, W, ci),
                .w = &w,
                .bias = &bias,
                .conv = {1, 1, 1, 1, 1, 1, 1, NULL}};
  line(b, name, run_conv, &o, 18.0 * (double)(T * H * W) * (double)(ci * co * kt), 0);
  drop(b, o.x);
  drop_weight(b, w);
  drop_weight(b, bias);
}

/* Work is counted as the definition has it: 9 taps for each output pixel. */
static void upsample(bench *b, int64_t H, int64_t W, int64_t ci, int64_t co) {
  char name[ROW_BYTES];
  snprintf(name, sizeof name, "upsample_conv %lldx%lld, %lld -> %lld", (long long)H, (long long)W,
           (long long)ci, (long long)co);
  if (!wanted(b, name)) return;
  weight w = WEIGHT(b, WEIGHT_CONV_UP, co, ci, 3, 3), bias = WEIGHT(b, WEIGHT_VECTOR, co);
  operands o = {.x = RANDOM(b, DT_NONE, 1, H, W, ci), .w = &w, .bias = &bias};
  line(b, name, run_upsample, &o, 18.0 * (double)(4 * H * W) * (double)(ci * co), 0);
  drop(b, o.x);
  drop_weight(b, w);
  drop_weight(b, bias);
}

/* What surrounds the products in a block of the 5B model: L tokens of 3072 channels. */
static void rows(bench *b, int64_t L) {
  enum { C = 3072, HEADS = 24, HALF = 64, MODS = 6 };
  int32_t which = 0;
  scope_mark mark = scope_begin(b->be);
  weight gamma = WEIGHT(b, WEIGHT_VECTOR, C);
  operands o = {.x = RANDOM(b, DT_F32, L, C),
                .y = RANDOM(b, DT_NONE, L, C),
                .mod = RANDOM(b, DT_F32, 1, MODS, C),
                .rows = token_rows_create(b->be, &which, 1, L)};
  double wide = bytes_of(o.x), act = bytes_of(o.y);
  if (wanted(b, "ada_norm")) line(b, "ada_norm", run_ada_norm, &o, 0, wide + act);
  if (wanted(b, "gate_add")) line(b, "gate_add", run_gate_add, &o, 0, 2 * wide + act);
  operands q = {.x = o.y, .y = RANDOM(b, DT_F32, L, HALF, 2), .w = &gamma, .attention = {.heads = HEADS}};
  if (wanted(b, "qk_norm_rope")) line(b, "qk_norm_rope", run_rope, &q, 0, 2 * act + bytes_of(q.y));
  scope_end(b->be, mark);
  drop(b, o.x);
  drop(b, o.y);
  drop(b, o.mod);
  drop(b, q.y);
  drop_weight(b, gamma);
}

static void channel_norm(bench *b, int64_t H, int64_t W, int64_t C) {
  char name[ROW_BYTES];
  snprintf(name, sizeof name, "channel_norm and silu %lldx%lld, %lld", (long long)H, (long long)W,
           (long long)C);
  if (!wanted(b, name)) return;
  weight gamma = WEIGHT(b, WEIGHT_VECTOR, C);
  operands o = {.x = RANDOM(b, DT_NONE, H, W, C), .y = RANDOM(b, DT_NONE, H, W, C), .w = &gamma};
  line(b, name, run_channel_norm, &o, 0, 2 * bytes_of(o.x));
  drop(b, o.x);
  drop(b, o.y);
  drop_weight(b, gamma);
}

/* A weight of a checkpoint in f32, as the official ones are: read, rounded, written. */
static void weight_load(bench *b, int64_t n, int64_t k) {
  char name[ROW_BYTES];
  snprintf(name, sizeof name, "weight_load f32 %lld x %lld", (long long)n, (long long)k);
  if (!wanted(b, name)) return;
  weight w = {.role = WEIGHT_LINEAR, .src = TENSOR_OF(DT_F32, random_host(b, DT_F32, n * k, 1), n, k)};
  operands o = {.w = &w};
  line(b, name, run_weight, &o, 0, (double)(n * k) * (4.0 + (double)dtype_size(b->be->act)));
  core_free(&b->ctx, w.src.data);
}

static void yardsticks(bench *b) {
  operands o = {.x = RANDOM(b, DT_F32, 32 << 20), .y = RANDOM(b, DT_F32, 32 << 20)};
  double bytes = 2 * bytes_of(o.x);
  b->peak_bytes = bytes / line(b, "copy 128 MiB", run_copy, &o, 0, bytes).median;
  drop(b, o.x);
  drop(b, o.y);
  timing t = linear(b, "peak", 4096, 4096, 4096, ACT_NONE);
  b->peak_flops = 2.0 * 4096 * 4096 * 4096 / t.median;
}

static void all(bench *b) {
  yardsticks(b);
  linear(b, "5B q", 1024, 3072, 3072, ACT_NONE);
  linear(b, "5B q", 4096, 3072, 3072, ACT_NONE);
  linear(b, "5B ffn.0", 4096, 3072, 14336, ACT_GELU_TANH);
  linear(b, "5B ffn.2", 4096, 14336, 3072, ACT_NONE);
  linear(b, "A14B q", 4096, 5120, 5120, ACT_NONE);
  linear(b, "UMT5 fc1", 80, 4096, 10240, ACT_NONE);
  linear(b, "UMT5 fc1", 512, 4096, 10240, ACT_NONE);
  attention(b, "self", 1024, 1024, 24, 128);
  attention(b, "self", 4096, 4096, 24, 128);
  attention(b, "self", 16384, 16384, 4, 128);
  attention(b, "cross", 4096, 512, 24, 128);
  attention(b, "UMT5", 512, 512, 64, 64);
  attention(b, "VAE 2.1", 1560, 1560, 1, 384);
  attention(b, "VAE 2.2", 3520, 3520, 1, 1024);
  conv(b, "3x3x3", 1, 44, 80, 1024, 1024, 3);
  conv(b, "3x3x3", 2, 88, 160, 1024, 1024, 3);
  conv(b, "3x3x3", 4, 176, 320, 512, 512, 3);
  conv(b, "3x3x3", 4, 176, 320, 256, 256, 3);
  conv(b, "3x3x3 last", 4, 176, 320, 256, 12, 3);
  conv(b, "3x3x3 first", 1, 176, 320, 12, 160, 3);
  upsample(b, 44, 80, 1024, 1024);
  upsample(b, 176, 320, 512, 512);
  rows(b, 8192);
  channel_norm(b, 352, 640, 256);
  weight_load(b, 14336, 3072);
}

static bench options(int argc, char **argv) {
  bench b = {.budget = 2, .state = 1, .config = {.precision = WAN_PRECISION_BF16}};
  for (int i = 1; i < argc; i++) {
    const char *a = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;
    if (!strcmp(a, "--json") || !strcmp(a, "--cpu-time")) {
      *(a[2] == 'j' ? &b.json : &b.cpu_time) = true;
      continue;
    }
    if (!v) die("an option lacks its value, or is unknown; see the head of bench/bench_ops.c");
    i++;
    if (!strcmp(a, "--backend"))
      b.config.name = v;
    else if (!strcmp(a, "--precision"))
      b.config.precision = !strcmp(v, "f32") ? WAN_PRECISION_F32 : WAN_PRECISION_BF16;
    else if (!strcmp(a, "--threads"))
      b.config.threads = atoi(v);
    else if (!strcmp(a, "--seconds"))
      b.budget = atof(v);
    else if (!strcmp(a, "--only"))
      b.only = v;
    else
      die("unknown option; see the head of bench/bench_ops.c");
  }
  return b;
}

int main(int argc, char **argv) {
  bench b = options(argc, argv);
  core_ctx_init(&b.ctx);
  if (backend_open(&b.ctx, &b.config, &b.be) != WAN_OK) die(b.ctx.message);
  if (b.json)
    printf("{\"backend\": \"%s\", \"precision\": \"%s\", \"threads\": %d, \"lines\": [", b.be->ops->name,
           dtype_name(b.be->act), b.be->threads);
  else
    printf("%s, %s, %d threads\n%-52s %10s %10s %9s %-7s %7s\n", b.be->ops->name, dtype_name(b.be->act),
           b.be->threads, "operation", "median ms", "fastest", "rate", "", "of peak");
  all(&b);
  if (b.json) printf("\n]}\n");
  backend_close(b.be);
  return 0;
}
