/* plan_fit.c: does a run fit into memory, and if not, what is the smallest change that makes it fit? Every
 * answer comes from planning the changed run, so a suggestion that is made also works. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "pipeline/plan.h"

#define GIB ((double)(1 << 30))

/* What may be used: of the memory that the backend works in, and of the host's beside a device's. */
typedef struct budgets {
  uint64_t own, host;
} budgets;

typedef struct search {
  wan_model *m;
  const run_settings *s;
  budgets budget;
} search;

static wan_stage largest(const uint64_t need[WAN_STAGE_COUNT]) {
  int most = 0;
  for (int i = 1; i < WAN_STAGE_COUNT; i++)
    if (need[i] > need[most]) most = i;
  return (wan_stage)most;
}

static bool inside(const run_cost *c, budgets b) {
  return c->streamed[largest(c->streamed)] <= b.own && c->host[largest(c->host)] <= b.host;
}

static void resize(const wan_model *m, run_settings *s, int width, int height) {
  s->width = width;
  s->height = height;
  s->w = width / m->vae_stride;
  s->h = height / m->vae_stride;
}

/* A size with about the same aspect, `steps` multiples lower. */
static void smaller(const search *q, int steps, run_settings *out) {
  const int unit = q->m->vae_stride * 2; /* patches of 2x2 latent pixels */
  const int height = q->s->height - steps * unit;
  const double exact = (double)q->s->width * height / q->s->height / unit;
  *out = *q->s;
  resize(q->m, out, (int)fmax(1, floor(exact + 0.5)) * unit, height);
}

static void shorter(const search *q, int steps, run_settings *out) {
  *out = *q->s;
  out->T -= steps;
  out->frames = (int)(out->T - 1) * 4 + 1;
}

static bool fits_changed(const search *q, void (*change)(const search *, int, run_settings *), int steps,
                         run_settings *changed) {
  run_cost c = {0};
  change(q, steps, changed);
  return cost_least(q->m, changed, &c) == WAN_OK && inside(&c, q->budget);
}

/* The least number of steps up to `most` that fits; false when none does. */
static bool least_change(const search *q, void (*change)(const search *, int, run_settings *), int most,
                         run_settings *changed) {
  if (most < 1 || !fits_changed(q, change, most, changed)) return false;
  int no = 0, yes = most;
  while (yes - no > 1) {
    int middle = (no + yes) / 2;
    if (fits_changed(q, change, middle, changed))
      yes = middle;
    else
      no = middle;
  }
  change(q, yes, changed);
  return true;
}

static bool fits_in_bf16(const search *q) {
  backend *be = q->m->be;
  const backend before = *be;
  if (be->precision == WAN_PRECISION_BF16) return false;
  run_cost c = {0};
  be->precision = WAN_PRECISION_BF16; /* planning opens its own backend in this precision */
  be->act = be->product = DT_BF16;
  bool fits = cost_least(q->m, q->s, &c) == WAN_OK && inside(&c, q->budget);
  be->precision = before.precision;
  be->act = before.act;
  be->product = before.product;
  return fits;
}

/* What is short: the stage, its need, and what there is. */
typedef struct shortage {
  const char *stage, *what, *flag;
  uint64_t need, have;
  bool limited; /* by a limit that was asked for */
} shortage;

static shortage find_shortage(const search *q, const run_cost *c) {
  const core_ctx *ctx = q->m->ctx;
  const bool device = !q->m->be->host_memory;
  wan_stage own = largest(c->streamed), host = largest(c->host);
  if (c->streamed[own] > q->budget.own)
    return (shortage){wan_stage_name(own),
                      device ? "device memory" : "memory",
                      device ? "--vram" : "--memory",
                      c->streamed[own],
                      q->budget.own,
                      device ? ctx->device_limit == q->budget.own : ctx->mem_limit != 0};
  return (shortage){wan_stage_name(host), "host memory",  "--memory",
                    c->host[host],        q->budget.host, ctx->mem_limit != 0};
}

static void explain(const search *q, const run_cost *c, char *text, size_t size) {
  const shortage s = find_shortage(q, c);
  run_settings changed;
  char options[4][48];
  int n = 0;
  if (s.limited)
    snprintf(options[n++], sizeof options[0], "%s %.1fG", s.flag, ceil((double)s.need / GIB * 10) / 10);
  if (least_change(q, shorter, (int)q->s->T - (q->s->given_count ? 2 : 1), &changed))
    snprintf(options[n++], sizeof options[0], "--frames %d", changed.frames);
  if (least_change(q, smaller, q->s->height / (q->m->vae_stride * 2) - 1, &changed))
    snprintf(options[n++], sizeof options[0], "--size %dx%d", changed.width, changed.height);
  if (fits_in_bf16(q)) snprintf(options[n++], sizeof options[0], "--precision bf16");
  int used = snprintf(text, size, "%s needs %.2f GiB of %s even with streamed weights, the %s is %.2f GiB; ",
                      s.stage, (double)s.need / GIB, s.what,
                      s.limited                       ? "limit"
                      : strcmp(s.flag, "--vram") == 0 ? "device memory available"
                                                      : "memory available",
                      (double)s.have / GIB);
  if (!n && used > 0 && (size_t)used < size)
    snprintf(text + used, size - (size_t)used, "no smaller video fits");
  for (int i = 0; i < n && used > 0 && (size_t)used < size; i++)
    used += snprintf(text + used, size - (size_t)used, "%s%s",
                     i == 0      ? "it fits with "
                     : i + 1 < n ? ", "
                                 : " or ",
                     options[i]);
}

wan_status plan_fits(wan_model *m, const run_settings *s, const run_cost *cost) {
  const search q = {m, s, {memory_budget(m->be), m->be->host_memory ? UINT64_MAX : host_budget(m->ctx)}};
  if (inside(cost, q.budget)) return WAN_OK;
  char text[512];
  explain(&q, cost, text, sizeof text);
  return core_fail(m->ctx, WAN_ERR_MEMORY, "%s", text);
}

wan_status plan_reserve(backend *be, const run_cost *cost) {
  const uint64_t budget = memory_budget(be);
  uint64_t most = cost->retry_resident <= budget ? cost->retry_resident : budget;
  for (int i = 0; i < WAN_STAGE_COUNT; i++) {
    uint64_t peak = cost->resident[i] <= budget ? cost->resident[i] : budget;
    if (cost->streamed[i] && peak > most) most = peak;
  }
  return backend_reserve(be, most, cost_pin_room(cost, be->ctx));
}
