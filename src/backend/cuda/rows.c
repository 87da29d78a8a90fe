/* rows.c: the operations that are one kernel each. */
#include "backend/cuda/cuda.h"

#include <string.h>

/* ---- Views ---- */

k_type cuda_type(dtype t) {
  switch (t) {
  case DT_BF16:
    return K_BF16;
  case DT_F16:
    return K_F16;
  case DT_F8E4M3:
  case DT_E4M3_ROWS:
    return K_F8E4M3;
  case DT_F8E5M2:
    return K_F8E5M2;
  case DT_F64:
    return K_F64;
  default:
    return K_F32;
  }
}

k_data cuda_data(tensor t) {
  return (k_data){t.data, cuda_type(t.type)};
}

k_act cuda_act(op_act a) {
  return a == ACT_SILU ? K_SILU : a == ACT_GELU_TANH ? K_GELU : K_NONE;
}

static k_mod mod_of(tensor mod, const token_rows *rows) {
  if (mod.type == DT_NONE) return (k_mod){0};
  return (k_mod){mod.data, rows->row.data, rows->per, rows->offset, (int)mod.dim[1]};
}

static k_stream stream_of(backend *be) {
  return cuda_of(be)->stream;
}

static int cols_of(tensor t) {
  return (int)tensor_cols(&t);
}

/* ---- Norms ---- */

wan_status cuda_ada_norm(backend *be, tensor x, tensor mod, const token_rows *rows, int shift, int scale,
                         float eps, tensor out) {
  k_ada_norm(stream_of(be), x.data, mod_of(mod, rows), shift, scale, eps, cuda_data(out), tensor_rows(&x),
             cols_of(x));
  return cuda_launched(be, "ada_norm");
}

wan_status cuda_layer_norm(backend *be, tensor x, const weight *gamma, const weight *beta, float eps,
                           tensor out) {
  k_layer_norm(stream_of(be), x.data, cuda_floats(gamma), cuda_floats(beta), eps, cuda_data(out),
               tensor_rows(&x), cols_of(x));
  return cuda_launched(be, "layer_norm");
}

static k_residual residual_of(const residual_add *add, const token_rows *rows) {
  return (k_residual){cuda_data(add->y), mod_of(add->mod, rows), add->gate, add->watch.data};
}

wan_status cuda_add_ada_norm(backend *be, tensor x, const residual_add *add, tensor mod,
                             const token_rows *rows, int shift, int scale, float eps, tensor out) {
  k_residual r = residual_of(add, rows);
  k_add_ada_norm(stream_of(be), x.data, &r, mod_of(mod, rows), shift, scale, eps, cuda_data(out),
                 tensor_rows(&x), cols_of(x));
  return cuda_launched(be, "add_ada_norm");
}

wan_status cuda_add_layer_norm(backend *be, tensor x, const residual_add *add, const token_rows *rows,
                               const weight *gamma, const weight *beta, float eps, tensor out) {
  k_residual r = residual_of(add, rows);
  k_add_layer_norm(stream_of(be), x.data, &r, cuda_floats(gamma), cuda_floats(beta), eps, cuda_data(out),
                   tensor_rows(&x), cols_of(x));
  return cuda_launched(be, "add_layer_norm");
}

wan_status cuda_rms_norm(backend *be, tensor x, const weight *gamma, float eps, tensor out) {
  k_rms_norm(stream_of(be), cuda_data(x), cuda_floats(gamma), eps, cuda_data(out), tensor_rows(&x),
             cols_of(x));
  return cuda_launched(be, "rms_norm");
}

wan_status cuda_qk_norm_rope(backend *be, tensor x, const weight *gamma, float eps, tensor rope, int heads) {
  k_qk_norm_rope(stream_of(be), cuda_data(x), cuda_floats(gamma), eps, rope.data, cols_of(x) / heads / 2,
                 tensor_rows(&x), cols_of(x));
  return cuda_launched(be, "qk_norm_rope");
}

wan_status cuda_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out) {
  k_channel_norm(stream_of(be), cuda_data(x), cuda_floats(gamma), cuda_act(act), cuda_data(out),
                 tensor_rows(&x), cols_of(x));
  return cuda_launched(be, "channel_norm");
}

/* ---- Elementwise ---- */

wan_status cuda_gate_add(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows, int gate) {
  k_gate_add(stream_of(be), cuda_data(x), cuda_data(y), mod_of(mod, rows), gate, tensor_rows(&x), cols_of(x));
  return cuda_launched(be, "gate_add");
}

wan_status cuda_mul(backend *be, tensor a, tensor b) {
  k_mul(stream_of(be), cuda_data(a), cuda_data(b), tensor_count(&a));
  return cuda_launched(be, "mul");
}

wan_status cuda_activate(backend *be, tensor x, op_act act, tensor out) {
  k_activate(stream_of(be), cuda_data(x), cuda_act(act), cuda_data(out), tensor_count(&x));
  return cuda_launched(be, "activate");
}

wan_status cuda_cast(backend *be, tensor x, tensor out) {
  if (out.type == DT_E4M3_ROWS) return cuda_quantise(be, x, out);
  return cuda_activate(be, x, ACT_NONE, out);
}

wan_status cuda_modulation(backend *be, const weight *base, tensor e, tensor out) {
  k_modulation(stream_of(be), cuda_floats(base), e.data, e.ndim == 3, out.data, out.dim[0], (int)out.dim[1],
               (int)out.dim[2]);
  return cuda_launched(be, "modulation");
}

wan_status cuda_position_bias(backend *be, const weight *table, tensor bucket, tensor out) {
  k_position_bias(stream_of(be), cuda_floats(table), bucket.data, out.data, (int)out.dim[0], (int)out.dim[1],
                  be->act == DT_BF16);
  return cuda_launched(be, "position_bias");
}

wan_status cuda_lincomb(backend *be, tensor out, int n, const tensor *x, const float *coef) {
  const float *data[8];
  for (int i = 0; i < n; i++) data[i] = x[i].data;
  k_lincomb(stream_of(be), out.data, n, data, coef, tensor_count(&out));
  return cuda_launched(be, "lincomb");
}

wan_status cuda_channel_affine(backend *be, tensor x, tensor mul, tensor add, tensor out) {
  k_channel_affine(stream_of(be), cuda_data(x), mul.data, add.data, cuda_data(out), tensor_count(&x),
                   cols_of(x));
  return cuda_launched(be, "channel_affine");
}

wan_status cuda_to_u8(backend *be, tensor x, tensor out) {
  k_to_u8(stream_of(be), cuda_data(x), out.data, tensor_count(&x));
  return cuda_launched(be, "to_u8");
}

/* The rows that are used travel in the table's dtype and are converted on the device. */
wan_status cuda_embed(backend *be, const weight *table, const int32_t *ids, tensor out) {
  const int64_t n = out.dim[0], c = out.dim[1];
  const size_t row = (size_t)c * dtype_size(table->type), bytes = (size_t)n * row;
  if (!bytes) return WAN_OK;
  void *raw = cuda_mem_alloc(be, bytes);
  if (!raw) return WAN_ERR_MEMORY;
  wan_status s = cuda_upload_rows(be, raw, table->data, row, ids, n);
  if (s == WAN_OK) {
    k_convert(stream_of(be), (k_data){raw, cuda_type(table->type)}, cuda_data(out), n * c);
    s = cuda_launched(be, "embed");
  }
  cuda_mem_free(be, raw, bytes);
  return s;
}

/* ---- Rearrangements ---- */

wan_status cuda_patchify(backend *be, tensor x, tensor out) {
  k_patchify(stream_of(be), cuda_data(x), cuda_data(out), (int)x.dim[0], (int)x.dim[1], (int)x.dim[2],
             (int)x.dim[3]);
  return cuda_launched(be, "patchify");
}

wan_status cuda_unpatchify(backend *be, tensor y, tensor out) {
  k_unpatchify(stream_of(be), y.data, out.data, (int)out.dim[0], (int)out.dim[1], (int)out.dim[2],
               (int)out.dim[3]);
  return cuda_launched(be, "unpatchify");
}

wan_status cuda_time_unshuffle(backend *be, tensor x, tensor out) {
  k_time_unshuffle(stream_of(be), cuda_data(x), cuda_data(out), (int)out.dim[0], out.dim[1] * out.dim[2],
                   (int)out.dim[3]);
  return cuda_launched(be, "time_unshuffle");
}

wan_status cuda_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip) {
  k_dup_up_add(stream_of(be), cuda_data(out), cuda_data(x), ft, fs, skip, (int)out.dim[0], (int)out.dim[1],
               (int)out.dim[2], (int)out.dim[3], (int)x.dim[3]);
  return cuda_launched(be, "dup_up_add");
}

wan_status cuda_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs) {
  k_avg_down_add(stream_of(be), cuda_data(out), cuda_data(x), ft, fs, (int)x.dim[0], (int)out.dim[0],
                 (int)out.dim[1], (int)out.dim[2], (int)out.dim[3], (int)x.dim[3]);
  return cuda_launched(be, "avg_down_add");
}

wan_status cuda_space_to_depth(backend *be, tensor x, tensor out) {
  k_swap_depth(stream_of(be), cuda_data(out), cuda_data(x), true, (int)out.dim[0], (int)out.dim[1],
               (int)out.dim[2], (int)x.dim[3]);
  return cuda_launched(be, "space_to_depth");
}

wan_status cuda_depth_to_space(backend *be, tensor x, tensor out) {
  k_swap_depth(stream_of(be), cuda_data(x), cuda_data(out), false, (int)x.dim[0], (int)x.dim[1],
               (int)x.dim[2], (int)out.dim[3]);
  return cuda_launched(be, "depth_to_space");
}

wan_status cuda_concat_channels(backend *be, tensor a, tensor b, tensor out) {
  k_concat(stream_of(be), cuda_data(a), cuda_data(b), cuda_data(out), tensor_rows(&out), cols_of(a),
           cols_of(b));
  return cuda_launched(be, "concat_channels");
}

/* ---- Reductions: the only operations that wait ---- */

wan_status cuda_all_finite(backend *be, tensor x, bool *finite) {
  cuda_state *c = cuda_of(be);
  *finite = false;
  CORE_TRY(cuda_zero(be, c->flag, sizeof *c->flag));
  k_not_finite(c->stream, cuda_data(x), tensor_count(&x), c->flag);
  CORE_TRY(cuda_launched(be, "all_finite"));
  CORE_TRY(cuda_download(be, c->reduce_host, c->flag, sizeof *c->flag));
  int bad = 1;
  memcpy(&bad, c->reduce_host, sizeof bad);
  *finite = !bad;
  return WAN_OK;
}

wan_status cuda_dot(backend *be, tensor a, tensor b, double *sum) {
  cuda_state *c = cuda_of(be);
  k_dot(c->stream, a.data, b.data, tensor_count(&a), c->reduce);
  CORE_TRY(cuda_launched(be, "dot"));
  CORE_TRY(cuda_download(be, c->reduce_host, c->reduce + K_DOT_PARTS, sizeof(double)));
  *sum = *c->reduce_host;
  return WAN_OK;
}
