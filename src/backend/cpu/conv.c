/* conv.c: convolutions, channels last. tiles.h or oneDNN does the work; here is what oneDNN does not: 1x1x1
 * kernels as matrix products, pixel replication folded into the kernel, and, on machines without bf16
 * instructions, bands of rows computed in f32. */
#include "backend/cpu/cpu.h"

#include <string.h>

static void copy_pixels(backend *be, void *dst, const void *src, size_t bytes) {
  if (dst != src) be->ops->copy(be, dst, src, bytes);
}

static size_t bytes_of(tensor t) {
  return tensor_bytes(&t);
}

/* ---- A band of output rows at a time: bf16 computed in f32, and frames that lie apart ---- */

enum { BAND_ELEMENTS = 4 << 20 }; /* of the input band: 8 or 16 MiB, unless one row needs more */

/* A convolution and where its frames are, NULL: one after another at src. */
typedef struct banded {
  const conv_args *a;
  const void *const *frame;
  dtype compute;
} banded;

/* Frame t of the input; NULL: zeros. */
static const char *frame_at(const banded *b, int64_t t) {
  const conv_geometry *g = &b->a->g;
  if (b->frame) return b->frame[t];
  return (const char *)b->a->src + (size_t)(t * g->H * g->W * g->Ci) * dtype_size(g->type);
}

/* Input rows first..first+count-1 of frames t..t+kt-1 in the dtype to compute in, zeros outside the picture.
 */
static void gather_band(backend *be, const banded *b, int64_t t, int64_t first, int64_t count, char *band) {
  const cpu_rows *k = cpu_of(be)->isa.rows;
  const conv_geometry *g = &b->a->g;
  const int64_t row = g->W * g->Ci;
  const size_t from = (size_t)row * dtype_size(g->type), to = (size_t)row * dtype_size(b->compute);
#pragma omp parallel for num_threads(be->threads)
  for (int64_t r = 0; r < g->kt * count; r++) {
    const int64_t i = first + r % count;
    const char *x = frame_at(b, t + r / count);
    char *y = band + (size_t)r * to;
    if (!x || i < 0 || i >= g->H)
      memset(y, 0, to);
    else if (g->type == b->compute)
      memcpy(y, x + (size_t)i * from, to);
    else
      k->from_bf16((const uint16_t *)(const void *)(x + (size_t)i * from), (float *)(void *)y, row);
  }
}

/* n floats into elements at.. of out, which is of type `type` */
static void store_band(backend *be, const float *y, dtype type, char *out, const char *residual, int64_t n) {
  const cpu_rows *k = cpu_of(be)->isa.rows;
  enum { CHUNK = 2048 };
  size_t size = dtype_size(type);
#pragma omp parallel for num_threads(be->threads)
  for (int64_t at = 0; at < n; at += CHUNK) {
    int64_t m = n - at < CHUNK ? n - at : CHUNK;
    float sum[CHUNK];
    void *to = out + (size_t)at * size;
    const void *add = residual ? residual + (size_t)at * size : NULL;
    memcpy(sum, y + at, (size_t)m * sizeof *sum);
    if (add && type == DT_F32) {
      k->gate_add(sum, add, NULL, m);
    } else if (add) {
      float wide[CHUNK];
      k->from_bf16(add, wide, m);
      k->gate_add(sum, wide, NULL, m);
    }
    if (type == DT_F32)
      memcpy(to, sum, (size_t)m * sizeof *sum);
    else
      k->to_bf16(sum, to, m);
  }
}

static wan_status conv_bands(backend *be, const banded *all, const char *residual) {
  const conv_args *a = all->a;
  const conv_geometry *g = &a->g;
  const bool direct = g->type == all->compute; /* results need no conversion */
  int64_t in_row = g->kt * g->W * g->Ci, out_row = g->Wo * g->Co;
  int64_t rows = (BAND_ELEMENTS / in_row - g->kh) / g->stride_h + 1;
  if (rows < 1) rows = 1;
  if (rows > g->Ho) rows = g->Ho;
  int64_t in_max = (rows - 1) * g->stride_h + g->kh;
  char *band = cpu_scratch_get(be, SCRATCH_X, (size_t)(in_max * in_row) * dtype_size(all->compute));
  float *y = direct ? NULL : cpu_scratch_get(be, SCRATCH_OUT, (size_t)(rows * out_row) * sizeof(float));
  if (!band || (!direct && !y)) return WAN_ERR_MEMORY;
  for (int64_t i = 0; i < g->To * g->Ho;) {
    int64_t t = i / g->Ho, r0 = i % g->Ho, n = g->Ho - r0 < rows ? g->Ho - r0 : rows;
    const size_t at = (size_t)(i * out_row) * dtype_size(g->dst_type);
    const char *add = residual ? residual + at : NULL;
    conv_args b = *a;
    b.g.type = all->compute;
    if (!direct) b.g.dst_type = DT_F32;
    b.g.T = g->kt;
    b.g.To = b.g.stride_t = 1;
    b.g.H = (n - 1) * g->stride_h + g->kh;
    b.g.Ho = n;
    b.g.pad_top = b.g.pad_bottom = 0;
    b.add_dst = direct && add;
    b.src = band;
    b.dst = direct ? (char *)a->dst + at : (char *)y;
    if (b.add_dst) copy_pixels(be, b.dst, add, (size_t)(n * out_row) * dtype_size(g->dst_type));
    gather_band(be, all, t * g->stride_t, r0 * g->stride_h - g->pad_top, b.g.H, band);
    CORE_TRY(prims_conv(cpu_of(be)->prims, &b));
    if (!direct) store_band(be, y, g->dst_type, (char *)a->dst + at, add, n * out_row);
    i += n;
  }
  return WAN_OK;
}

/* ---- The two operations ---- */

static wan_status convolve(backend *be, const conv_args *a, const void *const *frame, dtype compute,
                           const void *residual, size_t out_bytes) {
  if (frame || a->g.type != compute) return conv_bands(be, &(banded){a, frame, compute}, residual);
  conv_args b = *a;
  if (residual) {
    copy_pixels(be, b.dst, residual, out_bytes);
    b.add_dst = true;
  }
  return prims_conv(cpu_of(be)->prims, &b);
}

static bool is_product(const conv_spec *s) {
  return s->stride_t == 1 && s->stride_h == 1 && s->stride_w == 1 && !s->pad_top && !s->pad_bottom &&
         !s->pad_left && !s->pad_right;
}

/* A 1x1x1 kernel with strides or padding: the pixels it meets (zeros in the padding), then a product. */
static wan_status conv_points(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *s,
                              const void *residual, tensor out) {
  size_t bytes = (size_t)x.dim[3] * dtype_size(x.type);
  int64_t Ho = out.dim[1], Wo = out.dim[2], pixels = tensor_rows(&out);
  char *picked = cpu_scratch_get(be, SCRATCH_PHASE, (size_t)pixels * bytes);
  if (!picked) return WAN_ERR_MEMORY;
#pragma omp parallel for num_threads(be->threads)
  for (int64_t p = 0; p < pixels; p++) {
    int64_t t = p / Wo / Ho * s->stride_t, i = p / Wo % Ho * s->stride_h - s->pad_top,
            j = p % Wo * s->stride_w - s->pad_left;
    bool inside = i >= 0 && j >= 0 && i < x.dim[1] && j < x.dim[2];
    const char *frame = (const char *)x.data + (size_t)(t * x.dim[1] * x.dim[2]) * bytes;
    if (s->frame && !(frame = s->frame[t])) inside = false;
    if (inside)
      memcpy(picked + (size_t)p * bytes, frame + (size_t)(i * x.dim[2] + j) * bytes, bytes);
    else
      memset(picked + (size_t)p * bytes, 0, bytes);
  }
  return cpu_product(be, TENSOR_OF(x.type, picked, pixels, x.dim[3]), w, bias, ACT_NONE, residual, out);
}

static int64_t at_least_0(int64_t n) {
  return n > 0 ? n : 0;
}

wan_status cpu_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
                    tensor residual, tensor out) {
  bool add = residual.type != DT_NONE;
  const cpu_packed *cw = w->impl;
  if (!cw || cw->matrix) {
    const void *to_add = add ? residual.data : NULL;
    return is_product(spec) && !spec->frame ? cpu_product(be, x, w, bias, ACT_NONE, to_add, out)
                                            : conv_points(be, x, w, bias, spec, to_add, out);
  }
  if (cw->tiled[0])
    return tiles_conv(be, x, cw->tiled[0], bias ? bias->data : NULL, spec, add ? residual.data : NULL, out);
  const tensor *k = &w->src;
  conv_args a;
  memset(&a, 0, sizeof a); /* the geometry is compared as memory */
  a.g.type = x.type;
  a.g.dst_type = out.type;
  a.g.T = x.dim[0];
  a.g.H = x.dim[1];
  a.g.W = x.dim[2];
  a.g.Ci = x.dim[3];
  a.g.To = out.dim[0];
  a.g.Ho = out.dim[1];
  a.g.Wo = out.dim[2];
  a.g.Co = out.dim[3];
  a.g.kt = k->ndim == 5 ? k->dim[2] : 1;
  a.g.kh = k->dim[k->ndim - 2];
  a.g.kw = k->dim[k->ndim - 1];
  a.g.stride_t = spec->stride_t;
  a.g.stride_h = spec->stride_h;
  a.g.stride_w = spec->stride_w;
  a.g.pad_top = spec->pad_top;
  a.g.pad_left = spec->pad_left;
  /* what the last output needs beyond the picture; padding that no output reads is left out */
  a.g.pad_bottom = at_least_0((a.g.Ho - 1) * a.g.stride_h + a.g.kh - a.g.H - a.g.pad_top);
  a.g.pad_right = at_least_0((a.g.Wo - 1) * a.g.stride_w + a.g.kw - a.g.W - a.g.pad_left);
  a.src = x.data;
  a.w = cw->part[0];
  a.bias = bias ? bias->data : NULL;
  a.dst = out.data;
  if (a.g.kt > 1 || a.g.stride_t == 1)
    return convolve(be, &a, spec->frame, cw->type, add ? residual.data : NULL, bytes_of(out));
  a.g.T = a.g.To = a.g.stride_t = 1; /* skipped frames of a flat kernel: one picture at a time */
  for (int64_t t = 0; t < out.dim[0]; t++) {
    const void *const *frame = spec->frame ? &spec->frame[t * spec->stride_t] : NULL;
    a.src = tensor_slice(x, t * spec->stride_t, 1).data;
    a.dst = tensor_slice(out, t, 1).data;
    CORE_TRY(convolve(be, &a, frame, cw->type, add ? tensor_slice(residual, t, 1).data : NULL,
                      bytes_of(out) / (size_t)out.dim[0]));
  }
  return WAN_OK;
}

/* Pixels [T*H, W] of C bytes each into the places (2i+a, 2j+b) of [T*2H, 2W]. */
static void interleave(backend *be, const char *from, char *to, int64_t rows, int64_t W, size_t bytes, int a,
                       int b) {
#pragma omp parallel for num_threads(be->threads)
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < W; j++)
      memcpy(to + (size_t)((2 * i + a) * 2 * W + 2 * j + b) * bytes, from + (size_t)(i * W + j) * bytes,
             bytes);
}

wan_status cpu_upsample_conv(backend *be, tensor x, const weight *w, const weight *bias, tensor out) {
  const cpu_packed *cw = w->impl;
  if (cw->tiled[0]) return tiles_upsample(be, x, cw->tiled, bias ? bias->data : NULL, out);
  int64_t H = x.dim[1], W = x.dim[2];
  size_t pixel = (size_t)out.dim[3] * dtype_size(out.type), frame = (size_t)(H * W) * pixel;
  char *picture = cpu_scratch_get(be, SCRATCH_PHASE, frame);
  if (!picture) return WAN_ERR_MEMORY;
  for (int64_t t = 0; t < x.dim[0]; t++)
    for (int phase = 0; phase < 4; phase++) {
      int a = phase / 2, b = phase % 2;
      conv_args c;
      memset(&c, 0, sizeof c);
      c.g.type = x.type;
      c.g.dst_type = out.type;
      c.g.T = c.g.To = c.g.kt = 1;
      c.g.H = c.g.Ho = H;
      c.g.W = c.g.Wo = W;
      c.g.Ci = x.dim[3];
      c.g.Co = out.dim[3];
      c.g.kh = c.g.kw = 2;
      c.g.stride_t = c.g.stride_h = c.g.stride_w = 1;
      c.g.pad_top = 1 - a;
      c.g.pad_bottom = a;
      c.g.pad_left = 1 - b;
      c.g.pad_right = b;
      c.src = tensor_slice(x, t, 1).data;
      c.w = cw->part[phase];
      c.bias = bias ? bias->data : NULL;
      c.dst = picture;
      CORE_TRY(convolve(be, &c, NULL, cw->type, NULL, frame));
      interleave(be, picture, tensor_slice(out, t, 1).data, H, W, pixel, a, b);
    }
  return WAN_OK;
}
