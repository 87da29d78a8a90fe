/* fuzz_pth.c: any bytes as a PyTorch checkpoint; what is no zip file is given to the pickle machine
 * directly, so that mutations reach it without having to keep a zip directory intact. */
#include "fuzz_weights.h"
#include "weights/pickle.h"
#include "weights/pth.h"

#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run_pickle(core_ctx *ctx, const uint8_t *data, size_t size) {
  pickle p;
  if (pickle_read(ctx, "fuzz", data, size, &p) == WAN_OK) pickle_free(ctx, &p);
}

static void run_pth(core_ctx *ctx, const char *path) {
  pth *p;
  if (pth_open(ctx, path, &p) == WAN_OK) pth_close(p);
  fuzz_weight_sets(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  core_ctx ctx;
  core_ctx_init(&ctx);
  ctx.mem_limit = FUZZ_MEMORY;
  if (size < 2 || memcmp(data, "PK", 2) != 0) {
    run_pickle(&ctx, data, size);
  } else {
    char path[64];
    int fd = fuzz_file(data, size, path);
    run_pth(&ctx, path);
    close(fd);
  }
  fuzz_check_leaks(&ctx);
  return 0;
}
