/* fetch.c: downloads that the host does not wait for. The copy runs on the compute stream, so its source may
 * be overwritten by whatever is issued next, and into pinned memory, so the call returns at once; an event
 * marks its end. At 1280x704 four frames take a quarter of a millisecond of the stream, where decoding them
 * takes 120. */
#include "backend/cuda/cuda.h"

wan_status cuda_fetch_open(backend *be, backend_fetch *f) {
  cudaEvent_t done;
  CORE_TRY(cuda_check(be, cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "creating an event"));
  wan_status s = cuda_check(be, cudaMallocHost(&f->host, f->bytes), "allocating pinned memory");
  if (s != WAN_OK) {
    cudaEventDestroy(done);
    return s;
  }
  f->impl = done;
  core_mem_add(be->ctx, (int64_t)f->bytes);
  return WAN_OK;
}

void cuda_fetch_close(backend *be, backend_fetch *f) {
  if (!f->impl) return;
  cudaEventSynchronize(f->impl);
  cudaEventDestroy(f->impl);
  cudaFreeHost(f->host);
  core_mem_add(be->ctx, -(int64_t)f->bytes);
}

wan_status cuda_fetch_begin(backend *be, backend_fetch *f, const void *src, size_t bytes) {
  cudaStream_t stream = cuda_of(be)->stream;
  CORE_TRY(cuda_check(be, cudaMemcpyAsync(f->host, src, bytes, cudaMemcpyDeviceToHost, stream),
                      "copying from the device"));
  return cuda_check(be, cudaEventRecord(f->impl, stream), "copying from the device");
}

wan_status cuda_fetch_end(backend *be, backend_fetch *f) {
  return cuda_check(be, cudaEventSynchronize(f->impl), "running on the device");
}
