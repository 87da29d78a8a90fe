/* dit.c: the forward pass. Shapes: L tokens, C = dim channels, R distinct timesteps. x is the F32 residual
 * stream [L, C]; everything entering a matrix product is in the act dtype.
 *
 * A sublayer reads normed rows and leaves its result. The result is added to x by the norm in front of the
 * next sublayer (the next block's, or the head's), so that x, the largest tensor, is read and written once
 * for both. */
#include "dit/dit_internal.h"

#include <math.h>
#include <string.h>

/* Rows of the six modulation vectors (wan/modules/model.py, WanAttentionBlock) and of the head's two. */
enum { SHIFT_SA, SCALE_SA, GATE_SA, SHIFT_FFN, SCALE_FFN, GATE_FFN };
enum { SHIFT_HEAD, SCALE_HEAD };

/* The FFN's hidden layer is the widest tensor of the model; it is made for this many tokens at a time.
 * 8192 rows keep a GPU's and a CPU's matrix units full. */
enum { FFN_ROWS = 8192 };

static tensor linear(backend *be, tensor x, const dit_linear *l, op_act act, dtype out) {
  return op_linear(be, x, &l->w, &l->b, act, out);
}

static void linear_into(backend *be, tensor x, const dit_linear *l, tensor out) {
  op_linear_into(be, x, &l->w, &l->b, ACT_NONE, out);
}

/* ---- Conditioning on text ---- */

wan_status dit_text_create(dit *d, tensor context, dit_text **out) {
  backend *be = d->be;
  const int64_t n = context.ndim == 2 ? context.dim[0] : -1, text_len = d->config.text_len;
  *out = NULL;
  if (context.type != DT_F32 || n < 1 || n > text_len || context.dim[1] != d->config.text_dim) {
    char shape[96];
    return core_fail(be->ctx, WAN_ERR_ARGUMENT, "the text context is %s %s; F32 [1..%lld, %lld] is needed",
                     dtype_name(context.type), tensor_shape_text(&context, shape, sizeof shape),
                     (long long)text_len, (long long)d->config.text_dim);
  }
  dit_text *t = core_calloc(be->ctx, 1, sizeof *t);
  if (!t) return WAN_ERR_MEMORY;
  t->d = d;
  /* The contract is text_len rows, zero after the n real ones. Equal keys give equal scores, so the
   * text_len - n padding rows act as one row whose score is raised by log(text_len - n): exact. */
  const int64_t rows = n < text_len ? n + 1 : n;
  float bias[1] = {logf((float)(text_len - n))};
  wan_status s = weight_group_acquire(be, &d->text_group);
  if (s == WAN_OK) {
    scope_mark mark = scope_begin(be);
    tensor c = TENSOR_NEW(be, DT_F32, rows, d->config.text_dim);
    tensor_zero(be, c);
    tensor_upload(be, tensor_slice(c, 0, n), context.data);
    tensor h = linear(be, op_cast(be, c, DT_NONE), &d->text0, ACT_GELU_TANH, DT_NONE);
    t->context = TENSOR_ALLOC(be, be->act, rows, d->config.dim);
    linear_into(be, h, &d->text2, t->context);
    if (rows > n) {
      t->key_bias = TENSOR_ALLOC(be, DT_F32, rows);
      tensor_zero(be, t->key_bias);
      tensor_upload(be, tensor_slice(t->key_bias, n, 1), bias);
    }
    s = backend_sync(be);
    scope_end(be, mark);
    weight_group_release(be, &d->text_group, d->outer_mode);
  }
  if (s != WAN_OK) {
    dit_text_free(t);
    return s;
  }
  *out = t;
  return WAN_OK;
}

void dit_text_free(dit_text *t) {
  if (!t) return;
  backend *be = t->d->be;
  for (int i = 0; i < DIT_LAYERS_MAX; i++) {
    tensor_free(be, &t->k[i]);
    tensor_free(be, &t->v[i]);
  }
  tensor_free(be, &t->key_bias);
  tensor_free(be, &t->context);
  core_free(be->ctx, t);
}

/* Keys and values of the prompt for one block; they depend on nothing that changes between steps. */
static void text_keys(dit *d, const dit_block *b, int layer, dit_text *t) {
  backend *be = d->be;
  if (t->k[layer].type != DT_NONE) return;
  tensor k = TENSOR_ALLOC(be, be->act, t->context.dim[0], d->config.dim);
  tensor v = TENSOR_ALLOC(be, be->act, t->context.dim[0], d->config.dim);
  linear_into(be, t->context, &b->cross.k, k);
  op_qk_norm_rope(be, k, &b->cross.norm_k, d->config.eps, (tensor){0}, d->config.heads);
  linear_into(be, t->context, &b->cross.v, v);
  if (be->failed) { /* half-made keys must not be taken for good ones later */
    tensor_free(be, &k);
    tensor_free(be, &v);
    return;
  }
  t->k[layer] = k;
  t->v[layer] = v;
}

/* ---- One block ---- */

/* One conditioning's residual stream: x, and a sublayer's result that is still to be added to it. */
typedef struct stream {
  tensor x; // F32 (L, C)
  residual_add add;
  tensor y; // act (L, C): normed rows on their way into a sublayer
} stream;

typedef struct work {
  tensor q, k, v; // act (L, C)
} work;

/* y as the block's large products take it: in the act dtype itself, otherwise a copy in the current scope. */
static tensor operand(dit *d, const dit_block *b, tensor y) {
  return op_cast(d->be, y, b->coarse ? d->be->product : DT_NONE);
}

/* w->q = W_o Attn(y), with rotated queries and keys */
static void self_attention(dit *d, const dit_block *b, tensor y, const work *w) {
  backend *be = d->be;
  const int heads = d->config.heads;
  scope_mark mark = scope_begin(be);
  tensor a = operand(d, b, y);
  linear_into(be, a, &b->self.q, w->q);
  linear_into(be, a, &b->self.k, w->k);
  linear_into(be, a, &b->self.v, w->v);
  scope_end(be, mark);
  op_qk_norm_rope(be, w->q, &b->self.norm_q, d->config.eps, d->rope, heads);
  op_qk_norm_rope(be, w->k, &b->self.norm_k, d->config.eps, d->rope, heads);
  attention_spec spec = {
      .heads = heads, .scale = 1 / sqrtf((float)(d->config.dim / heads)), .coarse = b->coarse};
  op_attention_into(be, w->q, w->k, w->v, &spec, y);
  linear_into(be, operand(d, b, y), &b->self.o, w->q);
  scope_end(be, mark);
}

/* x += W_o Attn(y, text): no rotation */
static void cross_attention(dit *d, const dit_block *b, int layer, tensor x, tensor y, tensor q,
                            const dit_text *t) {
  backend *be = d->be;
  const int heads = d->config.heads;
  scope_mark mark = scope_begin(be);
  linear_into(be, operand(d, b, y), &b->cross.q, q);
  scope_end(be, mark);
  op_qk_norm_rope(be, q, &b->cross.norm_q, d->config.eps, (tensor){0}, heads);
  attention_spec spec = {
      .heads = heads, .scale = 1 / sqrtf((float)(d->config.dim / heads)), .key_bias = t->key_bias};
  op_attention_into(be, q, t->k[layer], t->v[layer], &spec, y);
  op_linear_add(be, operand(d, b, y), &b->cross.o.w, &b->cross.o.b, x);
  scope_end(be, mark);
}

/* y = W2 gelu(W0 y) */
static void feed_forward(dit *d, const dit_block *b, tensor y) {
  backend *be = d->be;
  const int64_t L = y.dim[0], parts = (L + FFN_ROWS - 1) / FFN_ROWS, size = (L + parts - 1) / parts;
  for (int64_t i = 0; i < L; i += size) {
    scope_mark mark = scope_begin(be);
    tensor yi = tensor_slice(y, i, i + size < L ? size : L - i);
    tensor h = linear(be, operand(d, b, yi), &b->ffn0, ACT_GELU_TANH, DT_NONE); // (size, ffn_dim)
    linear_into(be, operand(d, b, h), &b->ffn2, yi);
    scope_end(be, mark);
  }
}

/* x += gate_sa * SelfAttn(LN1(x) * (1 + scale_sa) + shift_sa)
 * x += CrossAttn(LN3(x), text)                                      no modulation, no gate
 * x += gate_ffn * FFN(LN2(x) * (1 + scale_ffn) + shift_ffn)         left in s->add */
static void block_forward(dit *d, int layer, stream *s, tensor mod, const token_rows *rows, dit_text *t) {
  backend *be = d->be;
  const dit_block *b = &d->blocks[layer];
  const float eps = d->config.eps;
  tensor x = s->x, y = s->y;
  scope_mark mark = scope_begin(be);
  text_keys(d, b, layer, t);
  work w = {tensor_new(be, DT_NONE, x.ndim, x.dim), tensor_new(be, DT_NONE, x.ndim, x.dim),
            tensor_new(be, DT_NONE, x.ndim, x.dim)};
  op_add_ada_norm(be, x, &s->add, mod, rows, SHIFT_SA, SCALE_SA, eps, y);
  self_attention(d, b, y, &w);
  op_add_layer_norm(be, x, &(residual_add){.y = w.q, .mod = mod, .gate = GATE_SA}, rows, &b->norm3_w,
                    &b->norm3_b, eps, y);
  cross_attention(d, b, layer, x, y, w.q, t);
  op_add_ada_norm(be, x, &(residual_add){0}, mod, rows, SHIFT_FFN, SCALE_FFN, eps, y);
  scope_end(be, mark);
  feed_forward(d, b, y);
  s->add = (residual_add){.y = y, .mod = mod, .gate = GATE_FFN};
}

/* ---- The whole pass ---- */

/* The distinct timesteps and which of them each unit of tokens uses. Two occur in practice (0 for a
 * conditioning frame, t elsewhere), so embeddings are made once per value and not once per token. */
typedef struct time_plan {
  float *value; /* distinct timesteps */
  int32_t *row; /* [units] */
  int64_t count, units, per;
} time_plan;

static wan_status plan_time(dit *d, dit_timesteps time, int64_t T, int64_t L, time_plan *p) {
  core_ctx *ctx = d->be->ctx;
  *p = (time_plan){0};
  if (time.count != 1 && time.count != T && time.count != L)
    return core_fail(ctx, WAN_ERR_ARGUMENT,
                     "%lld timesteps given; 1, one a latent frame (%lld) or one a token (%lld)",
                     (long long)time.count, (long long)T, (long long)L);
  p->units = time.count;
  p->per = L / time.count;
  p->value = core_calloc(ctx, (size_t)time.count, sizeof *p->value);
  p->row = core_calloc(ctx, (size_t)time.count, sizeof *p->row);
  if (!p->value || !p->row) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < time.count; i++) {
    int64_t r = 0;
    while (r < p->count && p->value[r] != time.t[i]) r++;
    if (r == p->count) p->value[p->count++] = time.t[i];
    p->row[i] = (int32_t)r;
  }
  return WAN_OK;
}

/* e [R, C] and e0 [R, 6, C], F32 throughout (the official code leaves autocast here). */
static wan_status embed_time(dit *d, const time_plan *p, tensor *e, tensor *e0) {
  backend *be = d->be;
  CORE_TRY(weight_group_acquire(be, &d->time_group));
  tensor s = dit_time_features(d, p->value, p->count); // (R, freq_dim)
  *e = linear(be, linear(be, s, &d->time0, ACT_SILU, DT_F32), &d->time2, ACT_NONE, DT_F32);
  tensor six = linear(be, op_activate(be, *e, ACT_SILU, DT_F32), &d->time_proj, ACT_NONE, DT_F32);
  *e0 = TENSOR_VIEW(six, p->count, 6, d->config.dim);
  weight_group_release(be, &d->time_group, d->outer_mode);
  return backend_status(be);
}

/* Patch embedding once, then a copy of it for each conditioning. */
static wan_status embed_patches(dit *d, tensor latent, int n, stream *s) {
  backend *be = d->be;
  CORE_TRY(weight_group_acquire(be, &d->patch_group));
  scope_mark mark = scope_begin(be);
  linear_into(be, op_patchify(be, latent), &d->patch, s[0].x);
  scope_end(be, mark);
  for (int i = 1; i < n; i++) tensor_copy(be, s[i].x, s[0].x);
  weight_group_release(be, &d->patch_group, d->outer_mode);
  return backend_status(be);
}

/* watch: I32 [layers], set where a block's result is not finite. The blocks' modulations stay until the pass
 * is over, because a block's last gate is used by the norm of the next one. */
static wan_status run_blocks(dit *d, int n, stream *s, tensor e0, const token_rows *rows, tensor watch,
                             dit_text *const *text, const dit_options *o) {
  backend *be = d->be;
  for (int layer = 0; layer < d->config.layers; layer++) {
    dit_block *b = &d->blocks[layer];
    CORE_TRY(core_check_cancel(be->ctx));
    CORE_TRY(weight_group_acquire(be, &b->group));
    if (layer + 1 < d->config.layers && d->blocks[layer + 1].mode == RESIDENCY_STREAM)
      weight_group_prefetch(be, &d->blocks[layer + 1].group);
    tensor mod = op_modulation(be, &b->modulation, e0); // (R, 6, C)
    for (int i = 0; i < n; i++) {
      if (o && o->skip_layers && (o->skip_layers[i] >> layer & 1)) continue;
      block_forward(d, layer, &s[i], mod, rows, text[i]);
      s[i].add.watch = tensor_slice(watch, layer, 1);
      dit_block *next = &d->blocks[(layer + 1) % d->config.layers]; // after the last, the next pass's first
      weight_group_load_ahead(be, &next->group, next->mode);        // while this one computes
    }
    weight_group_release(be, &b->group, b->mode);
    if (backend_pace(be)) return be->failed;
    if (o && o->on_block) o->on_block(o->user, layer, d->config.layers);
  }
  return WAN_OK;
}

/* Waits for the pass, and fails if a block's result was not finite. */
static wan_status check_blocks(dit *d, tensor watch) {
  backend *be = d->be;
  int32_t bad[DIT_LAYERS_MAX] = {0};
  tensor_download(be, bad, watch);
  for (int layer = 0; layer < d->config.layers; layer++)
    if (bad[layer])
      return backend_fail(
          be, WAN_ERR_NUMERIC,
          "%s: block %d produced a value that is not finite; the weights are damaged, or the precision is "
          "too low for them (try --precision f32)",
          weight_set_path(d->set), layer);
  return backend_status(be);
}

/* velocity = unpatchify(W (LN(x) * (1 + scale) + shift) + b), in F32 */
static wan_status head(dit *d, int n, const stream *s, tensor e, const token_rows *rows,
                       const tensor *velocity) {
  backend *be = d->be;
  CORE_TRY(weight_group_acquire(be, &d->head_group));
  tensor mod = op_modulation(be, &d->head_modulation, e); // (R, 2, C)
  for (int i = 0; i < n; i++) {
    scope_mark mark = scope_begin(be);
    tensor a = tensor_new(be, DT_F32, s[i].x.ndim, s[i].x.dim);
    op_add_ada_norm(be, s[i].x, &s[i].add, mod, rows, SHIFT_HEAD, SCALE_HEAD, d->config.eps, a);
    tensor y = linear(be, a, &d->head, ACT_NONE, DT_F32); // (L, 4 * out_dim)
    tensor_copy(be, velocity[i],
                op_unpatchify(be, y, velocity[i].dim[0], velocity[i].dim[1], velocity[i].dim[2]));
    scope_end(be, mark);
  }
  weight_group_release(be, &d->head_group, d->outer_mode);
  return backend_status(be);
}

static wan_status check_arguments(dit *d, tensor x, int n, const tensor *velocity) {
  core_ctx *ctx = d->be->ctx;
  char shape[96];
  if (x.type != DT_F32 || x.ndim != 4 || x.dim[3] != d->config.in_dim || x.dim[0] < 1 || x.dim[1] < 2 ||
      x.dim[2] < 2 || x.dim[1] % 2 || x.dim[2] % 2)
    return core_fail(
        ctx, WAN_ERR_ARGUMENT, "the latent is %s %s; F32 [T, h, w, %lld] with even h and w is needed",
        dtype_name(x.type), tensor_shape_text(&x, shape, sizeof shape), (long long)d->config.in_dim);
  if (n < 1 || n > DIT_PASSES_MAX)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%d conditionings in one pass; 1 to %d are possible", n,
                     DIT_PASSES_MAX);
  for (int i = 0; i < n; i++) {
    const tensor *v = &velocity[i];
    if (v->type != DT_F32 || v->ndim != 4 || memcmp(v->dim, x.dim, 3 * sizeof v->dim[0]) ||
        v->dim[3] != d->config.out_dim)
      return core_fail(
          ctx, WAN_ERR_ARGUMENT, "the velocity is %s %s; F32 [T, h, w, %lld] of the latent is needed",
          dtype_name(v->type), tensor_shape_text(v, shape, sizeof shape), (long long)d->config.out_dim);
  }
  return WAN_OK;
}

wan_status dit_forward(dit *d, tensor latent, dit_timesteps time, int n, dit_text *const *text,
                       const tensor *velocity, const dit_options *options) {
  backend *be = d->be;
  CORE_TRY(backend_status(be));
  CORE_TRY(check_arguments(d, latent, n, velocity));
  const int64_t T = latent.dim[0], gh = latent.dim[1] / 2, gw = latent.dim[2] / 2, L = T * gh * gw;
  time_plan plan;
  scope_mark mark = scope_begin(be);
  wan_status s = plan_time(d, time, T, L, &plan);
  if (s == WAN_OK) {
    stream r[DIT_PASSES_MAX];
    tensor e, e0, watch = TENSOR_NEW(be, DT_I32, d->config.layers);
    dit_make_rope(d, T, gh, gw);
    token_rows rows = token_rows_create(be, plan.row, plan.units, plan.per);
    tensor_zero(be, watch);
    for (int i = 0; i < n; i++)
      r[i] = (stream){.x = TENSOR_NEW(be, DT_F32, L, d->config.dim),
                      .y = TENSOR_NEW(be, DT_NONE, L, d->config.dim)};
    s = embed_time(d, &plan, &e, &e0);
    if (s == WAN_OK) s = embed_patches(d, latent, n, r);
    if (s == WAN_OK) s = run_blocks(d, n, r, e0, &rows, watch, text, options);
    if (s == WAN_OK) s = head(d, n, r, e, &rows, velocity);
    if (s == WAN_OK) s = check_blocks(d, watch);
  }
  scope_end(be, mark);
  core_free(be->ctx, plan.row);
  core_free(be->ctx, plan.value);
  return s;
}
