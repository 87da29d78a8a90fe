/* model_dir.c: recognise a layout by the files that only it has, then look for each part where that
 * layout keeps it. What kind of model it is, the transformer's tensors tell with certainty.
 */
#include "weights/model_dir.h"

#include "core/file.h"
#include "weights/sources.h"
#include "weights/weights.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum { PLACES = 4, INDEX_LIMIT = 1 << 20 /* bytes; a real model_index.json has 1 kB */ };

/* Where a layout keeps its parts: names below root, tried in order; the first is the one to expect. */
typedef struct layout {
  const char *name;
  int experts;
  const char *signs[PLACES]; /* any of them marks the layout */
  const char *place[MODEL_PARTS][PLACES];
} layout;

#define SPIECE "google/umt5-xxl/spiece.model"
#define OFFICIAL_TEXT \
  { "models_t5_umt5-xxl-enc-bf16.pth", "models_t5_umt5-xxl-enc-bf16.safetensors" }
/* Either VAE; which of the two is expected is settled once the family is known. */
#define OFFICIAL_VAE \
  { "Wan2.1_VAE.pth", "Wan2.2_VAE.pth", "Wan2.1_VAE.safetensors", "Wan2.2_VAE.safetensors" }
#define SHARDS "diffusion_pytorch_model"

static const layout layouts[] = {
    {"diffusers",
     2,
     {"transformer_2"},
     {{"transformer"}, {"transformer_2"}, {"vae"}, {"text_encoder"}, {"tokenizer/spiece.model"}}},
    {"diffusers",
     1,
     {"model_index.json", "transformer"},
     {{"transformer"}, {0}, {"vae"}, {"text_encoder"}, {"tokenizer/spiece.model"}}},
    {"mlx",
     1,
     {"wan_model_mlx.safetensors", "wan_model_mlx.safetensors.index.json"},
     {{"wan_model_mlx.safetensors", "wan_model_mlx.safetensors.index.json"},
      {0},
      {"vae_mlx.safetensors"},
      {"t5_encoder_mlx.safetensors"},
      {SPIECE}}},
    {"official",
     2,
     {"high_noise_model", "low_noise_model"},
     {{"high_noise_model"}, {"low_noise_model"}, OFFICIAL_VAE, OFFICIAL_TEXT, {SPIECE}}},
    {"official",
     1,
     {SHARDS ".safetensors.index.json", SHARDS ".safetensors", "config.json"},
     {{"."}, {0}, OFFICIAL_VAE, OFFICIAL_TEXT, {SPIECE}}},
};

const char *model_part_name(model_part part) {
  static const char *const names[MODEL_PARTS] = {"transformer", "low-noise transformer", "VAE",
                                                 "text encoder", "tokenizer"};
  return names[part];
}

/* ---- Layout ---- */

/* Does root/name exist? */
static wan_status exists_below(core_ctx *ctx, const char *root, const char *name, bool *yes) {
  char *path = core_path_join(ctx, root, name);
  if (!path) return WAN_ERR_MEMORY;
  *yes = core_path_exists(path);
  core_free(ctx, path);
  return WAN_OK;
}

static wan_status find_layout(core_ctx *ctx, const char *root, const layout **out) {
  for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
    for (int s = 0; s < PLACES && layouts[i].signs[s]; s++) {
      bool yes = false;
      CORE_TRY(exists_below(ctx, root, layouts[i].signs[s], &yes));
      if (!yes) continue;
      *out = &layouts[i];
      return WAN_OK;
    }
  return core_fail(
      ctx, WAN_ERR_IO,
      "%s: no Wan model here: expected the files of a Wan2.2 or Wan2.1 repository (config.json with "
      "" SHARDS "*.safetensors, or high_noise_model/ and low_noise_model/), of its diffusers "
      "version (model_index.json) or of an MLX conversion (wan_model_mlx.safetensors)",
      root);
}

/* model_index.json of diffusers: the experts it announces and the time at which they change over. */
static wan_status read_model_index(core_ctx *ctx, model_dir *m, const layout **l, bool *expand_timesteps) {
  char *path = core_path_join(ctx, m->root, "model_index.json"), *text = NULL;
  size_t size = 0;
  json_error_t e;
  if (!path) return WAN_ERR_MEMORY;
  wan_status status = WAN_OK;
  if (!core_path_exists(path)) goto done;
  status = core_read_text(ctx, path, INDEX_LIMIT, &text, &size);
  if (status != WAN_OK) goto done;
  json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &e);
  if (!json_is_object(root)) {
    status =
        core_fail(ctx, WAN_ERR_FORMAT, "%s: not a JSON object: %s", path, root ? "another value" : e.text);
  } else {
    double boundary = json_number_value(json_object_get(root, "boundary_ratio"));
    if (boundary > 0 && boundary < 1) m->boundary = boundary;
    *expand_timesteps = json_is_true(json_object_get(root, "expand_timesteps"));
    bool second = json_is_string(json_array_get(json_object_get(root, "transformer_2"), 1));
    if (second) *l = &layouts[0];
  }
  json_decref(root);
done:
  core_free(ctx, text);
  core_free(ctx, path);
  return status;
}

/* ---- Parts ---- */

/* The place's path in *out if something usable is there, else NULL. */
static wan_status try_place(core_ctx *ctx, const char *root, const char *place, model_part part, char **out) {
  bool there = false;
  char *path = strcmp(place, ".") == 0 ? core_strdup(ctx, root) : core_path_join(ctx, root, place);
  if (!path) return WAN_ERR_MEMORY;
  wan_status status = WAN_OK;
  if (core_path_is_dir(path))
    status = sources_exist(ctx, path, &there);
  else
    there = core_path_exists(path);
  if (there && part == MODEL_TOKENIZER) *strrchr(path, '/') = 0; /* the folder of spiece.model */
  if (status == WAN_OK && there)
    *out = path;
  else
    core_free(ctx, path);
  return status;
}

static wan_status find_part(core_ctx *ctx, model_dir *m, const layout *l, model_part part,
                            const char *version) {
  for (int i = 0; i < PLACES && l->place[part][i]; i++) {
    const char *place = l->place[part][i];
    if (part == MODEL_VAE && version && strstr(place, "_VAE.") && !strstr(place, version)) continue;
    if (!m->expected[part]) m->expected[part] = strcmp(place, ".") == 0 ? SHARDS "*.safetensors" : place;
    if (!m->part[part]) CORE_TRY(try_place(ctx, m->root, place, part, &m->part[part]));
  }
  return WAN_OK;
}

static wan_status read_config(core_ctx *ctx, model_dir *m, const char *dit) {
  char *path = core_path_join(ctx, core_path_is_dir(dit) ? dit : m->root, "config.json");
  if (!path) return WAN_ERR_MEMORY;
  wan_status status = core_path_exists(path) ? model_config_read(ctx, path, &m->config) : WAN_OK;
  core_free(ctx, path);
  return status;
}

/* ---- Kind of model ---- */

/* Parts of a network that only another kind of model has. */
static wan_status refuse_others(core_ctx *ctx, const weight_set *set) {
  static const struct {
    const char *prefix, *name;
  } others[] = {
      {"pose_patch_embedding.", "Wan2.2-Animate"},
      {"face_adapter.", "Wan2.2-Animate"},
      {"casual_audio_encoder.", "Wan2.2-S2V (speech to video)"},
      {"audio_injector.", "Wan2.2-S2V (speech to video)"},
      {"vace_", "Wan VACE"},
      {"img_emb.emb_pos", "Wan2.1-FLF2V (first and last frame to video)"},
      {"img_emb.", "Wan2.1-I2V (image to video through CLIP)"},
  };
  for (size_t k = 0; k < sizeof others / sizeof others[0]; k++)
    for (int64_t i = 0; i < weight_set_count(set); i++)
      if (strncmp(weight_set_name(set, i), others[k].prefix, strlen(others[k].prefix)) == 0)
        return core_fail(
            ctx, WAN_ERR_UNSUPPORTED,
            "%s: this is %s (it has the tensor %s), which is not supported; use a T2V, I2V or TI2V "
            "model of Wan2.2, or a T2V model of Wan2.1",
            weight_set_path(set), others[k].name, weight_set_name(set, i));
  return WAN_OK;
}

static const char *family_of(const model_dir *m, const weight_set *set, bool expand_timesteps) {
  static const char *const known[] = {"t2v", "i2v", "ti2v"};
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
    if (strcmp(m->config.model_type, known[i]) == 0) return known[i];
  tensor patch = weight_set_find(set, "patch_embedding.weight"),
         head = weight_set_find(set, "head.head.weight");
  int64_t in = m->config.in_dim ? m->config.in_dim : patch.dim[1];
  int64_t out = m->config.out_dim ? m->config.out_dim : head.dim[0] / 4; /* 2 x 2 pixels a token */
  if (in != out) return "i2v";                                           /* mask and image beside the noise */
  return expand_timesteps || out == 48 ? "ti2v" : "t2v"; /* 48: the latent of the Wan2.2 VAE */
}

static wan_status look_into(core_ctx *ctx, model_dir *m, const char *dit, bool expand_timesteps) {
  weight_set *set = NULL;
  CORE_TRY(read_config(ctx, m, dit));
  CORE_TRY(weight_set_open(ctx, dit, WEIGHTS_DIT, &set));
  wan_status status = refuse_others(ctx, set);
  if (status == WAN_OK) m->family = family_of(m, set, expand_timesteps);
  weight_set_close(set);
  return status;
}

static wan_status fill(core_ctx *ctx, const char *dir, model_dir *m) {
  const layout *l = NULL;
  bool expand_timesteps = false;
  if (!core_path_is_dir(dir)) return core_fail(ctx, WAN_ERR_IO, "%s: no such folder", dir);
  if (!(m->root = core_strdup(ctx, dir))) return WAN_ERR_MEMORY;
  for (size_t n = strlen(m->root); n > 1 && m->root[n - 1] == '/'; n--) m->root[n - 1] = 0;
  CORE_TRY(find_layout(ctx, m->root, &l));
  if (strcmp(l->name, "diffusers") == 0) CORE_TRY(read_model_index(ctx, m, &l, &expand_timesteps));
  m->layout = l->name;
  m->experts = l->experts;
  CORE_TRY(find_part(ctx, m, l, MODEL_DIT, NULL));
  CORE_TRY(find_part(ctx, m, l, MODEL_DIT_LOW, NULL));
  const char *dit = m->part[MODEL_DIT] ? m->part[MODEL_DIT] : m->part[MODEL_DIT_LOW];
  if (dit) CORE_TRY(look_into(ctx, m, dit, expand_timesteps));
  const char *version = !*m->family ? NULL : strcmp(m->family, "ti2v") == 0 ? "Wan2.2" : "Wan2.1";
  CORE_TRY(find_part(ctx, m, l, MODEL_VAE, version));
  CORE_TRY(find_part(ctx, m, l, MODEL_TEXT, NULL));
  return find_part(ctx, m, l, MODEL_TOKENIZER, NULL);
}

wan_status model_dir_open(core_ctx *ctx, const char *dir, model_dir *out) {
  *out = (model_dir){.family = "", .layout = ""};
  wan_status status = fill(ctx, dir, out);
  if (status != WAN_OK) model_dir_close(ctx, out);
  return status;
}

void model_dir_close(core_ctx *ctx, model_dir *m) {
  for (int i = 0; i < MODEL_PARTS; i++) core_free(ctx, m->part[i]);
  core_free(ctx, m->root);
  *m = (model_dir){.family = "", .layout = ""};
}

wan_status model_dir_require_all(core_ctx *ctx, const model_dir *m) {
  char list[512] = "";
  for (int i = 0; i < MODEL_PARTS; i++) {
    size_t used = strlen(list);
    if (m->expected[i] && !m->part[i])
      snprintf(list + used, sizeof list - used, "%s%s (%s)", used ? ", " : "", m->expected[i],
               model_part_name((model_part)i));
  }
  if (!*list) return WAN_OK;
  return core_fail(ctx, WAN_ERR_IO, "%s: missing: %s", m->root, list);
}
