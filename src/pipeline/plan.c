/* plan.c: cost of a run. The models' own code runs on a backend that computes nothing but counts
 * (backend/dry.c): one step of each kind, then multiplied; once with all weights kept and once with all
 * streamed. So the plan can't disagree with the code. What is added by hand is what the pipeline itself
 * holds. Time is that of samples of the same operations (rates.h); a run that only has to weigh its stages
 * for a progress bar does without and takes a rough rate for each kind. */
#include "pipeline/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/dry.h"
#include "pipeline/condition.h"
#include "pipeline/rates.h"
#include "text/text.h"
#include "vae/vae.h"

enum { TEXT_TOKENS_GUESS = 128 /* of a prompt; the official negative prompt has about as many */ };

/* One seat for the models: a dry backend with an account of its own. */
typedef struct dry_run {
  core_ctx ctx;
  backend *be;
} dry_run;

static wan_status dry_open(dry_run *d, const wan_model *m, size_t scopes) {
  core_ctx_init(&d->ctx);
  const backend_config config = {.name = m->be->ops->name, .precision = m->be->precision};
  wan_status s = backend_open_dry(&d->ctx, &config, &d->be);
  if (s == WAN_OK) s = scope_reserve(d->be, scopes);
  return s == WAN_OK ? s : core_fail(m->ctx, s, "%s", d->ctx.message);
}

/* Close the seat; its message goes to the model's context. */
static wan_status dry_close(dry_run *d, const wan_model *m, wan_status s) {
  backend_close(d->be);
  return s == WAN_OK ? s : core_fail(m->ctx, s, "%s", d->ctx.message);
}

/* What the profile has counted so far. `work` is in FLOPs of a large matrix product that take as long:
 * attention and convolution reach a part of its rate, the rest is bound by memory and moves a byte in the
 * time of BYTE_WORK of them (some 450 GFLOP/s and 15 GB/s on two cores; the ratio is higher on a GPU, where
 * these operations are also a smaller part of the whole). */
typedef struct counted {
  double flops, work;
} counted;

static counted count(const backend *be) {
  enum { BYTE_WORK = 30 };
  static const double efficiency[PROF_COUNT] = {[PROF_LINEAR] = 1,
                                                [PROF_ATTENTION] = 0.4,
                                                [PROF_CONV] = 0.7,
                                                [PROF_UPSAMPLE_CONV] = 1.5 /* 4/9 of the taps */};
  counted c = {0};
  for (int i = 0; i < PROF_COUNT; i++) {
    const backend_profile_row *r = &be->profile->row[i];
    c.flops += r->flops;
    c.work += efficiency[i] > 0 ? r->flops / efficiency[i] : r->bytes * BYTE_WORK;
  }
  return c;
}

/* What a stage's dry run found. */
typedef struct stage_cost {
  double flops, work;
  rates *rates;   /* from outside; NULL: seconds are not wanted */
  double seconds; /* loading weights included */
  uint64_t peak, host, weights;
  int blocks;    /* resident ones of the transformer */
  bool retry;    /* in: denoising in bf16 although the backend is in fp8 */
  size_t scopes; /* in: what to reserve for scopes; out: what they took */
} stage_cost;

/* Add what was done since the last call of this, `times` over. A device loads weights while it computes. */
static wan_status add_work(stage_cost *c, const dry_run *d, double times) {
  counted w = count(d->be);
  c->flops += times * w.flops;
  c->work += times * w.work;
  if (c->rates) {
    run_time t;
    CORE_TRY(rates_price(c->rates, d->be, &t));
    c->seconds += times * (d->be->host_memory ? t.compute + t.load : t.compute > t.load ? t.compute : t.load);
  }
  backend_dry_forget(d->be);
  return WAN_OK;
}

/* Peak of the seat so far. `held`: bytes that the pipeline holds in the backend's memory, beside it in the
 * host's. */
static void keep_memory(stage_cost *c, const dry_run *d, uint64_t held, uint64_t beside) {
  const bool device = !d->be->host_memory;
  c->peak = held + (device ? core_device_peak(&d->ctx) : core_mem_peak(&d->ctx) + beside);
  c->host = device ? core_mem_peak(&d->ctx) + beside : 0;
  c->scopes = device ? d->be->scope_peak : 0;
}

/* Which tensors of a file a stage loads. */
static bool all_but_table(const char *name) {
  return strcmp(name, "token_embedding.weight") != 0; /* looked up in place */
}

static bool of_decoder(const char *name) {
  return strncmp(name, "decoder.", 8) == 0 || strncmp(name, "conv2.", 6) == 0;
}

static bool of_encoder(const char *name) {
  return strncmp(name, "encoder.", 8) == 0 || strncmp(name, "conv1.", 6) == 0;
}

/* Bytes of these tensors once loaded: vectors in f32, the rest in the act dtype. */
static uint64_t loaded_bytes(const weight_set *set, const backend *be, bool (*counts)(const char *name)) {
  uint64_t bytes = 0;
  for (int64_t i = 0; i < weight_set_count(set); i++) {
    tensor t = weight_set_tensor(set, i);
    if (counts(weight_set_name(set, i)))
      bytes += (uint64_t)tensor_count(&t) * (t.ndim > 1 ? dtype_size(be->act) : 4);
  }
  return bytes;
}

/* ---- Stages: each once, and once more with what stays loaded from the first time ---- */

static wan_status cost_text(const wan_model *m, const run_settings *s, uint64_t keep, stage_cost *c) {
  dry_run d;
  umt5 *u = NULL;
  CORE_TRY(dry_open(&d, m, c->scopes));
  wan_status st = umt5_open(d.be, m->dir.part[MODEL_TEXT], keep, &u);
  float *out = NULL;
  int32_t ids[TEXT_TOKENS_GUESS] = {0};
  if (st == WAN_OK && !(out = core_calloc(&d.ctx, TEXT_TOKENS_GUESS, (size_t)umt5_dim(u) * sizeof *out)))
    st = WAN_ERR_MEMORY;
  for (int i = 0; st == WAN_OK && i < (settings_use_negative(s) ? 2 : 1); i++) {
    st = umt5_encode(u, ids, TEXT_TOKENS_GUESS, out, NULL, NULL);
    if (st == WAN_OK) st = add_work(c, &d, 1);
  }
  if (st == WAN_OK) {
    c->weights = loaded_bytes(umt5_weights(u), d.be, all_but_table);
    keep_memory(c, &d, 0, 0);
  }
  core_free(&d.ctx, out);
  umt5_close(u);
  return dry_close(&d, m, st);
}

static int most_passes(const run_settings *s) {
  int passes = 1;
  for (int k = 0; k < s->steps; k++) {
    step_plan step = settings_step(s, k);
    int n = 1 + step.uncond + step.skip;
    if (n > passes) passes = n;
  }
  return passes;
}

static uint64_t latent_bytes(const run_settings *s) {
  return (uint64_t)(s->T * s->h * s->w * s->C) * sizeof(float);
}

/* One pass with as many conditionings as the busiest step has, and a second one: where blocks are streamed,
 * the first is loaded ahead at the end of each. An expert that takes over begins again. */
static wan_status cost_denoise(const wan_model *m, const run_settings *s, uint64_t keep, stage_cost *c) {
  dry_run d;
  dit *net = NULL;
  dit_text *text[DIT_PASSES_MAX] = {0};
  tensor v[DIT_PASSES_MAX];
  const int passes = most_passes(s);
  CORE_TRY(dry_open(&d, m, c->scopes));
  backend *be = d.be;
  wan_status st = dit_open(be, m->dir.part[MODEL_DIT], keep, &net);
  if (st == WAN_OK && c->retry) dit_set_exact(net, true, keep);
  scope_mark mark = scope_begin(be);
  if (st == WAN_OK) {
    const dit_config *k = dit_get_config(net);
    float none = 0, t[2] = {500, 0};
    int64_t rows = TEXT_TOKENS_GUESS < k->text_len ? TEXT_TOKENS_GUESS : k->text_len;
    tensor x = TENSOR_NEW(be, DT_F32, s->T, s->h, s->w, k->in_dim);
    for (int i = 0; i < passes && st == WAN_OK; i++) {
      v[i] = TENSOR_NEW(be, DT_F32, s->T, s->h, s->w, k->out_dim);
      st = dit_text_create(net, TENSOR_OF(DT_F32, &none, rows, k->text_dim), &text[i]);
    }
    const double all = (double)settings_passes(s) / passes, first = all < s->experts ? all : s->experts;
    for (int i = 0; st == WAN_OK && i < 2; i++) {
      st = dit_forward(net, x, (dit_timesteps){t, 1}, passes, text, v, NULL);
      if (st == WAN_OK && (i == 0 || all > first)) st = add_work(c, &d, i ? all - first : first);
    }
    if (st == WAN_OK) {
      c->weights = loaded_bytes(dit_weights(net), be, all_but_table);
      c->blocks = dit_resident_blocks(net);
      /* the solver's history, the condition; the noise as it comes */
      keep_memory(c, &d, (SLOT_COUNT + 2) * latent_bytes(s), be->host_memory ? 0 : 2 * latent_bytes(s));
    }
  }
  for (int i = 0; i < passes; i++) dit_text_free(text[i]);
  scope_end(be, mark);
  dit_close(net);
  return dry_close(&d, m, st);
}

/* The first push and one of the others stand for all; memory is at its peak with the second. */
static wan_status cost_vae(const wan_model *m, const run_settings *s, bool decode, int pushes, uint64_t keep,
                           stage_cost *c) {
  dry_run d;
  vae *v = NULL;
  vae_decoder *dec = NULL;
  vae_encoder *enc = NULL;
  CORE_TRY(dry_open(&d, m, c->scopes));
  backend *be = d.be;
  wan_status st = vae_open(be, m->dir.part[MODEL_VAE], keep, &v);
  if (st == WAN_OK)
    st = decode ? vae_decoder_open(v, s->h, s->w, &dec) : vae_encoder_open(v, s->height, s->width, &enc);
  for (int i = 0; st == WAN_OK && i < 2 && i < pushes; i++) {
    scope_mark mark = scope_begin(be);
    tensor in, out;
    if (decode) {
      in = TENSOR_NEW(be, DT_F32, 1, s->h, s->w, s->C);
      st = vae_decoder_push(dec, in, &out);
      op_to_u8(be, out);
    } else {
      in = TENSOR_NEW(be, DT_F32, i ? 4 : 1, s->height, s->width, 3);
      st = vae_encoder_push(enc, in, &out);
    }
    if (st == WAN_OK) st = backend_status(be);
    scope_end(be, mark);
    if (st == WAN_OK) st = add_work(c, &d, i ? pushes - 1 : 1);
  }
  if (st == WAN_OK) {
    c->weights = loaded_bytes(vae_weights(v), be, decode ? of_decoder : of_encoder);
    /* the latents, on the backend and here; four pixel frames as bytes or floats */
    keep_memory(c, &d, latent_bytes(s),
                latent_bytes(s) + (be->host_memory ? 0
                                                   : (uint64_t)s->width * (uint64_t)s->height * 12 *
                                                         (decode ? 1 : sizeof(float))));
  }
  vae_decoder_close(dec);
  vae_encoder_close(enc);
  vae_close(v);
  return dry_close(&d, m, st);
}

static wan_status cost_once(wan_model *m, const run_settings *s, wan_stage stage, uint64_t keep,
                            stage_cost *c) {
  *c = (stage_cost){.rates = c->rates, .scopes = c->scopes, .retry = c->retry};
  if (s->params->from_latent_path && stage != WAN_STAGE_DECODE) return WAN_OK;
  int chunks = condition_chunks(m, s);
  if (stage == WAN_STAGE_TEXT) return cost_text(m, s, keep, c);
  if (stage == WAN_STAGE_ENCODE && chunks) return cost_vae(m, s, false, chunks, keep, c);
  if (stage == WAN_STAGE_DECODE) return cost_vae(m, s, true, (int)s->T, keep, c);
  if (stage != WAN_STAGE_DENOISE) return WAN_OK;
  CORE_TRY(cost_denoise(m, s, keep, c));
  if (!s->params->preview) return WAN_OK;
  stage_cost look = {0}; /* a preview decodes one frame with streamed weights between two steps */
  CORE_TRY(cost_vae(m, s, true, 1, 0, &look));
  c->peak += look.peak;
  c->host += look.host;
  return WAN_OK;
}

/* On a device once to see what scopes take, then with that reserved, as a run has it. */
static wan_status cost_stage(wan_model *m, const run_settings *s, wan_stage stage, uint64_t keep,
                             stage_cost *c) {
  stage_cost first = {.retry = c->retry};
  if (!m->be->host_memory) CORE_TRY(cost_once(m, s, stage, keep, &first));
  c->scopes = first.scopes;
  return cost_once(m, s, stage, keep, c);
}

static bool may_retry(const wan_model *m, const run_settings *s) {
  return s->params->on_nan == WAN_ON_NAN_RETRY && m->be->product != m->be->act &&
         !s->params->from_latent_path;
}

/* What a retry needs, with all weights streamed or all kept, goes into the peak of denoising. */
static wan_status cost_retry(wan_model *m, const run_settings *s, uint64_t keep, uint64_t *own,
                             run_cost *out) {
  const wan_stage stage = WAN_STAGE_DENOISE;
  stage_cost c = {.retry = true};
  if (!may_retry(m, s)) return WAN_OK;
  CORE_TRY(cost_stage(m, s, stage, keep, &c));
  *own = c.peak;
  if (!keep && c.peak > out->streamed[stage]) out->streamed[stage] = c.peak;
  if (c.scopes > out->scopes[stage]) out->scopes[stage] = c.scopes;
  return WAN_OK;
}

wan_status cost_least(wan_model *m, const run_settings *s, run_cost *out) {
  stage_cost c = {0};
  for (int i = 0; i < WAN_STAGE_COUNT; i++) {
    CORE_TRY(cost_stage(m, s, (wan_stage)i, 0, &c));
    out->streamed[i] = c.peak;
    out->host[i] = c.host;
  }
  return cost_retry(m, s, 0, &out->retry_streamed, out);
}

wan_status cost_estimate(wan_model *m, const run_settings *s, run_cost *out) {
  stage_cost c = {0};
  *out = (run_cost){.tokens = s->T * (s->h / 2) * (s->w / 2)};
  CORE_TRY(cost_least(m, s, out));
  for (int i = 0; i < WAN_STAGE_COUNT; i++) {
    CORE_TRY(cost_stage(m, s, (wan_stage)i, UINT64_MAX, &c));
    out->flops[i] = c.flops;
    out->work[i] = c.work;
    out->resident[i] = c.peak;
    out->weights[i] = c.weights;
    if (c.host > out->host[i]) out->host[i] = c.host;
    if (c.scopes > out->scopes[i]) out->scopes[i] = c.scopes;
  }
  return cost_retry(m, s, UINT64_MAX, &out->retry_resident, out);
}

wan_status cost_peak(wan_model *m, const run_settings *s, wan_stage stage, uint64_t keep, uint64_t *peak,
                     int *blocks, double *seconds) {
  stage_cost c = {.rates = m->rates};
  CORE_TRY(cost_stage(m, s, stage, keep, &c));
  *peak = c.peak;
  *seconds = c.seconds;
  if (blocks) *blocks = c.blocks;
  return WAN_OK;
}

/* ---- Memory ---- */

static uint64_t host_available(void) {
  uint64_t available = 0;
  FILE *f = fopen("/proc/meminfo", "r");
  for (char line[128]; f && fgets(line, sizeof line, f);)
    if (strncmp(line, "MemAvailable:", 13) == 0) available = strtoull(line + 13, NULL, 10) * 1024;
  if (f) fclose(f);
  return available ? available : UINT64_C(8) << 30; /* not Linux: assume a small machine */
}

uint64_t host_budget(const core_ctx *ctx) {
  if (ctx->mem_limit) return ctx->mem_limit;
  /* Leave a tenth to others; what this context holds already is its own to use. */
  return host_available() / 10 * 9 + core_mem_current(ctx);
}

/* What is free on a device, less a reserve for what the driver and others may still take there. */
static uint64_t device_budget(backend *be) {
  enum { RESERVE = 256 << 20 };
  const uint64_t limit = be->ctx->device_limit;
  if (be->dry) return limit ? limit : UINT64_MAX;
  uint64_t available = be->ops->mem_available(be) + core_device_current(be->ctx);
  available = available > RESERVE ? available - RESERVE : 0;
  return limit && limit < available ? limit : available;
}

uint64_t memory_budget(backend *be) {
  return be->host_memory ? host_budget(be->ctx) : device_budget(be);
}

/* All that a limit leaves; without one half of what is available, for others run here, too. */
uint64_t cost_pin_room(const run_cost *c, const core_ctx *ctx) {
  uint64_t most = 0, budget = host_budget(ctx);
  for (int i = 0; i < WAN_STAGE_COUNT; i++)
    if (c->host[i] > most) most = c->host[i];
  if (budget <= most) return 0;
  return (budget - most) / (ctx->mem_limit ? 1 : 2);
}

uint64_t cost_keep(const run_cost *c, wan_stage stage, uint64_t budget) {
  if (c->resident[stage] <= budget) return UINT64_MAX;
  return budget > c->streamed[stage] ? budget - c->streamed[stage] : 0;
}

uint64_t cost_keep_retry(const run_cost *c, uint64_t budget) {
  if (c->retry_resident <= budget) return UINT64_MAX;
  return budget > c->retry_streamed ? budget - c->retry_streamed : 0;
}

/* Of the weights that are streamed again and again. */
static uint64_t pinned(const run_cost *c, wan_stage stage, uint64_t keep, const core_ctx *ctx) {
  if (stage != WAN_STAGE_DENOISE && stage != WAN_STAGE_DECODE) return 0;
  const uint64_t room = cost_pin_room(c, ctx),
                 streamed = c->weights[stage] > keep ? c->weights[stage] - keep : 0;
  return streamed < room ? streamed : room;
}

wan_status plan_make(wan_model *m, const run_settings *s, wan_plan *out) {
  run_cost c;
  backend *be = m->be;
  CORE_TRY(cost_estimate(m, s, &c));
  if (!be->dry && !m->rates) CORE_TRY(rates_open(be, &m->rates));
  size_t size = out->size;
  *out = (wan_plan){
      .size = size, .width = s->width, .height = s->height, .frames = s->frames, .steps = s->steps};
  out->experts = s->experts;
  out->tokens = c.tokens;
  out->timed = !be->dry;
  out->blocks = m->config[0].layers;
  const uint64_t budget = memory_budget(be);
  out->device_budget = be->host_memory ? 0 : budget;
  for (int i = 0; i < WAN_STAGE_COUNT; i++) {
    const wan_stage stage = (wan_stage)i;
    uint64_t peak, keep = cost_keep(&c, stage, budget);
    int *blocks = stage == WAN_STAGE_DENOISE ? &out->blocks_resident : NULL;
    CORE_TRY(cost_peak(m, s, stage, keep, &peak, blocks, &out->seconds[i]));
    out->flops[i] = c.flops[i];
    out->memory_peak[i] = be->host_memory ? peak : c.host[i] + pinned(&c, stage, keep, m->ctx);
    out->device_memory_peak[i] = be->host_memory ? 0 : peak;
    out->weights[i] = c.weights[i];
    out->resident[i] = keep < c.weights[i] ? keep : c.weights[i];
  }
  out->fits = plan_fits(m, s, &c) == WAN_OK;
  if (!out->fits) snprintf(out->refusal, sizeof out->refusal, "%.500s", m->ctx->message);
  return WAN_OK;
}
