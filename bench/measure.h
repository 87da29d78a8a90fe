/* measure.h: the clock, the order of times and the random values that the benchmark programs share. */
#ifndef WAN_BENCH_MEASURE_H
#define WAN_BENCH_MEASURE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "core/ctx.h"

/* Seconds; of the processor, over all threads, for measuring on a busy machine. */
static inline double measure_now(bool cpu_time) {
  struct timespec t;
  if (!cpu_time || clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t)) return core_now();
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* For qsort() of doubles. */
static inline int measure_by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Uniform in [-1, 1), from a generator with Knuth's MMIX constants. */
static inline float measure_random(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (float)(*state >> 40) / 8388608.0f - 1.0f;
}

#endif
