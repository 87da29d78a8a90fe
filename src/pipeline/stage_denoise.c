/* stage_denoise.c: the denoising loop on given noise and contexts. Inputs: noise [C,T,h,w], context and
 * context_null [n, text_dim] (context_null may be absent when guidance is 1), TI2V optionally first
 * [C,1,h,w], I2V y [20,T,h,w]. Output: latent [C,T,h,w]. */
#include "pipeline/denoise.h"
#include "pipeline/plan.h"
#include "pipeline/stage.h"

typedef struct denoise_inputs {
  tensor noise, y, first; /* backend F32 [T, h, w, C] */
  run_settings s;
  denoiser d;
} denoise_inputs;

static wan_status read_context(stage_call *c, const char *name, int64_t dim, tensor *out) {
  return stage_input(c, name, 2, (int64_t[]){-1, dim}, out);
}

static bool has(const stage_call *c, const char *name) {
  return safetensors_find(c->in, name).type != DT_NONE;
}

/* The settings of the model with the latent's own shape. */
static wan_status settle(stage_call *c, wan_model *m, wan_generate_params *p, denoise_inputs *in) {
  int64_t channels = m->config[0].out_dim;
  CORE_TRY(stage_input_video(c, "noise", channels, &in->noise));
  p->width = (int)in->noise.dim[2] * m->vae_stride;
  p->height = (int)in->noise.dim[1] * m->vae_stride;
  p->frames = (int)(in->noise.dim[0] - 1) * 4 + 1;
  p->seed = 0; /* the noise is given */
  if (in->noise.dim[1] % 2 || in->noise.dim[2] % 2)
    return core_fail(c->ctx, WAN_ERR_FORMAT, "%s: \"noise\" has an odd height or width", c->p->in_path);
  return settings_resolve(m, p, true, &in->s);
}

static wan_status condition(stage_call *c, wan_model *m, denoise_inputs *in) {
  const run_settings *s = &in->s;
  denoiser *d = &in->d;
  int64_t text_dim = m->config[0].text_dim;
  CORE_TRY(read_context(c, "context", text_dim, &d->context[0]));
  if (settings_use_negative(s)) CORE_TRY(read_context(c, "context_null", text_dim, &d->context[1]));
  if (m->family == WAN_FAMILY_I2V) {
    CORE_TRY(stage_input_video(c, "y", m->config[0].in_dim - s->C, &d->y));
    if (d->y.dim[0] != s->T || d->y.dim[1] != s->h || d->y.dim[2] != s->w)
      return core_fail(c->ctx, WAN_ERR_FORMAT, "%s: \"y\" and \"noise\" differ in frames, height or width",
                       c->p->in_path);
  }
  if (!has(c, "first")) return WAN_OK;
  if (m->family != WAN_FAMILY_TI2V)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "%s: \"first\" is for TI2V models", c->p->in_path);
  CORE_TRY(stage_input_video(c, "first", s->C, &in->first));
  if (in->first.dim[0] > s->T || in->first.dim[1] != s->h || in->first.dim[2] != s->w)
    return core_fail(c->ctx, WAN_ERR_FORMAT,
                     "%s: \"first\" does not fit \"noise\" in frames, height or width", c->p->in_path);
  d->first = TENSOR_ALLOC(c->be, DT_F32, s->T, s->h, s->w, s->C);
  tensor_copy(c->be, tensor_slice(d->first, 0, in->first.dim[0]), in->first);
  d->given = core_calloc(c->ctx, (size_t)s->T, sizeof *d->given);
  if (!d->given) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < in->first.dim[0]; i++) d->given[i] = true;
  return backend_status(c->be);
}

/* As of a whole run, of which this is one stage. */
static wan_status settle_memory(stage_call *c, wan_model *m, denoise_inputs *in) {
  run_cost all, cost = {0};
  const wan_stage stage = WAN_STAGE_DENOISE;
  CORE_TRY(cost_estimate(m, &in->s, &all));
  cost.streamed[stage] = all.streamed[stage];
  cost.resident[stage] = all.resident[stage];
  cost.host[stage] = all.host[stage];
  cost.retry_streamed = all.retry_streamed;
  cost.retry_resident = all.retry_resident;
  CORE_TRY(plan_fits(m, &in->s, &cost));
  in->d.keep_bytes = cost_keep(&cost, stage, memory_budget(c->be));
  in->d.keep_retry = cost_keep_retry(&cost, memory_budget(c->be));
  in->d.scopes = all.scopes[stage];
  CORE_TRY(plan_reserve(c->be, &cost));
  scope_trim(c->be);
  return scope_reserve(c->be, in->d.scopes);
}

static wan_status loop(stage_call *c, wan_model *m, denoise_inputs *in) {
  denoiser *d = &in->d;
  CORE_TRY(settle_memory(c, m, in));
  float *host = core_alloc(c->ctx, tensor_bytes(&in->noise));
  if (!host) return WAN_ERR_MEMORY;
  tensor_download(c->be, host, in->noise);
  wan_status s = denoiser_start(d, host);
  core_free(c->ctx, host);
  if (s == WAN_OK) s = denoiser_run(d);
  return s == WAN_OK ? stage_output_video(c, "latent", d->slot[SLOT_X]) : s;
}

wan_status stage_denoise(stage_call *c) {
  wan_model *m = NULL;
  denoise_inputs in = {0};
  wan_generate_params p = c->p->generate;
  CORE_TRY(model_open(c->be, c->p->model_dir, &m));
  wan_status s = settle(c, m, &p, &in);
  if (s == WAN_OK) {
    denoiser_init(&in.d, c->be, &m->dir, &in.s);
    s = condition(c, m, &in);
  }
  if (s == WAN_OK) s = loop(c, m, &in);
  for (int i = 0; i < 2; i++) core_free(c->ctx, in.d.context[i].data);
  denoiser_free(&in.d);
  scope_trim(c->be);
  backend_reserve(c->be, 0, 0);
  settings_free(c->ctx, &in.s);
  tensor_free(c->be, &in.noise);
  tensor_free(c->be, &in.first);
  model_close(m);
  return s;
}
