/* sampler.h: sigma schedules and the solvers that walk them (flow matching: x_s = (1-s) x0 + s noise,
 * v = noise - x0). A solver never touches a latent itself: each step it asks its caller for linear
 * combinations over numbered slots, so that latents stay wherever the backend keeps them.
 * Compiled without any fast-math: infinities are part of DPM-Solver++'s design.
 */
#ifndef WAN_SAMPLER_SAMPLER_H
#define WAN_SAMPLER_SAMPLER_H

#include "core/ctx.h"

typedef enum sampler_kind { SAMPLER_UNIPC, SAMPLER_DPMPP, SAMPLER_EULER } sampler_kind;
typedef enum schedule_kind {
  SCHEDULE_OFFICIAL, /* what Wan2.2's generate.py uses for the solver */
  SCHEDULE_DIFFUSERS /* what diffusers' schedulers use */
} schedule_kind;

enum { SAMPLER_STEPS_MAX = 1000 };

typedef struct schedule {
  int steps;
  float sigma[SAMPLER_STEPS_MAX + 1]; /* sigma[steps] = 0 */
  double timestep[SAMPLER_STEPS_MAX]; /* truncated to an integer for unipc and dpm++ */
} schedule;

/* 1 <= steps <= SAMPLER_STEPS_MAX, shift > 0. */
wan_status schedule_make(core_ctx *ctx, sampler_kind solver, schedule_kind kind, int steps, double shift,
                         schedule *out);
/* Explicit sigmas (without the final 0), strictly decreasing in (0, 1]; t = 1000*sigma, truncated as above.
 */
wan_status schedule_from_sigmas(core_ctx *ctx, sampler_kind solver, const float *sigmas, int steps,
                                schedule *out);

/* "unipc", "dpm++" (also "dpmpp"), "euler"; NULL-safe names. */
bool sampler_kind_parse(const char *name, sampler_kind *out);
const char *sampler_kind_name(sampler_kind kind);

/* Slots, all of the latent's shape. X is the sample (in: x_k, out: x_{k+1}); V the velocity the model
 * returned for it; the rest is the solver's history and has to keep its content between steps. */
typedef enum sampler_slot { SLOT_X, SLOT_V, SLOT_M0, SLOT_M1, SLOT_LAST, SLOT_COUNT } sampler_slot;

/* slot[dst] = sum of coef[i] * slot[src[i]], i < n <= 5; dst may be among the sources. */
typedef wan_status (*sampler_lincomb)(void *user, sampler_slot dst, int n, const sampler_slot *src,
                                      const float *coef);

typedef struct sampler {
  sampler_kind kind;
  const schedule *plan; /* the caller's, must outlive the sampler */
  int done;             /* steps done; set it, and restore the live slots, to resume */
} sampler;

void sampler_init(sampler *s, sampler_kind kind, const schedule *plan);
/* One step k = s->done. V is scratch: it does not keep its content. WAN_ERR_ARGUMENT (without a message)
 * when all steps are done. Slots that hold history after it: see sampler_slot_live(). */
wan_status sampler_step(sampler *s, sampler_lincomb combine, void *user);
/* Which slots must be saved and restored to resume after `done` steps (X always). */
bool sampler_slot_live(const sampler *s, sampler_slot slot);

#endif
