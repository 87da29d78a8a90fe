/* memory.c: device memory and transfers.
 *
 * Device memory comes from a pool of the backend's own that keeps what is freed until it closes (or until
 * an allocation would fail otherwise). Allocations are counted in the context's account like host memory;
 * the pool's slack is not. Weights pass through two pinned buffers, one being filled by the host while the
 * other is read by the device. */
#include "backend/cuda/cuda.h"

#include <string.h>

enum { STAGING_BYTES = 32 << 20 };

wan_status cuda_check(backend *be, cudaError_t error, const char *what) {
  if (error == cudaSuccess) return WAN_OK;
  cudaGetLastError(); /* an error that doesn't stick is forgotten */
  if (error == cudaErrorMemoryAllocation)
    return core_fail(
        be->ctx, WAN_ERR_MEMORY,
        "CUDA: out of device memory (%s); choose a smaller size or fewer frames, or lower --memory so "
        "that weights are streamed",
        what);
  return core_fail(be->ctx, WAN_ERR_BACKEND,
                   "CUDA: %s: %s (%s); run again with --backend cpu to go on without", what,
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

wan_status cuda_launched(backend *be, const char *what) {
  return cuda_check(be, cudaPeekAtLastError(), what);
}

void *cuda_mem_alloc(backend *be, size_t bytes) {
  cuda_state *c = cuda_of(be);
  void *p = NULL;
  size_t size = bytes ? bytes : 1;
  cudaError_t e = cudaMallocFromPoolAsync(&p, size, c->pool, c->stream);
  if (e == cudaErrorMemoryAllocation) { /* what the pool keeps may be in pieces: give it back and try again */
    cudaGetLastError();
    cudaStreamSynchronize(c->stream);
    cudaMemPoolTrimTo(c->pool, 0);
    e = cudaMallocFromPoolAsync(&p, size, c->pool, c->stream);
  }
  if (e == cudaErrorMemoryAllocation) {
    size_t free_bytes = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &total);
    core_fail(
        be->ctx, WAN_ERR_MEMORY,
        "CUDA: %zu MiB more don't fit: %zu of the device's %zu MiB are free; choose a smaller size or fewer "
        "frames, or lower --memory so that weights are streamed",
        size >> 20, free_bytes >> 20, total >> 20);
    return NULL;
  }
  if (cuda_check(be, e, "allocating device memory") != WAN_OK) return NULL;
  core_mem_add(be->ctx, (int64_t)bytes);
  return p;
}

/* What the device has free, and what the pool holds without using it. */
uint64_t cuda_mem_available(backend *be) {
  size_t free_bytes = 0, total = 0;
  uint64_t reserved = 0, used = 0;
  if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) return 0;
  cudaMemPool_t pool = cuda_of(be)->pool;
  if (cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved) != cudaSuccess ||
      cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used) != cudaSuccess)
    reserved = used = 0;
  return free_bytes + (reserved - used);
}

void cuda_mem_free(backend *be, void *p, size_t bytes) {
  if (!p) return;
  cudaFreeAsync(p, cuda_of(be)->stream);
  core_mem_add(be->ctx, -(int64_t)bytes);
}

wan_status cuda_upload(backend *be, void *dst, const void *host, size_t bytes) {
  if (!bytes) return WAN_OK;
  /* from pageable memory the call returns once the driver has its own copy */
  return cuda_check(be, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, cuda_of(be)->stream),
                    "copying to the device");
}

wan_status cuda_download(backend *be, void *host, const void *src, size_t bytes) {
  if (!bytes) return WAN_OK;
  CORE_TRY(cuda_check(be, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, cuda_of(be)->stream),
                      "copying from the device"));
  return cuda_sync(be);
}

wan_status cuda_copy(backend *be, void *dst, const void *src, size_t bytes) {
  if (!bytes || dst == src) return WAN_OK;
  return cuda_check(be, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_of(be)->stream),
                    "copying on the device");
}

wan_status cuda_zero(backend *be, void *dst, size_t bytes) {
  if (!bytes) return WAN_OK;
  return cuda_check(be, cudaMemsetAsync(dst, 0, bytes, cuda_of(be)->stream), "clearing device memory");
}

wan_status cuda_sync(backend *be) {
  return cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "running on the device");
}

wan_status cuda_pace(backend *be) {
  cuda_state *c = cuda_of(be);
  CORE_TRY(cuda_check(be, cudaEventRecord(c->paced[c->pace], c->stream), "recording an event"));
  c->pace = !c->pace; /* the older one; waiting for one that was never recorded returns at once */
  return cuda_check(be, cudaEventSynchronize(c->paced[c->pace]), "running on the device");
}

/* The next staging buffer, free to be written. */
static wan_status staging_take(backend *be, int *index) {
  cuda_state *c = cuda_of(be);
  int i = c->staging_next;
  c->staging_next = (i + 1) % STAGING_BUFFERS;
  *index = i;
  if (!c->staging[i]) {
    CORE_TRY(cuda_check(be, cudaMallocHost(&c->staging[i], STAGING_BYTES), "allocating pinned memory"));
    core_mem_add(be->ctx, STAGING_BYTES);
    return cuda_check(be, cudaEventCreateWithFlags(&c->staging_free[i], cudaEventDisableTiming),
                      "creating an event");
  }
  return cuda_check(be, cudaEventSynchronize(c->staging_free[i]), "copying weights to the device");
}

/* Several threads fill a buffer faster than one where the source is in the page cache. */
static void copy_host(char *to, const char *from, size_t bytes) {
  enum { PIECE = 1 << 20 };
  int64_t pieces = (int64_t)((bytes + PIECE - 1) / PIECE);
#pragma omp parallel for schedule(dynamic) num_threads(8) if (pieces > 1)
  for (int64_t i = 0; i < pieces; i++) {
    size_t at = (size_t)i * PIECE, n = bytes - at < PIECE ? bytes - at : PIECE;
    memcpy(to + at, from + at, n);
  }
}

wan_status cuda_upload_staged(backend *be, void *dst, const void *host, size_t bytes) {
  cuda_state *c = cuda_of(be);
  for (size_t at = 0; at < bytes; at += STAGING_BYTES) {
    size_t n = bytes - at < STAGING_BYTES ? bytes - at : STAGING_BYTES;
    int i = 0;
    CORE_TRY(staging_take(be, &i));
    copy_host(c->staging[i], (const char *)host + at, n);
    CORE_TRY(
        cuda_check(be, cudaMemcpyAsync((char *)dst + at, c->staging[i], n, cudaMemcpyHostToDevice, c->stream),
                   "copying weights to the device"));
    CORE_TRY(cuda_check(be, cudaEventRecord(c->staging_free[i], c->stream), "recording an event"));
  }
  return WAN_OK;
}

void cuda_staging_close(backend *be) {
  cuda_state *c = cuda_of(be);
  for (int i = 0; i < STAGING_BUFFERS; i++) {
    if (!c->staging[i]) continue;
    if (c->staging_free[i]) cudaEventDestroy(c->staging_free[i]);
    cudaFreeHost(c->staging[i]);
    core_mem_add(be->ctx, -(int64_t)STAGING_BYTES);
  }
}
