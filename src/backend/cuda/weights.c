/* weights.c: from the file's bytes to the form the kernels want.
 *
 * The bytes travel as they are in the file and are converted on the device. Products take [out, in] rows
 * in their role's dtype. Convolutions are repacked to [co, taps, ci] rows, channels innermost like the
 * activations; in bf16 the channels are filled up with zeros to a multiple of 8, so that every row starts
 * on 16 bytes. A vector has a bf16 twin behind it, which the library adds as a bias. */
#include "backend/cuda/cuda.h"

const void *cuda_vector_bf16(const weight *w) {
  return w ? (const char *)w->data + device_twin_offset(w) : NULL;
}

tensor cuda_quantised(const weight *w) {
  tensor t = w->src;
  t.type = DT_E4M3_ROWS;
  t.data = w->data;
  return t;
}

static int64_t conv_taps(const weight *w) {
  return tensor_count(&w->src) / (w->src.dim[0] * w->src.dim[1]);
}

static bool is_conv(const weight *w) {
  return w->role == WEIGHT_CONV || w->role == WEIGHT_CONV_UP;
}

/* From raw (device, the file's dtype) to data. */
static wan_status arrange(backend *be, const weight *w, void *raw, void *data) {
  cuda_state *c = cuda_of(be);
  const int64_t n = tensor_count(&w->src);
  k_data from = {raw, cuda_type(w->src.type)}, to = {data, cuda_type(w->type)};
  void *wide = NULL;
  /* the kernels of these two read f32 and bf16 */
  if ((is_conv(w) || w->type == DT_E4M3_ROWS) && w->src.type != DT_F32 && w->src.type != DT_BF16) {
    if (!(wide = cuda_mem_alloc(be, (size_t)n * sizeof(float)))) return WAN_ERR_MEMORY;
    k_convert(c->stream, from, (k_data){wide, K_F32}, n);
    from = (k_data){wide, K_F32};
  }
  if (w->type == DT_E4M3_ROWS) {
    tensor rows = cuda_quantised(w);
    rows.data = data;
    k_quantise(c->stream, from, data, tensor_scales(&rows), tensor_rows(&rows), (int)tensor_cols(&rows));
  } else if (is_conv(w)) {
    int co = (int)w->src.dim[0], ci = (int)w->src.dim[1], width = (int)cuda_conv_width(be, ci);
    if (w->role == WEIGHT_CONV)
      k_pack_conv(c->stream, from, to, co, ci, (int)conv_taps(w), width);
    else
      k_pack_up(c->stream, from, to, co, ci, width);
  } else {
    k_convert(c->stream, from, to, n);
  }
  cuda_mem_free(be, wide, (size_t)n * sizeof(float));
  return cuda_launched(be, "converting weights");
}

static wan_status fill(backend *be, weight *w, void *data) {
  cuda_state *c = cuda_of(be);
  const size_t raw_bytes = tensor_bytes(&w->src);
  if (w->src.type == w->type && !is_conv(w)) {
    CORE_TRY(cuda_upload_weight(be, data, w));
  } else {
    void *raw = cuda_mem_alloc(be, raw_bytes);
    if (!raw) return WAN_ERR_MEMORY;
    wan_status s = cuda_upload_weight(be, raw, w);
    if (s == WAN_OK) s = arrange(be, w, raw, data);
    cuda_mem_free(be, raw, raw_bytes);
    CORE_TRY(s);
  }
  if (w->role != WEIGHT_VECTOR || be->act != DT_BF16) return WAN_OK;
  k_convert(c->stream, (k_data){data, K_F32}, (k_data){(char *)data + device_twin_offset(w), K_BF16},
            tensor_count(&w->src));
  return cuda_launched(be, "converting weights");
}

wan_status cuda_weight_load(backend *be, weight *w) {
  const char *name = w->name ? w->name : "?";
  if (!dtype_is_float(w->src.type))
    return core_fail(be->ctx, WAN_ERR_UNSUPPORTED, "weight %s: a floating point dtype is needed, found %s",
                     name, dtype_name(w->src.type));
  if (!tensor_count(&w->src) || !w->src.data)
    return core_fail(be->ctx, WAN_ERR_ARGUMENT, "weight %s has no data", name);
  if (w->role == WEIGHT_TABLE) { /* stays in the file; op_embed fetches rows */
    w->type = w->src.type;
    w->data = w->src.data;
    w->data_bytes = 0;
    return WAN_OK;
  }
  dtype type = DT_NONE;
  size_t bytes = device_weight_bytes(be, w, &type);
  void *data = cuda_weight_memory(be, bytes);
  if (!data) return WAN_ERR_MEMORY;
  w->type = type;
  wan_status s = fill(be, w, data);
  if (s != WAN_OK) {
    cuda_weight_memory_free(be, data, bytes);
    w->type = DT_NONE;
    return s;
  }
  w->data = data;
  w->data_bytes = bytes;
  w->loads++;
  return WAN_OK;
}

/* The same beside the compute stream, which waits for it from here on. The host copies into pinned memory
 * meanwhile, so this is called when the compute stream has work. */
void cuda_weight_prefetch(backend *be, weight *w) {
  cuda_state *c = cuda_of(be);
  c->stream = c->side_stream;
  wan_status s = cuda_weight_load(be, w);
  c->stream = c->main_stream;
  if (s == WAN_OK && (cudaEventRecord(c->side_done, c->side_stream) != cudaSuccess ||
                      cudaStreamWaitEvent(c->stream, c->side_done, 0) != cudaSuccess))
    cudaStreamSynchronize(c->side_stream); /* the next check reports whatever is wrong */
}

void cuda_weight_unload(backend *be, weight *w) {
  if (w->data_bytes) cuda_weight_memory_free(be, w->data, w->data_bytes);
}

size_t cuda_weight_bytes(backend *be, const weight *w) {
  dtype type;
  return device_weight_bytes(be, w, &type);
}
