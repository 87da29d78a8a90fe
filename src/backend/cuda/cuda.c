/* cuda.c: opening a device and the table of its operations. */
#include "backend/cuda/cuda.h"
#include "backend/registry.h"

enum { COMPUTE_MIN = 80, COMPUTE_FP8 = 89 };
_Static_assert((K_DOT_PARTS + 1) * sizeof(double) <= DEVICE_REDUCE_BYTES, "room for the reductions");

static void cuda_close(backend *be) {
  cuda_state *c = be->impl;
  if (!c) return;
  if (c->side_stream) cudaStreamSynchronize(c->side_stream);
  if (c->stream) cudaStreamSynchronize(c->stream);
  if (c->pool) cuda_mem_report(be);
  cuda_attention_close(be);
  cuda_linear_close(be);
  cuda_staging_close(be);
  if (c->dnn) c->lib.cudnnDestroy(c->dnn);
  if (c->lt) c->lib.cublasLtDestroy(c->lt);
  if (c->pool) cuda_mem_trim(be);
  if (c->workspace) cuda_mem_free(be, c->workspace, c->workspace_bytes);
  if (c->reduce) cuda_mem_free(be, c->reduce, DEVICE_REDUCE_BYTES);
  if (c->reduce_host) cudaFreeHost(c->reduce_host);
  if (c->stream) cudaStreamSynchronize(c->stream);
  if (c->pool) cudaMemPoolDestroy(c->pool);
  core_device_add(be->ctx, -(int64_t)c->driver_bytes);
  if (c->spare_ready) cudaEventDestroy(c->spare_ready);
  if (c->side_done) cudaEventDestroy(c->side_done);
  for (int i = 0; i < 2; i++)
    if (c->paced[i]) cudaEventDestroy(c->paced[i]);
  if (c->side_stream) cudaStreamDestroy(c->side_stream);
  if (c->main_stream) cudaStreamDestroy(c->main_stream);
  cuda_libraries_close(&c->lib);
  core_free(be->ctx, c);
  be->impl = NULL;
}

/* The driver's function that describes tensors to the copy engine, found at run time: the program is not
 * linked with the driver. */
static void find_encoder(cuda_state *c) {
  enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  void *function = NULL;
#ifdef WAN_CUDA_PORTABLE
  return; /* a build that tests the kernels of all cards on one */
#endif
  if (c->compute != 90) return; /* conv_sm90.cu is for this one */
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                       &found) == cudaSuccess &&
      found == cudaDriverEntryPointSuccess)
    c->tensor_map_encode = function;
  cudaGetLastError();
}

/* The current device, if it and the driver are recent enough. */
static wan_status choose_device(backend *be) {
  cuda_state *c = cuda_of(be);
  int count = 0, major = 0, minor = 0, pools = 0;
  cudaError_t e = cudaGetDeviceCount(&count);
  if (e != cudaSuccess || count == 0) {
    cudaGetLastError();
    if (e == cudaErrorInsufficientDriver) /* the runtime's word for no driver, too */
      return core_fail(
          be->ctx, WAN_ERR_BACKEND,
          "CUDA: there is no NVIDIA driver, or one older than CUDA %d.%d; install a newer one, or "
          "choose --backend cpu",
          CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    return core_fail(be->ctx, WAN_ERR_BACKEND,
                     "CUDA: no usable device: %s; install NVIDIA's driver, or choose --backend cpu",
                     e == cudaSuccess ? "the driver lists none" : cudaGetErrorString(e));
  }
  CORE_TRY(cuda_check(be, cudaGetDevice(&c->device), "choosing a device"));
  CORE_TRY(cuda_check(be, cudaSetDevice(c->device), "starting the device"));
  CORE_TRY(cuda_check(be, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device),
                      "asking the device"));
  CORE_TRY(cuda_check(be, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, c->device),
                      "asking the device"));
  CORE_TRY(cuda_check(be, cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, c->device),
                      "asking the device"));
  int pins = 0;
  CORE_TRY(cuda_check(be, cudaDeviceGetAttribute(&pins, cudaDevAttrHostRegisterReadOnlySupported, c->device),
                      "asking the device"));
  c->pin_allowed = pins != 0;
  c->compute = 10 * major + minor;
  if (c->compute < COMPUTE_MIN)
    return core_fail(be->ctx, WAN_ERR_BACKEND,
                     "CUDA: the device has compute capability %d.%d; 8.0 or newer is needed", major, minor);
  if (be->precision == WAN_PRECISION_FP8 && c->compute < COMPUTE_FP8)
    return core_fail(
        be->ctx, WAN_ERR_UNSUPPORTED,
        "CUDA: fp8 needs a device of compute capability 8.9 or newer, this one has %d.%d; choose "
        "--precision bf16",
        major, minor);
  find_encoder(c);
  if (!pools) return core_fail(be->ctx, WAN_ERR_BACKEND, "CUDA: the driver has no memory pools; update it");
  return WAN_OK;
}

static wan_status make_pool(backend *be) {
  cuda_state *c = cuda_of(be);
  struct cudaMemPoolProps props = {.allocType = cudaMemAllocationTypePinned,
                                   .handleTypes = cudaMemHandleTypeNone,
                                   .location = {.type = cudaMemLocationTypeDevice, .id = c->device}};
  const uint64_t limit = be->ctx->device_limit;
  if (limit && limit < DEVICE_LEAST_BYTES)
    return core_fail(
        be->ctx, WAN_ERR_ARGUMENT,
        "CUDA: a limit of %.2f GiB of device memory (--vram) is too low: the driver and the libraries "
        "alone take about %.2f GiB",
        (double)limit / (1 << 30), (double)DEVICE_LEAST_BYTES / (1 << 30));
  if (limit)
    props.maxSize = (limit - DEVICE_CONTEXT_BYTES) & ~(size_t)((2 << 20) - 1); /* the driver's pages */
  c->driver_bytes = DEVICE_DRIVER_BYTES;
  core_device_add(be->ctx, (int64_t)c->driver_bytes);
  uint64_t keep = UINT64_MAX;
  CORE_TRY(
      cuda_check(be, cudaStreamCreateWithFlags(&c->main_stream, cudaStreamNonBlocking), "creating a stream"));
  c->stream = c->main_stream;
  CORE_TRY(
      cuda_check(be, cudaStreamCreateWithFlags(&c->side_stream, cudaStreamNonBlocking), "creating a stream"));
  CORE_TRY(
      cuda_check(be, cudaEventCreateWithFlags(&c->side_done, cudaEventDisableTiming), "creating an event"));
  for (int i = 0; i < 2; i++)
    CORE_TRY(
        cuda_check(be, cudaEventCreateWithFlags(&c->paced[i], cudaEventDisableTiming), "creating an event"));
  CORE_TRY(
      cuda_check(be, cudaEventCreateWithFlags(&c->spare_ready, cudaEventDisableTiming), "creating an event"));
  CORE_TRY(cuda_check(be, cudaMemPoolCreate(&c->pool, &props), "creating a memory pool"));
  CORE_TRY(cuda_check(be, cudaMemPoolSetAttribute(c->pool, cudaMemPoolAttrReleaseThreshold, &keep),
                      "setting up the memory pool"));
  void *reduce = cuda_mem_alloc(be, DEVICE_REDUCE_BYTES);
  if (!reduce) return WAN_ERR_MEMORY;
  c->reduce = reduce;
  c->flag = reduce;
  if (!(c->workspace = cuda_mem_alloc(be, DEVICE_WORKSPACE_BYTES))) return WAN_ERR_MEMORY;
  c->workspace_bytes = DEVICE_WORKSPACE_BYTES;
  return cuda_check(be, cudaMallocHost((void **)&c->reduce_host, DEVICE_REDUCE_BYTES),
                    "allocating pinned memory");
}

static wan_status open_libraries(backend *be) {
  cuda_state *c = cuda_of(be);
  char why[256];
  CORE_TRY(cuda_libraries_open(be->ctx, &c->lib, why));
  if (c->lib.cublasLtCreate(&c->lt) != CUBLAS_STATUS_SUCCESS)
    return core_fail(be->ctx, WAN_ERR_BACKEND,
                     "CUDA: cuBLAS does not start; check that its version matches the driver");
  if (c->lib.dnn_library && (c->lib.cudnnCreate(&c->dnn) != CUDNN_STATUS_SUCCESS ||
                             c->lib.cudnnSetStream(c->dnn, c->stream) != CUDNN_STATUS_SUCCESS)) {
    if (c->dnn) c->lib.cudnnDestroy(c->dnn);
    c->dnn = NULL;
  }
  if (!c->dnn)
    core_log(be->ctx, WAN_LOG_NOTICE, "attention runs without cuDNN, slower: %s",
             why[0] ? why : "it does not start");
  return WAN_OK;
}

static const backend_ops cuda_ops = {
    .name = "cuda",
    .close = cuda_close,
    .mem_alloc = cuda_mem_alloc,
    .mem_free = cuda_mem_free,
    .mem_available = cuda_mem_available,
    .mem_reserve = cuda_mem_reserve,
    .mem_trim = cuda_mem_trim,
    .upload = cuda_upload,
    .download = cuda_download,
    .fetch_open = cuda_fetch_open,
    .fetch_close = cuda_fetch_close,
    .fetch_begin = cuda_fetch_begin,
    .fetch_end = cuda_fetch_end,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .sync = cuda_sync,
    .pace = cuda_pace,
    .weight_load = cuda_weight_load,
    .weight_unload = cuda_weight_unload,
    .weight_prefetch = cuda_weight_prefetch,
    .weight_bytes = cuda_weight_bytes,
    .weight_forget = cuda_weight_forget,
    .linear = cuda_linear,
    .linear_add = cuda_linear_add,
    .ada_norm = cuda_ada_norm,
    .layer_norm = cuda_layer_norm,
    .add_ada_norm = cuda_add_ada_norm,
    .add_layer_norm = cuda_add_layer_norm,
    .rms_norm = cuda_rms_norm,
    .qk_norm_rope = cuda_qk_norm_rope,
    .attention = cuda_attention,
    .gate_add = cuda_gate_add,
    .mul = cuda_mul,
    .activate = cuda_activate,
    .modulation = cuda_modulation,
    .position_bias = cuda_position_bias,
    .embed = cuda_embed,
    .cast = cuda_cast,
    .patchify = cuda_patchify,
    .unpatchify = cuda_unpatchify,
    .channel_norm = cuda_channel_norm,
    .conv = cuda_conv,
    .upsample_conv = cuda_upsample_conv,
    .time_unshuffle = cuda_time_unshuffle,
    .dup_up_add = cuda_dup_up_add,
    .avg_down_add = cuda_avg_down_add,
    .space_to_depth = cuda_space_to_depth,
    .depth_to_space = cuda_depth_to_space,
    .lincomb = cuda_lincomb,
    .channel_affine = cuda_channel_affine,
    .concat_channels = cuda_concat_channels,
    .to_u8 = cuda_to_u8,
    .all_finite = cuda_all_finite,
    .dot = cuda_dot,
};

wan_status backend_cuda_open(backend *be, const backend_config *config) {
  (void)config;
  cuda_state *c = core_calloc(be->ctx, 1, sizeof *c);
  if (!c) return WAN_ERR_MEMORY;
  be->impl = c;
  wan_status s = choose_device(be);
  if (s == WAN_OK) s = make_pool(be);
  if (s == WAN_OK) s = open_libraries(be);
  if (s != WAN_OK) {
    cuda_close(be);
    return s;
  }
  be->ops = &cuda_ops;
  be->host_memory = false;
  be->threads = 1;
  return WAN_OK;
}
