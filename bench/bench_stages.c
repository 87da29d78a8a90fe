/* bench_stages.c: time and memory of one stage of a checkpoint, whole stages as the pipeline runs them.
 *
 *   wan_bench_stages STAGE --model PATH [--backend NAME] [--precision bf16|f32|fp8] [--threads N] [--runs N]
 *     [--keep MIB]   weights that may stay in the backend's memory; the rest is streamed. Default: all
 *     [--profile 1]  time by operation, on stderr
 *     [--warm first] the run before the clock has one latent frame only: for stages that take minutes
 *     [--cpu-time 1] processor time of the process instead of time: for a busy machine, with --threads 1
 *     [--stdin 1]    print "ready", then make one run for each line of input and print its seconds, so that a
 *                    peer can be measured in turns with this
 *     dit         --latent T,h,w   [--passes 1|2]     one forward pass of the expert in PATH
 *     vae-decode  --latent T,h,w                      a whole decode
 *     vae-encode  --video F,H,W                       a whole encode
 *     text        --tokens N                          one prompt of N tokens
 *
 * Prints one JSON object: seconds (median, min, max of the runs after one that is not counted), the engine's
 * peak memory, the process's peak resident set, and the work of a run by operation, counted by the stage's
 * own code on a backend that computes nothing; after dit in fp8, on stderr, how far its result is from bf16.
 * Inputs are random: zeros run faster than real data on some
 * hardware. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "backend/profile.h"
#include "dit/dit.h"
#include "measure.h"
#include "text/text.h"
#include "vae/vae.h"

enum { RUNS_MAX = 101 };

typedef struct options {
  const char *stage, *model;
  backend_config config;
  long long dim[3];
  int passes, tokens, runs;
  unsigned long long keep; /* bytes */
  bool warm_first, interactive, cpu_time;
} options;

typedef struct bench {
  core_ctx ctx;
  backend *be;
  options o;
  bool counting;        /* on the backend that only counts: one run, no report */
  backend_profile work; /* of one run */
  uint64_t state;       /* of the generator below */
} bench;

static void die(const char *what) {
  fprintf(stderr, "wan_bench_stages: %s\n", what);
  exit(1);
}

static void must(bench *b, wan_status s) {
  if (s != WAN_OK) die(b->ctx.message);
}

/* Uniform in [-1.7, 1.7]: unit variance is what latents and contexts have. */
static float next_random(bench *b) {
  return measure_random(&b->state) * 1.7320508f;
}

static float *random_host(bench *b, int64_t n, float scale) {
  float *p = core_alloc(&b->ctx, (size_t)n * sizeof *p);
  if (!p) die(b->ctx.message);
  for (int64_t i = 0; i < n; i++) p[i] = scale * next_random(b);
  return p;
}

/* A random F32 tensor in the current scope. */
static tensor random_tensor(bench *b, int64_t n0, int64_t n1, int64_t n2, int64_t n3, float scale) {
  tensor t = TENSOR_NEW(b->be, DT_F32, n0, n1, n2, n3);
  float *host = random_host(b, tensor_count(&t), scale);
  tensor_upload(b->be, t, host);
  core_free(&b->ctx, host);
  return t;
}

static const char *const precisions[] = {
    [WAN_PRECISION_BF16] = "bf16", [WAN_PRECISION_F32] = "f32", [WAN_PRECISION_FP8] = "fp8"};

static void report(bench *b, double *seconds, int runs) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  qsort(seconds, (size_t)runs, sizeof *seconds, measure_by_value);
  double median = seconds[runs / 2], flops = 0;
  printf(
      "{\"stage\": \"%s\", \"backend\": \"%s\", \"precision\": \"%s\", \"threads\": %d, \"seconds\": %.6f, "
      "\"min\": %.6f, \"max\": %.6f, \"runs\": %d, \"engine_peak_bytes\": %llu, "
      "\"device_peak_bytes\": %llu, \"rss_peak_bytes\": %lld",
      b->o.stage, b->be->ops->name, precisions[b->be->precision], b->be->threads, median, seconds[0],
      seconds[runs - 1], runs, (unsigned long long)core_mem_peak(&b->ctx),
      (unsigned long long)core_device_peak(&b->ctx), (long long)u.ru_maxrss * 1024);
  for (int i = 0, n = 0; i < PROF_COUNT; i++) {
    const backend_profile_row *r = &b->work.row[i];
    if (!r->calls || i == PROF_WEIGHT_LOAD) continue;
    printf("%s\"%s\": [%.0f, %.0f]", n++ ? ", " : ", \"work\": {", backend_profile_name((profile_op)i),
           r->flops, r->bytes);
    if (i == PROF_LINEAR || i == PROF_ATTENTION || i == PROF_CONV || i == PROF_UPSAMPLE_CONV)
      flops += r->flops;
  }
  printf("}, \"gflop_per_s\": %.1f}\n", flops / median / 1e9);
  fflush(stdout);
}

static double run_once(bench *b, void (*body)(bench *, void *), void *arg) {
  scope_mark mark = scope_begin(b->be);
  double start = measure_now(b->o.cpu_time);
  body(b, arg);
  must(b, backend_sync(b->be));
  double seconds = measure_now(b->o.cpu_time) - start;
  scope_end(b->be, mark);
  return seconds;
}

/* One uncounted run, then the counted ones. */
static void repeat(bench *b, void (*body)(bench *, void *), void *arg) {
  double seconds[RUNS_MAX];
  char line[16];
  int runs = 0;
  const long long full = b->o.dim[0];
  if (b->o.warm_first && !b->counting) b->o.dim[0] = 1;
  run_once(b, body, arg);
  b->o.dim[0] = full;
  if (b->counting) return;
  if (b->o.interactive) printf("ready\n");
  fflush(stdout);
  while (runs < RUNS_MAX && (b->o.interactive ? fgets(line, sizeof line, stdin) != NULL : runs < b->o.runs)) {
    seconds[runs] = run_once(b, body, arg);
    if (b->o.interactive) printf("%.6f\n", seconds[runs]);
    fflush(stdout);
    runs++;
  }
  if (runs) report(b, seconds, runs);
}

/* ---- Stages ---- */

typedef struct dit_run {
  dit *d;
  tensor x, v[2]; /* of all latent frames */
  dit_text *text[2];
} dit_run;

static void run_dit(bench *b, void *arg) {
  dit_run *r = arg;
  float t = 500;
  tensor v[2];
  for (int i = 0; i < b->o.passes; i++) v[i] = tensor_slice(r->v[i], 0, b->o.dim[0]);
  must(b, dit_forward(r->d, tensor_slice(r->x, 0, b->o.dim[0]), (dit_timesteps){&t, 1}, b->o.passes, r->text,
                      v, NULL));
}

static void distance_from_bf16(bench *b, dit_run *r) {
  const int64_t n = tensor_count(&r->v[0]);
  float *host = random_host(b, 2 * n, 1);
  tensor_download(b->be, host, r->v[0]);
  dit_set_exact(r->d, true, b->o.keep);
  run_dit(b, r);
  tensor_download(b->be, host + n, r->v[0]);
  must(b, backend_status(b->be));
  double off = 0, whole = 0;
  for (int64_t i = 0; i < n; i++) {
    off += pow((double)host[i] - (double)host[n + i], 2);
    whole += pow((double)host[n + i], 2);
  }
  fprintf(stderr, "relative L2 distance from bf16: %.3e\n", sqrt(off / whole));
  core_free(&b->ctx, host);
}

static void bench_dit(bench *b) {
  dit_run r;
  must(b, dit_open(b->be, b->o.model, b->o.keep, &r.d));
  const dit_config *c = dit_get_config(r.d);
  scope_mark mark = scope_begin(b->be);
  const int64_t T = b->o.dim[0], h = b->o.dim[1], w = b->o.dim[2];
  float *context = random_host(b, 100 * c->text_dim, 1);
  r.x = random_tensor(b, T, h, w, c->in_dim, 1);
  for (int i = 0; i < b->o.passes; i++) {
    r.v[i] = TENSOR_NEW(b->be, DT_F32, T, h, w, c->out_dim);
    must(b, dit_text_create(r.d, TENSOR_OF(DT_F32, context, 100, c->text_dim), &r.text[i]));
  }
  repeat(b, run_dit, &r);
  if (b->be->precision == WAN_PRECISION_FP8 && !b->be->dry) distance_from_bf16(b, &r);
  for (int i = 0; i < b->o.passes; i++) dit_text_free(r.text[i]);
  scope_end(b->be, mark);
  core_free(&b->ctx, context);
  dit_close(r.d);
}

typedef struct vae_run {
  vae *v;
  float *host;
} vae_run;

static void run_decode(bench *b, void *arg) {
  vae_run *r = arg;
  const int64_t T = b->o.dim[0], h = b->o.dim[1], w = b->o.dim[2], z = vae_get_info(r->v).z;
  vae_decoder *d;
  must(b, vae_decoder_open(r->v, h, w, &d));
  for (int64_t t = 0; t < T; t++) {
    scope_mark mark = scope_begin(b->be);
    tensor x = TENSOR_NEW(b->be, DT_F32, 1, h, w, z), frames;
    tensor_upload(b->be, x, r->host + t * h * w * z);
    must(b, vae_decoder_push(d, x, &frames));
    scope_end(b->be, mark);
  }
  vae_decoder_close(d);
}

static void run_encode(bench *b, void *arg) {
  vae_run *r = arg;
  const int64_t F = b->o.dim[0], H = b->o.dim[1], W = b->o.dim[2];
  vae_encoder *e;
  must(b, vae_encoder_open(r->v, H, W, &e));
  for (int64_t f = 0; f < F;) {
    const int64_t n = f ? 4 : 1;
    scope_mark mark = scope_begin(b->be);
    tensor x = TENSOR_NEW(b->be, DT_F32, n, H, W, 3), latent;
    tensor_upload(b->be, x, r->host + f * H * W * 3);
    must(b, vae_encoder_push(e, x, &latent));
    scope_end(b->be, mark);
    f += n;
  }
  vae_encoder_close(e);
}

static void bench_vae(bench *b, bool decode) {
  vae_run r;
  must(b, vae_open(b->be, b->o.model, b->o.keep, &r.v));
  const int64_t channels = decode ? vae_get_info(r.v).z : 3;
  r.host = random_host(b, b->o.dim[0] * b->o.dim[1] * b->o.dim[2] * channels, decode ? 1.0f : 0.55f);
  repeat(b, decode ? run_decode : run_encode, &r);
  core_free(&b->ctx, r.host);
  vae_close(r.v);
}

typedef struct text_run {
  umt5 *u;
  int32_t ids[TEXT_MAX_TOKENS];
  float *out;
} text_run;

static void run_text(bench *b, void *arg) {
  text_run *r = arg;
  must(b, umt5_encode(r->u, r->ids, b->o.tokens, r->out, NULL, NULL));
}

static void bench_text(bench *b) {
  text_run r;
  must(b, umt5_open(b->be, b->o.model, b->o.keep, &r.u));
  for (int i = 0; i < b->o.tokens; i++)
    r.ids[i] = (int32_t)(fabsf(next_random(b)) * 0.5f * (float)(umt5_vocab(r.u) - 1));
  r.out = random_host(b, b->o.tokens * umt5_dim(r.u), 1);
  repeat(b, run_text, &r);
  core_free(&b->ctx, r.out);
  umt5_close(r.u);
}

/* ---- Command line ---- */

static void parse(int argc, char **argv, options *o) {
  *o = (options){.stage = argc > 1 ? argv[1] : "", .passes = 1, .tokens = 512, .runs = 5, .keep = UINT64_MAX};
  for (int i = 2; i + 1 < argc; i += 2) {
    const char *key = argv[i], *value = argv[i + 1];
    if (!strcmp(key, "--model"))
      o->model = value;
    else if (!strcmp(key, "--backend"))
      o->config.name = value;
    else if (!strcmp(key, "--precision"))
      o->config.precision = !strcmp(value, "f32")   ? WAN_PRECISION_F32
                            : !strcmp(value, "fp8") ? WAN_PRECISION_FP8
                                                    : WAN_PRECISION_BF16;
    else if (!strcmp(key, "--threads"))
      o->config.threads = atoi(value);
    else if (!strcmp(key, "--runs"))
      o->runs = atoi(value);
    else if (!strcmp(key, "--keep"))
      o->keep = strtoull(value, NULL, 10) << 20;
    else if (!strcmp(key, "--profile"))
      o->config.profile = atoi(value) != 0;
    else if (!strcmp(key, "--warm"))
      o->warm_first = !strcmp(value, "first");
    else if (!strcmp(key, "--cpu-time"))
      o->cpu_time = atoi(value) != 0;
    else if (!strcmp(key, "--stdin"))
      o->interactive = atoi(value) != 0;
    else if (!strcmp(key, "--passes"))
      o->passes = atoi(value);
    else if (!strcmp(key, "--tokens"))
      o->tokens = atoi(value);
    else if (!strcmp(key, "--latent") || !strcmp(key, "--video")) {
      if (sscanf(value, "%lld,%lld,%lld", &o->dim[0], &o->dim[1], &o->dim[2]) != 3)
        die("three numbers: T,h,w");
    } else
      die("unknown option; see the comment at the top of bench_stages.c");
  }
  bool sized = !strcmp(o->stage, "text") || (o->dim[0] > 0 && o->dim[1] > 0 && o->dim[2] > 0);
  if (!o->model || !sized || o->runs < 1 || o->runs > RUNS_MAX || o->passes < 1 || o->passes > 2 ||
      o->tokens < 1 || o->tokens > TEXT_MAX_TOKENS)
    die("usage: STAGE --model PATH and the stage's size; see the comment at the top of bench_stages.c");
}

static void run_stage(bench *b) {
  if (!strcmp(b->o.stage, "dit"))
    bench_dit(b);
  else if (!strcmp(b->o.stage, "vae-decode"))
    bench_vae(b, true);
  else if (!strcmp(b->o.stage, "vae-encode"))
    bench_vae(b, false);
  else if (!strcmp(b->o.stage, "text"))
    bench_text(b);
  else
    die("the stage is dit, vae-decode, vae-encode or text");
}

/* What one run has to do at least, from the stage's own code. */
static void count_work(bench *b) {
  b->counting = true;
  must(b, backend_open_dry(&b->ctx, &b->o.config, &b->be));
  run_stage(b);
  b->work = *b->be->profile;
  backend_close(b->be);
  b->counting = false;
  core_mem_reset_peak(&b->ctx);
}

int main(int argc, char **argv) {
  bench b = {.state = 0x9e3779b97f4a7c15u};
  core_ctx_init(&b.ctx);
  parse(argc, argv, &b.o);
  count_work(&b);
  must(&b, backend_open(&b.ctx, &b.o.config, &b.be));
  must(&b, backend_reserve(b.be, 0, UINT64_MAX / 2)); /* streamed weights may be pinned */
  run_stage(&b);
  char *profile = backend_profile_text(b.be);
  if (profile) fputs(profile, stderr);
  core_free(&b.ctx, profile);
  backend_close(b.be);
  return 0;
}
