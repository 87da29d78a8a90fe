/* cuda.h: the CUDA backend's private face: its state, and what its files share.
 *
 * One device, one compute stream: operations run in the order issued, and memory is taken from and given
 * back to a stream-ordered pool, so that a buffer freed by the host is reused only after the kernels that
 * were issued before have run. The runtime is linked statically; cuBLASLt and cuDNN are opened when the
 * backend is, so that the same program starts on machines that have neither. */
#ifndef WAN_BACKEND_CUDA_H
#define WAN_BACKEND_CUDA_H

#include "backend/backend.h"
#include "backend/cuda/kernels/kernels.h"
#include "backend/cuda/libraries.h"
#include "backend/device.h"

#include <cuda_runtime_api.h>

enum { CUDA_PLANS = 512, CUDA_SPARES = 256 };

/* A matrix product's plan: the shape it was made for, and what the library chose. */
typedef struct linear_plan linear_plan;
typedef struct attention_plan attention_plan;
typedef struct cuda_pin cuda_pin;

typedef struct cuda_spare {
  void *data;
  size_t bytes;
} cuda_spare;

typedef struct cuda_state {
  int device, compute; /* compute capability times ten: 90 */
  cudaStream_t stream; /* that everything is issued on: main_stream, or side_stream during a prefetch */
  cudaStream_t main_stream;
  cudaStream_t side_stream; /* for weights that are loaded ahead */
  cudaEvent_t side_done;
  cudaEvent_t paced[2]; /* recorded in turn by cuda_pace() */
  int pace;             /* which comes next */
  cudaMemPool_t pool;
  uint64_t pool_planned;         /* bytes the pool is to make do with; 0: whatever comes */
  uint64_t driver_bytes;         /* the driver's share, counted in the account */
  cuda_spare spare[CUDA_SPARES]; /* memory of unloaded weights, for the next ones of the same size */
  int spare_count;
  cudaEvent_t spare_ready; /* the operations that used them have run */
  cuda_libraries lib;
  cublasLtHandle_t lt;
  cudnnHandle_t dnn; /* NULL: not available */
  void *workspace;   /* for the library's products */
  size_t workspace_bytes;
  linear_plan *linear[CUDA_PLANS]; /* hash table */
  int linear_count;
  attention_plan *attention;             /* list */
  void *staging[DEVICE_STAGING_BUFFERS]; /* pinned, for weights on their way to the device */
  cudaEvent_t staging_free[DEVICE_STAGING_BUFFERS];
  int staging_now;             /* the one in use */
  size_t staging_used;         /* bytes of it */
  cudaStream_t staging_stream; /* its contents were sent on this one */
  cuda_pin *pin;               /* host pages that the device reads itself, see staging.c */
  int pin_count, pin_max;
  uint64_t pin_bytes, pin_room; /* pinned, and may be */
  bool pin_allowed;             /* by the device */
  void *tensor_map_encode;      /* cuTensorMapEncodeTiled, NULL before compute capability 9.0 */
  double *reduce;               /* device: room for reductions */
  double *reduce_host;          /* pinned */
  int *flag;                    /* the same memory as reduce, for all_finite */
} cuda_state;

static inline cuda_state *cuda_of(backend *be) {
  return be->impl;
}

/* WAN_OK, or a message that names what was being done, the driver's words and what to do. */
wan_status cuda_check(backend *be, cudaError_t error, const char *what);
/* The state of the launches since the last check. */
wan_status cuda_launched(backend *be, const char *what);

/* ---- memory.c ---- */
void *cuda_mem_alloc(backend *be, size_t bytes);
void cuda_mem_free(backend *be, void *p, size_t bytes);
uint64_t cuda_mem_available(backend *be);
wan_status cuda_mem_reserve(backend *be, uint64_t bytes, uint64_t host);
void cuda_mem_trim(backend *be);
void cuda_mem_report(backend *be);
/* Memory of weights: that of one that was unloaded before, if the size is right. */
void *cuda_weight_memory(backend *be, size_t bytes);
void cuda_weight_memory_free(backend *be, void *p, size_t bytes);
wan_status cuda_upload(backend *be, void *dst, const void *host, size_t bytes);
wan_status cuda_download(backend *be, void *host, const void *src, size_t bytes);
wan_status cuda_fetch_open(backend *be, backend_fetch *f);
void cuda_fetch_close(backend *be, backend_fetch *f);
wan_status cuda_fetch_begin(backend *be, backend_fetch *f, const void *src, size_t bytes);
wan_status cuda_fetch_end(backend *be, backend_fetch *f);
wan_status cuda_copy(backend *be, void *dst, const void *src, size_t bytes);
wan_status cuda_zero(backend *be, void *dst, size_t bytes);
wan_status cuda_sync(backend *be);
wan_status cuda_pace(backend *be);

/* ---- staging.c ---- */
/* The bytes of a weight as they are in its file. They must stay there until the weight is forgotten. */
wan_status cuda_upload_weight(backend *be, void *dst, const weight *w);
void cuda_weight_forget(backend *be, weight *w);
/* Rows ids[0..n-1] of `row` bytes of a table in host memory, one after the other. */
wan_status cuda_upload_rows(backend *be, void *dst, const void *table, size_t row, const int32_t *ids,
                            int64_t n);
void cuda_staging_close(backend *be);

/* ---- weights.c ---- */
wan_status cuda_weight_load(backend *be, weight *w);
void cuda_weight_unload(backend *be, weight *w);
void cuda_weight_prefetch(backend *be, weight *w);
size_t cuda_weight_bytes(backend *be, const weight *w);
/* A loaded weight in e4m3 as a tensor: its rows, and where their scales are. */
tensor cuda_quantised(const weight *w);
/* A vector's copy in bf16, made when activations are bf16. */
const void *cuda_vector_bf16(const weight *w);

static inline int64_t cuda_conv_width(const backend *be, int64_t ci) {
  return device_conv_width(be->act, ci);
}

/* ---- Operations ---- */
wan_status cuda_linear(backend *be, tensor x, const weight *w, const weight *bias, op_act act, tensor out);
wan_status cuda_linear_add(backend *be, tensor x, const weight *w, const weight *bias, tensor sum);
void cuda_linear_close(backend *be);
/* x in a DT_E4M3_ROWS of its shape. */
wan_status cuda_quantise(backend *be, tensor x, tensor out);
/* out[b] = alpha * a[b] * op(b[b]), as k_gemm, by the library where it can. */
wan_status cuda_gemm(backend *be, const k_gemm_spec *g, k_data a, k_data b, k_data out);

wan_status cuda_attention(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec, tensor out);
/* Attention in 8 bits; *done is false where there is none for this case. */
wan_status cuda_attention_coarse(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec,
                                 tensor out, bool *done);
/* The library's attention; *done is false when it has none for this case. */
wan_status cuda_attention_dnn(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec,
                              tensor out, bool *done);
void cuda_attention_close(backend *be);

wan_status cuda_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
                     tensor residual, tensor out);
wan_status cuda_upsample_conv(backend *be, tensor x, const weight *w, const weight *bias, tensor out);

wan_status cuda_ada_norm(backend *be, tensor x, tensor mod, const token_rows *rows, int shift, int scale,
                         float eps, tensor out);
wan_status cuda_layer_norm(backend *be, tensor x, const weight *gamma, const weight *beta, float eps,
                           tensor out);
wan_status cuda_add_ada_norm(backend *be, tensor x, const residual_add *add, tensor mod,
                             const token_rows *rows, int shift, int scale, float eps, tensor out);
wan_status cuda_add_layer_norm(backend *be, tensor x, const residual_add *add, const token_rows *rows,
                               const weight *gamma, const weight *beta, float eps, tensor out);
wan_status cuda_rms_norm(backend *be, tensor x, const weight *gamma, float eps, tensor out);
wan_status cuda_qk_norm_rope(backend *be, tensor x, const weight *gamma, float eps, tensor rope, int heads);
wan_status cuda_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out);
wan_status cuda_gate_add(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows, int gate);
wan_status cuda_mul(backend *be, tensor a, tensor b);
wan_status cuda_activate(backend *be, tensor x, op_act act, tensor out);
wan_status cuda_cast(backend *be, tensor x, tensor out);
wan_status cuda_modulation(backend *be, const weight *base, tensor e, tensor out);
wan_status cuda_position_bias(backend *be, const weight *table, tensor bucket, tensor out);
wan_status cuda_embed(backend *be, const weight *table, const int32_t *ids, tensor out);
wan_status cuda_patchify(backend *be, tensor x, tensor out);
wan_status cuda_unpatchify(backend *be, tensor y, tensor out);
wan_status cuda_time_unshuffle(backend *be, tensor x, tensor out);
wan_status cuda_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip);
wan_status cuda_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs);
wan_status cuda_space_to_depth(backend *be, tensor x, tensor out);
wan_status cuda_depth_to_space(backend *be, tensor x, tensor out);
wan_status cuda_lincomb(backend *be, tensor out, int n, const tensor *x, const float *coef);
wan_status cuda_channel_affine(backend *be, tensor x, tensor mul, tensor add, tensor out);
wan_status cuda_concat_channels(backend *be, tensor a, tensor b, tensor out);
wan_status cuda_to_u8(backend *be, tensor x, tensor out);
wan_status cuda_all_finite(backend *be, tensor x, bool *finite);
wan_status cuda_dot(backend *be, tensor a, tensor b, double *sum);

/* ---- Views for the kernels ---- */
k_data cuda_data(tensor t);
k_type cuda_type(dtype t);
k_act cuda_act(op_act a);
static inline const float *cuda_floats(const weight *w) {
  return w ? w->data : NULL;
}

#endif
