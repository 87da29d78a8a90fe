/* fuzz_response.c: any bytes as a service's answer, in both protocols, as base64 and as an address: refused,
 * or a text without control characters that ends between two characters. */
#include "prompt/base64.h"
#include "prompt/http.h"
#include "prompt/protocol.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* jansson hands out valid UTF-8 only; what is made of it has to be so, too, and printable. */
static void check_text(const char *text, const char *kept) {
  size_t rest = 0; /* continuation bytes still to come */
  unsigned char before = 0;
  for (const char *p = text; *p; p++) {
    unsigned char c = (unsigned char)*p;
    if ((c < 0x20 || c == 0x7f) && !strchr(kept, c)) abort();
    if (before == 0xc2 && c < 0xa0) abort();
    if (rest ? (c & 0xc0) != 0x80 : (c & 0xc0) == 0x80) abort();
    rest = rest ? rest - 1 : c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : c >= 0xc0 ? 1 : 0;
    before = c;
  }
  if (rest) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  core_ctx ctx;
  core_ctx_init(&ctx);
  char *body = malloc(size + 1), reason[48], shown[HTTP_URL_TEXT];
  if (!body) return 0;
  if (size) memcpy(body, data, size);
  body[size] = 0;
  for (int p = 0; p < 2; p++) {
    char *text;
    if (protocol_answer(&ctx, p ? PROTOCOL_OPENAI : PROTOCOL_DASHSCOPE, body, size, &text) != WAN_OK)
      continue;
    protocol_tidy(text, 32);
    check_text(text, "\n\t");
    if (strlen(text) > 32) abort();
    core_free(&ctx, text);
  }
  protocol_reason(body, size, reason, sizeof reason);
  check_text(reason, "");
  uint8_t *bytes;
  size_t n;
  if (base64_decode(&ctx, body, size, &bytes, &n) == WAN_OK) {
    if (n > size / 4 * 3 + 3) abort();
    core_free(&ctx, bytes);
  }
  if (strlen(http_url_text(body, shown)) >= HTTP_URL_TEXT) abort();
  free(body);
  if (core_mem_current(&ctx)) abort();
  return 0;
}
