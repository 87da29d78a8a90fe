/* names.c: tables of rules, read in both directions.
 *
 * A rule pairs a foreign pattern with the official one. In both, '#' stands for a decimal number and a
 * final '*' for the rest of the name; a final '@' stands for the inside of a VAE residual block, whose
 * own small table is `residual`. The first rule that matches wins. Sources: the state dicts of the
 * official repository, diffusers (WanTransformer3DModel, AutoencoderKLWan) and transformers
 * (UMT5EncoderModel), and the MLX port's name list.
 */
#include "weights/names.h"

#include <stdio.h>
#include <string.h>

typedef struct rule {
  const char *foreign, *official;
} rule;

static const rule dit_diffusers[] = {
    {"condition_embedder.time_embedder.linear_1.*", "time_embedding.0.*"},
    {"condition_embedder.time_embedder.linear_2.*", "time_embedding.2.*"},
    {"condition_embedder.time_proj.*", "time_projection.1.*"},
    {"condition_embedder.text_embedder.linear_1.*", "text_embedding.0.*"},
    {"condition_embedder.text_embedder.linear_2.*", "text_embedding.2.*"},
    {"blocks.#.attn1.to_q.*", "blocks.#.self_attn.q.*"},
    {"blocks.#.attn1.to_k.*", "blocks.#.self_attn.k.*"},
    {"blocks.#.attn1.to_v.*", "blocks.#.self_attn.v.*"},
    {"blocks.#.attn1.to_out.0.*", "blocks.#.self_attn.o.*"},
    {"blocks.#.attn1.norm_q.*", "blocks.#.self_attn.norm_q.*"},
    {"blocks.#.attn1.norm_k.*", "blocks.#.self_attn.norm_k.*"},
    {"blocks.#.attn2.to_q.*", "blocks.#.cross_attn.q.*"},
    {"blocks.#.attn2.to_k.*", "blocks.#.cross_attn.k.*"},
    {"blocks.#.attn2.to_v.*", "blocks.#.cross_attn.v.*"},
    {"blocks.#.attn2.to_out.0.*", "blocks.#.cross_attn.o.*"},
    {"blocks.#.attn2.norm_q.*", "blocks.#.cross_attn.norm_q.*"},
    {"blocks.#.attn2.norm_k.*", "blocks.#.cross_attn.norm_k.*"},
    {"blocks.#.norm2.*", "blocks.#.norm3.*"},
    {"blocks.#.ffn.net.0.proj.*", "blocks.#.ffn.0.*"},
    {"blocks.#.ffn.net.2.*", "blocks.#.ffn.2.*"},
    {"blocks.#.scale_shift_table", "blocks.#.modulation"},
    {"proj_out.*", "head.head.*"},
    {"scale_shift_table", "head.modulation"},
    /* image conditioning of Wan2.1-I2V: translated so that the model can be refused by what it is */
    {"blocks.#.attn2.add_k_proj.*", "blocks.#.cross_attn.k_img.*"},
    {"blocks.#.attn2.add_v_proj.*", "blocks.#.cross_attn.v_img.*"},
    {"blocks.#.attn2.norm_added_k.*", "blocks.#.cross_attn.norm_k_img.*"},
    {"condition_embedder.image_embedder.norm1.*", "img_emb.proj.0.*"},
    {"condition_embedder.image_embedder.ff.net.0.proj.*", "img_emb.proj.1.*"},
    {"condition_embedder.image_embedder.ff.net.2.*", "img_emb.proj.3.*"},
    {"condition_embedder.image_embedder.norm2.*", "img_emb.proj.4.*"},
    {"condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"},
    {0},
};

static const rule dit_mlx[] = {
    {"blocks.#.ffn.layer_0.*", "blocks.#.ffn.0.*"},
    {"blocks.#.ffn.layer_2.*", "blocks.#.ffn.2.*"},
    {"head.1.*", "head.head.*"},
    {"head_modulation", "head.modulation"},
    {0},
};

static const rule text_transformers[] = {
    {"shared.weight", "token_embedding.weight"},
    {"encoder.block.#.layer.0.layer_norm.weight", "blocks.#.norm1.weight"},
    {"encoder.block.#.layer.0.SelfAttention.q.weight", "blocks.#.attn.q.weight"},
    {"encoder.block.#.layer.0.SelfAttention.k.weight", "blocks.#.attn.k.weight"},
    {"encoder.block.#.layer.0.SelfAttention.v.weight", "blocks.#.attn.v.weight"},
    {"encoder.block.#.layer.0.SelfAttention.o.weight", "blocks.#.attn.o.weight"},
    {"encoder.block.#.layer.0.SelfAttention.relative_attention_bias.weight",
     "blocks.#.pos_embedding.embedding.weight"},
    {"encoder.block.#.layer.1.layer_norm.weight", "blocks.#.norm2.weight"},
    {"encoder.block.#.layer.1.DenseReluDense.wi_0.weight", "blocks.#.ffn.gate.0.weight"},
    {"encoder.block.#.layer.1.DenseReluDense.wi_1.weight", "blocks.#.ffn.fc1.weight"},
    {"encoder.block.#.layer.1.DenseReluDense.wo.weight", "blocks.#.ffn.fc2.weight"},
    {"encoder.final_layer_norm.weight", "norm.weight"},
    /* the same matrix again; last, so that the way back gives shared.weight */
    {"encoder.embed_tokens.weight", "token_embedding.weight"},
    {0},
};

/* Inside a residual block. */
static const rule residual[] = {
    {"norm1.*", "residual.0.*"}, {"conv1.*", "residual.2.*"},       {"norm2.*", "residual.3.*"},
    {"conv2.*", "residual.6.*"}, {"conv_shortcut.*", "shortcut.*"}, {0},
};

/* What both VAEs share. */
#define VAE_COMMON                                                                                         \
  {"encoder.conv_in.*", "encoder.conv1.*"}, {"decoder.conv_in.*", "decoder.conv1.*"},                      \
      {"encoder.mid_block.resnets.0.@", "encoder.middle.0.@"},                                             \
      {"encoder.mid_block.attentions.0.*", "encoder.middle.1.*"},                                          \
      {"encoder.mid_block.resnets.1.@", "encoder.middle.2.@"},                                             \
      {"decoder.mid_block.resnets.0.@", "decoder.middle.0.@"},                                             \
      {"decoder.mid_block.attentions.0.*", "decoder.middle.1.*"},                                          \
      {"decoder.mid_block.resnets.1.@", "decoder.middle.2.@"}, {"encoder.norm_out.*", "encoder.head.0.*"}, \
      {"encoder.conv_out.*", "encoder.head.2.*"}, {"decoder.norm_out.*", "decoder.head.0.*"},              \
      {"decoder.conv_out.*", "decoder.head.2.*"}, {"quant_conv.*", "conv1.*"}, {                           \
    "post_quant_conv.*", "conv2.*"                                                                         \
  }

/* Wan2.1: the levels are one flat list, four entries a decoder level (three blocks, one resampler). */
static const rule vae21_diffusers[] = {
    VAE_COMMON,
    {"encoder.down_blocks.#.resample.*", "encoder.downsamples.#.resample.*"},
    {"encoder.down_blocks.#.time_conv.*", "encoder.downsamples.#.time_conv.*"},
    {"encoder.down_blocks.#.@", "encoder.downsamples.#.@"},
    {"decoder.up_blocks.0.upsamplers.0.*", "decoder.upsamples.3.*"},
    {"decoder.up_blocks.1.upsamplers.0.*", "decoder.upsamples.7.*"},
    {"decoder.up_blocks.2.upsamplers.0.*", "decoder.upsamples.11.*"},
    {"decoder.up_blocks.0.resnets.0.@", "decoder.upsamples.0.@"},
    {"decoder.up_blocks.0.resnets.1.@", "decoder.upsamples.1.@"},
    {"decoder.up_blocks.0.resnets.2.@", "decoder.upsamples.2.@"},
    {"decoder.up_blocks.1.resnets.0.@", "decoder.upsamples.4.@"},
    {"decoder.up_blocks.1.resnets.1.@", "decoder.upsamples.5.@"},
    {"decoder.up_blocks.1.resnets.2.@", "decoder.upsamples.6.@"},
    {"decoder.up_blocks.2.resnets.0.@", "decoder.upsamples.8.@"},
    {"decoder.up_blocks.2.resnets.1.@", "decoder.upsamples.9.@"},
    {"decoder.up_blocks.2.resnets.2.@", "decoder.upsamples.10.@"},
    {"decoder.up_blocks.3.resnets.0.@", "decoder.upsamples.12.@"},
    {"decoder.up_blocks.3.resnets.1.@", "decoder.upsamples.13.@"},
    {"decoder.up_blocks.3.resnets.2.@", "decoder.upsamples.14.@"},
    {0},
};

/* Wan2.2: a resampler follows the two blocks of an encoder level, the three of a decoder level. */
static const rule vae22_diffusers[] = {
    VAE_COMMON,
    {"encoder.down_blocks.#.downsampler.*", "encoder.downsamples.#.downsamples.2.*"},
    {"decoder.up_blocks.#.upsampler.*", "decoder.upsamples.#.upsamples.3.*"},
    {"encoder.down_blocks.#.resnets.#.@", "encoder.downsamples.#.downsamples.#.@"},
    {"decoder.up_blocks.#.resnets.#.@", "decoder.upsamples.#.upsamples.#.@"},
    {0},
};

static const rule none[] = {{0}};

struct name_family {
  weight_kind kind;
  const char *name;
  const char *sign; /* a foreign pattern that only this family has; NULL: the official one */
  const rule *rules;
};

static const name_family families[] = {
    {WEIGHTS_DIT, "official", NULL, none},
    {WEIGHTS_DIT, "diffusers", "condition_embedder.*", dit_diffusers},
    {WEIGHTS_DIT, "mlx", "blocks.#.ffn.layer_0.*", dit_mlx},
    {WEIGHTS_TEXT, "official", NULL, none},
    {WEIGHTS_TEXT, "transformers", "encoder.block.#.layer.0.*", text_transformers},
    {WEIGHTS_VAE, "official", NULL, none},
    {WEIGHTS_VAE, "diffusers 2.2", "encoder.down_blocks.#.resnets.#.*", vae22_diffusers},
    {WEIGHTS_VAE, "diffusers 2.1", "decoder.up_blocks.#.upsamplers.0.*", vae21_diffusers},
};

/* ---- Matching ---- */

enum { HOLES_MAX = 2 };

typedef struct hole { /* the text that a '#' stands for */
  const char *text;
  int size;
} hole;

/* Match name with the pattern; *rest is what a final '*' or '@' stands for. */
static bool match(const char *pattern, const char *name, hole holes[HOLES_MAX], const char **rest) {
  int n = 0;
  for (; *pattern; pattern++) {
    if (*pattern == '*' || *pattern == '@') {
      *rest = name;
      return true;
    }
    if (*pattern == '#') {
      int digits = (int)strspn(name, "0123456789");
      if (!digits || n == HOLES_MAX) return false;
      holes[n++] = (hole){name, digits};
      name += digits;
    } else if (*pattern != *name++) {
      return false;
    }
  }
  *rest = "";
  return !*name;
}

static bool append(char *out, size_t *used, const char *text, size_t n) {
  if (n >= NAMES_MAX - *used) return false;
  memcpy(out + *used, text, n);
  *used += n;
  out[*used] = 0;
  return true;
}

static bool fill(const char *pattern, const hole holes[HOLES_MAX], const char *rest, char *out) {
  size_t used = 0;
  int n = 0;
  bool ok = true;
  out[0] = 0;
  for (; ok && *pattern; pattern++) {
    if (*pattern == '#') {
      ok = append(out, &used, holes[n].text, (size_t)holes[n].size);
      n++;
    } else if (*pattern == '*' || *pattern == '@') {
      ok = append(out, &used, rest, strlen(rest));
    } else {
      ok = append(out, &used, pattern, 1);
    }
  }
  return ok;
}

/* Apply the first matching rule, else copy. */
static bool translate(const rule *rules, const char *name, bool to_official, char *out) {
  for (const rule *r = rules; r->foreign; r++) {
    const char *from = to_official ? r->foreign : r->official, *to = to_official ? r->official : r->foreign,
               *rest;
    hole holes[HOLES_MAX] = {0};
    if (!match(from, name, holes, &rest)) continue;
    if (!strchr(from, '@')) return fill(to, holes, rest, out);
    char inner[NAMES_MAX];
    return translate(residual, rest, to_official, inner) && fill(to, holes, inner, out);
  }
  size_t used = 0;
  return append(out, &used, name, strlen(name));
}

/* ---- Interface ---- */

const char *name_family_name(const name_family *family) {
  return family->name;
}

const name_family *name_family_at(weight_kind kind, int i) {
  for (size_t f = 0; f < sizeof families / sizeof families[0]; f++)
    if (families[f].kind == kind && i-- == 0) return &families[f];
  return NULL;
}

bool name_family_signed(const name_family *family, const char *name) {
  hole holes[HOLES_MAX];
  const char *rest;
  return family->sign && match(family->sign, name, holes, &rest);
}

bool name_to_official(const name_family *family, const char *name, char *out) {
  return translate(family->rules, name, true, out);
}

bool name_from_official(const name_family *family, const char *name, char *out) {
  return translate(family->rules, name, false, out);
}

static bool ends_with(const char *s, const char *end) {
  size_t n = strlen(s), m = strlen(end);
  return n >= m && strcmp(s + n - m, end) == 0;
}

name_use name_use_of(weight_kind kind, const char *name) {
  /* ComfyUI's FP8 files: a marker tensor, and a scale beside each matrix */
  if (strcmp(name, "scaled_fp8") == 0 || ends_with(name, ".scale_weight") || ends_with(name, ".weight_scale"))
    return NAME_SCALED;
  if (kind == WEIGHTS_TEXT && strcmp(name, "spiece_model") == 0)
    return NAME_IGNORED; /* ComfyUI: the tokenizer */
  if (kind == WEIGHTS_TEXT && strcmp(name, "encoder.embed_tokens.weight") == 0) return NAME_TIED;
  /* rotary tables that early conversions of the transformer stored; they are computed here */
  if (kind == WEIGHTS_DIT && (strcmp(name, "freqs") == 0 || strncmp(name, "rope.freqs", 10) == 0))
    return NAME_IGNORED;
  return NAME_WEIGHT;
}

const char *name_without_prefix(weight_kind kind, const char *name) {
  static const char prefix[] = "model.diffusion_model.";
  bool has = kind == WEIGHTS_DIT && strncmp(name, prefix, sizeof prefix - 1) == 0;
  return has ? name + sizeof prefix - 1 : name;
}
