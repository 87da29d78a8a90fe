/* fuzz_safetensors.c: any bytes as a .safetensors file. */
#include "fuzz_weights.h"

#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char path[64];
  int fd = fuzz_file(data, size, path);
  fuzz_weight_sets(path);
  close(fd);
  return 0;
}
