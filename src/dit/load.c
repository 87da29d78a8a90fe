/* load.c: binding the transformer's parameters to a checkpoint. */
#include "dit/dit_internal.h"

#include <stdio.h>
#include <string.h>

#include "core/file.h"

static wan_status bind_linear(dit *d, dit_linear *l, weight_role role, int64_t out, int64_t in,
                              const char *name, weight_group *group) {
  CORE_TRY(weight_set_bind(d->set, &l->w, role, WEIGHT_DIMS(out, in), "%s.weight", name));
  CORE_TRY(weight_set_bind(d->set, &l->b, WEIGHT_VECTOR, WEIGHT_DIMS(out), "%s.bias", name));
  weight_group_add(group, &l->w);
  weight_group_add(group, &l->b);
  return WAN_OK;
}

static wan_status bind_vector(dit *d, weight *w, int ndim, const int64_t *dim, const char *name,
                              weight_group *group) {
  CORE_TRY(weight_set_bind(d->set, w, WEIGHT_VECTOR, ndim, dim, "%s", name));
  weight_group_add(group, w);
  return WAN_OK;
}

static void block_name(int block, const char *suffix, char out[96]) {
  snprintf(out, 96, "blocks.%d.%s", block, suffix);
}

static wan_status bind_attention(dit *d, dit_attention *a, int block, const char *which,
                                 weight_group *group) {
  const int64_t dim = d->config.dim;
  struct {
    const char *part;
    dit_linear *l;
  } linears[] = {{"q", &a->q}, {"k", &a->k}, {"v", &a->v}, {"o", &a->o}};
  struct {
    const char *part;
    weight *w;
  } norms[] = {{"norm_q", &a->norm_q}, {"norm_k", &a->norm_k}};
  char suffix[48], name[96];
  for (size_t i = 0; i < 4; i++) {
    snprintf(suffix, sizeof suffix, "%s.%s", which, linears[i].part);
    block_name(block, suffix, name);
    CORE_TRY(bind_linear(d, linears[i].l, WEIGHT_LINEAR, dim, dim, name, group));
  }
  for (size_t i = 0; i < 2; i++) {
    snprintf(suffix, sizeof suffix, "%s.%s.weight", which, norms[i].part);
    block_name(block, suffix, name);
    CORE_TRY(bind_vector(d, norms[i].w, WEIGHT_DIMS(dim), name, group));
  }
  return WAN_OK;
}

static wan_status bind_block(dit *d, int i) {
  const dit_config *c = &d->config;
  dit_block *b = &d->blocks[i];
  weight_group *g = &b->group;
  char name[96];
  block_name(i, "modulation", name);
  CORE_TRY(bind_vector(d, &b->modulation, WEIGHT_DIMS(1, 6, c->dim), name, g));
  CORE_TRY(bind_attention(d, &b->self, i, "self_attn", g));
  CORE_TRY(bind_attention(d, &b->cross, i, "cross_attn", g));
  block_name(i, "norm3.weight", name);
  CORE_TRY(bind_vector(d, &b->norm3_w, WEIGHT_DIMS(c->dim), name, g));
  block_name(i, "norm3.bias", name);
  CORE_TRY(bind_vector(d, &b->norm3_b, WEIGHT_DIMS(c->dim), name, g));
  block_name(i, "ffn.0", name);
  CORE_TRY(bind_linear(d, &b->ffn0, WEIGHT_LINEAR, c->ffn_dim, c->dim, name, g));
  block_name(i, "ffn.2", name);
  return bind_linear(d, &b->ffn2, WEIGHT_LINEAR, c->dim, c->ffn_dim, name, g);
}

static wan_status bind_all(dit *d) {
  const dit_config *c = &d->config;
  CORE_TRY(weight_set_bind(d->set, &d->patch.w, WEIGHT_LINEAR, WEIGHT_DIMS(c->dim, c->in_dim, 1, 2, 2),
                           "patch_embedding.weight"));
  /* Patches are flattened in the kernel's own order (c, ph, pw), so the convolution is a matrix product. */
  d->patch.w.src = TENSOR_VIEW(d->patch.w.src, c->dim, c->in_dim * 4);
  weight_group_add(&d->patch_group, &d->patch.w);
  CORE_TRY(bind_vector(d, &d->patch.b, WEIGHT_DIMS(c->dim), "patch_embedding.bias", &d->patch_group));
  CORE_TRY(bind_linear(d, &d->text0, WEIGHT_LINEAR, c->dim, c->text_dim, "text_embedding.0", &d->text_group));
  CORE_TRY(bind_linear(d, &d->text2, WEIGHT_LINEAR, c->dim, c->dim, "text_embedding.2", &d->text_group));
  CORE_TRY(
      bind_linear(d, &d->time0, WEIGHT_LINEAR_F32, c->dim, c->freq_dim, "time_embedding.0", &d->time_group));
  CORE_TRY(bind_linear(d, &d->time2, WEIGHT_LINEAR_F32, c->dim, c->dim, "time_embedding.2", &d->time_group));
  CORE_TRY(bind_linear(d, &d->time_proj, WEIGHT_LINEAR_F32, 6 * c->dim, c->dim, "time_projection.1",
                       &d->time_group));
  CORE_TRY(bind_linear(d, &d->head, WEIGHT_LINEAR_F32, 4 * c->out_dim, c->dim, "head.head", &d->head_group));
  CORE_TRY(bind_vector(d, &d->head_modulation, WEIGHT_DIMS(1, 2, c->dim), "head.modulation", &d->head_group));
  for (int i = 0; i < c->layers; i++) CORE_TRY(bind_block(d, i));
  return weight_set_finish(d->set);
}

/* Blocks stay loaded, first ones first, while they fit into what the caller allows. */
static void choose_residency(dit *d) {
  const uint64_t keep_bytes = d->keep_bytes;
  weight_group *const outer[] = {&d->patch_group, &d->text_group, &d->time_group, &d->head_group};
  uint64_t used = 0;
  for (size_t i = 0; i < 4; i++) used += weight_group_bytes(d->be, outer[i]);
  d->outer_mode = used <= keep_bytes ? RESIDENCY_KEEP : RESIDENCY_STREAM;
  if (d->outer_mode == RESIDENCY_STREAM) used = 0;
  for (int i = 0; i < d->config.layers; i++) {
    used += weight_group_bytes(d->be, &d->blocks[i].group);
    d->blocks[i].mode = used <= keep_bytes ? RESIDENCY_KEEP : RESIDENCY_STREAM;
  }
}

/* ---- Eight bits ---- */

/* Blocks at each end that stay in the act dtype. Clips of the demo model are 36 dB from f32 with one, 30 dB
 * with none and 36 dB with two (docs/NUMERICS.md). */
enum { EXACT_ENDS = 1 };

static void set_coarse(dit_block *b, bool coarse) {
  weight *const large[] = {&b->self.q.w,  &b->self.k.w,  &b->self.v.w, &b->self.o.w,
                           &b->cross.q.w, &b->cross.o.w, &b->ffn0.w,   &b->ffn2.w};
  b->coarse = coarse;
  for (size_t i = 0; i < sizeof large / sizeof large[0]; i++)
    large[i]->role = coarse ? WEIGHT_PRODUCT : WEIGHT_LINEAR;
}

void dit_set_exact(dit *d, bool exact, uint64_t keep_bytes) {
  const bool eight = d->be->product != d->be->act;
  for (int i = 0; i < d->config.layers; i++) {
    const bool inner = i >= EXACT_ENDS && i < d->config.layers - EXACT_ENDS,
               coarse = eight && inner && !exact;
    if (d->blocks[i].coarse == coarse) continue;
    weight_group_drop(d->be, &d->blocks[i].group);
    set_coarse(&d->blocks[i], coarse);
  }
  d->keep_bytes = keep_bytes;
  choose_residency(d);
}

/* The config.json that belongs to `path`: in that folder, or beside that file; *out NULL when there is
 * none. */
static wan_status find_config(core_ctx *ctx, const char *path, char **out) {
  const char *slash = strrchr(path, '/');
  if (core_path_is_dir(path))
    *out = core_path_join(ctx, path, "config.json");
  else
    *out = core_asprintf(ctx, "%.*sconfig.json", slash ? (int)(slash + 1 - path) : 0, path);
  if (!*out) return WAN_ERR_MEMORY;
  if (core_path_exists(*out)) return WAN_OK;
  core_free(ctx, *out);
  *out = NULL;
  return WAN_OK;
}

/* config: the path of config.json, or NULL. */
static wan_status open_set(backend *be, weight_set *set, const char *config, uint64_t keep_bytes, dit **out) {
  *out = NULL;
  dit *d = core_calloc(be->ctx, 1, sizeof *d);
  if (!d) {
    weight_set_close(set);
    return WAN_ERR_MEMORY;
  }
  d->be = be;
  d->set = set;
  wan_status s = dit_read_config(d, config);
  if (s == WAN_OK && !(d->blocks = core_calloc(be->ctx, (size_t)d->config.layers, sizeof *d->blocks)))
    s = WAN_ERR_MEMORY;
  if (s == WAN_OK) s = bind_all(d);
  if (s != WAN_OK) {
    dit_close(d);
    return s;
  }
  dit_set_exact(d, false, keep_bytes);
  *out = d;
  return WAN_OK;
}

wan_status dit_open_set(backend *be, weight_set *set, uint64_t keep_bytes, dit **out) {
  return open_set(be, set, NULL, keep_bytes, out);
}

wan_status dit_open(backend *be, const char *path, uint64_t keep_bytes, dit **out) {
  weight_set *set;
  char *config = NULL;
  *out = NULL;
  CORE_TRY(weight_set_open(be->ctx, path, WEIGHTS_DIT, &set));
  wan_status s = find_config(be->ctx, path, &config);
  if (s == WAN_OK)
    s = open_set(be, set, config, keep_bytes, out);
  else
    weight_set_close(set);
  core_free(be->ctx, config);
  return s;
}

void dit_drop(dit *d) {
  weight_group_drop(d->be, &d->patch_group);
  weight_group_drop(d->be, &d->text_group);
  weight_group_drop(d->be, &d->time_group);
  weight_group_drop(d->be, &d->head_group);
  for (int i = 0; d->blocks && i < d->config.layers; i++) weight_group_drop(d->be, &d->blocks[i].group);
}

void dit_close(dit *d) {
  if (!d) return;
  core_ctx *ctx = d->be->ctx;
  dit_drop(d);
  tensor_free(d->be, &d->rope);
  core_free(ctx, d->blocks);
  weight_set_close(d->set);
  core_free(ctx, d);
}

void dit_prefetch(dit *d) {
  weight_group_prefetch(d->be, &d->patch_group);
  weight_group_prefetch(d->be, &d->text_group);
  weight_group_prefetch(d->be, &d->time_group);
  for (int i = 0; i < d->config.layers; i++) weight_group_prefetch(d->be, &d->blocks[i].group);
  weight_group_prefetch(d->be, &d->head_group);
}

const dit_config *dit_get_config(const dit *d) {
  return &d->config;
}

const weight_set *dit_weights(const dit *d) {
  return d->set;
}

int dit_resident_blocks(const dit *d) {
  int n = 0;
  for (int i = 0; i < d->config.layers; i++) n += d->blocks[i].mode == RESIDENCY_KEEP;
  return n;
}
