/* plan.c: cost of a run. FLOPs follow the model's arithmetic layer by layer; bytes follow what the rooms
 * allocate (named where they are counted). Time is FLOPs over the measured rate of a matrix product, each
 * kind of work with its own efficiency. */
#include "pipeline/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/condition.h"

/* Attention and convolution reach this part of a large matrix product's rate on the CPU backend. */
static const double ATTENTION_EFFICIENCY = 0.5, CONV_EFFICIENCY = 0.6;
enum { TEXT_TOKENS_GUESS = 128, TEXT_ROWS = 513, FFN_ROWS = 8192 }; /* FFN_ROWS: dit/dit.c */

static void add(run_cost *c, wan_stage stage, double flops, double efficiency) {
  c->flops[stage] += flops;
  c->work[stage] += flops / efficiency;
}

static uint64_t act_bytes(const wan_model *m) {
  return dtype_size(m->be->act);
}

/* ---- Transformer ---- */

static void cost_denoise(const wan_model *m, const run_settings *s, run_cost *c) {
  const dit_config *d = &m->config[0];
  const double L = (double)c->tokens, C = (double)d->dim, passes = settings_passes(s);
  const double linear = L * C * (4 * C + 2 * C + 2 * (double)d->ffn_dim); /* self 4, cross q and o, FFN 2 */
  const double ends = L * C * 4 * (double)(d->in_dim + d->out_dim);
  add(c, WAN_STAGE_DENOISE, 2 * passes * (d->layers * linear + ends), 1);
  add(c, WAN_STAGE_DENOISE, 4 * passes * d->layers * L * C * (L + TEXT_ROWS), ATTENTION_EFFICIENCY);

  const uint64_t a = act_bytes(m), tokens = (uint64_t)c->tokens, dim = (uint64_t)d->dim;
  const uint64_t latent = (uint64_t)(s->T * s->h * s->w * s->C) * 4;
  uint64_t streams = 1, rows = tokens < FFN_ROWS ? tokens : FFN_ROWS;
  for (int k = 0; k < s->steps; k++) {
    step_plan step = settings_step(s, k);
    uint64_t n = 1u + step.uncond + step.skip;
    if (n > streams) streams = n;
  }
  uint64_t attention = 4 * tokens * dim * a;                     /* q, k, v and the norm or the result */
  uint64_t ffn = rows * (2 * dim + (uint64_t)d->ffn_dim) * a;    /* norm, hidden layer, result */
  uint64_t head = tokens * (dim + 8 * (uint64_t)d->out_dim) * 4; /* in F32 */
  uint64_t scratch = attention > ffn ? attention : ffn;
  if (head > scratch) scratch = head;
  uint64_t text = 2 * streams * (uint64_t)d->layers * TEXT_ROWS * dim * a; /* cross-attention K and V */
  uint64_t slots = (SLOT_COUNT + streams + 2) * latent;                    /* solver, velocities, condition */
  uint64_t rope = tokens * (dim / (uint64_t)d->heads) * 4;
  c->active[WAN_STAGE_DENOISE] = streams * tokens * dim * 4 + scratch + text + slots + rope;

  const uint64_t block = 8 * dim * dim + 2 * dim * (uint64_t)d->ffn_dim; /* elements */
  c->group[WAN_STAGE_DENOISE] = block * a;
  c->weights[WAN_STAGE_DENOISE] = (uint64_t)d->layers * block * a + 12 * dim * dim * 4; /* time MLP in F32 */
}

/* ---- Text ---- */

static wan_status cost_text(const wan_model *m, const run_settings *s, run_cost *c) {
  weight_set *set = NULL;
  CORE_TRY(weight_set_open(m->ctx, m->dir.part[MODEL_TEXT], WEIGHTS_TEXT, &set));
  double elements = 0;
  uint64_t largest = 0;
  for (int64_t i = 0; i < weight_set_count(set); i++) {
    tensor t = weight_set_tensor(set, i);
    if (strcmp(weight_set_name(set, i), "token_embedding.weight") == 0)
      continue; /* looked up, stays mapped */
    elements += (double)tensor_count(&t);
    if ((uint64_t)tensor_count(&t) > largest) largest = (uint64_t)tensor_count(&t);
  }
  weight_set_close(set);
  int texts = settings_use_negative(s) ? 2 : 1;
  add(c, WAN_STAGE_TEXT, 2 * elements * TEXT_TOKENS_GUESS * texts, 1);
  c->weights[WAN_STAGE_TEXT] = (uint64_t)elements * act_bytes(m);
  c->group[WAN_STAGE_TEXT] = 5 * largest * act_bytes(m); /* a layer: 4 attention and 3 wider FFN matrices */
  c->active[WAN_STAGE_TEXT] = (uint64_t)TEXT_TOKENS_GUESS * (uint64_t)m->config[0].text_dim * 4 * 16;
  return WAN_OK;
}

/* ---- VAE ---- */

/* Where in the autoencoder a tensor works: at which fraction of full resolution, on how many frames of a
 * push of four. */
typedef struct vae_place {
  double scale, frames;
} vae_place;

static vae_place place_of(const char *name, bool decode, bool v22) {
  const double full = v22 ? 2 : 1; /* 2.2 works on 2x2 pixel blocks */
  const char *stack = strstr(name, decode ? "upsamples." : "downsamples.");
  /* Frames per push by level, coarse to fine in the decoder: 1, 2, 4, 4; the encoder mirrors it. */
  static const double frames[4] = {1, 2, 4, 4};
  if (!stack) {
    bool fine = strstr(name, decode ? "decoder.head" : "encoder.conv1") != NULL;
    return fine ? (vae_place){1 / full, 4} : (vae_place){1 / (8 * full), 1};
  }
  int index = (int)strtol(strchr(stack, '.') + 1, NULL, 10);
  int level = v22 ? index : index / (decode ? 4 : 3);
  bool resample = strstr(name, "resample.1") || strstr(name, "time_conv");
  bool spatial = strstr(name, "resample.1") != NULL;
  if (level > 3) level = 3;
  if (decode) {
    int fine = level + (spatial && level < 3); /* the spatial convolution works on the result */
    return (vae_place){1 / (full * (double)(8 >> fine)), frames[resample ? (spatial ? fine : level) : level]};
  }
  int coarse = level + (resample && level < 3);
  return (vae_place){1 / (full * (double)(1 << coarse)), frames[3 - (spatial ? level : coarse)]};
}

static wan_status cost_vae(const wan_model *m, const run_settings *s, bool decode, wan_stage stage,
                           double pushes, run_cost *c) {
  weight_set *set = NULL;
  CORE_TRY(weight_set_open(m->ctx, m->dir.part[MODEL_VAE], WEIGHTS_VAE, &set));
  const bool v22 = m->vae_stride == 16;
  const double pixels = (double)s->width * s->height, cells = (double)(s->h * s->w);
  const uint64_t a = act_bytes(m);
  double history = 0, widest = 0, elements = 0;
  for (int64_t i = 0; i < weight_set_count(set); i++) {
    const char *name = weight_set_name(set, i);
    tensor t = weight_set_tensor(set, i);
    if (strncmp(name, decode ? "decoder." : "encoder.", 8) != 0 || t.ndim < 4) continue;
    double n = (double)tensor_count(&t), in = (double)t.dim[1], out = (double)t.dim[0];
    vae_place p = place_of(name, decode, v22);
    double area = pixels * p.scale * p.scale;
    elements += n;
    if (n <= out * in && !strstr(name, "to_qkv") && !strstr(name, "proj") && !strstr(name, "shortcut"))
      continue;
    add(c, stage, 2 * n * area * p.frames * pushes, CONV_EFFICIENCY);
    if (strstr(name, "to_qkv")) add(c, stage, 4 * cells * cells * in * pushes, ATTENTION_EFFICIENCY);
    if (t.ndim == 5 && t.dim[2] == 3) history += 2 * area * in;
    double wide = area * (p.frames + 2) * (in > out ? in : out);
    if (wide > widest) widest = wide;
  }
  weight_set_close(set);
  c->weights[stage] = c->group[stage] = (uint64_t)elements * a;
  /* A residual block holds its input, its result and one convolution's input with history (vae/blocks.c);
   * the backend's convolution may hold as much again. */
  c->active[stage] = (uint64_t)((history + 4 * widest) * (double)a) +
                     (uint64_t)(s->T * s->h * s->w * s->C) * 8 + (uint64_t)(pixels * 4 * 3 * 5);
  return WAN_OK;
}

wan_status cost_estimate(wan_model *m, const run_settings *s, run_cost *out) {
  *out = (run_cost){.tokens = s->T * (s->h / 2) * (s->w / 2)};
  CORE_TRY(cost_text(m, s, out));
  int chunks = condition_chunks(m, s);
  if (chunks) CORE_TRY(cost_vae(m, s, false, WAN_STAGE_ENCODE, chunks, out));
  cost_denoise(m, s, out);
  return cost_vae(m, s, true, WAN_STAGE_DECODE, (double)s->T, out);
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

uint64_t memory_budget(backend *be) {
  if (be->ctx->mem_limit) return be->ctx->mem_limit;
  uint64_t available = be->ops->mem_available ? be->ops->mem_available(be) : host_available();
  /* Leave a tenth to others; what this context holds already is its own to use. */
  return available / 10 * 9 + core_mem_current(be->ctx);
}

uint64_t cost_keep(const run_cost *c, wan_stage stage, uint64_t budget) {
  uint64_t needed = c->active[stage] + 2 * c->group[stage];
  return budget > needed ? budget - needed : 0;
}

uint64_t cost_peak(const run_cost *c, wan_stage stage, uint64_t budget) {
  uint64_t keep = cost_keep(c, stage, budget);
  uint64_t held = c->weights[stage] <= keep ? c->weights[stage] : keep + c->group[stage];
  return c->active[stage] + (held < c->weights[stage] ? held : c->weights[stage]);
}

/* ---- Time ---- */

wan_status measure_rate(backend *be, double *rate) {
  enum { N = 1024, ROWS = 512 };
  core_ctx *ctx = be->ctx;
  float *values = core_calloc(ctx, (size_t)N * N, sizeof *values);
  if (!values) return WAN_ERR_MEMORY;
  weight w = {.name = "probe", .role = WEIGHT_LINEAR, .src = TENSOR_OF(DT_F32, values, N, N)};
  scope_mark mark = scope_begin(be);
  wan_status s = backend_weight_load(be, &w);
  tensor x = TENSOR_NEW(be, DT_NONE, ROWS, N), y = TENSOR_NEW(be, DT_NONE, ROWS, N);
  tensor_zero(be, x);
  double best = 0, start = core_now();
  for (int i = 0; s == WAN_OK && (i < 2 || core_now() - start < 0.25); i++) {
    double t = core_now();
    op_linear_into(be, x, &w, NULL, ACT_NONE, y);
    s = backend_sync(be);
    double r = 2.0 * ROWS * N * N / (core_now() - t);
    if (r > best) best = r;
  }
  backend_weight_unload(be, &w);
  scope_end(be, mark);
  scope_trim(be);
  core_free(ctx, values);
  *rate = best;
  return s;
}

wan_status plan_make(wan_model *m, const run_settings *s, wan_plan *out) {
  run_cost c;
  double rate;
  CORE_TRY(cost_estimate(m, s, &c));
  CORE_TRY(measure_rate(m->be, &rate));
  size_t size = out->size;
  *out = (wan_plan){
      .size = size, .width = s->width, .height = s->height, .frames = s->frames, .steps = s->steps};
  out->experts = s->experts;
  out->tokens = c.tokens;
  out->fits = true;
  uint64_t budget = memory_budget(m->be);
  for (int i = 0; i < WAN_STAGE_COUNT; i++) {
    out->flops[i] = c.flops[i];
    out->seconds[i] = c.work[i] / rate;
    out->memory_peak[i] = cost_peak(&c, (wan_stage)i, budget);
    out->fits &= out->memory_peak[i] <= budget;
  }
  return WAN_OK;
}
