/* conv.c: convolutions as products of weights and windows that are never written out (the kernels gather
 * them). Upsampling is not done at all: replicating pixels 2x2 and convolving 3x3 equals four convolutions
 * of 2x2 taps, one for each position in the 2x2 block, whose weights were summed when they were loaded. */
#include "backend/cuda/cuda.h"

/* x with as many channels as the packed weight's rows: itself, or a copy the caller frees. */
static wan_status widened(backend *be, tensor x, const void **data, void **copy, size_t *bytes) {
  const int64_t ci = x.dim[3], width = cuda_conv_width(be, ci), n = tensor_rows(&x);
  *copy = NULL;
  *bytes = 0;
  *data = x.data;
  if (width == ci) return WAN_OK;
  *bytes = (size_t)(n * width) * dtype_size(x.type);
  if (!(*copy = cuda_mem_alloc(be, *bytes))) return WAN_ERR_MEMORY;
  *data = *copy;
  k_pad_channels(cuda_of(be)->stream, cuda_data(x), (k_data){*copy, cuda_type(x.type)}, n, (int)ci,
                 (int)width);
  return cuda_launched(be, "padding channels");
}

static wan_status convolve(backend *be, tensor x, k_conv_spec *k) {
  cuda_state *c = cuda_of(be);
  void *copy;
  size_t bytes;
  CORE_TRY(widened(be, x, &k->x, &copy, &bytes));
  k->ci = (int)cuda_conv_width(be, x.dim[3]);
  bool done = x.type == DT_BF16 && c->tensor_map_encode && k_conv_sm90(c->stream, c->tensor_map_encode, k);
  if (!done && x.type == DT_BF16) done = k_conv_mma(c->stream, k);
  if (!done) k_conv_simple(c->stream, k, cuda_type(x.type));
  wan_status s = cuda_launched(be, "a convolution");
  cuda_mem_free(be, copy, bytes);
  return s;
}

wan_status cuda_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
                     tensor residual, tensor out) {
  const tensor *s = &w->src;
  k_conv_spec k = {.T = (int)x.dim[0],
                   .H = (int)x.dim[1],
                   .W = (int)x.dim[2],
                   .To = (int)out.dim[0],
                   .Ho = (int)out.dim[1],
                   .Wo = (int)out.dim[2],
                   .co = (int)out.dim[3],
                   .kt = s->ndim == 5 ? (int)s->dim[2] : 1,
                   .kh = (int)s->dim[s->ndim - 2],
                   .kw = (int)s->dim[s->ndim - 1],
                   .stride_t = spec->stride_t,
                   .stride_h = spec->stride_h,
                   .stride_w = spec->stride_w,
                   .pad_top = spec->pad_top,
                   .pad_left = spec->pad_left,
                   .up = 1,
                   .out_type = cuda_type(out.type),
                   .w = w->data,
                   .residual = residual.data,
                   .bias = cuda_floats(bias),
                   .out = out.data};
  return convolve(be, x, &k);
}

wan_status cuda_upsample_conv(backend *be, tensor x, const weight *w, const weight *bias, tensor out) {
  k_conv_spec k = {.T = (int)x.dim[0],
                   .H = (int)x.dim[1],
                   .W = (int)x.dim[2],
                   .To = (int)x.dim[0],
                   .Ho = (int)x.dim[1],
                   .Wo = (int)x.dim[2],
                   .co = (int)out.dim[3],
                   .kt = 1,
                   .kh = 2,
                   .kw = 2,
                   .stride_t = 1,
                   .stride_h = 1,
                   .stride_w = 1,
                   .up = 2,
                   .out_type = cuda_type(out.type),
                   .w = w->data,
                   .bias = cuda_floats(bias),
                   .out = out.data};
  return convolve(be, x, &k);
}
