/* libraries.h: cuBLASLt and cuDNN as tables of functions, filled when the backend opens. */
#ifndef WAN_BACKEND_CUDA_LIBRARIES_H
#define WAN_BACKEND_CUDA_LIBRARIES_H

#include "core/ctx.h"

#include <cublasLt.h>
#include <cudnn.h>

#define CUDA_LT_FUNCTIONS(X)              \
  X(cublasLtCreate)                       \
  X(cublasLtDestroy)                      \
  X(cublasLtGetStatusString)              \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)          \
  X(cublasLtMatrixLayoutSetAttribute)

#define CUDA_DNN_FUNCTIONS(X)      \
  X(cudnnCreate)                   \
  X(cudnnDestroy)                  \
  X(cudnnSetStream)                \
  X(cudnnGetErrorString)           \
  X(cudnnGetLastErrorString)       \
  X(cudnnBackendCreateDescriptor)  \
  X(cudnnBackendDestroyDescriptor) \
  X(cudnnBackendSetAttribute)      \
  X(cudnnBackendGetAttribute)      \
  X(cudnnBackendFinalize)          \
  X(cudnnBackendExecute)

#define CUDA_LIBRARY_MEMBER(name) __typeof__(&name) name;
typedef struct cuda_libraries {
  void *lt_library, *dnn_library; /* NULL: not there */
  CUDA_LT_FUNCTIONS(CUDA_LIBRARY_MEMBER)
  CUDA_DNN_FUNCTIONS(CUDA_LIBRARY_MEMBER)
} cuda_libraries;

/* cuBLASLt is needed, cuDNN is not: without it dnn_library stays NULL and *why says what is missing. */
wan_status cuda_libraries_open(core_ctx *ctx, cuda_libraries *lib, char why[256]);
void cuda_libraries_close(cuda_libraries *lib);

#endif
