/* ops.c: status, transfers and weights, and the operations that all models share. */
#include "backend/ops_check.h"

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

wan_status backend_sync(backend *be) {
  if (!be->failed) settle(be, be->ops->sync(be));
  return be->failed;
}

wan_status backend_pace(backend *be) {
  if (!be->failed && be->ops->pace) settle(be, be->ops->pace(be));
  return be->failed;
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
