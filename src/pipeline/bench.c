/* bench.c: forward passes on noise at the size of a run. The numbers in the latent do not matter for time,
 * but must be of the usual size so that nothing overflows: a normal distribution. */
#include "pipeline/bench.h"

#include "core/rng.h"
#include "pipeline/plan.h"

enum { PROMPT_TOKENS = 77 }; /* an ordinary prompt; cross attention costs next to nothing */

typedef struct bench {
  wan_model *m;
  run_settings s;
  dit *d;
  dit_text *text;
  tensor x, v; /* F32 [T, h, w, channels], backend memory */
  float *host;
} bench;

static wan_status prepare(bench *b, uint64_t keep) {
  backend *be = b->m->be;
  const dit_config *config = &b->m->config[0];
  CORE_TRY(dit_open(be, b->m->dir.part[MODEL_DIT], keep, &b->d));
  b->x = TENSOR_ALLOC(be, DT_F32, b->s.T, b->s.h, b->s.w, config->in_dim);
  b->v = TENSOR_ALLOC(be, DT_F32, b->s.T, b->s.h, b->s.w, config->out_dim);
  size_t latent = (size_t)tensor_count(&b->x), prompt = (size_t)(PROMPT_TOKENS * config->text_dim);
  b->host = core_alloc(be->ctx, (latent > prompt ? latent : prompt) * sizeof *b->host);
  if (!b->host) return WAN_ERR_MEMORY;
  rng_normal_philox(1, b->host, latent);
  tensor_upload(be, b->x, b->host);
  CORE_TRY(backend_sync(be));
  rng_normal_philox(2, b->host, prompt);
  return dit_text_create(b->d, TENSOR_OF(DT_F32, b->host, PROMPT_TOKENS, config->text_dim), &b->text);
}

static wan_status measure(bench *b, int repeat, wan_bench_result *r) {
  float t = 500;
  for (int i = 0; i < repeat; i++) {
    double start = core_now();
    CORE_TRY(dit_forward(b->d, b->x, (dit_timesteps){&t, 1}, 1, &b->text, &b->v, NULL));
    CORE_TRY(backend_sync(b->m->be));
    double seconds = core_now() - start;
    if (i == 0) r->seconds_first = seconds;
    if (i <= 1 || seconds < r->seconds_best) r->seconds_best = seconds;
  }
  return WAN_OK;
}

wan_status bench_forward(wan_model *m, const wan_generate_params *params, int repeat,
                         wan_bench_result *result) {
  wan_generate_params p = *params;
  bench b = {.m = m};
  run_cost cost;
  if (repeat < 1) return core_fail(m->ctx, WAN_ERR_ARGUMENT, "%d passes: at least one is needed", repeat);
  p.guidance_low = p.guidance_high = 1;
  CORE_TRY(settings_resolve(m, &p, true, &b.s));
  wan_status s = cost_estimate(m, &b.s, &cost);
  if (s == WAN_OK) s = prepare(&b, cost_keep(&cost, WAN_STAGE_DENOISE, memory_budget(m->be)));
  if (s == WAN_OK) s = measure(&b, repeat, result);
  if (s == WAN_OK) {
    result->tokens = cost.tokens;
    result->flops = cost.flops[WAN_STAGE_DENOISE] / settings_passes(&b.s);
    result->memory_peak = core_mem_peak(m->ctx);
  }
  dit_text_free(b.text);
  dit_close(b.d);
  tensor_free(m->be, &b.x);
  tensor_free(m->be, &b.v);
  core_free(m->ctx, b.host);
  settings_free(m->ctx, &b.s);
  scope_trim(m->be);
  return s;
}
