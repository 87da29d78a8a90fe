/* generate.c: the order of work. Each stage opens what it needs, frees it, and gives the arena back before
 * the next begins, so that text encoder, VAE and transformer never hold memory at the same time. */
#include "pipeline/generate.h"

#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "pipeline/checkpoint.h"
#include "pipeline/condition.h"
#include "pipeline/decode.h"
#include "pipeline/latent.h"
#include "pipeline/plan.h"

typedef struct generation {
  wan_model *m;
  const wan_generate_params *p;
  run_settings s;
  run_cost cost;
  uint64_t budget;
  run_progress progress;
  denoiser d;
  char *json; /* the settings */
} generation;

static wan_status stage_begin(generation *g, wan_stage stage, int steps) {
  scope_trim(g->m->be);
  CORE_TRY(scope_reserve(g->m->be, g->cost.scopes[stage]));
  progress_stage(&g->progress, stage, steps);
  return core_check_cancel(g->m->ctx); /* also of a cancellation by the receiver of this event */
}

static uint64_t keep_bytes(const generation *g, wan_stage stage) {
  return cost_keep(&g->cost, stage, g->budget);
}

/* ---- Preparing ---- */

/* A run with a random seed that finds its checkpoint goes on with the seed in there. */
static int64_t resumed_seed(generation *g, const wan_generate_params *p) {
  if (p->seed >= 0 || !p->checkpoint_path || !core_path_exists(p->checkpoint_path)) return p->seed;
  return checkpoint_seed(g->m->ctx, p->checkpoint_path);
}

/* A latent to decode brings its own size. */
static wan_status load_latent(generation *g) {
  wan_model *m = g->m;
  tensor *x = &g->d.slot[SLOT_X];
  denoiser_init(&g->d, m->be, &m->dir, &g->s);
  CORE_TRY(latent_load(m->be, g->p->from_latent_path, m->vae_z, x));
  g->s.T = x->dim[0];
  g->s.h = x->dim[1];
  g->s.w = x->dim[2];
  g->s.frames = (int)(g->s.T - 1) * 4 + 1;
  g->s.width = (int)g->s.w * m->vae_stride;
  g->s.height = (int)g->s.h * m->vae_stride;
  return WAN_OK;
}

static wan_status prepare(generation *g) {
  wan_model *m = g->m;
  CORE_TRY(settings_resolve(m, g->p, g->p->from_latent_path != NULL, &g->s));
  if (g->p->from_latent_path) CORE_TRY(load_latent(g));
  CORE_TRY(output_check(m->ctx, g->p->output_path, g->s.width, g->s.height));
  CORE_TRY(output_check_file(m->ctx, g->p->save_latent_path));
  CORE_TRY(output_check_file(m->ctx, g->p->checkpoint_path));
  CORE_TRY(cost_estimate(m, &g->s, &g->cost));
  CORE_TRY(settings_to_json(m, &g->s, &g->json));
  g->budget = memory_budget(m->be);
  CORE_TRY(plan_fits(m, &g->s, &g->cost));
  CORE_TRY(plan_reserve(m->be, &g->cost));
  progress_start(&g->progress, m->ctx, g->p->progress, g->p->user, g->cost.work);
  return WAN_OK;
}

/* ---- Denoising ---- */

static wan_status save_step(void *user, int done) {
  generation *g = user;
  (void)done;
  return g->p->checkpoint_path ? checkpoint_save(&g->d, g->p->checkpoint_path, g->json) : WAN_OK;
}

static wan_status preview(void *user, int step, tensor frame) {
  generation *g = user;
  int every = g->p->preview_every > 0 ? g->p->preview_every : 1, width, height;
  uint8_t *rgb;
  if ((step + 1) % every != 0) return WAN_OK;
  CORE_TRY(decode_picture(g->m->be, g->m->dir.part[MODEL_VAE], frame, &width, &height, &rgb));
  g->p->preview(g->p->user, step, width, height, rgb);
  core_free(g->m->ctx, rgb);
  return WAN_OK;
}

static wan_status start_fresh(generation *g) {
  wan_model *m = g->m;
  CORE_TRY(stage_begin(g, WAN_STAGE_TEXT, settings_use_negative(&g->s) ? 2 : 1));
  CORE_TRY(condition_text(m, &g->d, keep_bytes(g, WAN_STAGE_TEXT)));
  int chunks = condition_chunks(m, &g->s);
  if (chunks) {
    CORE_TRY(stage_begin(g, WAN_STAGE_ENCODE, chunks));
    CORE_TRY(condition_pictures(m, &g->d, keep_bytes(g, WAN_STAGE_ENCODE)));
  }
  float *noise = NULL;
  wan_status s = noise_make(m->ctx, &g->s, &noise);
  if (s == WAN_OK) s = denoiser_start(&g->d, noise);
  core_free(m->ctx, noise);
  return s;
}

static wan_status denoise(generation *g) {
  denoiser *d = &g->d;
  const char *checkpoint = g->p->checkpoint_path;
  denoiser_init(d, g->m->be, &g->m->dir, &g->s);
  d->progress = &g->progress;
  d->on_step = save_step;
  d->on_estimate = g->p->preview ? preview : NULL;
  d->user = g;
  d->keep_bytes = keep_bytes(g, WAN_STAGE_DENOISE);
  d->keep_retry = cost_keep_retry(&g->cost, g->budget);
  d->scopes = g->cost.scopes[WAN_STAGE_DENOISE];
  if (checkpoint && core_path_exists(checkpoint)) {
    CORE_TRY(checkpoint_load(d, checkpoint, g->json));
    core_log(g->m->ctx, WAN_LOG_NOTICE, "%s: resuming after step %d of %d", checkpoint, d->solver.done,
             g->s.steps);
  } else {
    CORE_TRY(start_fresh(g));
  }
  CORE_TRY(stage_begin(g, WAN_STAGE_DENOISE, g->s.steps));
  CORE_TRY(denoiser_run(d));
  denoiser_release(d);
  const char *metadata[] = {"wan.c settings", g->json, NULL};
  return g->p->save_latent_path ? latent_save(g->m->be, g->p->save_latent_path, d->slot[SLOT_X], metadata)
                                : WAN_OK;
}

/* ---- Decoding ---- */

static wan_status decode(generation *g) {
  wan_model *m = g->m;
  const run_settings *s = &g->s;
  /* A latent alone (no file, no receiver) is a complete result, too. */
  if (!g->p->output_path && !g->p->frame) return WAN_OK;
  CORE_TRY(stage_begin(g, WAN_STAGE_DECODE, (int)s->T));
  frame_output out;
  CORE_TRY(
      output_open(m->ctx, g->p, s->width, s->height, s->fps, g->p->from_latent_path ? NULL : g->json, &out));
  wan_status st = decode_frames(m->be, m->dir.part[MODEL_VAE], keep_bytes(g, WAN_STAGE_DECODE),
                                g->d.slot[SLOT_X], &g->progress, output_push, &out);
  if (st == WAN_OK) st = stage_begin(g, WAN_STAGE_FINISH, 1);
  if (st == WAN_OK) st = output_finish(&out);
  output_abort(&out);
  return st;
}

static void fill_result(const generation *g, wan_generate_result *r) {
  if (!r) return;
  r->seed = g->s.seed;
  r->width = g->s.width;
  r->height = g->s.height;
  r->frames = g->s.frames;
  r->fps = g->s.fps;
  memcpy(r->seconds, g->progress.seconds, sizeof r->seconds);
  memcpy(r->memory_peak, g->progress.memory_peak, sizeof r->memory_peak);
  r->retries = g->progress.now.retries;
  memcpy(r->device_memory_peak, g->progress.device_memory_peak, sizeof r->device_memory_peak);
}

wan_status generate_run(wan_model *m, const wan_generate_params *params, wan_generate_result *result) {
  wan_generate_params p = *params;
  generation g = {.m = m, .p = &p};
  CORE_TRY(model_can_compute(m));
  p.seed = resumed_seed(&g, params);
  wan_status s = prepare(&g);
  if (s == WAN_OK && !p.from_latent_path) s = denoise(&g);
  if (s == WAN_OK) s = decode(&g);
  if (s == WAN_OK) {
    progress_end(&g.progress);
    /* The checkpoint has served its purpose: a video made twice must not resume from the first. */
    if (p.checkpoint_path && !p.from_latent_path) remove(p.checkpoint_path);
  }
  fill_result(&g, result);
  for (int i = 0; i < 2; i++) core_free(m->ctx, g.d.context[i].data);
  denoiser_free(&g.d);
  scope_trim(m->be);
  backend_reserve(m->be, 0, 0);
  core_free(m->ctx, g.json);
  settings_free(m->ctx, &g.s);
  return s;
}
