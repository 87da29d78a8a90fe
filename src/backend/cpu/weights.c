/* weights.c: from the file's dtype and order to what the operations use. Matrices and convolution
 * kernels are packed, by tiles.h or oneDNN, straight from the file where they can read the dtype. Conversion
 * goes chunk by chunk, so there is never a second copy of a large tensor. */
#include "backend/cpu/cpu.h"

#include <string.h>

enum { CHUNK = 4096 };

static bool aligned(const void *p, dtype type) {
  return (uintptr_t)p % dtype_size(type) == 0;
}

static void widen_f8(dtype from, const uint8_t *src, float *dst, int64_t n) {
  float value[256];
  for (int i = 0; i < 256; i++)
    value[i] = from == DT_F8E4M3 ? f8e4m3_to_f32((uint8_t)i) : f8e5m2_to_f32((uint8_t)i);
  for (int64_t i = 0; i < n; i++) dst[i] = value[src[i]];
}

void cpu_widen(dtype from, const void *src, float *dst, int64_t n) {
  if (from == DT_F8E4M3 || from == DT_F8E5M2)
    widen_f8(from, src, dst, n);
  else
    convert_to_f32(from, src, dst, (size_t)n);
}

/* All n elements of src as F32 or BF16. */
static void convert_all(backend *be, dtype from, const void *src, dtype to, void *dst, int64_t n) {
  const cpu_rows *k = cpu_of(be)->isa.rows;
#pragma omp parallel for num_threads(be->threads) if (n > 4 * CHUNK)
  for (int64_t at = 0; at < n; at += CHUNK) {
    int64_t m = n - at < CHUNK ? n - at : CHUNK;
    const char *p = (const char *)src + (size_t)at * dtype_size(from);
    char *q = (char *)dst + (size_t)at * dtype_size(to);
    float wide[CHUNK];
    if (from == to) {
      memcpy(q, p, (size_t)m * dtype_size(to));
    } else if (to == DT_F32) {
      cpu_widen(from, p, (float *)(void *)q, m);
    } else {
      cpu_widen(from, p, wide, m);
      k->to_bf16(wide, (uint16_t *)(void *)q, m);
    }
  }
}

/* w->data in the given dtype and the file's order: the source itself, or a converted copy. */
static wan_status load_plain(backend *be, weight *w, dtype type) {
  w->type = type;
  w->data_bytes = 0;
  if (w->src.type == type && aligned(w->src.data, type)) {
    w->data = w->src.data;
    return WAN_OK;
  }
  int64_t n = tensor_count(&w->src);
  void *data = core_alloc(be->ctx, (size_t)n * dtype_size(type));
  if (!data) return WAN_ERR_MEMORY;
  convert_all(be, w->src.type, w->src.data, type, data, n);
  w->data = data;
  w->data_bytes = (size_t)n * dtype_size(type);
  return WAN_OK;
}

static bool use_tiles(backend *be) {
  return be->act == DT_BF16 && cpu_of(be)->isa.tiles;
}

/* ---- Convolution kernels ---- */

static conv_geometry kernel_geometry(const weight *w, dtype type) {
  const tensor *s = &w->src;
  int64_t kt = s->ndim == 5 ? s->dim[2] : 1, kh = s->dim[s->ndim - 2], kw = s->dim[s->ndim - 1];
  enum { SIDE = 64 }; /* a picture size to choose the layout by; other sizes may cause one repacking */
  conv_geometry g;
  memset(&g, 0, sizeof g);
  g.type = g.dst_type = type;
  g.Co = s->dim[0];
  g.Ci = s->dim[1];
  g.kt = kt;
  g.kh = kh;
  g.kw = kw;
  g.T = kt;
  g.To = 1;
  g.H = g.Ho = g.W = g.Wo = SIDE;
  g.stride_t = g.stride_h = g.stride_w = 1;
  g.pad_top = (kh - 1) / 2;
  g.pad_bottom = kh - 1 - g.pad_top;
  g.pad_left = (kw - 1) / 2;
  g.pad_right = kw - 1 - g.pad_left;
  return g;
}

/* Replicating pixels 2x2 and then taking a 3x3 kernel sees each source pixel through several taps at
 * once. Output rows 2i+a read source rows i-1+a and i+a: with taps w0 | w1+w2 for a = 0, w0+w1 | w2 for
 * a = 1; columns likewise. The sums are formed in f32 from the file's values and rounded once, so they
 * are as exact as single rounded taps are. n kernels [3][3] -> [2][2]. */
static void fold_taps(const float *taps, int64_t n, int a, int b, float *out) {
  for (int64_t i = 0; i < n; i++, taps += 9, out += 4)
    for (int r = 0; r < 2; r++)
      for (int c = 0; c < 2; c++) {
        /* source row r collects taps [r ? 1+a : 0, r ? 3 : 1+a) */
        float sum = 0;
        for (int y = r ? 1 + a : 0; y < (r ? 3 : 1 + a); y++)
          for (int x = c ? 1 + b : 0; x < (c ? 3 : 1 + b); x++) sum += taps[y * 3 + x];
        out[r * 2 + c] = sum;
      }
}

/* Packed kernels hold values of the act dtype, also where they are widened to f32 to be computed with: a
 * machine without bf16 instructions gives the results of one that has them. */
static wan_status pack_up(backend *be, const weight *w, cpu_packed *cw) {
  enum { GROUP = 64 }; /* kernels widened at a time */
  const cpu_rows *k = cpu_of(be)->isa.rows;
  int64_t n = w->src.dim[0] * w->src.dim[1];
  size_t size = dtype_size(be->act);
  char *folded = core_alloc(be->ctx, (size_t)n * 4 * size);
  wan_status s = folded ? WAN_OK : WAN_ERR_MEMORY;
  for (int phase = 0; phase < 4 && s == WAN_OK; phase++) {
#pragma omp parallel for num_threads(be->threads)
    for (int64_t i = 0; i < n; i += GROUP) {
      int64_t m = n - i < GROUP ? n - i : GROUP;
      float taps[GROUP * 9], sums[GROUP * 4];
      cpu_widen(w->src.type, (const char *)w->src.data + (size_t)i * 9 * dtype_size(w->src.type), taps,
                m * 9);
      fold_taps(taps, m, phase / 2, phase % 2, sums);
      if (be->act == DT_F32)
        memcpy(folded + (size_t)i * 4 * size, sums, (size_t)m * 4 * size);
      else
        k->to_bf16(sums, (uint16_t *)(void *)(folded + (size_t)i * 4 * size), m * 4);
    }
    if (use_tiles(be)) {
      s = tiles_pack(be, DT_BF16, folded, w->src.dim[0], w->src.dim[1], (const int64_t[]){1, 2, 2},
                     &cw->tiled[phase]);
      continue;
    }
    conv_geometry g = kernel_geometry(w, cw->type);
    g.kh = g.kw = 2;
    g.pad_top = 1 - phase / 2;
    g.pad_bottom = phase / 2;
    g.pad_left = 1 - phase % 2;
    g.pad_right = phase % 2;
    s = prims_pack(cpu_of(be)->prims, &g, be->act, folded, &cw->part[phase]);
  }
  core_free(be->ctx, folded);
  return s;
}

/* What oneDNN can pack from: the file itself, or a temporary copy of the values as `type`, which the caller
 * frees (NULL when there is none). With exact set, values must be of `type` already. */
static wan_status pack_source(backend *be, const weight *w, dtype type, bool exact, dtype *from,
                              const void **src, void **copy) {
  *copy = NULL;
  *from = w->src.type;
  *src = w->src.data;
  bool readable = *from == DT_BF16 || (*from == DT_F32 && (!exact || type == DT_F32));
  if (readable && aligned(*src, *from)) return WAN_OK;
  int64_t n = tensor_count(&w->src);
  *copy = core_alloc(be->ctx, (size_t)n * dtype_size(type));
  if (!*copy) return WAN_ERR_MEMORY;
  convert_all(be, *from, *src, type, *copy, n);
  *from = type;
  *src = *copy;
  return WAN_OK;
}

/* Matrices and kernels alike, from whatever the file has. */
static wan_status pack_tiles(backend *be, const weight *w, cpu_packed *cw) {
  const tensor *s = &w->src;
  int64_t kernel[3] = {1, 1, 1};
  for (int i = s->ndim - 1, k = 2; i >= 2 && k >= 0; i--, k--) kernel[k] = s->dim[i];
  int64_t C = tensor_count(s) / s->dim[0] / (kernel[0] * kernel[1] * kernel[2]);
  return tiles_pack(be, s->type, s->data, s->dim[0], C, kernel, &cw->tiled[0]);
}

static wan_status pack_taps(backend *be, const weight *w, cpu_packed *cw) {
  if (use_tiles(be)) return pack_tiles(be, w, cw);
  conv_geometry g = kernel_geometry(w, cw->type);
  dtype from;
  const void *src;
  void *copy;
  CORE_TRY(pack_source(be, w, be->act, cw->type != be->act, &from, &src, &copy));
  wan_status s = prims_pack(cpu_of(be)->prims, &g, from, src, &cw->part[0]);
  core_free(be->ctx, copy);
  return s;
}

/* part[0] stays NULL when oneDNN has no use for a packed matrix. */
static wan_status pack_matrix(backend *be, const weight *w, cpu_packed *cw) {
  if (use_tiles(be)) return pack_tiles(be, w, cw);
  int64_t n = w->src.dim[0], k = tensor_count(&w->src) / n;
  dtype from;
  const void *src;
  void *copy;
  CORE_TRY(pack_source(be, w, cw->type, false, &from, &src, &copy));
  wan_status s = prims_pack_matrix(cpu_of(be)->prims, n, k, cw->type, from, src, &cw->part[0]);
  core_free(be->ctx, copy);
  return s;
}

static void release_packed(backend *be, cpu_packed *cw) {
  if (!cw) return;
  for (int i = 0; i < 4; i++) {
    packed_free(cpu_of(be)->prims, cw->part[i]);
    tiles_free(be, cw->tiled[i]);
  }
  core_free(be->ctx, cw);
}

typedef wan_status pack_fn(backend *be, const weight *w, cpu_packed *cw);

static wan_status load_packed(backend *be, weight *w, pack_fn *pack) {
  cpu_packed *cw = core_calloc(be->ctx, 1, sizeof *cw);
  if (!cw) return WAN_ERR_MEMORY;
  cw->type = use_tiles(be) || (be->act == DT_BF16 && cpu_of(be)->native_bf16) ? DT_BF16 : DT_F32;
  cw->matrix = pack == pack_matrix;
  wan_status status = pack(be, w, cw);
  if (status != WAN_OK || !(cw->part[0] || cw->tiled[0])) {
    release_packed(be, cw);
    return status == WAN_OK ? load_plain(be, w, be->act) : status;
  }
  w->impl = w->data = cw;
  w->type = cw->type;
  w->data_bytes = 0;
  for (int i = 0; i < 4; i++)
    if (cw->part[i])
      w->data_bytes += packed_bytes(cw->part[i]);
    else if (cw->tiled[i])
      w->data_bytes += cw->tiled[i]->bytes;
  return WAN_OK;
}

/* bf16 matrices that are not multiplied in bf16 stay as they are and are widened piece by piece (linear.c).
 */
static wan_status load_matrix(backend *be, weight *w) {
  if (be->act == DT_BF16 && !cpu_of(be)->native_bf16 && !use_tiles(be)) return load_plain(be, w, DT_BF16);
  return load_packed(be, w, pack_matrix);
}

static bool one_tap(const tensor *kernel) {
  return tensor_count(kernel) == kernel->dim[0] * kernel->dim[1];
}

wan_status cpu_weight_load(backend *be, weight *w) {
  const char *name = w->name ? w->name : "?";
  if (!dtype_is_float(w->src.type))
    return core_fail(be->ctx, WAN_ERR_UNSUPPORTED, "weight %s: a floating point dtype is needed, found %s",
                     name, dtype_name(w->src.type));
  if (!tensor_count(&w->src) || !w->src.data)
    return core_fail(be->ctx, WAN_ERR_ARGUMENT, "weight %s has no data", name);
  wan_status s;
  switch (w->role) {
  case WEIGHT_TABLE:
    w->data = w->src.data;
    w->type = w->src.type;
    w->data_bytes = 0;
    return WAN_OK;
  case WEIGHT_LINEAR:
  case WEIGHT_PRODUCT:
    s = load_matrix(be, w);
    break;
  case WEIGHT_CONV:
    s = one_tap(&w->src) ? load_matrix(be, w) : load_packed(be, w, pack_taps);
    break;
  case WEIGHT_CONV_UP:
    s = load_packed(be, w, pack_up);
    break;
  case WEIGHT_LINEAR_F32: /* for a few rows: widened piece by piece when it is used, not kept twice as wide */
    s = load_plain(be, w, w->src.type == DT_BF16 ? DT_BF16 : DT_F32);
    break;
  default: /* vectors */
    s = load_plain(be, w, DT_F32);
  }
  if (s != WAN_OK) w->type = DT_NONE;
  return s == WAN_OK ? s : core_prefix(be->ctx, s, "weight %s", name);
}

void cpu_weight_unload(backend *be, weight *w) {
  if (w->impl)
    release_packed(be, w->impl);
  else if (w->data_bytes)
    core_free(be->ctx, w->data);
}
