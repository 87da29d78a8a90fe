/* device.c: see device.h. */
#include "backend/device.h"

static size_t round_up(size_t n, size_t to) {
  return (n + to - 1) / to * to;
}

size_t device_round(size_t bytes) {
  return round_up(bytes ? bytes : 1, DEVICE_ALIGN);
}

/* ---- Weights ---- */

int64_t device_conv_width(dtype act, int64_t ci) {
  return act == DT_BF16 ? (ci + 7) / 8 * 8 : ci;
}

size_t device_twin_offset(const weight *w) {
  return round_up((size_t)tensor_count(&w->src) * sizeof(float), 16);
}

static bool is_conv(const weight *w) {
  return w->role == WEIGHT_CONV || w->role == WEIGHT_CONV_UP;
}

size_t device_weight_bytes(const backend *be, const weight *w, dtype *type) {
  const dtype act = be->act;
  const size_t n = (size_t)tensor_count(&w->src);
  tensor loaded = w->src;
  *type = loaded.type = backend_weight_type(be, w);
  if (w->role == WEIGHT_TABLE) return 0;
  if (w->role == WEIGHT_VECTOR && act == DT_BF16) return device_twin_offset(w) + 2 * n;
  if (!is_conv(w)) return tensor_bytes(&loaded);
  int64_t taps = tensor_count(&w->src) / (w->src.dim[0] * w->src.dim[1]);
  if (w->role == WEIGHT_CONV_UP) taps = 16; /* four taps in each of four phases */
  return (size_t)(w->src.dim[0] * taps * device_conv_width(act, w->src.dim[1])) * dtype_size(*type);
}

size_t device_raw_bytes(const backend *be, const weight *w) {
  dtype type;
  if (!device_weight_bytes(be, w, &type) || (w->src.type == type && !is_conv(w))) return 0;
  return tensor_bytes(&w->src);
}

/* The kernels that pack convolutions and quantise rows read f32 and bf16. */
size_t device_wide_bytes(const backend *be, const weight *w) {
  const bool quantised = backend_weight_type(be, w) == DT_E4M3_ROWS;
  if (!(is_conv(w) || quantised) || w->src.type == DT_F32 || w->src.type == DT_BF16) return 0;
  return (size_t)tensor_count(&w->src) * sizeof(float);
}

/* ---- Operations ---- */

/* With f32 operands the library writes f32 only; its GELU is used where bf16 rounds the result anyway. */
bool device_linear_direct(dtype weight_type, op_act act, dtype out) {
  if (act == ACT_SILU || (act == ACT_GELU_TANH && out == DT_F32)) return false;
  return weight_type != DT_F32 || out == DT_F32;
}

size_t device_linear_bytes(tensor x, dtype weight_type, op_act act, tensor out) {
  size_t bytes = 0;
  tensor operand = x;
  operand.type = weight_type;
  if (x.type != weight_type) bytes += device_round(tensor_bytes(&operand));
  if (out.type != DT_F32 && !device_linear_direct(weight_type, act, out.type))
    bytes += device_round((size_t)tensor_count(&out) * sizeof(float));
  return bytes;
}

/* Heads that one kernel takes, without scores in memory. */
bool device_attention_fused(tensor q, int heads) {
  const int64_t d = q.dim[1] / heads;
  return q.type == DT_BF16 && d % 8 == 0 && d <= DEVICE_WIDEST_FLASH;
}

int64_t device_attention_rows(tensor q, tensor k, int heads) {
  const int64_t score = (int64_t)(sizeof(float) + dtype_size(q.type));
  int64_t rows = DEVICE_SCORE_BYTES / (heads * k.dim[0] * score);
  if (rows > 128) rows -= rows % 128;
  return rows < 1 ? 1 : rows > q.dim[0] ? q.dim[0] : rows;
}

size_t device_attention_bytes(tensor q, tensor k, int heads) {
  if (device_attention_fused(q, heads)) return 0;
  size_t scores = (size_t)(heads * device_attention_rows(q, k, heads) * k.dim[0]);
  return scores * (sizeof(float) + dtype_size(q.type)) + 256;
}

bool device_attention_coarse(tensor q, tensor k, const attention_spec *spec) {
  return spec->coarse && q.type == DT_BF16 && q.dim[1] == (int64_t)spec->heads * DEVICE_COARSE_HEAD &&
         k.dim[0] >= DEVICE_COARSE_KEYS && spec->key_bias.type == DT_NONE && spec->rel_bias.type == DT_NONE;
}

size_t device_coarse_bytes(tensor k, int heads) {
  const size_t tiles = (size_t)(k.dim[0] + DEVICE_COARSE_TILE - 1) / DEVICE_COARSE_TILE, c = (size_t)k.dim[1];
  const size_t scales = round_up(tiles * (size_t)heads * sizeof(float), 256);
  return 2 * tiles * DEVICE_COARSE_TILE * c + scales + (4 * tiles + 3) * c * sizeof(float);
}

size_t device_conv_bytes(dtype act, tensor x) {
  const int64_t ci = x.dim[3], width = device_conv_width(act, ci);
  return width == ci ? 0 : (size_t)(tensor_rows(&x) * width) * dtype_size(x.type);
}
