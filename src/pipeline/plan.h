/* plan.h: what a run will cost, from the checkpoint's headers. The same numbers weigh the progress bar,
 * decide how many weights stay loaded, and are printed by `wan plan`. */
#ifndef WAN_PIPELINE_PLAN_H
#define WAN_PIPELINE_PLAN_H

#include "pipeline/settings.h"

typedef struct run_cost {
  int64_t tokens;
  double flops[WAN_STAGE_COUNT];     /* multiply-add = 2 */
  double work[WAN_STAGE_COUNT];      /* the same in multiples of a large matrix product's: relative time */
  uint64_t active[WAN_STAGE_COUNT];  /* peak bytes of activations, caches, latents */
  uint64_t weights[WAN_STAGE_COUNT]; /* bytes of prepared weights when all stay loaded */
  uint64_t group[WAN_STAGE_COUNT];   /* bytes of the largest part when they are streamed */
} run_cost;

wan_status cost_estimate(wan_model *m, const run_settings *s, run_cost *out);
/* Bytes the engine may hold: the context's limit, or what the backend's memory has available. */
uint64_t memory_budget(backend *be);
/* How many bytes of weights may stay loaded in a stage. */
uint64_t cost_keep(const run_cost *c, wan_stage stage, uint64_t budget);
/* Peak of a stage under that rule. */
uint64_t cost_peak(const run_cost *c, wan_stage stage, uint64_t budget);
/* FLOP/s of a large linear layer on this backend, measured in about a quarter of a second. */
wan_status measure_rate(backend *be, double *flops_per_second);
wan_status plan_make(wan_model *m, const run_settings *s, wan_plan *out);

#endif
