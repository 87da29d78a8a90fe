/* umt5.c: the UMT5 encoder (Chung et al. 2023): T5 with gated GELU, RMS norms and no biases, where
 * every layer has its own table of relative position biases. Only real tokens are encoded: in the
 * original, padding gets weight zero and its rows are dropped, so leaving it out is exact.
 *
 * The residual stream is f32, everything between is in the activation dtype. Layers are loaded for
 * their use only, unless the caller's budget holds the whole encoder. */
#include "text/text.h"

#include "text/buckets.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LAYERS_MAX = 256 }; /* the real one has 24; bounds what a damaged file can make us allocate */

static const float EPS = 1e-6f; /* of the RMS norms; wan/modules/t5.py */

typedef struct umt5_layer {
  weight norm1, q, k, v, o; /* [dim], [attn, dim] x 3, [dim, attn] */
  weight norm2, gate, fc1, fc2;
  weight position; /* [BUCKETS, heads] */
  weight_group group;
} umt5_layer;

struct umt5 {
  backend *be;
  weight_set *set;
  int64_t vocab, dim, attn, heads, ffn;
  int layers;
  weight table, norm; /* [vocab, dim], [dim] */
  weight_group ends;  /* table and norm */
  umt5_layer *layer;
  residency_mode mode;
};

/* ---- Opening ---- */

static wan_status find_shape(umt5 *u, const char *name, tensor *out) {
  *out = weight_set_find(u->set, name);
  if (out->type == DT_NONE)
    return core_fail(u->be->ctx, WAN_ERR_FORMAT, "%s: no tensor %s; is this a UMT5 encoder?",
                     weight_set_path(u->set), name);
  if (out->ndim == 2 && out->dim[0] > 0 && out->dim[1] > 0) return WAN_OK;
  char shape[96];
  return core_fail(u->be->ctx, WAN_ERR_FORMAT, "%s: %s is %s, expected a matrix", weight_set_path(u->set),
                   name, tensor_shape_text(out, shape, sizeof shape));
}

static wan_status read_dims(umt5 *u) {
  tensor table, q, gate, position;
  CORE_TRY(find_shape(u, "token_embedding.weight", &table));
  CORE_TRY(find_shape(u, "blocks.0.attn.q.weight", &q));
  CORE_TRY(find_shape(u, "blocks.0.ffn.gate.0.weight", &gate));
  CORE_TRY(find_shape(u, "blocks.0.pos_embedding.embedding.weight", &position));
  u->vocab = table.dim[0];
  u->dim = table.dim[1];
  u->attn = q.dim[0];
  u->ffn = gate.dim[0];
  u->heads = position.dim[1];
  if (u->attn % u->heads || u->heads > INT32_MAX)
    return core_fail(u->be->ctx, WAN_ERR_FORMAT,
                     "%s: attention width %lld does not divide into the %lld heads of "
                     "blocks.0.pos_embedding.embedding.weight",
                     weight_set_path(u->set), (long long)u->attn, (long long)u->heads);
  char name[64];
  do snprintf(name, sizeof name, "blocks.%d.norm1.weight", ++u->layers);
  while (u->layers < LAYERS_MAX && weight_set_find(u->set, name).type != DT_NONE);
  return WAN_OK;
}

static wan_status bind_layer(umt5 *u, int i) {
  umt5_layer *l = &u->layer[i];
  const int64_t C = u->dim, A = u->attn, F = u->ffn;
  const struct {
    weight *w;
    const char *name;
    int64_t out, in; /* in 0: a vector */
  } part[] = {{&l->norm1, "norm1", C, 0},     {&l->q, "attn.q", A, C},    {&l->k, "attn.k", A, C},
              {&l->v, "attn.v", A, C},        {&l->o, "attn.o", C, A},    {&l->norm2, "norm2", C, 0},
              {&l->gate, "ffn.gate.0", F, C}, {&l->fc1, "ffn.fc1", F, C}, {&l->fc2, "ffn.fc2", C, F}};
  for (size_t k = 0; k < sizeof part / sizeof part[0]; k++) {
    weight_role role = part[k].in ? WEIGHT_LINEAR : WEIGHT_VECTOR;
    const int64_t dim[2] = {part[k].out, part[k].in};
    CORE_TRY(weight_set_bind(u->set, part[k].w, role, part[k].in ? 2 : 1, dim, "blocks.%d.%s.weight", i,
                             part[k].name));
    weight_group_add(&l->group, part[k].w);
  }
  weight_group_add(&l->group, &l->position);
  return weight_set_bind(u->set, &l->position, WEIGHT_VECTOR, WEIGHT_DIMS(BUCKETS, u->heads),
                         "blocks.%d.pos_embedding.embedding.weight", i);
}

static wan_status bind_all(umt5 *u) {
  CORE_TRY(read_dims(u));
  if (!(u->layer = core_calloc(u->be->ctx, (size_t)u->layers, sizeof *u->layer))) return WAN_ERR_MEMORY;
  CORE_TRY(weight_set_bind(u->set, &u->table, WEIGHT_TABLE, WEIGHT_DIMS(u->vocab, u->dim),
                           "token_embedding.weight"));
  CORE_TRY(weight_set_bind(u->set, &u->norm, WEIGHT_VECTOR, WEIGHT_DIMS(u->dim), "norm.weight"));
  weight_group_add(&u->ends, &u->table);
  weight_group_add(&u->ends, &u->norm);
  for (int i = 0; i < u->layers; i++) CORE_TRY(bind_layer(u, i));
  return weight_set_finish(u->set);
}

wan_status umt5_open(backend *be, const char *path, uint64_t keep_bytes, umt5 **out) {
  weight_set *set;
  *out = NULL;
  CORE_TRY(weight_set_open(be->ctx, path, WEIGHTS_TEXT, &set));
  return umt5_open_set(be, set, keep_bytes, out);
}

wan_status umt5_open_set(backend *be, weight_set *set, uint64_t keep_bytes, umt5 **out) {
  *out = NULL;
  umt5 *u = core_calloc(be->ctx, 1, sizeof *u);
  if (!u) {
    weight_set_close(set);
    return WAN_ERR_MEMORY;
  }
  u->be = be;
  u->set = set;
  wan_status s = bind_all(u);
  if (s != WAN_OK) {
    umt5_close(u);
    return s;
  }
  uint64_t need = 0; /* the token table stays in the file */
  for (int i = 0; i < u->layers; i++) need += weight_group_bytes(be, &u->layer[i].group);
  u->mode = need <= keep_bytes ? RESIDENCY_KEEP : RESIDENCY_STREAM;
  *out = u;
  return WAN_OK;
}

void umt5_close(umt5 *u) {
  if (!u) return;
  core_ctx *ctx = u->be->ctx;
  for (int i = 0; u->layer && i < u->layers; i++) weight_group_drop(u->be, &u->layer[i].group);
  weight_group_drop(u->be, &u->ends);
  weight_set_close(u->set);
  core_free(ctx, u->layer);
  core_free(ctx, u);
}

int64_t umt5_dim(const umt5 *u) {
  return u->dim;
}

int64_t umt5_vocab(const umt5 *u) {
  return u->vocab;
}

int umt5_layers(const umt5 *u) {
  return u->layers;
}

const weight_set *umt5_weights(const umt5 *u) {
  return u->set;
}

/* ---- Encoding ---- */

/* I32 [2n-1]: entry r+n-1 is the bucket of a key r positions after its query, the same for all layers. */
static tensor position_buckets(umt5 *u, int n) {
  int32_t host[2 * TEXT_MAX_TOKENS];
  for (int r = 1 - n; r < n; r++) host[r + n - 1] = bucket_of(r);
  tensor out = TENSOR_NEW(u->be, DT_I32, 2 * n - 1);
  tensor_upload(u->be, out, host);
  return out;
}

static void self_attention(umt5 *u, const umt5_layer *l, tensor x,
                           tensor buckets) { /* x F32 [n, dim], in place */
  backend *be = u->be;
  tensor a = op_rms_norm(be, x, &l->norm1, EPS, DT_NONE);
  tensor q = op_linear(be, a, &l->q, NULL, ACT_NONE, DT_NONE); /* [n, attn] */
  tensor k = op_linear(be, a, &l->k, NULL, ACT_NONE, DT_NONE);
  tensor v = op_linear(be, a, &l->v, NULL, ACT_NONE, DT_NONE);
  attention_spec spec = {
      .heads = (int)u->heads, .scale = 1, .rel_bias = op_position_bias(be, &l->position, buckets)};
  tensor y = op_attention(be, q, k, v, &spec);
  op_linear_add(be, y, &l->o, NULL, x);
}

static void feed_forward(umt5 *u, const umt5_layer *l, tensor x) { /* x F32 [n, dim], in place */
  backend *be = u->be;
  tensor a = op_rms_norm(be, x, &l->norm2, EPS, DT_NONE);
  tensor h = op_linear(be, a, &l->fc1, NULL, ACT_NONE, DT_NONE); /* [n, ffn] */
  op_mul(be, h, op_linear(be, a, &l->gate, NULL, ACT_GELU_TANH, DT_NONE));
  op_linear_add(be, h, &l->fc2, NULL, x);
}

static wan_status run_layer(umt5 *u, int i, tensor x, tensor buckets) {
  backend *be = u->be;
  umt5_layer *l = &u->layer[i];
  CORE_TRY(core_check_cancel(be->ctx));
  if (i + 1 < u->layers) weight_group_prefetch(be, &u->layer[i + 1].group);
  CORE_TRY(weight_group_acquire(be, &l->group));
  scope_mark mark = scope_begin(be);
  self_attention(u, l, x, buckets);
  feed_forward(u, l, x);
  if (i + 1 < u->layers) weight_group_load_ahead(be, &u->layer[i + 1].group, u->mode);
  wan_status s = u->mode == RESIDENCY_STREAM ? backend_sync(be) : backend_status(be);
  scope_end(be, mark);
  weight_group_release(be, &l->group, u->mode);
  return s;
}

/* Names the first token whose encoding is not finite. */
static wan_status fail_not_finite(umt5 *u, const float *out, int n) {
  int64_t i = 0;
  while (i + 1 < n * u->dim && isfinite(out[i])) i++;
  return core_fail(u->be->ctx, WAN_ERR_NUMERIC,
                   "%s: the text encoder's output for token %lld is not finite; the file may be damaged",
                   weight_set_path(u->set), (long long)(i / u->dim));
}

wan_status umt5_encode(umt5 *u, const int32_t *ids, int n, float *out,
                       void (*progress)(void *user, int layer, int layers), void *user) {
  backend *be = u->be;
  if (n < 1 || n > TEXT_MAX_TOKENS)
    return core_fail(be->ctx, WAN_ERR_ARGUMENT, "%d tokens to encode, expected 1 to %d", n,
                     (int)TEXT_MAX_TOKENS);
  CORE_TRY(weight_group_acquire(be, &u->ends));
  scope_mark mark = scope_begin(be);
  tensor x = op_embed(be, &u->table, ids, n, DT_F32), buckets = position_buckets(u, n);
  wan_status s = backend_status(be);
  for (int i = 0; i < u->layers && s == WAN_OK; i++) {
    s = run_layer(u, i, x, buckets);
    if (s == WAN_OK && progress) progress(user, i + 1, u->layers);
  }
  bool finite = true;
  if (s == WAN_OK) {
    tensor y = op_rms_norm(be, x, &u->norm, EPS, DT_F32);
    finite = op_all_finite(be, y);
    tensor_download(be, out, y);
    s = backend_status(be);
  }
  scope_end(be, mark);
  weight_group_release(be, &u->ends, u->mode);
  return s == WAN_OK && !finite ? fail_not_finite(u, out, n) : s;
}
