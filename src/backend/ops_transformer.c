/* ops_transformer.c: the operations of the transformer and the text encoder. */
#include "backend/ops_check.h"

#include <string.h>

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
