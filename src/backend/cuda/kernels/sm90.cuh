/* sm90.cuh: what every kernel for Hopper shares: barriers in shared memory, the cluster, the copy engine's
 * rectangles, groups of products, and on the host the maps that describe tensors to the copy engine. */
#ifndef WAN_BACKEND_CUDA_SM90_CUH
#define WAN_BACKEND_CUDA_SM90_CUH

#include <cuda.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) /* nothing else has these instructions */

__device__ __forceinline__ unsigned shared_address(const void *p) {
  return (unsigned)__cvta_generic_to_shared(p);
}
__device__ __forceinline__ void barrier_init(unsigned at, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count));
}
__device__ __forceinline__ void barriers_made() { /* the other block of the cluster may see them */
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(unsigned at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(unsigned at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
/* Arrive at the barrier that lies at `at` in block `rank` of the cluster. */
__device__ __forceinline__ void barrier_arrive(unsigned at, unsigned rank) {
  asm volatile("{\n"
               ".reg .b32 there;\n"
               "mapa.shared::cluster.u32 there, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
               "}" ::"r"(at),
               "r"(rank)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(unsigned at, unsigned parity) {
  asm volatile("{\n"
               ".reg .pred done;\n"
               "again:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
               "@done bra over;\n"
               "bra again;\n"
               "over:\n"
               "}" ::"r"(at),
               "r"(parity)
               : "memory");
}
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n"
               "barrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
/* The rectangle of a matrix that starts at row y, column x. */
__device__ __forceinline__ void copy_tile(unsigned to, const CUtensorMap *map, unsigned barrier, int x,
                                          int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
               "[%1, {%3, %4}], [%2];" ::"r"(to),
               "l"(map), "r"(barrier), "r"(x), "r"(y)
               : "memory");
}
/* Matrix descriptor of rows of 128 bytes swizzled over 128 bytes, 8 rows every 1024 bytes. `between` is the
 * distance of column halves for an operand whose columns, not rows, are summed over; it means nothing
 * otherwise. */
__device__ __forceinline__ uint64_t matrix(unsigned at, unsigned between = 16) {
  return (uint64_t)((at & 0x3ffff) >> 4) | (uint64_t)(between >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
         (uint64_t)1 << 62;
}
/* A group of products is issued between begin and commit; wait<N> until all but the last N groups are done.
 */
__device__ __forceinline__ void products_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Registers in this order: keeps the compiler from moving their uses over the wait in front. */
template <int N> __device__ __forceinline__ void hold(float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(v[i])::"memory");
}
template <int N> __device__ __forceinline__ void hold(int (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(v[i])::"memory");
}

#endif

/* ---- The host's side ---- */

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                              const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                              CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                              CUtensorMapFloatOOBfill);

template <class K, class... Args>
bool launch_clusters(K kernel, dim3 grid, int threads, int bytes, int cluster, cudaStream_t s, Args... args) {
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess)
    return false;
  cudaLaunchAttribute together = {};
  together.id = cudaLaunchAttributeClusterDimension;
  together.val.clusterDim.x = (unsigned)cluster;
  together.val.clusterDim.y = together.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3((unsigned)threads);
  config.dynamicSmemBytes = (size_t)bytes;
  config.stream = s;
  config.attrs = &together;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args...) == cudaSuccess;
}

} // namespace

#endif
