/* bench_models.c: names and shapes of the official networks (models/names). That they are right is checked by
 * those who bind them: a missing, extra or misshapen tensor is refused. */
#include "pipeline/bench_models.h"

#include <stdio.h>

#include "weights/random_tensors.h"

enum { PREFIX_MAX = 96 };

#define ADD(r, name, ...)                                                            \
  random_tensors_add((r), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
                     (const int64_t[]){__VA_ARGS__}, "%s", (name))

/* A layer named by printf(fmt, ...): weight [out, in], bias [out]. */
static void add_linear(random_tensors *r, const char *name, int64_t out, int64_t in) {
  random_tensors_add(r, WEIGHT_DIMS(out, in), "%s.weight", name);
  random_tensors_add(r, WEIGHT_DIMS(out), "%s.bias", name);
}

/* ---- Transformers ---- */

static void add_attention(random_tensors *r, int block, const char *which, int64_t dim) {
  static const char *const parts[] = {"q", "k", "v", "o"};
  char name[PREFIX_MAX];
  for (int i = 0; i < 4; i++) {
    snprintf(name, sizeof name, "blocks.%d.%s.%s", block, which, parts[i]);
    add_linear(r, name, dim, dim);
  }
  random_tensors_add(r, WEIGHT_DIMS(dim), "blocks.%d.%s.norm_q.weight", block, which);
  random_tensors_add(r, WEIGHT_DIMS(dim), "blocks.%d.%s.norm_k.weight", block, which);
}

static void add_dit(random_tensors *r, int64_t dim, int64_t ffn, int64_t channels, int layers) {
  const int64_t text = 4096, freq = 256;
  char name[PREFIX_MAX];
  ADD(r, "patch_embedding.weight", dim, channels, 1, 2, 2);
  ADD(r, "patch_embedding.bias", dim);
  add_linear(r, "text_embedding.0", dim, text);
  add_linear(r, "text_embedding.2", dim, dim);
  add_linear(r, "time_embedding.0", dim, freq);
  add_linear(r, "time_embedding.2", dim, dim);
  add_linear(r, "time_projection.1", 6 * dim, dim);
  for (int i = 0; i < layers; i++) {
    random_tensors_add(r, WEIGHT_DIMS(1, 6, dim), "blocks.%d.modulation", i);
    add_attention(r, i, "self_attn", dim);
    add_attention(r, i, "cross_attn", dim);
    random_tensors_add(r, WEIGHT_DIMS(dim), "blocks.%d.norm3.weight", i);
    random_tensors_add(r, WEIGHT_DIMS(dim), "blocks.%d.norm3.bias", i);
    snprintf(name, sizeof name, "blocks.%d.ffn.0", i);
    add_linear(r, name, ffn, dim);
    snprintf(name, sizeof name, "blocks.%d.ffn.2", i);
    add_linear(r, name, dim, ffn);
  }
  ADD(r, "head.modulation", 1, 2, dim);
  add_linear(r, "head.head", 4 * channels, dim);
}

/* ---- Text encoder ---- */

/* The official table has 256,384 rows of which a prompt looks up some dozens: its length is no part of the
 * work. */
static void add_text(random_tensors *r, int layers) {
  const int64_t dim = 4096, ffn = 10240, heads = 64, vocab = 8192, buckets = 32;
  ADD(r, "token_embedding.weight", vocab, dim);
  for (int i = 0; i < layers; i++) {
    static const char *const square[] = {"q", "k", "v", "o"};
    for (int k = 0; k < 4; k++)
      random_tensors_add(r, WEIGHT_DIMS(dim, dim), "blocks.%d.attn.%s.weight", i, square[k]);
    random_tensors_add(r, WEIGHT_DIMS(dim), "blocks.%d.norm1.weight", i);
    random_tensors_add(r, WEIGHT_DIMS(dim), "blocks.%d.norm2.weight", i);
    random_tensors_add(r, WEIGHT_DIMS(ffn, dim), "blocks.%d.ffn.gate.0.weight", i);
    random_tensors_add(r, WEIGHT_DIMS(ffn, dim), "blocks.%d.ffn.fc1.weight", i);
    random_tensors_add(r, WEIGHT_DIMS(dim, ffn), "blocks.%d.ffn.fc2.weight", i);
    random_tensors_add(r, WEIGHT_DIMS(buckets, heads), "blocks.%d.pos_embedding.embedding.weight", i);
  }
  ADD(r, "norm.weight", dim);
}

/* ---- Autoencoders ---- */

/* Widths are the base width times these; time is halved or doubled at two of the levels. */
static const int64_t width_of[] = {1, 2, 4, 4};
enum { LEVELS = 4 };

static void add_conv(random_tensors *r, const char *name, int ndim, const int64_t *dim) {
  random_tensors_add(r, ndim, dim, "%s.weight", name);
  random_tensors_add(r, 1, dim, "%s.bias", name);
}
#define CONV(r, name, ...) add_conv((r), (name), WEIGHT_DIMS(__VA_ARGS__))

static void add_residual(random_tensors *r, const char *prefix, int64_t in, int64_t out) {
  char name[PREFIX_MAX + 16];
  random_tensors_add(r, WEIGHT_DIMS(in, 1, 1, 1), "%s.residual.0.gamma", prefix);
  snprintf(name, sizeof name, "%s.residual.2", prefix);
  CONV(r, name, out, in, 3, 3, 3);
  random_tensors_add(r, WEIGHT_DIMS(out, 1, 1, 1), "%s.residual.3.gamma", prefix);
  snprintf(name, sizeof name, "%s.residual.6", prefix);
  CONV(r, name, out, out, 3, 3, 3);
  snprintf(name, sizeof name, "%s.shortcut", prefix);
  if (in != out) CONV(r, name, out, in, 1, 1, 1);
}

static void add_middle(random_tensors *r, const char *which, int64_t c) {
  char name[PREFIX_MAX];
  for (int i = 0; i < 3; i += 2) {
    snprintf(name, sizeof name, "%s.middle.%d", which, i);
    add_residual(r, name, c, c);
  }
  random_tensors_add(r, WEIGHT_DIMS(c, 1, 1), "%s.middle.1.norm.gamma", which);
  snprintf(name, sizeof name, "%s.middle.1.to_qkv", which);
  CONV(r, name, 3 * c, c, 1, 1);
  snprintf(name, sizeof name, "%s.middle.1.proj", which);
  CONV(r, name, c, c, 1, 1);
}

static void add_head(random_tensors *r, const char *which, int64_t c, int64_t out) {
  char name[PREFIX_MAX];
  random_tensors_add(r, WEIGHT_DIMS(c, 1, 1, 1), "%s.head.0.gamma", which);
  snprintf(name, sizeof name, "%s.head.2", which);
  CONV(r, name, out, c, 3, 3, 3);
}

/* Part j of a level of `parts` parts: Wan2.1 numbers all of a direction in one list, Wan2.2 nests them. */
static void part_name(char out[PREFIX_MAX], bool nested, const char *which, const char *list, int level,
                      int part, int parts) {
  if (nested)
    snprintf(out, PREFIX_MAX, "%s.%s.%d.%s.%d", which, list, level, list, part);
  else
    snprintf(out, PREFIX_MAX, "%s.%s.%d", which, list, level * parts + part);
}

static void add_resample(random_tensors *r, const char *prefix, int64_t in, int64_t out, int64_t time_out) {
  char name[PREFIX_MAX + 16];
  snprintf(name, sizeof name, "%s.resample.1", prefix);
  CONV(r, name, out, in, 3, 3);
  snprintf(name, sizeof name, "%s.time_conv", prefix);
  if (time_out) CONV(r, name, time_out, in, 3, 1, 1);
}

static void add_encoder(random_tensors *r, bool nested, int64_t base, int64_t pixels, int64_t z) {
  char name[PREFIX_MAX];
  int64_t width = base;
  CONV(r, "encoder.conv1", base, pixels, 3, 3, 3);
  for (int i = 0; i < LEVELS; i++) {
    for (int j = 0; j < 2; j++) {
      part_name(name, nested, "encoder", "downsamples", i, j, 3);
      add_residual(r, name, width, base * width_of[i]);
      width = base * width_of[i];
    }
    part_name(name, nested, "encoder", "downsamples", i, 2, 3);
    if (i < LEVELS - 1) add_resample(r, name, width, width, i > 0 ? width : 0);
  }
  add_middle(r, "encoder", width);
  add_head(r, "encoder", width, 2 * z);
  CONV(r, "conv1", 2 * z, 2 * z, 1, 1, 1);
}

static void add_decoder(random_tensors *r, bool nested, int64_t base, int64_t pixels, int64_t z) {
  char name[PREFIX_MAX];
  int64_t width = base * width_of[LEVELS - 1];
  CONV(r, "conv2", z, z, 1, 1, 1);
  CONV(r, "decoder.conv1", width, z, 3, 3, 3);
  add_middle(r, "decoder", width);
  for (int i = 0; i < LEVELS; i++) {
    const int64_t out = base * width_of[LEVELS - 1 - i];
    for (int j = 0; j < 3; j++) {
      part_name(name, nested, "decoder", "upsamples", i, j, 4);
      add_residual(r, name, width, out);
      width = out;
    }
    part_name(name, nested, "decoder", "upsamples", i, 3, 4);
    if (i == LEVELS - 1) continue;
    add_resample(r, name, width, nested ? width : width / 2, i < 2 ? 2 * width : 0);
    if (!nested) width /= 2; /* 2.1's upsamplers halve the width */
  }
  add_head(r, "decoder", width, pixels);
}

wan_status bench_net_open(core_ctx *ctx, bench_net net, int layers, weight_set **out) {
  random_tensors *r;
  weight_kind kind = WEIGHTS_DIT;
  *out = NULL;
  CORE_TRY(random_tensors_create(ctx, &r));
  switch (net) {
  case NET_DIT_5B:
    add_dit(r, 3072, 14336, 48, layers ? layers : DIT_5B_LAYERS);
    break;
  case NET_DIT_14B:
    add_dit(r, 5120, 13824, 16, layers ? layers : DIT_14B_LAYERS);
    break;
  case NET_TEXT:
    kind = WEIGHTS_TEXT;
    add_text(r, layers ? layers : TEXT_LAYERS);
    break;
  case NET_VAE21:
  case NET_VAE22:
    kind = WEIGHTS_VAE;
    add_encoder(r, net == NET_VAE22, net == NET_VAE22 ? 160 : 96, net == NET_VAE22 ? 12 : 3,
                net == NET_VAE22 ? 48 : 16);
    add_decoder(r, net == NET_VAE22, net == NET_VAE22 ? 256 : 96, net == NET_VAE22 ? 12 : 3,
                net == NET_VAE22 ? 48 : 16);
    break;
  }
  wan_status s = random_tensors_fill(r);
  if (s == WAN_OK) return weight_set_open_random(ctx, r, kind, out);
  random_tensors_close(r);
  return s;
}
