/* weights.c: see fuzz_weights.h. */
#define _GNU_SOURCE /* memfd_create */
#include "fuzz_weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int fuzz_file(const uint8_t *data, size_t size, char path[64]) {
  int fd = memfd_create("fuzz", MFD_CLOEXEC);
  if (fd < 0 || (size && write(fd, data, size) != (ssize_t)size)) abort();
  snprintf(path, 64, "/proc/self/fd/%d", fd);
  return fd;
}

void fuzz_check_leaks(core_ctx *ctx) {
  if (core_mem_current(ctx)) abort();
}

static void touch(weight_set *set) {
  volatile unsigned char sink = 0;
  for (int64_t i = 0; i < weight_set_count(set); i++) {
    tensor t = weight_set_tensor(set, i);
    size_t bytes = tensor_bytes(&t);
    if (bytes) sink ^= ((unsigned char *)t.data)[0] ^ ((unsigned char *)t.data)[bytes - 1];
    if (weight_set_find(set, weight_set_name(set, i)).data != t.data) abort();
  }
  (void)sink;
  weight w;
  if (weight_set_count(set)) {
    tensor t = weight_set_tensor(set, 0);
    if (t.ndim) weight_set_bind(set, &w, WEIGHT_VECTOR, t.ndim, t.dim, "%s", weight_set_name(set, 0));
  }
  weight_set_finish(set);
  weight_set_parameters(set);
}

void fuzz_weight_sets(const char *path) {
  for (int kind = WEIGHTS_DIT; kind <= WEIGHTS_VAE; kind++) {
    core_ctx ctx;
    weight_set *set;
    core_ctx_init(&ctx);
    ctx.mem_limit = FUZZ_MEMORY;
    if (weight_set_open(&ctx, path, (weight_kind)kind, &set) == WAN_OK) touch(set);
    weight_set_close(set);
    fuzz_check_leaks(&ctx);
  }
}
