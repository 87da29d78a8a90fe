/* steps.c: what each denoising step does: which expert, how much guidance, which passes. The loop, the
 * plan and the printed table all ask here. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "pipeline/settings.h"

/* Is step k of n inside the part [start, end) of the run? end = 1 includes the last step. */
static bool inside(int k, int n, double start, double end) {
  double at = (double)k / n;
  return at >= start && (at < end || end >= 1);
}

/* The official comparison uses the integer timestep: t >= boundary * 1000 is the high-noise expert
 * (wan/text2video.py, _prepare_model_for_timestep). */
static int expert_at(const run_settings *s, int k) {
  if (s->experts < 2) return EXPERT_HIGH;
  const wan_generate_params *p = s->params;
  if (p->steps_high + p->steps_low) return k < p->steps_high ? EXPERT_HIGH : EXPERT_LOW;
  return floor(s->plan.timestep[k]) >= s->boundary * 1000 ? EXPERT_HIGH : EXPERT_LOW;
}

step_plan settings_step(const run_settings *s, int k) {
  const wan_generate_params *p = s->params;
  step_plan step = {.t = s->plan.timestep[k], .sigma = s->plan.sigma[k], .expert = expert_at(s, k)};
  step.guidance = inside(k, s->steps, p->guidance_start, p->guidance_end) ? s->guidance[step.expert] : 1;
  step.zero = k < p->zero_init_steps;
  step.uncond = !step.zero && step.guidance != 1;
  step.skip = !step.zero && s->skip_mask && p->skip_layer_scale != 0 &&
              inside(k, s->steps, p->skip_layer_start, p->skip_layer_end);
  return step;
}

bool settings_use_negative(const run_settings *s) {
  for (int k = 0; k < s->steps; k++)
    if (settings_step(s, k).uncond) return true;
  return false;
}

int settings_passes(const run_settings *s) {
  int n = 0;
  for (int k = 0; k < s->steps; k++) {
    step_plan step = settings_step(s, k);
    n += step.zero ? 0 : 1 + step.uncond + step.skip;
  }
  return n;
}

wan_status settings_table(core_ctx *ctx, const run_settings *s, char **text) {
  const size_t width = 80, size = (size_t)(s->steps + 3) * width;
  char *out = core_alloc(ctx, size);
  if (!out) return WAN_ERR_MEMORY;
  size_t used = (size_t)snprintf(out, size, "%5s  %9s  %11s  %6s  %8s  %s\n", "step", "timestep", "sigma",
                                 "expert", "guidance", "passes");
  int high = 0;
  for (int k = 0; k < s->steps; k++) {
    step_plan step = settings_step(s, k);
    const char *expert = s->experts < 2 ? "-" : step.expert == EXPERT_HIGH ? "high" : "low";
    high += s->experts == 2 && step.expert == EXPERT_HIGH;
    used += (size_t)snprintf(out + used, size - used, "%5d  %9.7g  %11.9f  %6s  %8.4g  %s%s%s\n", k + 1,
                             step.t, (double)step.sigma, expert, step.guidance, step.zero ? "zero" : "cond",
                             step.uncond ? "+uncond" : "", step.skip ? "+skip" : "");
  }
  if (s->experts == 2)
    snprintf(out + used, size - used, "%d steps on the high-noise expert, %d on the low-noise expert\n", high,
             s->steps - high);
  *text = out;
  return WAN_OK;
}
