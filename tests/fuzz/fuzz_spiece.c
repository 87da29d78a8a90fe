/* fuzz_spiece.c: any bytes as a spiece.model: refused, or a tokenizer that survives a prompt. */
#define _GNU_SOURCE /* memfd_create */
#include "text/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char prompt[] = "A cat, ① ﬁ 猫 e\xcc\x81 \xe2\x96\x81 </s> <0x41> x";
  core_ctx ctx;
  core_ctx_init(&ctx);
  int fd = memfd_create("spiece", MFD_CLOEXEC), n;
  if (fd < 0) return 0;
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  tokenizer *t;
  int32_t ids[TEXT_MAX_TOKENS];
  if (write(fd, data, size) == (ssize_t)size && tokenizer_open(&ctx, path, &t) == WAN_OK) {
    if (tokenizer_encode(t, prompt, ids, &n) == WAN_OK)
      for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= tokenizer_vocab_size(t)) abort();
    tokenizer_close(t);
  }
  close(fd);
  if (core_mem_current(&ctx)) abort();
  return 0;
}
