/* fuzz_clean.c: any bytes as a prompt: refused or cleaned; the result is valid UTF-8 (a second run takes
 * it) without blanks at its ends. */
#include "text/text.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  core_ctx ctx;
  core_ctx_init(&ctx);
  char *text = malloc(size + 1), *clean, *again;
  if (!text) return 0;
  if (size) memcpy(text, data, size);
  text[size] = 0;
  if (text_clean(&ctx, text, &clean) == WAN_OK) {
    size_t n = strlen(clean);
    if (n && (clean[0] == ' ' || clean[n - 1] == ' ')) abort();
    wan_status s = text_clean(&ctx, clean, &again);
    if (s != WAN_OK && n <= TEXT_MAX_BYTES) abort();
    core_free(&ctx, again);
    core_free(&ctx, clean);
  }
  free(text);
  if (core_mem_current(&ctx)) abort();
  return 0;
}
