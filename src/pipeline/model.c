/* model.c: an opened checkpoint. Opening reads headers only: it proves that all parts are there and
 * belong together. Weights are opened again by each stage that runs, with that stage's memory budget. */
#include "pipeline/model.h"

#include <string.h>

#include "core/file.h"
#include "pipeline/hash.h"
#include "vae/vae.h"

/* Spec of the official configs (wan/configs/shared_config.py, sample_neg_prompt). */
const char *const model_negative =
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体"
    "，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";

wan_family family_of(const dit_config *c) {
  return c->type == DIT_T2V ? WAN_FAMILY_T2V : c->type == DIT_I2V ? WAN_FAMILY_I2V : WAN_FAMILY_TI2V;
}

const char *family_name(wan_family family) {
  static const char *const names[] = {"t2v", "i2v", "ti2v"};
  return names[family];
}

/* Official configs: wan/configs/wan_{t2v_A14B,i2v_A14B,ti2v_5B}.py; Wan2.1: its generate.py. */
static wan_model_info official(const wan_model *m) {
  wan_model_info i = {.size = sizeof i, .family = m->family, .experts = m->experts};
  i.negative = model_negative;
  i.multiple = m->vae_stride * 2; /* patches of 2x2 latent pixels */
  i.fingerprint = m->fingerprint;
  if (m->family == WAN_FAMILY_TI2V) {
    i.width = 1280, i.height = 704, i.frames = 121, i.fps = 24;
    i.steps = 50, i.shift = 5, i.guidance_low = i.guidance_high = 5;
    return i;
  }
  i.width = 1280, i.height = 720, i.frames = 81, i.fps = 16;
  if (m->family == WAN_FAMILY_I2V) {
    i.steps = 40, i.shift = 5, i.guidance_low = i.guidance_high = 3.5, i.boundary = 0.9;
  } else if (m->experts == 2) {
    i.steps = 40, i.shift = 12, i.guidance_low = 3, i.guidance_high = 4, i.boundary = 0.875;
  } else {
    i.steps = 50, i.shift = 5, i.guidance_low = i.guidance_high = 5;
    if (m->config[0].dim == 1536) i.width = 832, i.height = 480; /* Wan2.1-1.3B was trained at 480p */
  }
  return i;
}

wan_model_info model_info(const wan_model *m) {
  wan_model_info i = official(m);
  if (m->dir.boundary > 0) i.boundary = m->dir.boundary; /* a diffusers checkpoint says it itself */
  return i;
}

static wan_status open_expert(wan_model *m, int e) {
  dit *d = NULL;
  CORE_TRY(dit_open(m->be, m->dir.part[MODEL_DIT + e], 0, &d));
  m->config[e] = *dit_get_config(d);
  dit_close(d);
  return WAN_OK;
}

static wan_status check_experts(wan_model *m) {
  const dit_config *a = &m->config[EXPERT_HIGH], *b = &m->config[EXPERT_LOW];
  const struct {
    const char *name;
    int64_t high, low;
  } dims[] = {{"channels (dim)", a->dim, b->dim},
              {"feed-forward channels (ffn_dim)", a->ffn_dim, b->ffn_dim},
              {"text channels (text_dim)", a->text_dim, b->text_dim},
              {"input channels (in_dim)", a->in_dim, b->in_dim},
              {"output channels (out_dim)", a->out_dim, b->out_dim},
              {"blocks", a->layers, b->layers},
              {"heads", a->heads, b->heads}};
  for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
    if (dims[i].high != dims[i].low)
      return core_fail(
          m->ctx, WAN_ERR_FORMAT,
          "%s: the high-noise expert has %lld %s, the low-noise expert has %lld: they are not of "
          "one model",
          m->dir.root, (long long)dims[i].high, dims[i].name, (long long)dims[i].low);
  return WAN_OK;
}

static wan_status read_vae(wan_model *m) {
  vae *v = NULL;
  CORE_TRY(vae_open(m->be, m->dir.part[MODEL_VAE], 0, &v));
  vae_info info = vae_get_info(v);
  vae_close(v);
  m->vae_z = (int)info.z;
  m->vae_stride = info.spatial_stride;
  if (m->config[0].out_dim != info.z)
    return core_fail(m->ctx, WAN_ERR_FORMAT,
                     "%s: the transformer works on latents of %lld channels, the VAE (%s) on %lld: they are "
                     "not of one model",
                     m->dir.root, (long long)m->config[0].out_dim, m->dir.part[MODEL_VAE], (long long)info.z);
  return WAN_OK;
}

static wan_status open_parts(wan_model *m, const char *dir) {
  core_ctx *ctx = m->ctx;
  CORE_TRY(model_dir_open(ctx, dir, &m->dir));
  CORE_TRY(model_dir_require_all(ctx, &m->dir));
  m->experts = m->dir.experts;
  for (int e = 0; e < m->experts; e++) CORE_TRY(open_expert(m, e));
  if (m->experts == 2) CORE_TRY(check_experts(m));
  m->family = family_of(&m->config[0]);
  return read_vae(m);
}

wan_status model_need(core_ctx *ctx, const model_dir *dir, model_part part, const char **path) {
  *path = dir->part[part];
  if (*path) return WAN_OK;
  return core_fail(ctx, WAN_ERR_IO, "%s: the %s is missing: %s is expected there", dir->root,
                   model_part_name(part), dir->expected[part] ? dir->expected[part] : "nothing");
}

wan_status model_describe(core_ctx *ctx, const char *path, bool json, char **out) {
  model_dir dir;
  CORE_TRY(model_dir_open(ctx, path, &dir));
  wan_status s = json ? model_info_json(ctx, &dir, out) : model_info_text(ctx, &dir, out);
  model_dir_close(ctx, &dir);
  return s;
}

wan_status model_open(backend *be, const char *dir, wan_model **out) {
  *out = NULL;
  wan_model *m = core_calloc(be->ctx, 1, sizeof *m);
  if (!m) return WAN_ERR_MEMORY;
  m->be = be;
  m->ctx = be->ctx;
  wan_status s = open_parts(m, dir);
  if (s != WAN_OK) {
    model_close(m);
    return s;
  }
  *out = m;
  return WAN_OK;
}

wan_status model_can_compute(const wan_model *m) {
  if (!m->be->dry) return WAN_OK;
  return core_fail(m->ctx, WAN_ERR_ARGUMENT, "this context was opened for planning only (plan_only)");
}

void model_close(wan_model *m) {
  if (!m) return;
  core_ctx *ctx = m->ctx;
  rates_close(m->rates);
  model_dir_close(ctx, &m->dir);
  core_free(ctx, m);
}

static wan_status hash_weights(core_ctx *ctx, const char *path, weight_kind kind, uint64_t *hash) {
  weight_set *set = NULL;
  CORE_TRY(weight_set_open(ctx, path, kind, &set));
  for (int64_t i = 0; i < weight_set_count(set); i++) {
    tensor t = weight_set_tensor(set, i);
    size_t bytes = tensor_bytes(&t), sample = bytes < 32 ? bytes : 32;
    *hash = hash_text(*hash, weight_set_name(set, i));
    *hash = hash_text(*hash, dtype_name(t.type));
    for (int d = 0; d < t.ndim; d++) *hash = hash_bytes(*hash, &t.dim[d], sizeof t.dim[d]);
    *hash = hash_bytes(*hash, t.data, sample);
    *hash = hash_bytes(*hash, (const char *)t.data + (bytes - sample) / 2, sample);
  }
  weight_set_close(set);
  return WAN_OK;
}

wan_status model_fingerprint(wan_model *m, uint64_t *out) {
  if (!m->fingerprint) {
    uint64_t h = HASH_START, spiece = 0;
    for (int e = 0; e < m->experts; e++)
      CORE_TRY(hash_weights(m->ctx, m->dir.part[MODEL_DIT + e], WEIGHTS_DIT, &h));
    CORE_TRY(hash_weights(m->ctx, m->dir.part[MODEL_TEXT], WEIGHTS_TEXT, &h));
    CORE_TRY(hash_weights(m->ctx, m->dir.part[MODEL_VAE], WEIGHTS_VAE, &h));
    char *file = core_path_join(m->ctx, m->dir.part[MODEL_TOKENIZER], "spiece.model");
    if (!file) return WAN_ERR_MEMORY;
    wan_status s = hash_file(m->ctx, file, &spiece);
    core_free(m->ctx, file);
    CORE_TRY(s);
    h = hash_bytes(h, &spiece, sizeof spiece);
    m->fingerprint = h ? h : 1;
  }
  *out = m->fingerprint;
  return WAN_OK;
}
