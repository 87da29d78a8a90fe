/* conv.c: convolutions as products of weights and windows that are never written out (the kernels gather
 * them). Upsampling is not done at all: replicating pixels 2x2 and convolving 3x3 equals four convolutions
 * of 2x2 taps, one for each position in the 2x2 block, whose weights were summed when they were loaded. */
#include "backend/cuda/cuda.h"

/* The frames with as many channels as the packed weight's rows: themselves, or a copy the caller frees. */
static wan_status widened(backend *be, dtype type, k_conv_spec *k, void **copy, size_t *bytes) {
  const int64_t n = (int64_t)k->H * k->W;
  const int width = (int)cuda_conv_width(be, k->ci);
  *copy = NULL;
  *bytes = 0;
  if (width == k->ci) return WAN_OK;
  const size_t frame = (size_t)(n * width) * dtype_size(type);
  *bytes = (size_t)k->T * frame;
  if (!(*copy = cuda_mem_alloc(be, *bytes))) return WAN_ERR_MEMORY;
  for (int t = 0; t < k->T; t++) {
    const char *x = k->apart ? k->frame[t] : (const char *)k->x + (size_t)(t * n * k->ci) * dtype_size(type);
    k_pad_channels(cuda_of(be)->stream, (k_data){(void *)(uintptr_t)x, cuda_type(type)},
                   (k_data){(char *)*copy + (size_t)t * frame, cuda_type(type)}, n, k->ci, width);
  }
  k->x = *copy;
  k->apart = false;
  k->ci = width;
  return cuda_launched(be, "padding channels");
}

static wan_status launch(backend *be, dtype type, k_conv_spec k) {
  cuda_state *c = cuda_of(be);
  void *copy;
  size_t bytes;
  CORE_TRY(widened(be, type, &k, &copy, &bytes));
  bool done = false;
  if (type == DT_BF16 && c->tensor_map_encode) {
    done = k_conv_halo_sm90(c->stream, c->tensor_map_encode, &k);
    if (!done) done = k_conv_sm90(c->stream, c->tensor_map_encode, &k);
  }
  if (!done && type == DT_BF16) done = k_conv_mma(c->stream, &k);
  if (!done) k_conv_simple(c->stream, &k, cuda_type(type));
  wan_status s = cuda_launched(be, "a convolution");
  cuda_mem_free(be, copy, bytes);
  return s;
}

/* Frames of zeros add nothing: each result leaves out the taps that would meet them. */
static wan_status launch_clipped(backend *be, dtype type, const k_conv_spec *all, size_t result) {
  const int plane = all->kh * all->kw;
  for (int t = 0; t < all->To; t++) {
    k_conv_spec k = *all;
    int skip = 0;
    while (skip < k.kt && !all->frame[t * k.stride_t + skip]) skip++;
    k.T = k.kt = all->kt - skip;
    k.To = k.stride_t = 1;
    k.tap0 = skip * plane;
    for (int i = 0; i < k.T; i++) k.frame[i] = all->frame[t * all->stride_t + skip + i];
    k.out = (char *)all->out + (size_t)t * result;
    if (k.residual) k.residual = (const char *)all->residual + (size_t)t * result;
    CORE_TRY(launch(be, type, k));
  }
  return WAN_OK;
}

wan_status cuda_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
                     tensor residual, tensor out) {
  const tensor *s = &w->src;
  k_conv_spec k = {.T = (int)x.dim[0],
                   .H = (int)x.dim[1],
                   .W = (int)x.dim[2],
                   .ci = (int)x.dim[3],
                   .To = (int)out.dim[0],
                   .Ho = (int)out.dim[1],
                   .Wo = (int)out.dim[2],
                   .co = (int)out.dim[3],
                   .kt = s->ndim == 5 ? (int)s->dim[2] : 1,
                   .kh = (int)s->dim[s->ndim - 2],
                   .kw = (int)s->dim[s->ndim - 1],
                   .taps = (int)(tensor_count(s) / (s->dim[0] * s->dim[1])),
                   .stride_t = spec->stride_t,
                   .stride_h = spec->stride_h,
                   .stride_w = spec->stride_w,
                   .pad_top = spec->pad_top,
                   .pad_left = spec->pad_left,
                   .up = 1,
                   .out_type = cuda_type(out.type),
                   .apart = spec->frame != NULL,
                   .x = x.data,
                   .w = w->data,
                   .residual = residual.data,
                   .bias = cuda_floats(bias),
                   .out = out.data};
  for (int t = 0; k.apart && t < k.T; t++) k.frame[t] = spec->frame[t];
  if (k.apart && !k.frame[0]) return launch_clipped(be, x.type, &k, tensor_bytes(&out) / (size_t)k.To);
  return launch(be, x.type, k);
}

wan_status cuda_upsample_conv(backend *be, tensor x, const weight *w, const weight *bias, tensor out) {
  k_conv_spec k = {.T = (int)x.dim[0],
                   .H = (int)x.dim[1],
                   .W = (int)x.dim[2],
                   .ci = (int)x.dim[3],
                   .To = (int)x.dim[0],
                   .Ho = (int)x.dim[1],
                   .Wo = (int)x.dim[2],
                   .co = (int)out.dim[3],
                   .kt = 1,
                   .kh = 2,
                   .kw = 2,
                   .taps = 4,
                   .stride_t = 1,
                   .stride_h = 1,
                   .stride_w = 1,
                   .up = 2,
                   .out_type = cuda_type(out.type),
                   .x = x.data,
                   .w = w->data,
                   .bias = cuda_floats(bias),
                   .out = out.data};
  return launch(be, x.type, k);
}
