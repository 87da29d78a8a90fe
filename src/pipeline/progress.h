/* progress.h: one stream of events for the bar, the C callback and, later, the server. */
#ifndef WAN_PIPELINE_PROGRESS_H
#define WAN_PIPELINE_PROGRESS_H

#include "core/ctx.h"

typedef struct run_progress {
  core_ctx *ctx;
  wan_progress_fn report; /* may be NULL */
  void *user;
  double weight[WAN_STAGE_COUNT]; /* share of the run's time; sums to 1 */
  double before;                  /* weight of the stages that are over */
  double started, stage_started;  /* core_now() */
  wan_progress now;
  double seconds[WAN_STAGE_COUNT];
  uint64_t memory_peak[WAN_STAGE_COUNT];
  uint64_t device_memory_peak[WAN_STAGE_COUNT];
} run_progress;

/* seconds: expected time by stage in any unit. */
void progress_start(run_progress *p, core_ctx *ctx, wan_progress_fn report, void *user,
                    const double seconds[WAN_STAGE_COUNT]);
/* Stages come in order; steps >= 1. Ends the stage before it. */
void progress_stage(run_progress *p, wan_stage stage, int steps);
/* `step` steps are done and `part` (0..1) of the next one. */
void progress_at(run_progress *p, int step, double part);
/* The run is over. */
void progress_end(run_progress *p);

#endif
