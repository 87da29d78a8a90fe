/* bench_work.h: one stage of the pipeline on random inputs, over and over. */
#ifndef WAN_PIPELINE_BENCH_WORK_H
#define WAN_PIPELINE_BENCH_WORK_H

#include "backend/backend.h"
#include "pipeline/bench_models.h"

enum { BENCH_RUNS_MAX = 1000 };

typedef enum bench_kind { BENCH_DIT, BENCH_DECODE, BENCH_ENCODE, BENCH_TEXT } bench_kind;

typedef struct bench_work {
  bench_kind kind;
  const char *path;          /* the network's file or folder; NULL: */
  bench_net net;             /* ...this one with random weights */
  int layers;                /* of it; 0: all */
  int width, height, frames; /* of the video in pixels */
  int tokens;                /* of the prompt */
} bench_work;

typedef struct bench_times {
  int64_t tokens;   /* of the transformer; of the prompt for the text encoder */
  int layers;       /* of transformer or text encoder, 0 otherwise */
  uint64_t weights; /* bytes loaded at the end: all weights, if they may stay */
  double seconds[BENCH_RUNS_MAX];
} bench_times;

/* One run that is not counted, then `runs` more (0 is fine). keep: bytes of weights that may stay loaded. */
wan_status bench_work_run(backend *be, const bench_work *w, uint64_t keep, int runs, bench_times *out);

/* n values of unit variance, by core_free; seed makes them. NULL with a message on failure. */
float *bench_random(core_ctx *ctx, int64_t n, uint64_t seed);

#endif
