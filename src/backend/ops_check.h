/* ops_check.h: what the wrappers of all operations begin and end with: stop if something failed earlier,
 * check shapes and dtypes, account for time and work. For ops*.c only. */
#ifndef WAN_BACKEND_OPS_CHECK_H
#define WAN_BACKEND_OPS_CHECK_H

#include "backend/backend.h"
#include "backend/profile.h"

/* Keeps the first failure; whether there is none. */
static inline bool settle(backend *be, wan_status status) {
  if (status != WAN_OK && !be->failed) be->failed = status;
  return be->failed == WAN_OK;
}

/* ---- Profile ---- */

static inline double profile_start(backend *be) {
  if (!be->profile) return 0;
  be->ops->sync(be);
  return core_now();
}

static inline void profile_stop(backend *be, profile_op op, double start, double flops, double bytes) {
  if (!be->profile) return;
  be->ops->sync(be);
  backend_profile_row *r = &be->profile->row[op];
  r->calls++;
  r->seconds += core_now() - start;
  r->flops += flops;
  r->bytes += bytes;
}

static inline double size_of(tensor t) {
  return (double)tensor_bytes(&t);
}

/* ---- Checks ---- */

static inline bool usable(tensor t) {
  return t.type != DT_NONE;
}

static inline tensor unless_failed(backend *be, tensor result) {
  if (be->failed) return (tensor){0};
  return result;
}

static inline dtype out_type(backend *be, dtype t) {
  return t == DT_NONE ? be->act : t;
}

static inline bool is_act(backend *be, tensor t) {
  return t.type == be->act || t.type == DT_F32;
}

/* What a product by w takes. */
static inline bool is_operand(backend *be, tensor t, const weight *w) {
  return is_act(be, t) || (w->role == WEIGHT_PRODUCT && t.type == be->product);
}

/* Fails with the op's name and two shapes when `ok` does not hold. */
static inline bool require(backend *be, bool ok, const char *op, tensor a, tensor b) {
  if (be->failed) return false;
  if (ok) return true;
  char sa[96], sb[96];
  backend_fail(be, WAN_ERR_ARGUMENT, "%s: operands %s %s and %s %s do not fit together", op,
               dtype_name(a.type), tensor_shape_text(&a, sa, sizeof sa), dtype_name(b.type),
               tensor_shape_text(&b, sb, sizeof sb));
  return false;
}

static inline bool require_loaded(backend *be, const char *op, const weight *w, int64_t count) {
  if (be->failed) return false;
  if (w->data && tensor_count(&w->src) == count) return true;
  char s[96];
  backend_fail(be, WAN_ERR_ARGUMENT, "%s: weight %s %s %s, %lld elements expected", op,
               w->name ? w->name : "?", tensor_shape_text(&w->src, s, sizeof s),
               w->data ? "has the wrong size" : "is not loaded", (long long)count);
  return false;
}

static inline tensor same_shape(backend *be, tensor x, dtype type) {
  return tensor_new(be, out_type(be, type), x.ndim, x.dim);
}

static inline tensor as_weight(const weight *w) {
  return w ? w->src : (tensor){0};
}

#endif
