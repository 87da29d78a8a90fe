/* progress.c: the fraction of a run is the weight of the stages that are over plus the done part of
 * the current one. Weights are estimates, the time left is extrapolated from the time taken. */
#include "pipeline/progress.h"

static void report(run_progress *p, double in_stage) {
  double fraction = p->before + p->weight[p->now.stage] * in_stage;
  if (fraction > 1) fraction = 1;
  if (fraction > p->now.fraction) p->now.fraction = fraction;
  p->now.seconds_elapsed = core_now() - p->started;
  /* Below one percent the rate is mostly start-up cost. */
  p->now.seconds_left =
      p->now.fraction < 0.01 ? -1 : p->now.seconds_elapsed * (1 - p->now.fraction) / p->now.fraction;
  p->now.memory = core_mem_current(p->ctx);
  p->now.memory_peak = core_mem_peak(p->ctx);
  p->now.device_memory = core_device_current(p->ctx);
  p->now.device_memory_peak = core_device_peak(p->ctx);
  if (p->report) p->report(p->user, &p->now);
}

static void close_stage(run_progress *p) {
  p->seconds[p->now.stage] += core_now() - p->stage_started;
  uint64_t peak = core_mem_peak(p->ctx), device = core_device_peak(p->ctx);
  if (peak > p->memory_peak[p->now.stage]) p->memory_peak[p->now.stage] = peak;
  if (device > p->device_memory_peak[p->now.stage]) p->device_memory_peak[p->now.stage] = device;
}

void progress_start(run_progress *p, core_ctx *ctx, wan_progress_fn fn, void *user,
                    const double seconds[WAN_STAGE_COUNT]) {
  *p = (run_progress){.ctx = ctx, .report = fn, .user = user};
  double sum = 0;
  for (int i = 0; i < WAN_STAGE_COUNT; i++) sum += seconds[i];
  for (int i = 0; i < WAN_STAGE_COUNT; i++) p->weight[i] = sum > 0 ? seconds[i] / sum : 1.0 / WAN_STAGE_COUNT;
  p->started = p->stage_started = core_now();
  p->now.steps = 1;
  core_mem_reset_peak(ctx);
  report(p, 0);
}

void progress_stage(run_progress *p, wan_stage stage, int steps) {
  close_stage(p);
  for (int i = (int)p->now.stage; i < (int)stage; i++) p->before += p->weight[i];
  p->now.stage = stage;
  p->now.step = 0;
  p->now.steps = steps;
  p->now.expert = NULL;
  p->stage_started = core_now();
  core_mem_reset_peak(p->ctx);
  report(p, 0);
}

void progress_at(run_progress *p, int step, double part) {
  p->now.step = step;
  report(p, (step + part) / p->now.steps);
}

void progress_end(run_progress *p) {
  close_stage(p);
  p->before = 1;
  p->weight[p->now.stage] = 0;
  p->now.step = p->now.steps;
  report(p, 0);
}
