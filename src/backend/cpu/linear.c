/* linear.c: matrix products. Where there are tile registers, tiles.h has them; otherwise, where oneDNN takes
 * the operands as they are, this is one call. Otherwise (an F32 input beside bf16 weights, a machine without
 * bf16 instructions) pieces of the operands are converted into bounded buffers first. */
#include "backend/cpu/cpu.h"

#include <string.h>

enum {
  PIECE_ELEMENTS = 16 << 20, /* of a converted operand: 64 MiB of floats at most, unless one row is larger */
  PIECE_COLUMNS = 512        /* rows of w (columns of out) converted at a time */
};

static void *at_row(tensor t, int64_t row, int64_t cols) {
  return (char *)t.data + (size_t)(row * cols) * dtype_size(t.type);
}

/* A finished piece [rows, n] of floats into columns n0.. of out rows r0... */
static void store_piece(backend *be, const float *piece, int64_t rows, int64_t n, tensor out, int64_t r0,
                        int64_t n0, bool add) {
  const cpu_rows *k = cpu_of(be)->isa.rows;
  int64_t cols = tensor_cols(&out);
#pragma omp parallel for num_threads(be->threads)
  for (int64_t r = 0; r < rows; r++) {
    char *to = (char *)out.data + (size_t)((r0 + r) * cols + n0) * dtype_size(out.type);
    const float *y = piece + r * n;
    float sum[PIECE_COLUMNS];
    if (add) {
      if (out.type == DT_F32)
        memcpy(sum, to, (size_t)n * sizeof *sum);
      else
        k->from_bf16((const uint16_t *)(const void *)to, sum, n);
      k->gate_add(sum, y, NULL, n);
      y = sum;
    }
    if (out.type == DT_F32)
      memcpy(to, y, (size_t)n * sizeof *y);
    else
      k->to_bf16(y, (uint16_t *)(void *)to, n);
  }
}

/* Everything in f32, columns in pieces: for weights that have to be widened, or results to be rounded. */
static wan_status by_columns(backend *be, matmul_args a, dtype w_type, tensor out, int64_t r0, bool add) {
  int64_t n_max = a.N < PIECE_COLUMNS ? a.N : PIECE_COLUMNS, columns = a.N;
  float *piece = cpu_scratch_get(be, SCRATCH_OUT, (size_t)(a.M * n_max) * sizeof(float));
  float *wide =
      w_type == DT_F32 ? NULL : cpu_scratch_get(be, SCRATCH_W, (size_t)(n_max * a.K) * sizeof(float));
  if (!piece || (w_type != DT_F32 && !wide)) return WAN_ERR_MEMORY;
  const char *w = a.w;
  const float *bias = a.bias;
  for (int64_t n0 = 0; n0 < columns; n0 += n_max) {
    a.N = columns - n0 < n_max ? columns - n0 : n_max;
    a.w = w + (size_t)(n0 * a.K) * dtype_size(w_type);
    a.bias = bias ? bias + n0 : NULL;
    a.dst = piece;
    if (wide) {
      cpu_convert(be, w_type, a.w, DT_F32, wide, a.N * a.K);
      a.w = wide;
    }
    CORE_TRY(prims_matmul(cpu_of(be)->prims, &a));
    store_piece(be, piece, a.M, a.N, out, r0, n0, add);
  }
  return WAN_OK;
}

wan_status cpu_product(backend *be, tensor x, const weight *w, const weight *bias, op_act act,
                       const void *residual, tensor out) {
  cpu_state *s = cpu_of(be);
  const cpu_packed *form = w->impl;
  if (form && form->tiled[0])
    return tiles_product(be, x, form->tiled[0], bias ? bias->data : NULL, act, residual, out);
  int64_t M = tensor_rows(&x), K = tensor_cols(&x), N = tensor_cols(&out);
  dtype type = w->type == DT_BF16 && w->role != WEIGHT_LINEAR_F32 && s->native_bf16 ? DT_BF16 : DT_F32;
  bool add = residual != NULL;
  if (add && residual != out.data) CORE_TRY(be->ops->copy(be, out.data, residual, tensor_bytes(&out)));
  bool direct = w->type == type && (type == DT_BF16 || out.type == DT_F32);
  int64_t rows = M, wide = K > N ? K : N;
  if (x.type != type || !direct) rows = PIECE_ELEMENTS / wide > 64 ? PIECE_ELEMENTS / wide : 64;
  for (int64_t r0 = 0; r0 < M; r0 += rows) {
    matmul_args a = {.type = type,
                     .dst_type = direct ? out.type : DT_F32,
                     .M = M - r0 < rows ? M - r0 : rows,
                     .N = N,
                     .K = K,
                     .act = act,
                     .add_dst = add && direct,
                     .src = at_row(x, r0, K),
                     .w = form ? NULL : w->data,
                     .w_packed = form ? form->part[0] : NULL,
                     .bias = bias ? bias->data : NULL,
                     .dst = at_row(out, r0, N)};
    if (x.type != type) {
      void *buf = cpu_scratch_get(be, SCRATCH_X, (size_t)(a.M * K) * dtype_size(type));
      if (!buf) return WAN_ERR_MEMORY;
      cpu_convert(be, x.type, a.src, type, buf, a.M * K);
      a.src = buf;
    }
    CORE_TRY(direct ? prims_matmul(s->prims, &a) : by_columns(be, a, w->type, out, r0, add));
  }
  return WAN_OK;
}

wan_status cpu_linear(backend *be, tensor x, const weight *w, const weight *bias, op_act act, tensor out) {
  return cpu_product(be, x, w, bias, act, NULL, out);
}

wan_status cpu_linear_add(backend *be, tensor x, const weight *w, const weight *bias, tensor sum) {
  return cpu_product(be, x, w, bias, ACT_NONE, sum.data, sum);
}
