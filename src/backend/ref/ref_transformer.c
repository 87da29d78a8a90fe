/* ref_transformer.c: what the text encoder and the diffusion transformer are made of.
 * L tokens, C channels, K inputs, N outputs. */
#include "backend/ref/ref.h"

#include <math.h>

static wan_status product(backend *be, tensor x, const weight *w, const weight *bias, op_act act, bool add,
                          tensor out);

/* The operand of a product in 8 bits: x rounded to it. */
static wan_status product_of_quantised(backend *be, tensor x, const weight *w, const weight *bias, op_act act,
                                       bool add, tensor out) {
  tensor rows = x;
  rows.type = DT_E4M3_ROWS;
  if (!(rows.data = core_alloc(be->ctx, tensor_bytes(&rows)))) return WAN_ERR_MEMORY;
  wan_status s = ref_quantise(be, x, rows);
  if (s == WAN_OK) s = product(be, rows, w, bias, act, add, out);
  core_free(be->ctx, rows.data);
  return s;
}

static wan_status product(backend *be, tensor x, const weight *w, const weight *bias, op_act act, bool add,
                          tensor out) {
  if (w->role == WEIGHT_PRODUCT && be->product == DT_E4M3_ROWS && x.type != DT_E4M3_ROWS)
    return product_of_quantised(be, x, w, bias, act, add, out);
  int64_t rows = tensor_rows(&x), k = tensor_cols(&x), n = tensor_cols(&out);
  double *in = ref_scratch(be, k);
  if (!in) return WAN_ERR_MEMORY;
  for (int64_t r = 0; r < rows; r++) {
    ref_read_row(x, r, in);
    for (int64_t o = 0; o < n; o++) {
      const char *w_row = (const char *)w->data + (size_t)(o * k) * dtype_size(w->type);
      double y = ref_activate(act, ref_dot(in, w->type, w_row, k) + ref_vector(bias, o));
      ref_set(out, r * n + o, add ? y + ref_get(out.type, out.data, r * n + o) : y);
    }
  }
  core_free(be->ctx, in);
  return WAN_OK;
}

wan_status ref_linear(backend *be, tensor x, const weight *w, const weight *bias, op_act act, tensor out) {
  return product(be, x, w, bias, act, false, out);
}

wan_status ref_linear_add(backend *be, tensor x, const weight *w, const weight *bias, tensor sum) {
  return product(be, x, w, bias, ACT_NONE, true, sum);
}

/* ---- Norms ---- */

/* (v - mean) / sqrt(biased variance + eps) in place */
static void standardize(double *v, int64_t n, double eps) {
  double mean = 0, variance = 0;
  for (int64_t i = 0; i < n; i++) mean += v[i];
  mean /= (double)n;
  for (int64_t i = 0; i < n; i++) variance += (v[i] - mean) * (v[i] - mean);
  double scale = 1 / sqrt(variance / (double)n + eps);
  for (int64_t i = 0; i < n; i++) v[i] = (v[i] - mean) * scale;
}

/* v / sqrt(mean of squares + eps) * gamma in place */
static void rms_scale(double *v, int64_t n, double eps, const weight *gamma) {
  double squares = 0;
  for (int64_t i = 0; i < n; i++) squares += v[i] * v[i];
  double scale = 1 / sqrt(squares / (double)n + eps);
  for (int64_t i = 0; i < n; i++) v[i] *= scale * ref_vector(gamma, i);
}

/* Entry `which` of the modulation (F32 [n, R, C]) that token i uses: C floats. */
static const float *mod_row(tensor mod, const token_rows *rows, int64_t i, int which) {
  int64_t row = ((const int32_t *)rows->row.data)[(rows->offset + i) / rows->per];
  return (const float *)mod.data + (row * mod.dim[1] + which) * mod.dim[2];
}

wan_status ref_ada_norm(backend *be, tensor x, tensor mod, const token_rows *rows, int shift, int scale,
                        float eps, tensor out) {
  int64_t n = tensor_rows(&x), c = tensor_cols(&x);
  double *v = ref_scratch(be, c);
  if (!v) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++) {
    const float *add = mod_row(mod, rows, i, shift), *mul = mod_row(mod, rows, i, scale);
    ref_read_row(x, i, v);
    standardize(v, c, (double)eps);
    for (int64_t j = 0; j < c; j++) v[j] = v[j] * (1.0 + mul[j]) + add[j];
    ref_write_row(out, i, v);
  }
  core_free(be->ctx, v);
  return WAN_OK;
}

wan_status ref_layer_norm(backend *be, tensor x, const weight *gamma, const weight *beta, float eps,
                          tensor out) {
  int64_t n = tensor_rows(&x), c = tensor_cols(&x);
  double *v = ref_scratch(be, c);
  if (!v) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++) {
    ref_read_row(x, i, v);
    standardize(v, c, (double)eps);
    for (int64_t j = 0; j < c; j++) v[j] = v[j] * ref_vector(gamma, j) + ref_vector(beta, j);
    ref_write_row(out, i, v);
  }
  core_free(be->ctx, v);
  return WAN_OK;
}

wan_status ref_rms_norm(backend *be, tensor x, const weight *gamma, float eps, tensor out) {
  int64_t n = tensor_rows(&x), c = tensor_cols(&x);
  double *v = ref_scratch(be, c);
  if (!v) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++) {
    ref_read_row(x, i, v);
    rms_scale(v, c, (double)eps, gamma);
    ref_write_row(out, i, v);
  }
  core_free(be->ctx, v);
  return WAN_OK;
}

wan_status ref_qk_norm_rope(backend *be, tensor x, const weight *gamma, float eps, tensor rope, int heads) {
  int64_t n = tensor_rows(&x), c = tensor_cols(&x), pairs = c / heads / 2;
  double *v = ref_scratch(be, c);
  if (!v) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < n; i++) {
    ref_read_row(x, i, v);
    rms_scale(v, c, (double)eps, gamma);
    for (int64_t p = 0; rope.type != DT_NONE && p < c / 2; p++) {
      const float *turn = (const float *)rope.data + (i * pairs + p % pairs) * 2; /* cos, sin */
      double a = v[2 * p], b = v[2 * p + 1];
      v[2 * p] = a * turn[0] - b * turn[1];
      v[2 * p + 1] = a * turn[1] + b * turn[0];
    }
    ref_write_row(x, i, v);
  }
  core_free(be->ctx, v);
  return WAN_OK;
}

/* ---- Attention ---- */

/* v -> exp(v - max) / sum */
static void softmax(double *v, int64_t n) {
  double max = v[0], sum = 0;
  for (int64_t i = 1; i < n; i++) max = fmax(max, v[i]);
  for (int64_t i = 0; i < n; i++) sum += v[i] = exp(v[i] - max);
  for (int64_t i = 0; i < n; i++) v[i] /= sum;
}

/* One query row of one head: q, out (d values each); score has room for Lk values. */
static void attend(const double *q, tensor k, tensor v, const attention_spec *spec, int64_t h, int64_t i,
                   int64_t lq, double *score, double *out) {
  int64_t lk = k.dim[0], c = k.dim[1], d = c / spec->heads;
  const float *key_bias = spec->key_bias.data, *rel_bias = spec->rel_bias.data;
  size_t size = dtype_size(k.type);
  for (int64_t j = 0; j < lk; j++) {
    score[j] =
        (double)spec->scale * ref_dot(q, k.type, (const char *)k.data + (size_t)(j * c + h * d) * size, d);
    if (spec->key_bias.type != DT_NONE) score[j] += key_bias[j];
    if (spec->rel_bias.type != DT_NONE) score[j] += rel_bias[h * (lq + lk - 1) + j - i + lq - 1];
  }
  softmax(score, lk);
  for (int64_t e = 0; e < d; e++) out[e] = 0;
  for (int64_t j = 0; j < lk; j++)
    for (int64_t e = 0; e < d; e++) out[e] += score[j] * ref_get(v.type, v.data, j * c + h * d + e);
}

wan_status ref_attention(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec, tensor out) {
  int64_t lq = q.dim[0], lk = k.dim[0], c = q.dim[1], d = c / spec->heads;
  double *row = ref_scratch(be, lk + 2 * c);
  if (!row) return WAN_ERR_MEMORY;
  double *query = row, *result = row + c, *score = row + 2 * c;
  for (int64_t i = 0; i < lq; i++) {
    ref_read_row(q, i, query);
    for (int64_t h = 0; h < spec->heads; h++)
      attend(query + h * d, k, v, spec, h, i, lq, score, result + h * d);
    ref_write_row(out, i, result);
  }
  core_free(be->ctx, row);
  return WAN_OK;
}

/* ---- Elementwise ---- */

wan_status ref_gate_add(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows, int gate) {
  (void)be;
  int64_t n = tensor_rows(&x), c = tensor_cols(&x);
  for (int64_t i = 0; i < n; i++) {
    const float *g = mod.type == DT_NONE ? NULL : mod_row(mod, rows, i, gate);
    for (int64_t j = 0; j < c; j++) {
      int64_t at = i * c + j;
      double add = ref_get(y.type, y.data, at);
      ref_set(x, at, ref_get(x.type, x.data, at) + (g ? g[j] * add : add));
    }
  }
  return WAN_OK;
}

wan_status ref_mul(backend *be, tensor a, tensor b) {
  (void)be;
  int64_t n = tensor_count(&a);
  for (int64_t i = 0; i < n; i++) ref_set(a, i, ref_get(a.type, a.data, i) * ref_get(b.type, b.data, i));
  return WAN_OK;
}

wan_status ref_apply(backend *be, tensor x, op_act act, tensor out) {
  (void)be;
  int64_t n = tensor_count(&x);
  for (int64_t i = 0; i < n; i++) ref_set(out, i, ref_activate(act, ref_get(x.type, x.data, i)));
  return WAN_OK;
}

wan_status ref_cast(backend *be, tensor x, tensor out) {
  if (out.type == DT_E4M3_ROWS) return ref_quantise(be, x, out);
  return ref_apply(be, x, ACT_NONE, out);
}

wan_status ref_modulation(backend *be, const weight *base, tensor e, tensor out) {
  (void)be;
  int64_t n = out.dim[0], r = out.dim[1], c = out.dim[2];
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < r; k++)
      for (int64_t j = 0; j < c; j++) {
        int64_t from = e.ndim == 3 ? (i * r + k) * c + j : i * c + j;
        ref_set(out, (i * r + k) * c + j, ref_vector(base, k * c + j) + ref_get(e.type, e.data, from));
      }
  return WAN_OK;
}

wan_status ref_position_bias(backend *be, const weight *table, tensor bucket, tensor out) {
  int64_t heads = out.dim[0], n = out.dim[1];
  for (int64_t h = 0; h < heads; h++)
    for (int64_t i = 0; i < n; i++) {
      float v = (float)ref_vector(table, ((const int32_t *)bucket.data)[i] * heads + h);
      ref_set(out, h * n + i, be->act == DT_BF16 ? bf16_to_f32(f32_to_bf16(v)) : v);
    }
  return WAN_OK;
}

wan_status ref_embed(backend *be, const weight *table, const int32_t *ids, tensor out) {
  (void)be;
  int64_t n = out.dim[0], c = out.dim[1];
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < c; j++)
      ref_set(out, i * c + j, ref_get(table->type, table->data, ids[i] * c + j));
  return WAN_OK;
}

/* ---- Patches: latent pixels to tokens and back ---- */

wan_status ref_patchify(backend *be, tensor x, tensor out) {
  (void)be;
  int64_t T = x.dim[0], h = x.dim[1], w = x.dim[2], C = x.dim[3], to = 0;
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < h / 2; i++)
      for (int64_t j = 0; j < w / 2; j++)
        for (int64_t c = 0; c < C; c++)
          for (int64_t ph = 0; ph < 2; ph++)
            for (int64_t pw = 0; pw < 2; pw++) {
              int64_t from = ((t * h + 2 * i + ph) * w + 2 * j + pw) * C + c;
              ref_set(out, to++, ref_get(x.type, x.data, from));
            }
  return WAN_OK;
}

wan_status ref_unpatchify(backend *be, tensor y, tensor out) {
  (void)be;
  int64_t T = out.dim[0], h = out.dim[1], w = out.dim[2], C = out.dim[3], from = 0;
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < h / 2; i++)
      for (int64_t j = 0; j < w / 2; j++)
        for (int64_t ph = 0; ph < 2; ph++)
          for (int64_t pw = 0; pw < 2; pw++)
            for (int64_t c = 0; c < C; c++) {
              int64_t to = ((t * h + 2 * i + ph) * w + 2 * j + pw) * C + c;
              ref_set(out, to, ref_get(y.type, y.data, from++));
            }
  return WAN_OK;
}
