/* plan.h: what a run will cost, from the checkpoint's headers. The same numbers weigh the progress bar,
 * decide how many weights stay loaded, and are printed by `wan plan`. */
#ifndef WAN_PIPELINE_PLAN_H
#define WAN_PIPELINE_PLAN_H

#include "pipeline/settings.h"

typedef struct run_cost {
  int64_t tokens;
  double flops[WAN_STAGE_COUNT]; /* multiply-add = 2 */
  double work[WAN_STAGE_COUNT];  /* the same in multiples of a large matrix product's: relative time */
  /* Peak bytes of the memory that the backend works in, with all weights streamed and with all kept. */
  uint64_t streamed[WAN_STAGE_COUNT], resident[WAN_STAGE_COUNT];
  uint64_t weights[WAN_STAGE_COUNT]; /* bytes of the prepared weights */
  uint64_t host[WAN_STAGE_COUNT];    /* peak bytes of host memory beside a device's; 0 without one */
  /* Peaks of a denoising step of fp8 that is made again in bf16; 0: none is. Also counted in the others. */
  uint64_t retry_streamed, retry_resident;
  size_t scopes[WAN_STAGE_COUNT]; /* for scope_reserve(), on a device */
} run_cost;

wan_status cost_estimate(wan_model *m, const run_settings *s, run_cost *out);
/* Peaks with all weights streamed, the least a run can do with; nothing else of `out` is filled in. */
wan_status cost_least(wan_model *m, const run_settings *s, run_cost *out);
/* The same with `keep` bytes of weights resident in a stage; *blocks: how many of the transformer's are;
 * *seconds: what it takes, 0 unless the model has rates. */
wan_status cost_peak(wan_model *m, const run_settings *s, wan_stage stage, uint64_t keep, uint64_t *peak,
                     int *blocks, double *seconds);
/* How many bytes of weights may stay loaded in a stage. */
uint64_t cost_keep(const run_cost *c, wan_stage stage, uint64_t budget);
/* The same while a step is made again. */
uint64_t cost_keep_retry(const run_cost *c, uint64_t budget);
/* Bytes the engine may hold of the memory that the backend works in: the context's limit, or what is
 * available there less a reserve. */
uint64_t memory_budget(backend *be);
/* Bytes of host memory that may be pinned for streamed weights, beside what the run needs. */
uint64_t cost_pin_room(const run_cost *c, const core_ctx *ctx);
/* As memory_budget(), of host memory. */
uint64_t host_budget(const core_ctx *ctx);
/* WAN_OK, or WAN_ERR_MEMORY with a message that says what is short and the smallest changes that would make
 * the run fit (plan_fit.c). */
wan_status plan_fits(wan_model *m, const run_settings *s, const run_cost *cost);
/* Take what the stages will need at most, so that no other program can while they run. Give back with
 * backend_reserve(be, 0, 0). */
wan_status plan_reserve(backend *be, const run_cost *cost);
/* Times samples of the run's operations, which takes some seconds the first time. */
wan_status plan_make(wan_model *m, const run_settings *s, wan_plan *out);

#endif
