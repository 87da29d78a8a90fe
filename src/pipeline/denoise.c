/* denoise.c: each step chooses the expert, makes the passes that guidance needs, combines them and lets
 * the solver move the sample. Latents are F32 [T, h, w, C] in backend memory throughout. */
#include "pipeline/denoise.h"

#include <stdio.h>

#include "pipeline/guidance.h"

void denoiser_init(denoiser *d, backend *be, const model_dir *dir, const run_settings *s) {
  *d = (denoiser){.be = be, .ctx = be->ctx, .dir = dir, .s = s, .active = -1};
  sampler_init(&d->solver, s->sampler, &s->plan);
}

static tensor latent_alloc(denoiser *d) {
  const run_settings *s = d->s;
  return TENSOR_ALLOC(d->be, DT_F32, s->T, s->h, s->w, s->C);
}

/* Spec 6.4: given frames are put back after every step; the solver's history is left alone. */
static void blend(denoiser *d) {
  if (!d->given) return;
  for (int64_t f = 0; f < d->s->T; f++)
    if (d->given[f]) tensor_copy(d->be, tensor_slice(d->slot[SLOT_X], f, 1), tensor_slice(d->first, f, 1));
}

wan_status denoiser_start(denoiser *d, const float *noise) {
  d->slot[SLOT_X] = latent_alloc(d);
  tensor_upload(d->be, d->slot[SLOT_X], noise);
  blend(d);
  return backend_status(d->be);
}

/* ---- Experts ---- */

static void drop_expert(denoiser *d, int e) {
  for (int i = 0; i < 2 && d->active == e; i++) {
    dit_text_free(d->text[i]);
    d->text[i] = NULL;
  }
  if (d->active == e) d->active = -1;
  dit_close(d->expert[e]);
  d->expert[e] = NULL;
}

static wan_status open_expert(denoiser *d, int e) {
  if (d->expert[e]) return WAN_OK;
  const char *path;
  CORE_TRY(model_need(d->ctx, d->dir, e == EXPERT_HIGH ? MODEL_DIT : MODEL_DIT_LOW, &path));
  return dit_open(d->be, path, d->keep_bytes, &d->expert[e]);
}

/* Only the expert in use holds memory. */
static wan_status use_expert(denoiser *d, int e) {
  if (d->active == e) return WAN_OK;
  if (d->active >= 0) {
    drop_expert(d, d->active);
    scope_trim(d->be);
    CORE_TRY(scope_reserve(d->be, d->scopes));
  }
  CORE_TRY(open_expert(d, e));
  d->active = e;
  for (int i = 0; i < 2; i++)
    if (d->context[i].type != DT_NONE) CORE_TRY(dit_text_create(d->expert[e], d->context[i], &d->text[i]));
  return WAN_OK;
}

/* An expert that takes over within the next two steps is read into the page cache meanwhile: one step
 * of the large models takes longer than reading their weights from a disk. */
static wan_status prefetch_next(denoiser *d, int k) {
  int current = settings_step(d->s, k).expert;
  for (int ahead = 1; ahead <= 2 && k + ahead < d->s->steps; ahead++) {
    int next = settings_step(d->s, k + ahead).expert;
    if (next == current || d->expert[next]) continue;
    CORE_TRY(open_expert(d, next));
    dit_prefetch(d->expert[next]);
  }
  return WAN_OK;
}

/* ---- One step ---- */

static wan_status combine_slots(void *user, sampler_slot dst, int n, const sampler_slot *src,
                                const float *coef) {
  denoiser *d = user;
  tensor x[8];
  if (d->slot[dst].type == DT_NONE) d->slot[dst] = latent_alloc(d);
  for (int i = 0; i < n; i++) x[i] = d->slot[src[i]];
  op_lincomb(d->be, d->slot[dst], n, x, coef);
  return backend_status(d->be);
}

static void on_block(void *user, int block, int blocks) {
  denoiser *d = user;
  if (d->progress) progress_at(d->progress, d->solver.done, (block + 1.0) / (blocks + 1));
}

/* The passes of step k: cond into SLOT_V, the others into tensors of the current scope. */
static wan_status passes(denoiser *d, const step_plan *step, tensor *uncond, tensor *skip) {
  backend *be = d->be;
  const run_settings *s = d->s;
  tensor x = d->slot[SLOT_X], v[3] = {d->slot[SLOT_V]};
  dit_text *text[3] = {d->text[0]};
  uint64_t masks[3] = {0};
  int n = 1;
  if (step->uncond) {
    text[n] = d->text[1];
    v[n++] = *uncond = tensor_new(be, DT_F32, x.ndim, x.dim);
  }
  if (step->skip) {
    masks[n] = s->skip_mask;
    text[n] = d->text[0];
    v[n++] = *skip = tensor_new(be, DT_F32, x.ndim, x.dim);
  }
  if (d->y.type != DT_NONE) x = op_concat_channels(be, x, d->y);
  CORE_TRY(backend_status(be));

  float one = (float)step->t, *per_frame = NULL;
  dit_timesteps time = {&one, 1};
  if (d->given) { /* given frames are clean: their time is 0 */
    per_frame = core_alloc(d->ctx, (size_t)s->T * sizeof *per_frame);
    if (!per_frame) return WAN_ERR_MEMORY;
    for (int64_t f = 0; f < s->T; f++) per_frame[f] = d->given[f] ? 0 : one;
    time = (dit_timesteps){per_frame, s->T};
  }
  dit_options options = {step->skip ? masks : NULL, on_block, d};
  wan_status st = dit_forward(d->expert[step->expert], x, time, n, text, v, &options);
  core_free(d->ctx, per_frame);
  return st;
}

/* The guided velocity of a step into SLOT_V. */
static wan_status guided(denoiser *d, const step_plan *step) {
  const wan_generate_params *p = d->s->params;
  tensor v = d->slot[SLOT_V], uncond = {0}, skip = {0};
  CORE_TRY(passes(d, step, &uncond, &skip));
  guidance_params g = {step->guidance, step->sigma, p->cfg_zero_star, p->apg,
                       p->apg_eta,     p->apg_norm, p->apg_momentum,  p->skip_layer_scale};
  guidance_combine(d->be, &g, d->slot[SLOT_X], v, uncond, skip, d->momentum, v);
  bool finite = op_all_finite(d->be, v);
  CORE_TRY(backend_status(d->be));
  if (!finite) return core_fail(d->ctx, WAN_ERR_NUMERIC, "the guided velocity is not finite");
  return WAN_OK;
}

/* The same in bf16 after it was not finite in fp8; the weights come from the file again. */
static wan_status guided_again(denoiser *d, const step_plan *step, tensor momentum) {
  backend *be = d->be;
  dit *expert = d->expert[step->expert];
  if (be->product == be->act)
    return core_prefix(d->ctx, WAN_ERR_NUMERIC, "there is no retry from %s, only from fp8",
                       be->act == DT_F32 ? "f32" : "bf16");
  core_log(d->ctx, WAN_LOG_NOTICE, "step %d of %d is made again in bf16: %s", d->solver.done + 1, d->s->steps,
           d->ctx->message);
  backend_clear(be);
  if (momentum.type != DT_NONE) tensor_copy(be, d->momentum, momentum);
  dit_set_exact(expert, true, d->keep_retry);
  wan_status st = guided(d, step);
  dit_set_exact(expert, false, d->keep_bytes);
  if (d->progress) d->progress->now.retries++;
  return st;
}

static wan_status velocity(denoiser *d, const step_plan *step) {
  backend *be = d->be;
  const wan_generate_params *p = d->s->params;
  const bool retry = p->on_nan == WAN_ON_NAN_RETRY;
  tensor *v = &d->slot[SLOT_V], momentum = {0}; /* as it was before the step */
  if (v->type == DT_NONE) *v = latent_alloc(d);
  if (p->apg && d->momentum.type == DT_NONE) {
    d->momentum = latent_alloc(d);
    tensor_zero(be, d->momentum);
  }
  if (step->zero) {
    tensor_zero(be, *v);
    return backend_status(be);
  }
  CORE_TRY(use_expert(d, step->expert));
  if (retry && p->apg) {
    momentum = tensor_new(be, DT_F32, v->ndim, v->dim);
    tensor_copy(be, momentum, d->momentum);
  }
  wan_status st = guided(d, step);
  return st == WAN_ERR_NUMERIC && retry ? guided_again(d, step, momentum) : st;
}

static wan_status estimate(denoiser *d, int k, float sigma) {
  if (!d->on_estimate) return WAN_OK;
  tensor x = tensor_slice(d->slot[SLOT_X], d->s->T / 2, 1), v = tensor_slice(d->slot[SLOT_V], d->s->T / 2, 1);
  tensor x0 = tensor_new(d->be, DT_F32, x.ndim, x.dim);
  op_lincomb(d->be, x0, 2, (tensor[]){x, v}, (float[]){1, -sigma});
  CORE_TRY(backend_status(d->be));
  return d->on_estimate(d->user, k, x0);
}

static wan_status run_step(denoiser *d, int k) {
  static const char *const names[] = {"high", "low"};
  step_plan step = settings_step(d->s, k);
  CORE_TRY(core_check_cancel(d->ctx));
  if (d->progress) {
    d->progress->now.expert = d->s->experts == 2 ? names[step.expert] : NULL;
    progress_at(d->progress, k, 0);
  }
  if (d->s->experts == 2) CORE_TRY(prefetch_next(d, k));
  scope_mark mark = scope_begin(d->be);
  wan_status st = velocity(d, &step);
  if (st == WAN_OK) st = estimate(d, k, step.sigma);
  scope_end(d->be, mark);
  if (st == WAN_OK) st = sampler_step(&d->solver, combine_slots, d);
  if (st == WAN_OK) blend(d);
  if (st == WAN_OK) st = backend_sync(d->be);
  if (st == WAN_ERR_NUMERIC)
    core_prefix(d->ctx, st, "denoising step %d of %d (timestep %g)", k + 1, d->s->steps, step.t);
  return st;
}

wan_status denoiser_run(denoiser *d) {
  while (d->solver.done < d->s->steps) {
    CORE_TRY(run_step(d, d->solver.done));
    if (d->progress) progress_at(d->progress, d->solver.done, 0);
    if (d->on_step) CORE_TRY(d->on_step(d->user, d->solver.done));
  }
  return WAN_OK;
}

void denoiser_release(denoiser *d) {
  for (int e = 0; e < 2; e++) drop_expert(d, e);
  for (int i = 0; i < SLOT_COUNT; i++)
    if (i != SLOT_X) tensor_free(d->be, &d->slot[i]);
  tensor_free(d->be, &d->momentum);
  tensor_free(d->be, &d->first);
  tensor_free(d->be, &d->y);
  core_free(d->ctx, d->given);
  d->given = NULL;
}

void denoiser_free(denoiser *d) {
  if (!d->be) return;
  denoiser_release(d);
  tensor_free(d->be, &d->slot[SLOT_X]);
}
