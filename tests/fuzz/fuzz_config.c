/* fuzz_config.c: any bytes as a transformer's config.json. */
#include "fuzz_weights.h"
#include "weights/model_config.h"

#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  core_ctx ctx;
  model_config c;
  char path[64];
  core_ctx_init(&ctx);
  int fd = fuzz_file(data, size, path);
  if (model_config_read(&ctx, path, &c) == WAN_OK && (c.dim < 0 || c.layers < 0 || c.heads < 0 || c.eps < 0))
    abort();
  close(fd);
  fuzz_check_leaks(&ctx);
  return 0;
}
