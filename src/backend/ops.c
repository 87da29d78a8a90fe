/* ops.c: what every operation does before and after the backend's own function: stop if something
 * failed earlier, check shapes and dtypes, allocate the result, account for time and work. */
#include "backend/backend.h"
#include "backend/profile.h"

#include <stdio.h>
#include <string.h>

/* ---- Status ---- */

wan_status backend_status(const backend *be) {
  return be->failed;
}

void backend_clear(backend *be) {
  be->failed = WAN_OK;
}

wan_status backend_fail(backend *be, wan_status status, const char *fmt, ...) {
  if (be->failed) return be->failed; /* the first message explains, later ones are consequences */
  char text[CORE_MESSAGE_MAX];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  core_fail(be->ctx, status, "%s", text);
  return be->failed = status;
}

static bool settle(backend *be, wan_status status) {
  if (status != WAN_OK && !be->failed) be->failed = status;
  return be->failed == WAN_OK;
}

wan_status backend_sync(backend *be) {
  if (!be->failed) settle(be, be->ops->sync(be));
  return be->failed;
}

wan_status backend_pace(backend *be) {
  if (!be->failed && be->ops->pace) settle(be, be->ops->pace(be));
  return be->failed;
}

/* ---- Profile ---- */

static double profile_start(backend *be) {
  if (!be->profile) return 0;
  be->ops->sync(be);
  return core_now();
}

static void profile_stop(backend *be, profile_op op, double start, double flops, double bytes) {
  if (!be->profile) return;
  be->ops->sync(be);
  backend_profile_row *r = &be->profile->row[op];
  r->calls++;
  r->seconds += core_now() - start;
  r->flops += flops;
  r->bytes += bytes;
}

static double size_of(tensor t) {
  return (double)tensor_bytes(&t);
}

/* ---- Checks ---- */

static bool usable(tensor t) {
  return t.type != DT_NONE;
}

static tensor unless_failed(backend *be, tensor result) {
  if (be->failed) return (tensor){0};
  return result;
}

static dtype out_type(backend *be, dtype t) {
  return t == DT_NONE ? be->act : t;
}

static bool is_act(backend *be, tensor t) {
  return t.type == be->act || t.type == DT_F32;
}

/* What a product by w takes. */
static bool is_operand(backend *be, tensor t, const weight *w) {
  return is_act(be, t) || (w->role == WEIGHT_PRODUCT && t.type == be->product);
}

/* Fails with the op's name and two shapes when `ok` does not hold. */
static bool require(backend *be, bool ok, const char *op, tensor a, tensor b) {
  if (be->failed) return false;
  if (ok) return true;
  char sa[96], sb[96];
  backend_fail(be, WAN_ERR_ARGUMENT, "%s: operands %s %s and %s %s do not fit together", op,
               dtype_name(a.type), tensor_shape_text(&a, sa, sizeof sa), dtype_name(b.type),
               tensor_shape_text(&b, sb, sizeof sb));
  return false;
}

static bool require_loaded(backend *be, const char *op, const weight *w, int64_t count) {
  if (be->failed) return false;
  if (w->data && tensor_count(&w->src) == count) return true;
  char s[96];
  backend_fail(be, WAN_ERR_ARGUMENT, "%s: weight %s %s %s, %lld elements expected", op,
               w->name ? w->name : "?", tensor_shape_text(&w->src, s, sizeof s),
               w->data ? "has the wrong size" : "is not loaded", (long long)count);
  return false;
}

static tensor same_shape(backend *be, tensor x, dtype type) {
  return tensor_new(be, out_type(be, type), x.ndim, x.dim);
}

static tensor as_weight(const weight *w) {
  return w ? w->src : (tensor){0};
}

/* ---- Transfers and weights ---- */

void tensor_upload(backend *be, tensor dst, const void *host) {
  if (!require(be, usable(dst), "upload", dst, dst)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->upload(be, dst.data, host, tensor_bytes(&dst)));
  profile_stop(be, PROF_TRANSFER, t0, 0, size_of(dst));
}

void tensor_download(backend *be, void *host, tensor src) {
  if (!require(be, usable(src), "download", src, src)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->download(be, host, src.data, tensor_bytes(&src)));
  profile_stop(be, PROF_TRANSFER, t0, 0, size_of(src));
}

void tensor_copy(backend *be, tensor dst, tensor src) {
  if (!require(be, usable(dst) && dst.type == src.type && tensor_count(&dst) == tensor_count(&src), "copy",
               dst, src))
    return;
  double t0 = profile_start(be);
  settle(be, be->ops->copy(be, dst.data, src.data, tensor_bytes(&src)));
  profile_stop(be, PROF_TRANSFER, t0, 0, 2 * size_of(src));
}

void tensor_zero(backend *be, tensor dst) {
  if (!require(be, usable(dst), "zero", dst, dst)) return;
  settle(be, be->ops->zero(be, dst.data, tensor_bytes(&dst)));
}

wan_status backend_weight_load(backend *be, weight *w) {
  if (w->data) return WAN_OK;
  double t0 = profile_start(be);
  wan_status s = be->ops->weight_load(be, w);
  profile_stop(be, PROF_WEIGHT_LOAD, t0, 0, size_of(w->src));
  if (s != WAN_OK || w->data_bytes || w->role == WEIGHT_TABLE) return s;
  /* Used in place: its pages are in memory because of us, so they count. (Of a table few are touched.) */
  w->place_bytes = tensor_bytes(&w->src);
  core_mem_add(be->ctx, (int64_t)w->place_bytes);
  return WAN_OK;
}

void backend_weight_prefetch(backend *be, weight *w) {
  if (be->ops->weight_prefetch && !w->data && !be->failed) be->ops->weight_prefetch(be, w);
}

dtype backend_weight_type(const backend *be, const weight *w) {
  if (w->role == WEIGHT_VECTOR || w->role == WEIGHT_LINEAR_F32) return DT_F32;
  if (w->role == WEIGHT_TABLE) return w->src.type;
  return w->role == WEIGHT_PRODUCT ? be->product : be->act;
}

size_t backend_weight_bytes(backend *be, const weight *w) {
  if (be->ops->weight_bytes) return be->ops->weight_bytes(be, w);
  if (w->role == WEIGHT_TABLE) return 0;
  tensor loaded = w->src;
  loaded.type = backend_weight_type(be, w);
  return tensor_bytes(&loaded);
}

wan_status backend_reserve(backend *be, uint64_t bytes, uint64_t host) {
  return be->ops->mem_reserve ? be->ops->mem_reserve(be, bytes, host) : WAN_OK;
}

void backend_weight_unload(backend *be, weight *w) {
  if (w->data) be->ops->weight_unload(be, w);
  core_mem_add(be->ctx, -(int64_t)w->place_bytes);
  w->data = NULL;
  w->impl = NULL;
  w->type = DT_NONE;
  w->data_bytes = w->place_bytes = 0;
}

void backend_weight_forget(backend *be, weight *w) {
  backend_weight_unload(be, w);
  if (be->ops->weight_forget) be->ops->weight_forget(be, w);
}

/* ---- Transformer operations ---- */

static bool linear_fits(backend *be, tensor x, const weight *w, const weight *bias, tensor out) {
  int64_t n = w->src.ndim ? w->src.dim[0] : 0, k = tensor_cols(&x);
  bool ok = usable(x) && usable(out) && is_operand(be, x, w) && is_act(be, out) && tensor_cols(&out) == n &&
            tensor_rows(&out) == tensor_rows(&x);
  return require(be, ok, "linear", x, out) && require_loaded(be, "linear", w, n * k) &&
         (!bias || require_loaded(be, "linear bias", bias, n));
}

static void linear_profile(backend *be, double t0, tensor x, const weight *w, tensor out, int times) {
  const double nk = (double)(tensor_cols(&out) * tensor_cols(&x));
  profile_stop(be, PROF_LINEAR, t0, 2.0 * (double)tensor_rows(&x) * nk,
               size_of(x) + times * size_of(out) + nk * (double)dtype_size(w->type));
}

void op_linear_into(backend *be, tensor x, const weight *w, const weight *bias, op_act act, tensor out) {
  if (!linear_fits(be, x, w, bias, out)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->linear(be, x, w, bias, act, out));
  linear_profile(be, t0, x, w, out, 1);
}

void op_linear_add(backend *be, tensor x, const weight *w, const weight *bias, tensor sum) {
  if (!linear_fits(be, x, w, bias, sum) || !require(be, sum.type == DT_F32, "linear_add", x, sum)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->linear_add(be, x, w, bias, sum));
  linear_profile(be, t0, x, w, sum, 2);
}

tensor op_linear(backend *be, tensor x, const weight *w, const weight *bias, op_act act, dtype out) {
  if (!require(be, usable(x) && x.ndim > 0 && w->src.ndim > 0, "linear", x, w->src)) return (tensor){0};
  int64_t dim[TENSOR_MAX_DIMS];
  memcpy(dim, x.dim, sizeof dim);
  dim[x.ndim - 1] = w->src.dim[0];
  tensor y = tensor_new(be, out_type(be, out), x.ndim, dim);
  op_linear_into(be, x, w, bias, act, y);
  return unless_failed(be, y);
}

/* mod is [n, R, C] for C columns, rows valid, and units * per covers the tokens */
static bool mod_fits(tensor x, tensor mod, const token_rows *rows, int r0, int r1) {
  return usable(mod) && mod.ndim == 3 && mod.type == DT_F32 && mod.dim[2] == tensor_cols(&x) && rows &&
         rows->row.type == DT_I32 && r0 >= 0 && r0 < mod.dim[1] && r1 >= 0 && r1 < mod.dim[1] &&
         rows->per > 0 && rows->offset >= 0 &&
         rows->offset + tensor_rows(&x) <= rows->per * tensor_count(&rows->row);
}

tensor op_ada_norm(backend *be, tensor x, tensor mod, const token_rows *rows, int shift, int scale, float eps,
                   dtype out) {
  if (!require(be, usable(x) && x.type == DT_F32 && mod_fits(x, mod, rows, shift, scale), "ada_norm", x, mod))
    return (tensor){0};
  tensor y = same_shape(be, x, out);
  if (be->failed) return y;
  double t0 = profile_start(be);
  settle(be, be->ops->ada_norm(be, x, mod, rows, shift, scale, eps, y));
  profile_stop(be, PROF_ADA_NORM, t0, 8.0 * (double)tensor_count(&x), size_of(x) + size_of(y));
  return unless_failed(be, y);
}

tensor op_layer_norm(backend *be, tensor x, const weight *gamma, const weight *beta, float eps, dtype out) {
  if (!require(be, usable(x) && x.type == DT_F32, "layer_norm", x, as_weight(gamma))) return (tensor){0};
  if (!require_loaded(be, "layer_norm", gamma, tensor_cols(&x))) return (tensor){0};
  if (!require_loaded(be, "layer_norm", beta, tensor_cols(&x))) return (tensor){0};
  tensor y = same_shape(be, x, out);
  if (be->failed) return y;
  double t0 = profile_start(be);
  settle(be, be->ops->layer_norm(be, x, gamma, beta, eps, y));
  profile_stop(be, PROF_LAYER_NORM, t0, 8.0 * (double)tensor_count(&x), size_of(x) + size_of(y));
  return unless_failed(be, y);
}

/* ---- The same with an addition in front ---- */

static bool residual_fits(backend *be, tensor x, const residual_add *add, const token_rows *rows,
                          tensor out) {
  const tensor *y = &add->y, *watch = &add->watch;
  bool ok = usable(x) && x.type == DT_F32 && is_act(be, out) && tensor_same_shape(&x, &out);
  if (ok && usable(*y)) ok = is_act(be, *y) && tensor_same_shape(&x, y);
  if (ok && usable(*y) && usable(add->mod)) ok = mod_fits(x, add->mod, rows, add->gate, add->gate);
  return ok && (!usable(*watch) || (watch->type == DT_I32 && tensor_count(watch) == 1));
}

/* The addition alone, for backends that don't join the two. */
static wan_status add_residual(backend *be, tensor x, const residual_add *add, const token_rows *rows) {
  static const int32_t bad = 1;
  bool finite = true;
  CORE_TRY(be->ops->gate_add(be, x, add->y, add->mod, rows, add->gate));
  if (!usable(add->watch)) return WAN_OK;
  CORE_TRY(be->ops->all_finite(be, x, &finite));
  return finite ? WAN_OK : be->ops->upload(be, add->watch.data, &bad, sizeof bad);
}

void op_add_ada_norm(backend *be, tensor x, const residual_add *add, tensor mod, const token_rows *rows,
                     int shift, int scale, float eps, tensor out) {
  const backend_ops *ops = be->ops;
  bool ok = residual_fits(be, x, add, rows, out) && mod_fits(x, mod, rows, shift, scale);
  if (!require(be, ok, "add_ada_norm", x, out)) return;
  double t0 = profile_start(be);
  if (usable(add->y) && ops->add_ada_norm) {
    settle(be, ops->add_ada_norm(be, x, add, mod, rows, shift, scale, eps, out));
  } else {
    if (usable(add->y)) settle(be, add_residual(be, x, add, rows));
    if (!be->failed) settle(be, ops->ada_norm(be, x, mod, rows, shift, scale, eps, out));
  }
  profile_stop(be, PROF_ADA_NORM, t0, 10.0 * (double)tensor_count(&x),
               2 * size_of(x) + size_of(add->y) + size_of(out));
}

void op_add_layer_norm(backend *be, tensor x, const residual_add *add, const token_rows *rows,
                       const weight *gamma, const weight *beta, float eps, tensor out) {
  const backend_ops *ops = be->ops;
  if (!require(be, residual_fits(be, x, add, rows, out), "add_layer_norm", x, out)) return;
  if (!require_loaded(be, "add_layer_norm", gamma, tensor_cols(&x))) return;
  if (!require_loaded(be, "add_layer_norm", beta, tensor_cols(&x))) return;
  double t0 = profile_start(be);
  if (usable(add->y) && ops->add_layer_norm) {
    settle(be, ops->add_layer_norm(be, x, add, rows, gamma, beta, eps, out));
  } else {
    if (usable(add->y)) settle(be, add_residual(be, x, add, rows));
    if (!be->failed) settle(be, ops->layer_norm(be, x, gamma, beta, eps, out));
  }
  profile_stop(be, PROF_LAYER_NORM, t0, 10.0 * (double)tensor_count(&x),
               2 * size_of(x) + size_of(add->y) + size_of(out));
}

tensor op_rms_norm(backend *be, tensor x, const weight *gamma, float eps, dtype out) {
  if (!require(be, usable(x) && is_act(be, x), "rms_norm", x, as_weight(gamma))) return (tensor){0};
  if (!require_loaded(be, "rms_norm", gamma, tensor_cols(&x))) return (tensor){0};
  tensor y = same_shape(be, x, out);
  if (be->failed) return y;
  double t0 = profile_start(be);
  settle(be, be->ops->rms_norm(be, x, gamma, eps, y));
  profile_stop(be, PROF_RMS_NORM, t0, 4.0 * (double)tensor_count(&x), size_of(x) + size_of(y));
  return unless_failed(be, y);
}

void op_qk_norm_rope(backend *be, tensor x, const weight *gamma, float eps, tensor rope, int heads) {
  int64_t c = tensor_cols(&x);
  bool ok = usable(x) && is_act(be, x) && x.ndim == 2 && heads > 0 && c % heads == 0 && (c / heads) % 2 == 0;
  if (ok && usable(rope))
    ok = rope.type == DT_F32 && rope.ndim == 3 && rope.dim[0] == x.dim[0] && rope.dim[1] == c / heads / 2 &&
         rope.dim[2] == 2;
  if (!require(be, ok, "qk_norm_rope", x, rope)) return;
  if (!require_loaded(be, "qk_norm_rope", gamma, c)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->qk_norm_rope(be, x, gamma, eps, rope, heads));
  profile_stop(be, PROF_QK_NORM_ROPE, t0, 7.0 * (double)tensor_count(&x), 2 * size_of(x) + size_of(rope));
}

static bool attention_fits(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec) {
  bool ok = usable(q) && usable(k) && usable(v) && q.ndim == 2 && k.ndim == 2 && tensor_same_shape(&k, &v) &&
            q.dim[1] == k.dim[1] && is_act(be, q) && q.type == k.type && k.type == v.type && k.dim[0] > 0 &&
            spec->heads > 0 && q.dim[1] % spec->heads == 0;
  if (ok && usable(spec->key_bias))
    ok = spec->key_bias.type == DT_F32 && tensor_count(&spec->key_bias) == k.dim[0];
  if (ok && usable(spec->rel_bias))
    ok = spec->rel_bias.type == DT_F32 && spec->rel_bias.ndim == 2 && spec->rel_bias.dim[0] == spec->heads &&
         spec->rel_bias.dim[1] == q.dim[0] + k.dim[0] - 1;
  return require(be, ok, "attention", q, k);
}

void op_attention_into(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec, tensor out) {
  if (!attention_fits(be, q, k, v, spec)) return;
  if (!require(be, out.type == q.type && tensor_same_shape(&out, &q), "attention", q, out)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->attention(be, q, k, v, spec, out));
  profile_stop(be, PROF_ATTENTION, t0, 4.0 * (double)(q.dim[0] * q.dim[1]) * (double)k.dim[0],
               size_of(q) + size_of(k) + size_of(v) + size_of(out));
}

tensor op_attention(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec) {
  if (!attention_fits(be, q, k, v, spec)) return (tensor){0};
  tensor y = same_shape(be, q, q.type);
  op_attention_into(be, q, k, v, spec, y);
  return unless_failed(be, y);
}

void op_gate_add(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows, int gate) {
  bool ok = usable(x) && usable(y) && is_act(be, x) && is_act(be, y) &&
            tensor_count(&x) == tensor_count(&y) &&
            (!usable(mod) || (x.type == DT_F32 && mod_fits(x, mod, rows, gate, gate)));
  if (!require(be, ok, "gate_add", x, y)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->gate_add(be, x, y, mod, rows, gate));
  profile_stop(be, PROF_GATE_ADD, t0, 2.0 * (double)tensor_count(&x), 2 * size_of(x) + size_of(y));
}

void op_mul(backend *be, tensor a, tensor b) {
  bool ok = usable(a) && a.type == b.type && is_act(be, a) && tensor_count(&a) == tensor_count(&b);
  if (!require(be, ok, "mul", a, b)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->mul(be, a, b));
  profile_stop(be, PROF_ELEMENTWISE, t0, (double)tensor_count(&a), 3 * size_of(a));
}

tensor op_activate(backend *be, tensor x, op_act act, dtype out) {
  if (!require(be, usable(x) && is_act(be, x), "activate", x, x)) return (tensor){0};
  tensor y = same_shape(be, x, out);
  if (be->failed) return y;
  double t0 = profile_start(be);
  settle(be, be->ops->activate(be, x, act, y));
  profile_stop(be, PROF_ELEMENTWISE, t0, 8.0 * (double)tensor_count(&x), size_of(x) + size_of(y));
  return unless_failed(be, y);
}

tensor op_modulation(backend *be, const weight *base, tensor e) {
  int64_t r = base->src.ndim >= 2 ? base->src.dim[base->src.ndim - 2] : 0, c = tensor_cols(&base->src);
  bool ok = usable(e) && e.type == DT_F32 && tensor_cols(&e) == c &&
            (e.ndim == 2 || (e.ndim == 3 && e.dim[1] == r));
  if (!require(be, ok, "modulation", base->src, e)) return (tensor){0};
  if (!require_loaded(be, "modulation", base, r * c)) return (tensor){0};
  tensor out = TENSOR_NEW(be, DT_F32, e.dim[0], r, c);
  if (be->failed) return out;
  settle(be, be->ops->modulation(be, base, e, out));
  return unless_failed(be, out);
}

tensor op_position_bias(backend *be, const weight *table, tensor bucket) {
  const int64_t heads = tensor_cols(&table->src);
  bool ok = bucket.type == DT_I32 && bucket.ndim == 1 && table->src.ndim == 2;
  if (!require(be, ok, "position_bias", table->src, bucket)) return (tensor){0};
  if (!require_loaded(be, "position_bias", table, tensor_count(&table->src))) return (tensor){0};
  tensor y = TENSOR_NEW(be, DT_F32, heads, bucket.dim[0]);
  if (be->failed) return y;
  settle(be, be->ops->position_bias(be, table, bucket, y));
  return unless_failed(be, y);
}

tensor op_embed(backend *be, const weight *table, const int32_t *ids, int64_t n, dtype out) {
  if (be->failed) return (tensor){0};
  int64_t rows = table->src.dim[0];
  if (!require_loaded(be, "embed", table, rows * tensor_cols(&table->src))) return (tensor){0};
  for (int64_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= rows) {
      backend_fail(be, WAN_ERR_ARGUMENT, "embed: id %d at position %lld is outside the table %s of %lld rows",
                   (int)ids[i], (long long)i, table->name ? table->name : "?", (long long)rows);
      return (tensor){0};
    }
  tensor y = TENSOR_NEW(be, out_type(be, out), n, tensor_cols(&table->src));
  if (be->failed) return y;
  double t0 = profile_start(be);
  settle(be, be->ops->embed(be, table, ids, y));
  profile_stop(be, PROF_EMBED, t0, 0, 2 * size_of(y));
  return unless_failed(be, y);
}

void op_cast_into(backend *be, tensor x, tensor out) {
  bool ok = usable(x) && is_act(be, x) && tensor_count(&x) == tensor_count(&out) &&
            (is_act(be, out) || (out.type == be->product && tensor_same_shape(&x, &out)));
  if (!require(be, ok, "cast", x, out)) return;
  if (x.type == out.type) {
    tensor_copy(be, out, x);
    return;
  }
  double t0 = profile_start(be);
  settle(be, be->ops->cast(be, x, out));
  profile_stop(be, PROF_ELEMENTWISE, t0, 0, size_of(x) + size_of(out));
}

tensor op_cast(backend *be, tensor x, dtype out) {
  out = out_type(be, out);
  if (be->failed || x.type == out) return x;
  if (!require(be, usable(x) && (out == DT_F32 || out == be->act || out == be->product), "cast", x, x))
    return (tensor){0};
  tensor y = same_shape(be, x, out);
  op_cast_into(be, x, y);
  return unless_failed(be, y);
}

tensor op_patchify(backend *be, tensor x) {
  bool ok = usable(x) && x.type == DT_F32 && x.ndim == 4 && x.dim[1] % 2 == 0 && x.dim[2] % 2 == 0;
  if (!require(be, ok, "patchify", x, x)) return (tensor){0};
  tensor y = TENSOR_NEW(be, be->act, x.dim[0] * (x.dim[1] / 2) * (x.dim[2] / 2), x.dim[3] * 4);
  if (be->failed) return y;
  double t0 = profile_start(be);
  settle(be, be->ops->patchify(be, x, y));
  profile_stop(be, PROF_RESHAPE, t0, 0, size_of(x) + size_of(y));
  return unless_failed(be, y);
}

tensor op_unpatchify(backend *be, tensor y, int64_t T, int64_t h, int64_t w) {
  bool ok = usable(y) && y.type == DT_F32 && y.ndim == 2 && h % 2 == 0 && w % 2 == 0 && y.dim[1] % 4 == 0 &&
            y.dim[0] == T * (h / 2) * (w / 2);
  if (!require(be, ok, "unpatchify", y, y)) return (tensor){0};
  tensor x = TENSOR_NEW(be, DT_F32, T, h, w, y.dim[1] / 4);
  if (be->failed) return x;
  double t0 = profile_start(be);
  settle(be, be->ops->unpatchify(be, y, x));
  profile_stop(be, PROF_RESHAPE, t0, 0, size_of(x) + size_of(y));
  return unless_failed(be, x);
}

/* ---- VAE operations ---- */

void op_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out) {
  bool ok = usable(x) && is_act(be, x) && out.type == be->act && tensor_count(&x) == tensor_count(&out) &&
            tensor_cols(&x) == tensor_cols(&out);
  if (!require(be, ok, "channel_norm", x, out)) return;
  if (!require_loaded(be, "channel_norm", gamma, tensor_cols(&x))) return;
  double t0 = profile_start(be);
  settle(be, be->ops->channel_norm(be, x, gamma, act, out));
  profile_stop(be, PROF_CHANNEL_NORM, t0, 10.0 * (double)tensor_count(&x), size_of(x) + size_of(out));
}

/* Whether the frames are few enough, and missing ones only in front. */
static bool frames_fit(const conv_spec *s, int64_t T) {
  if (!s->frame) return true;
  for (int64_t t = 1; t < T && T <= CONV_FRAMES_MAX; t++)
    if (!s->frame[t] && s->frame[t - 1]) return false;
  return T <= CONV_FRAMES_MAX;
}

static double kernel_bytes(const weight *w) {
  return (double)tensor_count(&w->src) * (double)dtype_size(w->type);
}

/* The result's dims of a convolution that fits; false (and the failed state) otherwise. */
static bool conv_shape(backend *be, tensor x, const weight *w, const conv_spec *s, int64_t dim[4]) {
  if (be->failed) return false;
  const tensor *k = &w->src;
  bool ok = usable(x) && x.type == be->act && x.ndim == 4 && (k->ndim == 5 || k->ndim == 4) &&
            k->dim[0] > 0 && k->dim[1] == x.dim[3] && s->stride_t > 0 && s->stride_h > 0 && s->stride_w > 0 &&
            frames_fit(s, x.dim[0]);
  if (!require(be, ok, "conv", x, *k)) return false;
  int64_t kt = k->ndim == 5 ? k->dim[2] : 1, kh = k->dim[k->ndim - 2], kw = k->dim[k->ndim - 1];
  int64_t H = x.dim[1] + s->pad_top + s->pad_bottom, W = x.dim[2] + s->pad_left + s->pad_right;
  if (!require(be, x.dim[0] >= kt && H >= kh && W >= kw, "conv", x, *k)) return false;
  dim[0] = (x.dim[0] - kt) / s->stride_t + 1;
  dim[1] = (H - kh) / s->stride_h + 1;
  dim[2] = (W - kw) / s->stride_w + 1;
  dim[3] = k->dim[0];
  return true;
}

void op_conv_into(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *s,
                  tensor residual, tensor out) {
  int64_t dim[4];
  const tensor *k = &w->src;
  if (!conv_shape(be, x, w, s, dim)) return;
  bool ok = is_act(be, out) && out.ndim == 4 && memcmp(dim, out.dim, sizeof dim) == 0;
  if (!require(be, ok, "conv", x, out)) return;
  if (!require_loaded(be, "conv", w, tensor_count(k))) return;
  if (bias && !require_loaded(be, "conv bias", bias, k->dim[0])) return;
  if (usable(residual) && !require(be, residual.type == out.type && tensor_same_shape(&residual, &out),
                                   "conv residual", residual, out))
    return;
  double t0 = profile_start(be);
  settle(be, be->ops->conv(be, x, w, bias, s, residual, out));
  profile_stop(be, PROF_CONV, t0, 2.0 * (double)tensor_count(&out) * (double)(tensor_count(k) / k->dim[0]),
               size_of(x) + size_of(out) + size_of(residual) + kernel_bytes(w));
}

tensor op_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *s,
               tensor residual) {
  int64_t dim[4];
  if (!conv_shape(be, x, w, s, dim)) return (tensor){0};
  tensor y = tensor_new(be, be->act, 4, dim);
  op_conv_into(be, x, w, bias, s, residual, y);
  return unless_failed(be, y);
}

void op_upsample_conv_into(backend *be, tensor x, const weight *w, const weight *bias, tensor out) {
  const tensor *k = &w->src;
  bool ok = usable(x) && x.type == be->act && x.ndim == 4 && k->ndim == 4 && k->dim[1] == x.dim[3] &&
            k->dim[2] == 3 && k->dim[3] == 3 && is_act(be, out) && out.ndim == 4 && out.dim[0] == x.dim[0] &&
            out.dim[1] == 2 * x.dim[1] && out.dim[2] == 2 * x.dim[2] && out.dim[3] == k->dim[0];
  if (!require(be, ok, "upsample_conv", x, out)) return;
  if (!require_loaded(be, "upsample_conv", w, tensor_count(k))) return;
  if (bias && !require_loaded(be, "upsample_conv bias", bias, k->dim[0])) return;
  double t0 = profile_start(be);
  settle(be, be->ops->upsample_conv(be, x, w, bias, out));
  profile_stop(be, PROF_UPSAMPLE_CONV, t0, 18.0 * (double)tensor_count(&out) * (double)k->dim[1],
               size_of(x) + size_of(out) + kernel_bytes(w));
}

void op_time_unshuffle_into(backend *be, tensor x, tensor out) {
  bool ok = usable(x) && is_act(be, x) && x.ndim == 4 && out.type == x.type && out.ndim == 4 &&
            out.dim[0] == 2 * x.dim[0] && out.dim[1] == x.dim[1] && out.dim[2] == x.dim[2] &&
            2 * out.dim[3] == x.dim[3];
  if (!require(be, ok, "time_unshuffle", x, out)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->time_unshuffle(be, x, out));
  profile_stop(be, PROF_RESHAPE, t0, 0, 2 * size_of(x));
}

tensor op_time_unshuffle(backend *be, tensor x) {
  if (!require(be, usable(x) && x.ndim == 4, "time_unshuffle", x, x)) return (tensor){0};
  tensor y = TENSOR_NEW(be, x.type, 2 * x.dim[0], x.dim[1], x.dim[2], x.dim[3] / 2);
  op_time_unshuffle_into(be, x, y);
  return unless_failed(be, y);
}

void op_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip) {
  bool ok = usable(x) && is_act(be, x) && is_act(be, out) && x.ndim == 4 && out.ndim == 4 && ft > 0 &&
            fs > 0 && skip >= 0 && out.dim[0] <= x.dim[0] * ft - skip && out.dim[1] == x.dim[1] * fs &&
            out.dim[2] == x.dim[2] * fs && x.dim[3] > 0 && (out.dim[3] * ft * fs * fs) % x.dim[3] == 0;
  if (!require(be, ok, "dup_up_add", out, x)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->dup_up_add(be, out, x, ft, fs, skip));
  profile_stop(be, PROF_RESHAPE, t0, (double)tensor_count(&out), size_of(x) + 2 * size_of(out));
}

void op_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs) {
  bool ok = usable(x) && is_act(be, x) && is_act(be, out) && x.ndim == 4 && out.ndim == 4 && ft > 0 &&
            fs > 0 && out.dim[0] == (x.dim[0] + ft - 1) / ft && out.dim[1] * fs == x.dim[1] &&
            out.dim[2] * fs == x.dim[2] && out.dim[3] > 0 && (x.dim[3] * ft * fs * fs) % out.dim[3] == 0;
  if (!require(be, ok, "avg_down_add", out, x)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->avg_down_add(be, out, x, ft, fs));
  profile_stop(be, PROF_RESHAPE, t0, (double)tensor_count(&x), size_of(x) + 2 * size_of(out));
}

tensor op_space_to_depth(backend *be, tensor x) {
  bool ok = usable(x) && is_act(be, x) && x.ndim == 4 && x.dim[1] % 2 == 0 && x.dim[2] % 2 == 0;
  if (!require(be, ok, "space_to_depth", x, x)) return (tensor){0};
  tensor y = TENSOR_NEW(be, x.type, x.dim[0], x.dim[1] / 2, x.dim[2] / 2, x.dim[3] * 4);
  if (be->failed) return y;
  settle(be, be->ops->space_to_depth(be, x, y));
  return unless_failed(be, y);
}

tensor op_depth_to_space(backend *be, tensor x) {
  bool ok = usable(x) && is_act(be, x) && x.ndim == 4 && x.dim[3] % 4 == 0;
  if (!require(be, ok, "depth_to_space", x, x)) return (tensor){0};
  tensor y = TENSOR_NEW(be, x.type, x.dim[0], x.dim[1] * 2, x.dim[2] * 2, x.dim[3] / 4);
  if (be->failed) return y;
  settle(be, be->ops->depth_to_space(be, x, y));
  return unless_failed(be, y);
}

/* ---- Latents and pixels ---- */

void op_lincomb(backend *be, tensor out, int n, const tensor *x, const float *coef) {
  bool ok = usable(out) && out.type == DT_F32 && n >= 1 && n <= 8;
  for (int i = 0; ok && i < n; i++) ok = x[i].type == DT_F32 && tensor_count(&x[i]) == tensor_count(&out);
  if (!require(be, ok, "lincomb", out, n > 0 ? x[0] : out)) return;
  double t0 = profile_start(be);
  settle(be, be->ops->lincomb(be, out, n, x, coef));
  profile_stop(be, PROF_ELEMENTWISE, t0, 2.0 * n * (double)tensor_count(&out), (n + 1) * size_of(out));
}

tensor op_channel_affine(backend *be, tensor x, tensor mul, tensor add, dtype out) {
  bool ok = usable(x) && is_act(be, x) && mul.type == DT_F32 && add.type == DT_F32 &&
            tensor_count(&mul) == tensor_cols(&x) && tensor_count(&add) == tensor_cols(&x);
  if (!require(be, ok, "channel_affine", x, mul)) return (tensor){0};
  tensor y = same_shape(be, x, out);
  if (be->failed) return y;
  settle(be, be->ops->channel_affine(be, x, mul, add, y));
  return unless_failed(be, y);
}

tensor op_concat_channels(backend *be, tensor a, tensor b) {
  bool ok = usable(a) && a.type == b.type && is_act(be, a) && a.ndim == b.ndim &&
            tensor_rows(&a) == tensor_rows(&b);
  if (!require(be, ok, "concat_channels", a, b)) return (tensor){0};
  int64_t dim[TENSOR_MAX_DIMS];
  memcpy(dim, a.dim, sizeof dim);
  dim[a.ndim - 1] += tensor_cols(&b);
  tensor y = tensor_new(be, a.type, a.ndim, dim);
  if (be->failed) return y;
  settle(be, be->ops->concat_channels(be, a, b, y));
  return unless_failed(be, y);
}

tensor op_to_u8(backend *be, tensor x) {
  if (!require(be, usable(x) && is_act(be, x), "to_u8", x, x)) return (tensor){0};
  tensor y = tensor_new(be, DT_U8, x.ndim, x.dim);
  if (be->failed) return y;
  settle(be, be->ops->to_u8(be, x, y));
  return unless_failed(be, y);
}

bool op_all_finite(backend *be, tensor x) {
  bool finite = false;
  if (!require(be, usable(x) && is_act(be, x), "all_finite", x, x)) return false;
  double t0 = profile_start(be);
  if (!settle(be, be->ops->all_finite(be, x, &finite))) return false;
  profile_stop(be, PROF_REDUCE, t0, 0, size_of(x));
  return finite;
}

double op_dot(backend *be, tensor a, tensor b) {
  double sum = 0;
  bool ok = usable(a) && a.type == DT_F32 && b.type == DT_F32 && tensor_count(&a) == tensor_count(&b);
  if (!require(be, ok, "dot", a, b)) return 0;
  double t0 = profile_start(be);
  if (!settle(be, be->ops->dot(be, a, b, &sum))) return 0;
  profile_stop(be, PROF_REDUCE, t0, 2.0 * (double)tensor_count(&a), 2 * size_of(a));
  return sum;
}

token_rows token_rows_create(backend *be, const int32_t *row, int64_t units, int64_t per) {
  token_rows r = {.row = TENSOR_NEW(be, DT_I32, units), .per = per, .offset = 0};
  tensor_upload(be, r.row, row);
  return r;
}

token_rows token_rows_at(token_rows rows, int64_t begin) {
  rows.offset += begin;
  return rows;
}
