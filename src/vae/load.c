/* load.c: finding out which autoencoder a file holds and binding its parameters. All widths are read
 * from the tensors; the number of blocks and where time and space are resampled are those of the official
 * models (wan/modules/vae2_1.py, vae2_2.py). */
#include "vae/vae_internal.h"

#include <stdio.h>
#include <string.h>

enum { PREFIX_MAX = 96, NAME_MAX_LEN = 128 }; /* the longest official name has 66 characters */

typedef struct binder {
  vae *v;
  wan_status status; /* sticky, so that a network is a list of bindings */
} binder;

static tensor find(binder *b, const char *prefix, const char *suffix) {
  char name[NAME_MAX_LEN];
  snprintf(name, sizeof name, "%s%s", prefix, suffix);
  tensor t = weight_set_find(b->v->set, name);
  if (t.type == DT_NONE && b->status == WAN_OK)
    b->status = core_fail(b->v->be->ctx, WAN_ERR_FORMAT, "%s: tensor %s is missing",
                          weight_set_path(b->v->set), name);
  return t;
}

static void keep_status(binder *b, wan_status s) {
  if (b->status == WAN_OK) b->status = s;
}

/* A convolution named prefix.{weight,bias} with these kernel dims (after Cout, Cin). */
static void bind_conv(binder *b, vae_conv *c, weight_role role, const char *prefix, int64_t cout, int64_t cin,
                      int nk, const int64_t *k, weight_group *group) {
  if (b->status) return;
  int64_t dim[5] = {cout, cin};
  memcpy(dim + 2, k, (size_t)nk * sizeof *k);
  keep_status(b, weight_set_bind(b->v->set, &c->w, role, 2 + nk, dim, "%s.weight", prefix));
  keep_status(b, weight_set_bind(b->v->set, &c->b, WEIGHT_VECTOR, WEIGHT_DIMS(cout), "%s.bias", prefix));
  /* A 1x1x1 kernel is a matrix: it runs as one. */
  if (b->status == WAN_OK && role == WEIGHT_LINEAR) c->w.src = TENSOR_VIEW(c->w.src, cout, cin);
  weight_group_add(group, &c->w);
  weight_group_add(group, &c->b);
}

static const int64_t k333[3] = {3, 3, 3}, k311[3] = {3, 1, 1}, k111[3] = {1, 1, 1}, k33[2] = {3, 3};

static void bind_gamma(binder *b, weight *w, const char *name, int64_t c, int ndim, weight_group *group) {
  if (b->status) return;
  const int64_t dim[4] = {c, 1, 1, 1};
  keep_status(b, weight_set_bind(b->v->set, w, WEIGHT_VECTOR, ndim, dim, "%s", name));
  weight_group_add(group, w);
}

/* prefix ends with "."; widths come from the two convolutions. Returns the output width. */
static int64_t bind_res(binder *b, vae_res *r, const char *prefix, weight_group *group) {
  char name[NAME_MAX_LEN];
  tensor t = find(b, prefix, "residual.2.weight");
  if (b->status) return 0;
  r->cin = t.ndim == 5 ? t.dim[1] : 0;
  r->cout = t.ndim == 5 ? t.dim[0] : 0;
  r->has_shortcut = r->cin != r->cout;
  snprintf(name, sizeof name, "%sresidual.0.gamma", prefix);
  bind_gamma(b, &r->gamma1, name, r->cin, 4, group);
  snprintf(name, sizeof name, "%sresidual.2", prefix);
  bind_conv(b, &r->conv1, WEIGHT_CONV, name, r->cout, r->cin, 3, k333, group);
  snprintf(name, sizeof name, "%sresidual.3.gamma", prefix);
  bind_gamma(b, &r->gamma2, name, r->cout, 4, group);
  snprintf(name, sizeof name, "%sresidual.6", prefix);
  bind_conv(b, &r->conv2, WEIGHT_CONV, name, r->cout, r->cout, 3, k333, group);
  snprintf(name, sizeof name, "%sshortcut", prefix);
  if (r->has_shortcut) bind_conv(b, &r->shortcut, WEIGHT_LINEAR, name, r->cout, r->cin, 3, k111, group);
  return r->cout;
}

/* One third of to_qkv's rows: q, k, v in that order. */
static void bind_qkv(binder *b, vae_conv *c, const char *prefix, int third, int64_t C, weight_group *group) {
  if (b->status) return;
  keep_status(b, weight_set_bind_rows(b->v->set, &c->w, WEIGHT_LINEAR, WEIGHT_DIMS(C, C, 1, 1), third * C,
                                      3 * C, "%sto_qkv.weight", prefix));
  keep_status(b, weight_set_bind_rows(b->v->set, &c->b, WEIGHT_VECTOR, WEIGHT_DIMS(C), third * C, 3 * C,
                                      "%sto_qkv.bias", prefix));
  if (b->status == WAN_OK) c->w.src = TENSOR_VIEW(c->w.src, C, C);
  weight_group_add(group, &c->w);
  weight_group_add(group, &c->b);
}

static void bind_middle(binder *b, vae_net *net, const char *which, int64_t C) {
  char prefix[PREFIX_MAX], name[NAME_MAX_LEN];
  weight_group *g = &net->middle;
  snprintf(prefix, sizeof prefix, "%s.middle.0.", which);
  bind_res(b, &net->middle0, prefix, g);
  snprintf(prefix, sizeof prefix, "%s.middle.2.", which);
  bind_res(b, &net->middle2, prefix, g);
  if (b->status == WAN_OK && (net->middle0.cin != C || net->middle2.cout != C))
    b->status =
        core_fail(b->v->be->ctx, WAN_ERR_FORMAT, "%s: %s.middle is %lld channels wide, its neighbour %lld",
                  weight_set_path(b->v->set), which, (long long)net->middle0.cin, (long long)C);
  snprintf(prefix, sizeof prefix, "%s.middle.1.", which);
  snprintf(name, sizeof name, "%snorm.gamma", prefix);
  bind_gamma(b, &net->middle1.gamma, name, C, 3, g);
  bind_qkv(b, &net->middle1.q, prefix, 0, C, g);
  bind_qkv(b, &net->middle1.k, prefix, 1, C, g);
  bind_qkv(b, &net->middle1.v, prefix, 2, C, g);
  snprintf(name, sizeof name, "%sproj", prefix);
  bind_conv(b, &net->middle1.proj, WEIGHT_LINEAR, name, C, C, 2, (const int64_t[]){1, 1}, g);
}

/* Where level i's j-th part lives: 2.1 numbers all parts of a direction in one list, 2.2 nests them. */
static void part_name(const vae *v, bool encoder, int level, int part, int parts, char out[PREFIX_MAX]) {
  const char *dir = encoder ? "encoder" : "decoder", *list = encoder ? "downsamples" : "upsamples";
  if (v->info.version == 21)
    snprintf(out, PREFIX_MAX, "%s.%s.%d.", dir, list, level * parts + part);
  else
    snprintf(out, PREFIX_MAX, "%s.%s.%d.%s.%d.", dir, list, level, list, part);
}

static int64_t bind_level(binder *b, vae_level *l, bool encoder, int i, int64_t width) {
  static const vae_resample_kind down[] = {RESAMPLE_DOWN2D, RESAMPLE_DOWN3D, RESAMPLE_DOWN3D, RESAMPLE_NONE};
  static const vae_resample_kind up[] = {RESAMPLE_UP3D, RESAMPLE_UP3D, RESAMPLE_UP2D, RESAMPLE_NONE};
  char prefix[PREFIX_MAX], name[NAME_MAX_LEN];
  l->n_res = encoder ? 2 : 3;
  l->kind = encoder ? down[i] : up[i];
  l->cin = width;
  for (int j = 0; j < l->n_res; j++) {
    part_name(b->v, encoder, i, j, l->n_res + 1, prefix);
    int64_t out = bind_res(b, &l->res[j], prefix, &l->group);
    if (b->status == WAN_OK && l->res[j].cin != width)
      b->status = core_fail(b->v->be->ctx, WAN_ERR_FORMAT,
                            "%s: %sresidual.2.weight takes %lld channels, the part before gives %lld",
                            weight_set_path(b->v->set), prefix, (long long)l->res[j].cin, (long long)width);
    if (b->status == WAN_OK && j > 0 && out != width)
      b->status =
          core_fail(b->v->be->ctx, WAN_ERR_UNSUPPORTED,
                    "%s: %sresidual.2.weight has %lld outputs for %lld inputs; only the first block of a "
                    "level may change the width",
                    weight_set_path(b->v->set), prefix, (long long)out, (long long)width);
    width = out;
  }
  if (b->status == WAN_OK && l->kind != RESAMPLE_NONE) {
    part_name(b->v, encoder, i, l->n_res, l->n_res + 1, prefix);
    int64_t out = encoder || b->v->info.version == 22 ? width : width / 2; /* 2.1's upsamplers halve */
    snprintf(name, sizeof name, "%sresample.1", prefix);
    bind_conv(b, &l->resample, encoder ? WEIGHT_CONV : WEIGHT_CONV_UP, name, out, width, 2, k33, &l->group);
    snprintf(name, sizeof name, "%stime_conv", prefix);
    if (l->kind == RESAMPLE_DOWN3D)
      bind_conv(b, &l->time, WEIGHT_CONV, name, width, width, 3, k311, &l->group);
    if (l->kind == RESAMPLE_UP3D)
      bind_conv(b, &l->time, WEIGHT_CONV, name, 2 * width, width, 3, k311, &l->group);
    width = out;
  }
  return l->cout = width;
}

static void bind_encoder(binder *b, int64_t pixels, int64_t z) {
  vae_net *n = &b->v->encoder;
  tensor t = find(b, "encoder.conv1", ".weight");
  int64_t width = t.type == DT_NONE ? 0 : t.dim[0];
  bind_conv(b, &n->first, WEIGHT_CONV, "encoder.conv1", width, pixels, 3, k333, &n->ends);
  for (int i = 0; i < VAE_LEVELS && b->status == WAN_OK; i++)
    width = bind_level(b, &n->level[i], true, i, width);
  bind_middle(b, n, "encoder", width);
  bind_gamma(b, &n->head_gamma, "encoder.head.0.gamma", width, 4, &n->ends);
  bind_conv(b, &n->head, WEIGHT_CONV, "encoder.head.2", 2 * z, width, 3, k333, &n->ends);
  if (b->status) return;
  /* Only the mean is used: the rows that would give the log-variance are never computed. */
  keep_status(b, weight_set_bind_rows(b->v->set, &n->point.w, WEIGHT_LINEAR, WEIGHT_DIMS(z, 2 * z, 1, 1, 1),
                                      0, 2 * z, "conv1.weight"));
  keep_status(
      b, weight_set_bind_rows(b->v->set, &n->point.b, WEIGHT_VECTOR, WEIGHT_DIMS(z), 0, 2 * z, "conv1.bias"));
  if (b->status) return;
  n->point.w.src = TENSOR_VIEW(n->point.w.src, z, 2 * z);
  weight_group_add(&n->ends, &n->point.w);
  weight_group_add(&n->ends, &n->point.b);
}

static void bind_decoder(binder *b, int64_t pixels, int64_t z) {
  vae_net *n = &b->v->decoder;
  bind_conv(b, &n->point, WEIGHT_LINEAR, "conv2", z, z, 3, k111, &n->ends);
  tensor t = find(b, "decoder.conv1", ".weight");
  int64_t width = t.type == DT_NONE ? 0 : t.dim[0];
  bind_conv(b, &n->first, WEIGHT_CONV, "decoder.conv1", width, z, 3, k333, &n->ends);
  bind_middle(b, n, "decoder", width);
  for (int i = 0; i < VAE_LEVELS && b->status == WAN_OK; i++)
    width = bind_level(b, &n->level[i], false, i, width);
  bind_gamma(b, &n->head_gamma, "decoder.head.0.gamma", width, 4, &n->ends);
  bind_conv(b, &n->head, WEIGHT_CONV, "decoder.head.2", pixels, width, 3, k333, &n->ends);
}

wan_status vae_bind(vae *v) {
  core_ctx *ctx = v->be->ctx;
  binder b = {.v = v};
  tensor nested = weight_set_find(v->set, "encoder.downsamples.0.downsamples.0.residual.0.gamma");
  tensor flat = weight_set_find(v->set, "encoder.downsamples.0.residual.0.gamma");
  if (nested.type == DT_NONE && flat.type == DT_NONE)
    return core_fail(
        ctx, WAN_ERR_FORMAT,
        "%s: neither the Wan2.1 nor the Wan2.2 autoencoder: tensor encoder.downsamples.0... is missing",
        weight_set_path(v->set));
  bool v22 = nested.type != DT_NONE;
  tensor z = find(&b, "conv2", ".weight");
  if (b.status) return b.status;
  v->info = (vae_info){
      .version = v22 ? 22 : 21, .z = z.dim[0], .spatial_stride = v22 ? 16 : 8, .temporal_stride = 4};
  if (!vae_latent_mean(v->info.z))
    return core_fail(ctx, WAN_ERR_UNSUPPORTED,
                     "%s: %lld latent channels; the latent statistics are known for 16 and 48 only",
                     weight_set_path(v->set), (long long)v->info.z);
  int64_t pixels = v22 ? 12 : 3; /* 2.2 works on 2x2 blocks of pixels */
  bind_encoder(&b, pixels, v->info.z);
  bind_decoder(&b, pixels, v->info.z);
  return b.status ? b.status : weight_set_finish(v->set);
}

static uint64_t net_bytes(backend *be, const vae_net *n) {
  uint64_t bytes = weight_group_bytes(be, &n->ends) + weight_group_bytes(be, &n->middle);
  for (int i = 0; i < VAE_LEVELS; i++) bytes += weight_group_bytes(be, &n->level[i].group);
  return bytes;
}

wan_status vae_open(backend *be, const char *path, uint64_t keep_bytes, vae **out) {
  weight_set *set;
  *out = NULL;
  CORE_TRY(weight_set_open(be->ctx, path, WEIGHTS_VAE, &set));
  return vae_open_set(be, set, keep_bytes, out);
}

wan_status vae_open_set(backend *be, weight_set *set, uint64_t keep_bytes, vae **out) {
  *out = NULL;
  vae *v = core_calloc(be->ctx, 1, sizeof *v);
  if (!v) {
    weight_set_close(set);
    return WAN_ERR_MEMORY;
  }
  v->be = be;
  v->set = set;
  wan_status s = vae_bind(v);
  if (s != WAN_OK) {
    vae_close(v);
    return s;
  }
  /* A run uses one direction at a time, so each is measured against the whole allowance. */
  v->encoder_mode = net_bytes(be, &v->encoder) <= keep_bytes ? RESIDENCY_KEEP : RESIDENCY_STREAM;
  v->decoder_mode = net_bytes(be, &v->decoder) <= keep_bytes ? RESIDENCY_KEEP : RESIDENCY_STREAM;
  *out = v;
  return WAN_OK;
}

static void drop_net(backend *be, vae_net *n) {
  weight_group_drop(be, &n->ends);
  weight_group_drop(be, &n->middle);
  for (int i = 0; i < VAE_LEVELS; i++) weight_group_drop(be, &n->level[i].group);
}

void vae_close(vae *v) {
  if (!v) return;
  core_ctx *ctx = v->be->ctx;
  drop_net(v->be, &v->encoder);
  drop_net(v->be, &v->decoder);
  weight_set_close(v->set);
  core_free(ctx, v);
}

vae_info vae_get_info(const vae *v) {
  return v->info;
}

const weight_set *vae_weights(const vae *v) {
  return v->set;
}
