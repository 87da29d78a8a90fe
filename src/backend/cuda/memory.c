/* memory.c: device memory and transfers.
 *
 * Device memory comes from a stream-ordered pool of the backend's own. What a run was planned to need is
 * taken into the pool before it starts (cuda_mem_reserve), so that no other program can take it meanwhile,
 * and the pool may never grow beyond the context's limit. Allocations are counted in the context's device
 * account; the driver's share is counted there when the backend opens.
 *
 * Memory of streamed weights doesn't go back to the pool but waits for the next weights of the same sizes:
 * the blocks of a network have the same shapes, so two sets of buffers serve them all in turn, whatever the
 * driver would make of it. Weights pass through two pinned buffers, one being filled by the host while the
 * other is read by the device. */
#include "backend/cuda/cuda.h"

#include <string.h>

wan_status cuda_check(backend *be, cudaError_t error, const char *what) {
  if (error == cudaSuccess) return WAN_OK;
  cudaGetLastError(); /* an error that doesn't stick is forgotten */
  if (error == cudaErrorMemoryAllocation)
    return core_fail(be->ctx, WAN_ERR_MEMORY,
                     "CUDA: out of device memory (%s); choose a smaller size or fewer frames, or lower "
                     "--vram so that more "
                     "weights are streamed",
                     what);
  return core_fail(be->ctx, WAN_ERR_BACKEND,
                   "CUDA: %s: %s (%s); run again with --backend cpu to go on without", what,
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

wan_status cuda_launched(backend *be, const char *what) {
  return cuda_check(be, cudaPeekAtLastError(), what);
}

/* ---- The pool ---- */

static uint64_t pool_attribute(cuda_state *c, enum cudaMemPoolAttr name) {
  uint64_t value = 0;
  return cudaMemPoolGetAttribute(c->pool, name, &value) == cudaSuccess ? value : 0;
}

static void drop_spares(backend *be) {
  cuda_state *c = cuda_of(be);
  for (int i = 0; i < c->spare_count; i++) {
    cudaFreeAsync(c->spare[i].data, c->main_stream);
    core_device_add(be->ctx, -(int64_t)device_round(c->spare[i].bytes));
  }
  c->spare_count = 0;
}

/* Give the driver back what the pool holds without using it. */
static void squeeze(backend *be) {
  cuda_state *c = cuda_of(be);
  drop_spares(be);
  cudaStreamSynchronize(c->side_stream);
  cudaStreamSynchronize(c->main_stream);
  cudaMemPoolTrimTo(c->pool, 0);
}

static bool beyond_limit(const backend *be, uint64_t size) {
  const core_ctx *ctx = be->ctx;
  return ctx->device_limit && core_device_current(ctx) + size > ctx->device_limit;
}

static void *out_of_memory(backend *be, size_t size) {
  const core_ctx *ctx = be->ctx;
  size_t free_bytes = 0, total = 0;
  cudaGetLastError();
  cudaMemGetInfo(&free_bytes, &total);
  if (ctx->device_limit)
    core_fail(
        be->ctx, WAN_ERR_MEMORY,
        "CUDA: %.1f MiB more do not fit into the limit of %.2f GiB of device memory (--vram): %.2f GiB are "
        "held, and the device has %.2f GiB free; raise the limit, or choose a smaller size or fewer frames",
        (double)size / (1 << 20), (double)ctx->device_limit / (1 << 30),
        (double)core_device_current(ctx) / (1 << 30), (double)free_bytes / (1 << 30));
  else
    core_fail(be->ctx, WAN_ERR_MEMORY,
              "CUDA: %.1f MiB more do not fit: %.2f of the device's %.2f GiB are free, %.2f GiB are held "
              "here; choose a "
              "smaller size or fewer frames, or end other programs that use the device",
              (double)size / (1 << 20), (double)free_bytes / (1 << 30), (double)total / (1 << 30),
              (double)core_device_current(ctx) / (1 << 30));
  return NULL;
}

/* More than was planned, and not in use: what was freed can't be used again yet while its last users run. */
static bool outgrown(cuda_state *c) {
  enum { SLACK = 64 << 20 };
  if (!c->pool_planned) return false;
  uint64_t reserved = pool_attribute(c, cudaMemPoolAttrReservedMemCurrent);
  return reserved > c->pool_planned && reserved > pool_attribute(c, cudaMemPoolAttrUsedMemCurrent) + SLACK;
}

/* From the pool, which is emptied first where it would have to grow although enough was freed, or can't grow.
 */
static cudaError_t take(backend *be, void **p, size_t size) {
  cuda_state *c = cuda_of(be);
  cudaError_t e = cudaMallocFromPoolAsync(p, size, c->pool, c->stream);
  bool again = e == cudaErrorMemoryAllocation;
  if (e == cudaSuccess && outgrown(c)) {
    cudaFreeAsync(*p, c->stream);
    again = true;
  }
  if (!again) return e;
  cudaGetLastError();
  squeeze(be);
  return cudaMallocFromPoolAsync(p, size, c->pool, c->stream);
}

void *cuda_mem_alloc(backend *be, size_t bytes) {
  void *p = NULL;
  const size_t size = device_round(bytes);
  if (beyond_limit(be, size)) drop_spares(be);
  if (beyond_limit(be, size)) return out_of_memory(be, size);
  cudaError_t e = take(be, &p, size);
  if (e == cudaErrorMemoryAllocation) return out_of_memory(be, size);
  if (cuda_check(be, e, "allocating device memory") != WAN_OK) return NULL;
  core_device_add(be->ctx, (int64_t)size);
  return p;
}

void cuda_mem_free(backend *be, void *p, size_t bytes) {
  if (!p) return;
  cudaFreeAsync(p, cuda_of(be)->stream);
  core_device_add(be->ctx, -(int64_t)device_round(bytes));
}

/* What the device has free, and what the pool holds without using it. */
uint64_t cuda_mem_available(backend *be) {
  cuda_state *c = cuda_of(be);
  size_t free_bytes = 0, total = 0;
  if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) return 0;
  uint64_t reserved = pool_attribute(c, cudaMemPoolAttrReservedMemCurrent),
           used = pool_attribute(c, cudaMemPoolAttrUsedMemCurrent);
  return free_bytes + (reserved > used ? reserved - used : 0);
}

void cuda_mem_trim(backend *be) {
  drop_spares(be);
}

/* One large piece, freed at once: the pool keeps it, and hands out parts of it. */
wan_status cuda_mem_reserve(backend *be, uint64_t bytes, uint64_t host) {
  cuda_state *c = cuda_of(be);
  void *p = NULL;
  c->pin_room = c->pin_allowed ? host : 0;
  c->pool_planned = bytes > DEVICE_CONTEXT_BYTES ? bytes - DEVICE_CONTEXT_BYTES : 0;
  squeeze(be);
  uint64_t held = core_device_current(be->ctx);
  if (bytes <= held) return WAN_OK;
  cudaError_t e = cudaMallocFromPoolAsync(&p, bytes - held, c->pool, c->stream);
  if (e == cudaErrorMemoryAllocation) {
    out_of_memory(be, bytes - held);
    return WAN_ERR_MEMORY;
  }
  CORE_TRY(cuda_check(be, e, "reserving device memory"));
  return cuda_check(be, cudaFreeAsync(p, c->stream), "reserving device memory");
}

/* For -v: what the driver says, beside the context's own account. */
void cuda_mem_report(backend *be) {
  cuda_state *c = cuda_of(be);
  const double mib = 1 << 20;
  size_t free_bytes = 0, total = 0;
  if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) return;
  uint64_t reserved = pool_attribute(c, cudaMemPoolAttrReservedMemCurrent);
  core_log(be->ctx, WAN_LOG_INFO,
           "device memory: at most %.1f MiB in use, the pool took %.1f MiB for them; outside of it %.1f MiB "
           "are in "
           "use on the device, other programs included",
           (double)pool_attribute(c, cudaMemPoolAttrUsedMemHigh) / mib,
           (double)pool_attribute(c, cudaMemPoolAttrReservedMemHigh) / mib,
           (double)(total - free_bytes - reserved) / mib);
}

/* ---- Memory of weights ---- */

void *cuda_weight_memory(backend *be, size_t bytes) {
  cuda_state *c = cuda_of(be);
  for (int i = 0; i < c->spare_count; i++) {
    if (c->spare[i].bytes != bytes) continue;
    void *p = c->spare[i].data;
    c->spare[i] = c->spare[--c->spare_count];
    if (c->stream != c->main_stream &&
        cuda_check(be, cudaStreamWaitEvent(c->stream, c->spare_ready, 0), "waiting for a block") != WAN_OK)
      return NULL;
    return p;
  }
  drop_spares(be); /* other shapes come now: what waits is of no use to them */
  return cuda_mem_alloc(be, bytes);
}

void cuda_weight_memory_free(backend *be, void *p, size_t bytes) {
  cuda_state *c = cuda_of(be);
  if (c->spare_count == CUDA_SPARES || cudaEventRecord(c->spare_ready, c->main_stream) != cudaSuccess) {
    cudaFreeAsync(p, c->main_stream);
    core_device_add(be->ctx, -(int64_t)device_round(bytes));
    return;
  }
  c->spare[c->spare_count++] = (cuda_spare){p, bytes};
}

/* ---- Transfers ---- */

wan_status cuda_upload(backend *be, void *dst, const void *host, size_t bytes) {
  if (!bytes) return WAN_OK;
  /* from pageable memory the call returns once the driver has its own copy */
  return cuda_check(be, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, cuda_of(be)->stream),
                    "copying to the device");
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
