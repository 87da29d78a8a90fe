/* config.c: what kind of transformer a checkpoint holds. config.json says it where it is present, the
 * tensors' shapes say the rest, and where both speak they must agree. */
#include "dit/dit_internal.h"

#include <stdlib.h>
#include <string.h>

#include "weights/model_config.h"

/* One fact with two witnesses: the config (0: silent) and a shape. */
static wan_status agree(dit *d, const char *key, int64_t config, int64_t shape, const char *from) {
  if (!config || config == shape) return WAN_OK;
  return core_fail(
      d->be->ctx, WAN_ERR_FORMAT,
      "%s: config.json says %s = %lld, but %s says %lld; the config and the weights are not of one "
      "checkpoint",
      weight_set_path(d->set), key, (long long)config, from, (long long)shape);
}

/* Dimension i of a tensor that every Wan transformer has. */
static wan_status dim_of(dit *d, const char *name, int ndim, int i, int64_t *out) {
  tensor t = weight_set_find(d->set, name);
  if (t.type == DT_NONE)
    return core_fail(d->be->ctx, WAN_ERR_FORMAT,
                     "%s: tensor %s is missing: this is not a Wan transformer, or it is incomplete",
                     weight_set_path(d->set), name);
  if (t.ndim != ndim) {
    char shape[96];
    return core_fail(d->be->ctx, WAN_ERR_FORMAT, "%s: tensor %s has shape %s, %d dimensions were expected",
                     weight_set_path(d->set), name, tensor_shape_text(&t, shape, sizeof shape), ndim);
  }
  *out = t.dim[i];
  return WAN_OK;
}

/* One more than the highest block that any tensor belongs to, so that a missing tensor is missed by name. */
static int count_layers(const dit *d) {
  enum { SANE = 1 << 16 };
  long n = 0;
  for (int64_t i = 0; i < weight_set_count(d->set); i++) {
    const char *name = weight_set_name(d->set, i);
    if (strncmp(name, "blocks.", 7) != 0) continue;
    long block = strtol(name + 7, NULL, 10);
    if (block >= n && block < SANE) n = block + 1;
  }
  return (int)n;
}

static wan_status find_type(dit *d, const char *name) {
  dit_config *c = &d->config;
  static const char *const names[] = {[DIT_T2V] = "t2v", [DIT_I2V] = "i2v", [DIT_TI2V] = "ti2v"};
  /* Without a word from the config the channel counts decide: only I2V has more inputs than outputs
   * (20 channels of mask and picture), only TI2V uses the 48-channel latent. */
  c->type = c->in_dim > c->out_dim ? DIT_I2V : c->out_dim == 48 ? DIT_TI2V : DIT_T2V;
  if (!*name) return WAN_OK;
  for (int i = 0; i < 3; i++)
    if (strcmp(name, names[i]) == 0) {
      c->type = (dit_type)i;
      return WAN_OK;
    }
  return core_fail(d->be->ctx, WAN_ERR_UNSUPPORTED,
                   "%s: model_type \"%s\" is not supported; t2v, i2v and ti2v are", weight_set_path(d->set),
                   name);
}

wan_status dit_read_config(dit *d, const char *config_path) {
  core_ctx *ctx = d->be->ctx;
  dit_config *c = &d->config;
  model_config m = {0};
  if (config_path) CORE_TRY(model_config_read(ctx, config_path, &m));
  int64_t head_rows;
  CORE_TRY(dim_of(d, "patch_embedding.weight", 5, 0, &c->dim));
  CORE_TRY(dim_of(d, "patch_embedding.weight", 5, 1, &c->in_dim));
  CORE_TRY(dim_of(d, "text_embedding.0.weight", 2, 1, &c->text_dim));
  CORE_TRY(dim_of(d, "time_embedding.0.weight", 2, 1, &c->freq_dim));
  CORE_TRY(dim_of(d, "blocks.0.ffn.0.weight", 2, 0, &c->ffn_dim));
  CORE_TRY(dim_of(d, "head.head.weight", 2, 0, &head_rows));
  c->out_dim = head_rows / 4; /* patch 1x2x2 */
  c->layers = count_layers(d);
  CORE_TRY(agree(d, "dim", m.dim, c->dim, "patch_embedding.weight"));
  CORE_TRY(agree(d, "in_dim", m.in_dim, c->in_dim, "patch_embedding.weight"));
  CORE_TRY(agree(d, "text_dim", m.text_dim, c->text_dim, "text_embedding.0.weight"));
  CORE_TRY(agree(d, "freq_dim", m.freq_dim, c->freq_dim, "time_embedding.0.weight"));
  CORE_TRY(agree(d, "ffn_dim", m.ffn_dim, c->ffn_dim, "blocks.0.ffn.0.weight"));
  CORE_TRY(agree(d, "out_dim", m.out_dim, c->out_dim, "head.head.weight"));
  CORE_TRY(agree(d, "num_layers", m.layers, c->layers, "the number of blocks"));
  c->text_len = m.text_len ? m.text_len : 512;
  c->eps = m.eps > 0 ? (float)m.eps : 1e-6f;
  /* All official models use heads of 128 channels. */
  int64_t heads = m.heads ? m.heads : c->dim / 128;
  if (heads < 1 || heads > 1024 || c->dim % heads != 0 || (c->dim / heads) % 2 != 0)
    return core_fail(
        ctx, WAN_ERR_FORMAT,
        "%s: %lld heads do not divide %lld channels into heads of an even width; config.json should "
        "give num_heads",
        weight_set_path(d->set), (long long)heads, (long long)c->dim);
  c->heads = (int)heads;
  if (c->freq_dim % 2 != 0 || c->text_len < 1 || c->text_len > 65536)
    return core_fail(ctx, WAN_ERR_FORMAT,
                     "%s: freq_dim %lld must be even and text_len %lld between 1 and 65536",
                     weight_set_path(d->set), (long long)c->freq_dim, (long long)c->text_len);
  if (c->layers > DIT_LAYERS_MAX)
    return core_fail(ctx, WAN_ERR_UNSUPPORTED, "%s: %d blocks, at most %d are supported",
                     weight_set_path(d->set), c->layers, DIT_LAYERS_MAX);
  CORE_TRY(find_type(d, m.model_type));
  if (c->type == DIT_I2V ? c->in_dim != c->out_dim + 20 : c->in_dim != c->out_dim)
    return core_fail(ctx, WAN_ERR_UNSUPPORTED,
                     "%s: %lld input and %lld output channels do not belong to a text-to-video (equal) or "
                     "image-to-video (4 mask and 16 picture channels more) model",
                     weight_set_path(d->set), (long long)c->in_dim, (long long)c->out_dim);
  return WAN_OK;
}
