/* Every picture decoder on hostile bytes: an error or a picture, never a fault. */
#include <stddef.h>
#include <stdint.h>

#include "media/media.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  core_ctx ctx;
  core_ctx_init(&ctx);
  ctx.mem_limit = 256u << 20; /* a header can ask for 800 MB */
  picture p;
  if (picture_load_memory(&ctx, data, size, "fuzz", NULL, &p) == WAN_OK) {
    volatile uint8_t last = p.rgb[(size_t)p.width * (size_t)p.height * 3 - 1];
    (void)last;
    picture_free(&ctx, &p);
  }
  return core_mem_current(&ctx) != 0 ? -1 : 0;
}
