/* stage.c: finding a stage by name, its files, and the small stages that need no model. */
#include "pipeline/stage.h"

#include <math.h>
#include <string.h>

#include "media/media.h"
#include "pipeline/condition.h"

wan_status stage_input(const stage_call *c, const char *name, int ndim, const int64_t *dim, tensor *out) {
  return latent_read(c->ctx, c->in, c->p->in_path, name, ndim, dim, out);
}

wan_status stage_input_video(const stage_call *c, const char *name, int64_t channels, tensor *out) {
  tensor t = {0};
  *out = (tensor){0};
  CORE_TRY(stage_input(c, name, 4, (int64_t[]){channels, -1, -1, -1}, &t));
  float *last = core_alloc(c->ctx, tensor_bytes(&t));
  wan_status s = WAN_ERR_MEMORY;
  if (last) {
    channels_last(t.data, t.dim[0], tensor_count(&t) / t.dim[0], last);
    *out = TENSOR_ALLOC(c->be, DT_F32, t.dim[1], t.dim[2], t.dim[3], t.dim[0]);
    tensor_upload(c->be, *out, last);
    s = backend_status(c->be);
  }
  core_free(c->ctx, last);
  core_free(c->ctx, t.data);
  return s;
}

wan_status stage_output(const stage_call *c, int n, const named_tensor *tensors) {
  return safetensors_write(c->ctx, c->p->out_path, n, tensors, NULL);
}

wan_status stage_output_video(const stage_call *c, const char *name, tensor x) {
  size_t bytes = tensor_bytes(&x);
  int64_t C = x.dim[3];
  float *inner = core_alloc(c->ctx, bytes), *outer = core_alloc(c->ctx, bytes);
  wan_status s = inner && outer ? WAN_OK : WAN_ERR_MEMORY;
  if (s == WAN_OK) {
    tensor_download(c->be, inner, x);
    s = backend_status(c->be);
  }
  if (s == WAN_OK) {
    channels_first(inner, C, tensor_count(&x) / C, outer);
    s = stage_output(c, 1, &(named_tensor){name, TENSOR_OF(DT_F32, outer, C, x.dim[0], x.dim[1], x.dim[2])});
  }
  core_free(c->ctx, inner);
  core_free(c->ctx, outer);
  return s;
}

wan_status stage_schedule(stage_call *c) {
  const wan_generate_params *g = &c->p->generate;
  static const sampler_kind kinds[] = {SAMPLER_UNIPC, SAMPLER_DPMPP, SAMPLER_EULER};
  schedule plan;
  if ((unsigned)g->sampler > WAN_SAMPLER_EULER)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "unknown sampler %d", (int)g->sampler);
  if (g->steps < 1 || (!g->sigmas && !(g->shift > 0)))
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "the schedule stage needs --steps and --shift");
  sampler_kind kind = kinds[g->sampler];
  CORE_TRY(g->sigmas
               ? schedule_from_sigmas(c->ctx, kind, g->sigmas, g->steps, &plan)
               : schedule_make(c->ctx, kind,
                               g->schedule == WAN_SCHEDULE_DIFFUSERS ? SCHEDULE_DIFFUSERS : SCHEDULE_OFFICIAL,
                               g->steps, g->shift, &plan));
  float *t = core_alloc(c->ctx, (size_t)plan.steps * sizeof *t);
  if (!t) return WAN_ERR_MEMORY;
  for (int i = 0; i < plan.steps; i++) t[i] = (float)plan.timestep[i];
  wan_status s = stage_output(c, 2,
                              (named_tensor[]){{"timesteps", TENSOR_OF(DT_F32, t, plan.steps)},
                                               {"sigmas", TENSOR_OF(DT_F32, plan.sigma, plan.steps + 1)}});
  core_free(c->ctx, t);
  return s;
}

wan_status stage_noise(stage_call *c) {
  const int64_t *d = c->p->shape;
  int64_t count;
  if (!tensor_dims_count(4, d, &count) || count < 1 || count > INT64_MAX / 8)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT,
                     "the noise stage needs --shape C,T,h,w with four positive numbers");
  if (c->p->generate.seed < 0) return core_fail(c->ctx, WAN_ERR_ARGUMENT, "the noise stage needs --seed");
  float *x = core_alloc(c->ctx, (size_t)count * sizeof *x);
  if (!x) return WAN_ERR_MEMORY;
  wan_status s = noise_draw(c->ctx, c->p->generate.rng, c->p->generate.seed, x, (size_t)count);
  if (s == WAN_OK) s = stage_output(c, 1, &(named_tensor){"noise", tensor_of(DT_F32, x, 4, d)});
  core_free(c->ctx, x);
  return s;
}

/* The picture as a model sees it: with an I2V model's directory its way (bicubic on floats), otherwise TI2V's
 * (Pillow's LANCZOS and a centre crop). */
wan_status stage_image(stage_call *c) {
  const wan_stage_params *p = c->p;
  picture in = {0};
  int width, height;
  wan_family family = WAN_FAMILY_TI2V;
  int64_t area = (int64_t)p->area_width * p->area_height;
  if (!p->image_path || p->area_width < 1 || p->area_height < 1)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "the image stage needs --image FILE and --area WIDTHxHEIGHT");
  if (c->dir.part[MODEL_DIT]) {
    dit *d = NULL;
    CORE_TRY(dit_open(c->be, c->dir.part[MODEL_DIT], 0, &d));
    family = family_of(dit_get_config(d));
    dit_close(d);
  }
  CORE_TRY(picture_load(c->ctx, p->image_path, &(picture_options){p->generate.no_exif}, &in));
  if (family == WAN_FAMILY_I2V)
    i2v_output_size(in.width, in.height, area, &width, &height);
  else
    best_output_size(in.width, in.height, 32, 32, area, &width, &height);
  wan_status s = WAN_OK;
  if (width < 1 || height < 1)
    s = core_fail(c->ctx, WAN_ERR_ARGUMENT, "the area %dx%d is too small for a picture of %dx%d",
                  p->area_width, p->area_height, in.width, in.height);
  size_t count = s == WAN_OK ? (size_t)width * (size_t)height * 3 : 0;
  float *last = core_alloc(c->ctx, count * sizeof *last), *first = core_alloc(c->ctx, count * sizeof *first);
  if (s == WAN_OK && (!last || !first)) s = WAN_ERR_MEMORY;
  if (s == WAN_OK) s = condition_pixels(c->ctx, family, &in, width, height, last);
  if (s == WAN_OK) {
    channels_first(last, 3, (int64_t)width * height, first);
    s = stage_output(c, 1, &(named_tensor){"image", TENSOR_OF(DT_F32, first, 3, height, width)});
  }
  core_free(c->ctx, first);
  core_free(c->ctx, last);
  picture_free(c->ctx, &in);
  return s;
}

/* ---- The table ---- */

typedef struct stage_entry {
  const char *name;
  wan_status (*run)(stage_call *c);
  bool model, in, out; /* needs a model directory, an input file, an output file */
} stage_entry;

static const stage_entry stages[] = {
    {"tokenize", stage_tokenize, true, false, true},
    {"clean", stage_clean, false, false, false},
    {"text", stage_text, true, false, true},
    {"dit", stage_dit, true, true, true},
    {"vae-encode", stage_vae_encode, true, true, true},
    {"vae-decode", stage_vae_decode, true, true, true},
    {"schedule", stage_schedule, false, false, true},
    {"denoise", stage_denoise, true, true, true},
    {"noise", stage_noise, false, false, true},
    {"image", stage_image, false, false, true},
    {"smart-resize", stage_smart_resize, false, false, false},
    {"smart-nframes", stage_smart_nframes, false, false, false},
    {"vision-image", stage_vision_image, false, false, true},
    {"vision-video", stage_vision_video, false, false, true},
};

static wan_status open_files(stage_call *c, const stage_entry *e) {
  const wan_stage_params *p = c->p;
  if (e->model && !p->model_dir)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "stage %s needs a model directory (--model)", e->name);
  if (e->in && !p->in_path)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "stage %s needs an input file (--in)", e->name);
  if (e->out && !p->out_path)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "stage %s needs an output file (--out)", e->name);
  if (p->model_dir) CORE_TRY(model_dir_open(c->ctx, p->model_dir, &c->dir));
  return p->in_path ? safetensors_open(c->ctx, p->in_path, &c->in) : WAN_OK;
}

wan_status stage_run(backend *be, const wan_stage_params *params, char **text) {
  const stage_entry *e = NULL;
  if (text) *text = NULL;
  for (size_t i = 0; i < sizeof stages / sizeof *stages; i++)
    if (params->stage && strcmp(params->stage, stages[i].name) == 0) e = &stages[i];
  if (!e)
    return core_fail(
        be->ctx, WAN_ERR_ARGUMENT,
        "there is no stage \"%s\"; there are tokenize, clean, text, dit, vae-encode, vae-decode, "
        "schedule, denoise, noise, image, smart-resize, smart-nframes, vision-image and vision-video",
        params->stage ? params->stage : "");
  if (be->dry && e->model)
    return core_fail(be->ctx, WAN_ERR_ARGUMENT, "this context was opened for planning only (plan_only)");
  stage_call c = {.be = be, .ctx = be->ctx, .p = params};
  wan_status s = open_files(&c, e);
  if (s == WAN_OK) s = e->run(&c);
  if (c.in) safetensors_close(c.in);
  model_dir_close(c.ctx, &c.dir);
  scope_trim(be);
  if (s == WAN_OK && text)
    *text = c.text;
  else
    core_free(c.ctx, c.text);
  return s;
}
