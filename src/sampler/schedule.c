/* schedule.c: where a run of n steps puts its sigmas. Every list starts from evenly spaced values u and
 * bends them with S(u) = shift*u / (1 + (shift-1)*u). The arithmetic is that of the original code, operation
 * by operation, in double: model timesteps are truncated, and some land a hair below an integer.
 */
#include "sampler/sampler.h"

#include <math.h>
#include <string.h>

enum { TRAIN_STEPS = 1000 };

static double bend(double u, double shift) {
  return shift * u / (1 + (shift - 1) * u);
}

/* numpy.linspace(from, to, points)[i] */
static double linspace(double from, double to, int points, int i) {
  if (points == 1) return from;
  if (i == points - 1) return to;
  return i * ((to - from) / (points - 1)) + from;
}

/* FlowUniPCMultistepScheduler: its training sigmas, in f32, run from 0.999 to 0. */
static double unipc_official(int n, int i, double shift) {
  return bend(linspace((float)0.999, 0, n + 1, i), shift);
}

/* get_sampling_sigmas(), used with DPM-Solver++. */
static double dpmpp_official(int n, int i, double shift) {
  return bend(linspace(1, 0, n + 1, i), shift);
}

/* diffusers UniPCMultistepScheduler, use_flow_sigmas. */
static double unipc_diffusers(int n, int i, double shift) {
  double s = bend(linspace(1, 1.0 / TRAIN_STEPS, n + 1, i), shift);
  return i == 0 && fabs(s - 1) < 1e-6 ? s - 1e-6 : s; /* the first lambda would be infinite */
}

/* diffusers DPMSolverMultistepScheduler, use_flow_sigmas: 1 - alpha, read backwards. */
static double dpmpp_diffusers(int n, int i, double shift) {
  return bend(1 - linspace(1, 1.0 / TRAIN_STEPS, n + 1, n - i), shift);
}

/* diffusers FlowMatchEulerDiscreteScheduler: the ends of the list are bent training sigmas (in f32), and
 * the list is bent once more. */
static double euler_diffusers(int n, int i, double shift) {
  float f = (float)shift, last = 1.0f / TRAIN_STEPS;
  last = f * last / (1 + (float)(shift - 1) * last);
  return bend(linspace(TRAIN_STEPS, (double)last * TRAIN_STEPS, n, i) / TRAIN_STEPS, shift);
}

typedef double (*sigma_rule)(int n, int i, double shift);

static sigma_rule find_rule(sampler_kind solver, schedule_kind kind) {
  if (kind == SCHEDULE_DIFFUSERS)
    return solver == SAMPLER_UNIPC   ? unipc_diffusers
           : solver == SAMPLER_DPMPP ? dpmpp_diffusers
                                     : euler_diffusers;
  return solver == SAMPLER_UNIPC ? unipc_official : dpmpp_official; /* generate.py has no Euler */
}

static wan_status check_steps(core_ctx *ctx, int steps) {
  if (steps >= 1 && steps <= SAMPLER_STEPS_MAX) return WAN_OK;
  return core_fail(ctx, WAN_ERR_ARGUMENT, "%d sampling steps, expected 1 to %d", steps, SAMPLER_STEPS_MAX);
}

wan_status schedule_make(core_ctx *ctx, sampler_kind solver, schedule_kind kind, int steps, double shift,
                         schedule *out) {
  CORE_TRY(check_steps(ctx, steps));
  if (!(shift > 0) || !isfinite(shift))
    return core_fail(ctx, WAN_ERR_ARGUMENT, "shift %g, expected a positive number", shift);
  sigma_rule rule = find_rule(solver, kind);
  out->steps = steps;
  for (int i = 0; i < steps; i++) {
    double s = rule(steps, i, shift);
    out->sigma[i] = (float)s;
    if (solver != SAMPLER_EULER)
      out->timestep[i] = trunc(s * TRAIN_STEPS);
    else if (kind == SCHEDULE_DIFFUSERS)
      out->timestep[i] = (double)(out->sigma[i] * (float)TRAIN_STEPS);
    else
      out->timestep[i] = s * TRAIN_STEPS;
  }
  out->sigma[steps] = 0;
  return WAN_OK;
}

wan_status schedule_from_sigmas(core_ctx *ctx, sampler_kind solver, const float *sigmas, int steps,
                                schedule *out) {
  CORE_TRY(check_steps(ctx, steps));
  for (int i = 0; i < steps; i++) {
    float before = i ? sigmas[i - 1] : INFINITY;
    if (!(sigmas[i] > 0) || sigmas[i] > 1 || !(sigmas[i] < before))
      return core_fail(ctx, WAN_ERR_ARGUMENT,
                       "sigma %d is %g: sigmas have to fall strictly and lie above 0 and up to 1", i,
                       (double)sigmas[i]);
    float t = sigmas[i] * (float)TRAIN_STEPS; /* in f32: 0.9f is below 0.9, but 0.9f * 1000 rounds to 900 */
    out->sigma[i] = sigmas[i];
    out->timestep[i] = solver == SAMPLER_EULER ? (double)t : trunc((double)t);
  }
  out->steps = steps;
  out->sigma[steps] = 0;
  return WAN_OK;
}

static const struct {
  const char *name;
  sampler_kind kind;
} names[] = {
    {"unipc", SAMPLER_UNIPC}, {"dpm++", SAMPLER_DPMPP}, {"dpmpp", SAMPLER_DPMPP}, {"euler", SAMPLER_EULER}};

bool sampler_kind_parse(const char *name, sampler_kind *out) {
  for (size_t i = 0; name && i < sizeof names / sizeof *names; i++)
    if (strcmp(name, names[i].name) == 0) {
      *out = names[i].kind;
      return true;
    }
  return false;
}

const char *sampler_kind_name(sampler_kind kind) {
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (kind == names[i].kind) return names[i].name;
  return "unknown";
}
