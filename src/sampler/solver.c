/* solver.c: one step of UniPC, DPM-Solver++ or Euler, as linear combinations over slots. Coefficients are
 * computed in double from the f32 sigmas and rounded once.
 *
 * With x0 predictions m = x - s*v, alpha = 1 - s and lambda = ln(alpha / s), both multistep solvers
 * integrate over lambda. The ends of a schedule are infinite on purpose: s = 1 gives lambda = -inf, s = 0
 * gives +inf, and every formula below then takes its limit by itself.
 */
#include "sampler/sampler.h"

#include <math.h>

enum { TERMS_MAX = 5 };

/* A sum being put together. */
typedef struct sum {
  int n;
  sampler_slot slot[TERMS_MAX];
  float coef[TERMS_MAX];
} sum;

static void add(sum *s, double coef, sampler_slot slot) {
  s->slot[s->n] = slot;
  s->coef[s->n++] = (float)coef;
}

typedef struct caller {
  sampler_lincomb combine;
  void *user;
} caller;

static wan_status store(const caller *c, sampler_slot dst, const sum *s) {
  return c->combine(c->user, dst, s->n, s->slot, s->coef);
}

static wan_status copy(const caller *c, sampler_slot dst, sampler_slot src) {
  sum s = {0};
  add(&s, 1, src);
  return store(c, dst, &s);
}

static double alpha(const schedule *p, int k) {
  return 1 - (double)p->sigma[k];
}

static double lambda(const schedule *p, int k) {
  return log(alpha(p, k)) - log((double)p->sigma[k]);
}

static double ratio(const schedule *p, int to, int from) {
  return (double)p->sigma[to] / (double)p->sigma[from];
}

void sampler_init(sampler *s, sampler_kind kind, const schedule *plan) {
  *s = (sampler){.kind = kind, .plan = plan};
}

/* V becomes the x0 prediction of step k. */
static wan_status predict_x0(const sampler *s, const caller *c) {
  sum m = {0};
  add(&m, 1, SLOT_X);
  add(&m, -(double)s->plan->sigma[s->done], SLOT_V);
  return store(c, SLOT_V, &m);
}

/* ---- UniPC (Zhao et al. 2023), B(h) = exp(h) - 1, order 2 ---- */

/* Order of the predictor of step k: one at both ends, two between. */
static int unipc_order(const schedule *p, int k) {
  return k == 0 || k == p->steps - 1 ? 1 : 2;
}

/* LAST := the sample of step k, corrected with the x0 prediction (in V) that the step itself made. */
static wan_status unipc_correct(const sampler *s, const caller *c) {
  const schedule *p = s->plan;
  int k = s->done;
  double h = lambda(p, k) - lambda(p, k - 1), e = expm1(-h), scale = -alpha(p, k) * e;
  double old = 0, now = 0.5; /* weights of (m1 - m0) and of (V - m0) */
  if (unipc_order(p, k - 1) == 2) {
    double r = (lambda(p, k - 2) - lambda(p, k - 1)) / h, q = e / -h - 1;
    double b1 = q / e, b2 = 2 * (q / -h - 0.5) / e; /* the 2x2 system of the paper, solved */
    double c1 = (b1 - b2) / (1 - r);
    old = c1 / r;
    now = b1 - c1;
  }
  sum x = {0};
  add(&x, ratio(p, k, k - 1), SLOT_LAST);
  add(&x, scale * (1 - old - now), SLOT_M0);
  add(&x, scale * now, SLOT_V);
  if (old != 0) add(&x, scale * old, SLOT_M1);
  return store(c, SLOT_LAST, &x);
}

static wan_status unipc_predict(const sampler *s, const caller *c) {
  const schedule *p = s->plan;
  int k = s->done;
  double h = lambda(p, k + 1) - lambda(p, k), scale = -alpha(p, k + 1) * expm1(-h), old = 0;
  if (unipc_order(p, k) == 2) old = 0.5 * h / (lambda(p, k - 1) - lambda(p, k));
  sum x = {0};
  add(&x, ratio(p, k + 1, k), SLOT_LAST);
  add(&x, scale * (1 - old), SLOT_M0);
  if (old != 0) add(&x, scale * old, SLOT_M1);
  return store(c, SLOT_X, &x);
}

static wan_status unipc_step(const sampler *s, const caller *c) {
  CORE_TRY(predict_x0(s, c)); /* from the sample as it came, before the correction */
  CORE_TRY(s->done ? unipc_correct(s, c) : copy(c, SLOT_LAST, SLOT_X));
  if (s->done) CORE_TRY(copy(c, SLOT_M1, SLOT_M0));
  CORE_TRY(copy(c, SLOT_M0, SLOT_V));
  return unipc_predict(s, c);
}

/* ---- DPM-Solver++ (Lu et al. 2022), 2M, midpoint ---- */

static wan_status dpmpp_step(const sampler *s, const caller *c) {
  const schedule *p = s->plan;
  int k = s->done;
  CORE_TRY(predict_x0(s, c));
  double h = lambda(p, k + 1) - lambda(p, k), scale = -alpha(p, k + 1) * expm1(-h), old = 0;
  if (k > 0 && k < p->steps - 1) old = -0.5 * h / (lambda(p, k) - lambda(p, k - 1));
  sum x = {0};
  add(&x, ratio(p, k + 1, k), SLOT_X);
  add(&x, scale * (1 - old), SLOT_V);
  if (old != 0) add(&x, scale * old, SLOT_M0);
  CORE_TRY(store(c, SLOT_X, &x));
  return copy(c, SLOT_M0, SLOT_V);
}

static wan_status euler_step(const sampler *s, const caller *c) {
  sum x = {0};
  add(&x, 1, SLOT_X);
  add(&x, (double)s->plan->sigma[s->done + 1] - (double)s->plan->sigma[s->done], SLOT_V);
  return store(c, SLOT_X, &x);
}

wan_status sampler_step(sampler *s, sampler_lincomb combine, void *user) {
  caller c = {combine, user};
  wan_status status = WAN_ERR_ARGUMENT;
  if (s->done >= s->plan->steps) return status;
  switch (s->kind) {
  case SAMPLER_UNIPC:
    status = unipc_step(s, &c);
    break;
  case SAMPLER_DPMPP:
    status = dpmpp_step(s, &c);
    break;
  case SAMPLER_EULER:
    status = euler_step(s, &c);
    break;
  }
  if (status == WAN_OK) s->done++;
  return status;
}

bool sampler_slot_live(const sampler *s, sampler_slot slot) {
  if (slot == SLOT_X) return true;
  if (s->done == 0 || s->done >= s->plan->steps) return false;
  switch (s->kind) {
  case SAMPLER_UNIPC:
    return slot == SLOT_M0 || slot == SLOT_LAST ||
           (slot == SLOT_M1 && unipc_order(s->plan, s->done - 1) == 2);
  case SAMPLER_DPMPP:
    return slot == SLOT_M0;
  case SAMPLER_EULER:
    break;
  }
  return false;
}
