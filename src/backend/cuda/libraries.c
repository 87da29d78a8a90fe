/* libraries.c: opens the two vendor libraries by the version they were compiled against. */
#include "backend/cuda/libraries.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define LT_NAME "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)
#define DNN_NAME "libcudnn.so." TEXT(CUDNN_MAJOR)

/* ISO C has no conversion from object to function pointers; dlsym's result is copied bit by bit. */
#define RESOLVE(function)                                   \
  do {                                                      \
    void *symbol_ = dlsym(library, #function);              \
    if (!symbol_) missing = #function;                      \
    memcpy(&lib->function, &symbol_, sizeof lib->function); \
  } while (0);

static const char *resolve_lt(cuda_libraries *lib, void *library) {
  const char *missing = NULL;
  CUDA_LT_FUNCTIONS(RESOLVE)
  return missing;
}

static const char *resolve_dnn(cuda_libraries *lib, void *library) {
  const char *missing = NULL;
  CUDA_DNN_FUNCTIONS(RESOLVE)
  return missing;
}

wan_status cuda_libraries_open(core_ctx *ctx, cuda_libraries *lib, char why[256]) {
  why[0] = 0;
  *lib = (cuda_libraries){0};
  void *lt = dlopen(LT_NAME, RTLD_NOW | RTLD_LOCAL);
  if (!lt)
    return core_fail(ctx, WAN_ERR_BACKEND,
                     "CUDA: cuBLAS can't be loaded: %s; install the CUDA %d libraries or add their folder to "
                     "LD_LIBRARY_PATH",
                     dlerror(), CUBLAS_VER_MAJOR);
  const char *missing = resolve_lt(lib, lt);
  if (missing) {
    dlclose(lt);
    return core_fail(ctx, WAN_ERR_BACKEND, "CUDA: %s has no function %s", LT_NAME, missing);
  }
  lib->lt_library = lt;
  void *dnn = dlopen(DNN_NAME, RTLD_NOW | RTLD_LOCAL);
  if (!dnn) {
    snprintf(why, 256, "%s", dlerror());
  } else if ((missing = resolve_dnn(lib, dnn))) {
    dlclose(dnn);
    snprintf(why, 256, "%s has no function %s", DNN_NAME, missing);
  } else {
    lib->dnn_library = dnn;
  }
  return WAN_OK;
}

void cuda_libraries_close(cuda_libraries *lib) {
  if (lib->dnn_library) dlclose(lib->dnn_library);
  if (lib->lt_library) dlclose(lib->lt_library);
  *lib = (cuda_libraries){0};
}
