/* ref.c: the reference backend's table, memory, weights and the helpers its operations share. */
#include "backend/ref/ref.h"
#include "backend/registry.h"

#include <math.h>
#include <string.h>

/* ---- Values ---- */

double ref_get(dtype type, const void *data, int64_t i) {
  const char *p = (const char *)data + (size_t)i * dtype_size(type);
  uint8_t b;
  uint16_t h;
  float f;
  double d;
  switch (type) {
  case DT_F32:
    memcpy(&f, p, sizeof f);
    return f;
  case DT_BF16:
    memcpy(&h, p, sizeof h);
    return bf16_to_f32(h);
  case DT_F16:
    memcpy(&h, p, sizeof h);
    return f16_to_f32(h);
  case DT_F8E4M3:
    memcpy(&b, p, sizeof b);
    return f8e4m3_to_f32(b);
  case DT_F8E5M2:
    memcpy(&b, p, sizeof b);
    return f8e5m2_to_f32(b);
  case DT_F64:
    memcpy(&d, p, sizeof d);
    return d;
  default:
    return NAN; /* not a float dtype: never silently a number */
  }
}

static void set_value(dtype type, void *data, int64_t i, double value) {
  if (type == DT_BF16)
    ((uint16_t *)data)[i] = f32_to_bf16((float)value);
  else
    ((float *)data)[i] = (float)value;
}

void ref_set(tensor t, int64_t i, double value) {
  set_value(t.type, t.data, i, value);
}

void ref_read_row(tensor t, int64_t row, double *dst) {
  int64_t n = tensor_cols(&t);
  if (t.type == DT_E4M3_ROWS) {
    double scale = tensor_scales(&t)[row];
    for (int64_t i = 0; i < n; i++) dst[i] = scale * f8e4m3_to_f32(((const uint8_t *)t.data)[row * n + i]);
  } else if (t.type == DT_BF16)
    for (int64_t i = 0; i < n; i++) dst[i] = bf16_to_f32(((const uint16_t *)t.data)[row * n + i]);
  else
    for (int64_t i = 0; i < n; i++) dst[i] = ((const float *)t.data)[row * n + i];
}

void ref_write_row(tensor t, int64_t row, const double *src) {
  int64_t n = tensor_cols(&t);
  for (int64_t i = 0; i < n; i++) ref_set(t, row * n + i, src[i]);
}

double *ref_scratch(backend *be, int64_t n) {
  return core_alloc(be->ctx, (size_t)n * sizeof(double));
}

/* silu(x) = x * sigmoid(x); gelu in its tanh form: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
double ref_activate(op_act act, double x) {
  const double sqrt_2_pi = 0.79788456080286535588;
  if (act == ACT_SILU) return x / (1 + exp(-x));
  if (act == ACT_GELU_TANH) return 0.5 * x * (1 + tanh(sqrt_2_pi * (x + 0.044715 * x * x * x)));
  return x;
}

double ref_dot(const double *x, dtype type, const void *w, int64_t n) {
  enum { LANES = 8 }; /* independent partial sums, so that the compiler may use vectors */
  double part[LANES] = {0}, sum = 0;
  int64_t whole = n - n % LANES;
  if (type == DT_BF16) {
    const uint16_t *p = w;
    for (int64_t i = 0; i < whole; i += LANES)
      for (int j = 0; j < LANES; j++) part[j] += x[i + j] * bf16_to_f32(p[i + j]);
  } else {
    const float *p = w;
    for (int64_t i = 0; i < whole; i += LANES)
      for (int j = 0; j < LANES; j++) part[j] += x[i + j] * p[i + j];
  }
  for (int64_t i = whole; i < n; i++) sum += x[i] * ref_get(type, w, i);
  for (int j = 0; j < LANES; j++) sum += part[j];
  return sum;
}

double ref_vector(const weight *w, int64_t i) {
  return w ? ((const float *)w->data)[i] : 0;
}

/* ---- Memory ---- */

static void ref_close(backend *be) {
  (void)be;
}

static void *mem_alloc(backend *be, size_t bytes) {
  return core_alloc(be->ctx, bytes);
}

static void mem_free(backend *be, void *p, size_t bytes) {
  (void)bytes;
  core_free(be->ctx, p);
}

static wan_status move(backend *be, void *dst, const void *src, size_t bytes) {
  (void)be;
  if (bytes) memmove(dst, src, bytes);
  return WAN_OK;
}

static wan_status zero(backend *be, void *dst, size_t bytes) {
  (void)be;
  if (bytes) memset(dst, 0, bytes);
  return WAN_OK;
}

static wan_status sync(backend *be) {
  (void)be;
  return WAN_OK;
}

/* Rows of x as e4m3 and scales, by way of f32. */
wan_status ref_quantise(backend *be, tensor x, tensor out) {
  const int64_t rows = tensor_rows(&x), n = tensor_cols(&x);
  float *row = core_alloc(be->ctx, (size_t)n * sizeof *row);
  if (!row) return WAN_ERR_MEMORY;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t i = 0; i < n; i++) row[i] = (float)ref_get(x.type, x.data, r * n + i);
    tensor_scales(&out)[r] = e4m3_row_quantise(row, (uint8_t *)out.data + r * n, n);
  }
  core_free(be->ctx, row);
  return WAN_OK;
}

/* A weight's values as they are once they went through e4m3: F32. */
static wan_status load_quantised(backend *be, weight *w) {
  tensor rows = w->src;
  rows.type = DT_E4M3_ROWS;
  if (!(rows.data = core_alloc(be->ctx, tensor_bytes(&rows)))) return WAN_ERR_MEMORY;
  wan_status s = ref_quantise(be, w->src, rows);
  const int64_t n = tensor_cols(&rows);
  for (int64_t i = 0; s == WAN_OK && i < tensor_count(&rows); i++)
    ((float *)w->data)[i] = tensor_scales(&rows)[i / n] * f8e4m3_to_f32(((const uint8_t *)rows.data)[i]);
  core_free(be->ctx, rows.data);
  return s;
}

/* ---- Weights: the order of the file, converted to the dtype of the role where it differs ---- */

static dtype role_type(const backend *be, const weight *w) {
  switch (w->role) {
  case WEIGHT_VECTOR:
  case WEIGHT_LINEAR_F32:
    return DT_F32;
  case WEIGHT_TABLE:
    return w->src.type; /* rows are converted as they are looked up */
  case WEIGHT_PRODUCT:
    return be->product == DT_E4M3_ROWS ? DT_F32 : be->act;
  default:
    return be->act;
  }
}

static wan_status weight_load(backend *be, weight *w) {
  int64_t count = tensor_count(&w->src);
  const char *name = w->name ? w->name : "?";
  if (!dtype_is_float(w->src.type))
    return core_fail(be->ctx, WAN_ERR_UNSUPPORTED, "weight %s: a floating point dtype is needed, found %s",
                     name, dtype_name(w->src.type));
  if (!count || !w->src.data) return core_fail(be->ctx, WAN_ERR_ARGUMENT, "weight %s has no data", name);
  w->type = role_type(be, w);
  w->data_bytes = 0;
  bool aligned = (uintptr_t)w->src.data % dtype_size(w->src.type) == 0;
  bool quantised = w->role == WEIGHT_PRODUCT && be->product == DT_E4M3_ROWS;
  if (w->role == WEIGHT_TABLE || (w->src.type == w->type && aligned && !quantised)) {
    w->data = w->src.data;
    return WAN_OK;
  }
  size_t bytes = (size_t)count * dtype_size(w->type);
  w->data = core_alloc(be->ctx, bytes);
  if (!w->data) {
    w->type = DT_NONE;
    return WAN_ERR_MEMORY;
  }
  w->data_bytes = bytes;
  if (quantised) return load_quantised(be, w);
  for (int64_t i = 0; i < count; i++) set_value(w->type, w->data, i, ref_get(w->src.type, w->src.data, i));
  return WAN_OK;
}

static void weight_unload(backend *be, weight *w) {
  if (w->data_bytes) core_free(be->ctx, w->data);
}

/* ---- The table ---- */

static const backend_ops ref_ops = {
    .name = "ref",
    .close = ref_close,
    .mem_alloc = mem_alloc,
    .mem_free = mem_free,
    .upload = move,
    .download = move,
    .copy = move,
    .zero = zero,
    .sync = sync,
    .weight_load = weight_load,
    .weight_unload = weight_unload,
    .linear = ref_linear,
    .linear_add = ref_linear_add,
    .ada_norm = ref_ada_norm,
    .layer_norm = ref_layer_norm,
    .rms_norm = ref_rms_norm,
    .qk_norm_rope = ref_qk_norm_rope,
    .attention = ref_attention,
    .gate_add = ref_gate_add,
    .mul = ref_mul,
    .activate = ref_apply,
    .modulation = ref_modulation,
    .position_bias = ref_position_bias,
    .embed = ref_embed,
    .cast = ref_cast,
    .patchify = ref_patchify,
    .unpatchify = ref_unpatchify,
    .channel_norm = ref_channel_norm,
    .conv = ref_conv,
    .upsample_conv = ref_upsample_conv,
    .time_unshuffle = ref_time_unshuffle,
    .dup_up_add = ref_dup_up_add,
    .avg_down_add = ref_avg_down_add,
    .space_to_depth = ref_space_to_depth,
    .depth_to_space = ref_depth_to_space,
    .lincomb = ref_lincomb,
    .channel_affine = ref_channel_affine,
    .concat_channels = ref_concat_channels,
    .to_u8 = ref_to_u8,
    .all_finite = ref_all_finite,
    .dot = ref_dot_product,
};

wan_status backend_ref_open(backend *be, const backend_config *config) {
  (void)config;
  be->ops = &ref_ops;
  be->host_memory = true;
  be->threads = 1;
  return WAN_OK;
}
