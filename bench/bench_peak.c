/* bench_peak.c: the two ceilings of this machine, which every stage's floor is made of.
 *
 *   wan_bench_peak [--threads N] [--seconds S] [--cpu-time 1]
 *
 * Products and convolutions are bare oneDNN (no code of the engine), the weights in the library's own order;
 * of several shapes the fastest median counts. Copying is memcpy() by all threads over arrays that no cache
 * holds; bytes read and bytes written both count. Prints one JSON object. */
#define _GNU_SOURCE
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/ctx.h"
#include "measure.h"

#ifdef WAN_HAVE_CPU
#include "backend/cpu/dnnl_compat.h"

enum { RUNS_MAX = 200 };

typedef struct bench {
  core_ctx ctx;
  int threads;
  double seconds; /* for each figure */
  bool cpu_time;  /* processor time instead of time: for a busy machine, with one thread */
  dnnl_engine_t engine;
  dnnl_stream_t stream;
} bench;

static void die(const char *what) {
  fprintf(stderr, "wan_bench_peak: %s\n", what);
  exit(1);
}

static void must(dnnl_status_t s) {
  if (s != dnnl_success) die("oneDNN failed");
}

static void *array(bench *b, size_t bytes) {
  void *p = core_alloc(&b->ctx, bytes);
  if (!p) die(b->ctx.message);
  return p;
}

/* Median time of body(arg) after a run that is not counted. */
static double median(bench *b, void (*body)(bench *, void *), void *arg) {
  double s[RUNS_MAX], start = core_now();
  int n = -1;
  for (; n < 3 || (n < RUNS_MAX && core_now() - start < b->seconds); n++) {
    double t = measure_now(b->cpu_time);
    body(b, arg);
    if (n >= 0) s[n] = measure_now(b->cpu_time) - t;
  }
  qsort(s, (size_t)n, sizeof *s, measure_by_value);
  return s[n / 2];
}

/* ---- A primitive on random operands ---- */

typedef struct primitive {
  dnnl_primitive_t primitive;
  dnnl_memory_t memory[3]; /* source, weights, destination */
} primitive;

/* Values in [-1, 1): zeros run faster than real data on some hardware. */
static dnnl_memory_t operand(bench *b, cpu_md_in md, bool bf16) {
  size_t bytes = dnnl_memory_desc_get_size(md);
  char *data = array(b, bytes);
  uint64_t state = 1;
  for (size_t i = 0; i < bytes / (bf16 ? 2 : 4); i++) {
    float v = measure_random(&state);
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    uint16_t half = (uint16_t)(bits >> 16);
    if (bf16)
      memcpy(data + 2 * i, &half, sizeof half);
    else
      memcpy(data + 4 * i, &bits, sizeof bits);
  }
  dnnl_memory_t m;
  must(dnnl_memory_create(&m, md, b->engine, data));
  return m;
}

static void make(bench *b, dnnl_primitive_desc_t pd, bool bf16, primitive *p) {
  static const dnnl_query_t what[] = {dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md};
  must(dnnl_primitive_create(&p->primitive, pd));
  for (int i = 0; i < 3; i++) p->memory[i] = operand(b, pd_md(pd, what[i]), bf16);
  dnnl_primitive_desc_destroy(pd);
}

static void release(bench *b, primitive *p) {
  for (int i = 0; i < 3; i++) {
    void *data;
    must(dnnl_memory_get_data_handle(p->memory[i], &data));
    dnnl_memory_destroy(p->memory[i]);
    core_free(&b->ctx, data);
  }
  dnnl_primitive_destroy(p->primitive);
}

static void execute(bench *b, void *arg) {
  const primitive *p = arg;
  const dnnl_exec_arg_t args[] = {
      {DNNL_ARG_SRC, p->memory[0]}, {DNNL_ARG_WEIGHTS, p->memory[1]}, {DNNL_ARG_DST, p->memory[2]}};
  must(dnnl_primitive_execute(p->primitive, b->stream, 3, args));
  must(dnnl_stream_wait(b->stream));
}

/* FLOP/s of [m, k] . [k, n] */
static double product(bench *b, bool bf16, int64_t m, int64_t n, int64_t k) {
  const dnnl_dims_t src = {m, k}, w = {k, n}, dst = {m, n};
  const dnnl_data_type_t type = bf16 ? dnnl_bf16 : dnnl_f32;
  cpu_md md[3];
  dnnl_primitive_desc_t pd;
  primitive p;
  must(md_init(&md[0], 2, src, type, dnnl_ab));
  must(md_init(&md[1], 2, w, type, dnnl_format_tag_any));
  must(md_init(&md[2], 2, dst, type, dnnl_ab));
  must(pd_matmul(&pd, b->engine, &md[0], &md[1], NULL, &md[2], NULL));
  make(b, pd, bf16, &p);
  double seconds = median(b, execute, &p);
  release(b, &p);
  for (int i = 0; i < 3; i++) md_free(&md[i]);
  return 2.0 * (double)m * (double)n * (double)k / seconds;
}

/* FLOP/s of a 3x3x3 convolution over [t + 2, side, side, c], channels last, c channels out. */
static double convolution(bench *b, bool bf16, int64_t t, int64_t side, int64_t c) {
  const dnnl_dims_t src = {1, c, t + 2, side, side}, w = {c, c, 3, 3, 3}, dst = {1, c, t, side, side};
  const dnnl_dims_t strides = {1, 1, 1}, pad = {0, 1, 1};
  const dnnl_data_type_t type = bf16 ? dnnl_bf16 : dnnl_f32;
  cpu_md md[3];
  dnnl_primitive_desc_t pd;
  primitive p;
  must(md_init(&md[0], 5, src, type, dnnl_ndhwc));
  must(md_init(&md[1], 5, w, type, dnnl_format_tag_any));
  must(md_init(&md[2], 5, dst, type, dnnl_ndhwc));
  must(pd_conv(&pd, b->engine, &md[0], &md[1], NULL, &md[2], strides, pad, pad, NULL));
  make(b, pd, bf16, &p);
  double seconds = median(b, execute, &p);
  release(b, &p);
  for (int i = 0; i < 3; i++) md_free(&md[i]);
  return 54.0 * (double)(t * side * side) * (double)c * (double)c / seconds;
}

static double best_product(bench *b, bool bf16) {
  static const int64_t shape[][3] = {{2048, 2048, 2048}, {4096, 4096, 4096}, {4096, 3072, 3072}};
  double best = 0;
  for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++) {
    if (!bf16 && i == 1) continue; /* says nothing that the others don't, and takes a second a run */
    double rate = product(b, bf16, shape[i][0], shape[i][1], shape[i][2]);
    if (rate > best) best = rate;
  }
  return best;
}

/* ---- Copying ---- */

enum { COPY_BYTES = 512 << 20 };

static void copy(bench *b, void *arg) {
  char **p = arg;
  const int64_t pieces = b->threads, size = COPY_BYTES / pieces;
#pragma omp parallel for num_threads(b->threads)
  for (int64_t i = 0; i < pieces; i++) memcpy(p[1] + i * size, p[0] + i * size, (size_t)size);
}

static double copying(bench *b) {
  char *p[2] = {array(b, COPY_BYTES), array(b, COPY_BYTES)};
  memset(p[0], 1, COPY_BYTES);
  double seconds = median(b, copy, p);
  core_free(&b->ctx, p[0]);
  core_free(&b->ctx, p[1]);
  return 2.0 * COPY_BYTES / seconds;
}

int main(int argc, char **argv) {
  bench b = {.threads = omp_get_num_procs(), .seconds = 1.5};
  core_ctx_init(&b.ctx);
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--threads") && atoi(argv[i + 1]) > 0)
      b.threads = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--cpu-time"))
      b.cpu_time = atoi(argv[i + 1]) != 0;
    else if (!strcmp(argv[i], "--seconds"))
      b.seconds = atof(argv[i + 1]);
    else if (strcmp(argv[i], "--threads"))
      die("usage: wan_bench_peak [--threads N] [--seconds S]");
  }
  omp_set_num_threads(b.threads);
  must(dnnl_engine_create(&b.engine, dnnl_cpu, 0));
  must(dnnl_stream_create(&b.stream, b.engine, dnnl_stream_default_flags));
  const dnnl_version_t *v = dnnl_version();
  printf("{\"library\": \"oneDNN %d.%d.%d\", \"threads\": %d", v->major, v->minor, v->patch, b.threads);
  printf(", \"bf16_flops\": %.6g", best_product(&b, true));
  printf(", \"f32_flops\": %.6g", best_product(&b, false));
  printf(", \"bf16_conv_flops\": %.6g", convolution(&b, true, 2, 96, 256));
  printf(", \"f32_conv_flops\": %.6g", convolution(&b, false, 1, 64, 256));
  printf(", \"copy_bytes\": %.6g}\n", copying(&b));
  dnnl_stream_destroy(b.stream);
  dnnl_engine_destroy(b.engine);
  return 0;
}

#else

int main(void) {
  fprintf(stderr, "wan_bench_peak: built without oneDNN\n");
  return 1;
}

#endif
