#include "prompt/base64.h"

#include <string.h>

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

size_t base64_length(size_t n) {
  return (n + 2) / 3 * 4;
}

void base64_encode(const uint8_t *data, size_t n, char *out) {
  for (size_t i = 0; i < n; i += 3) {
    size_t have = n - i < 3 ? n - i : 3;
    unsigned bits = (unsigned)data[i] << 16;
    if (have > 1) bits |= (unsigned)data[i + 1] << 8;
    if (have > 2) bits |= data[i + 2];
    for (size_t k = 0; k < 4; k++) *out++ = k <= have ? ALPHABET[bits >> (18 - 6 * k) & 63] : '=';
  }
  *out = 0;
}

wan_status base64_decode(core_ctx *ctx, const char *text, size_t n, uint8_t **out, size_t *size) {
  uint8_t *to = core_alloc(ctx, n / 4 * 3 + 3);
  *out = to;
  *size = 0;
  if (!to) return WAN_ERR_MEMORY;
  unsigned bits = 0;
  size_t digits = 0, padding = 0, at = 0;
  for (; at < n; at++) {
    if (strchr(" \t\r\n", text[at]) && text[at]) continue;
    if (text[at] == '=') {
      padding++;
      continue;
    }
    const char *digit = text[at] ? strchr(ALPHABET, text[at]) : NULL;
    if (!digit || padding) break;
    bits = bits << 6 | (unsigned)(digit - ALPHABET);
    if (++digits % 4 == 0) {
      *to++ = (uint8_t)(bits >> 16);
      *to++ = (uint8_t)(bits >> 8);
      *to++ = (uint8_t)bits;
    }
  }
  /* The last group: two digits are one byte, three are two; the padding may be missing, but not be wrong. */
  size_t rest = digits % 4;
  if (at < n || rest == 1 || (padding && rest + padding != 4)) {
    core_free(ctx, *out);
    *out = NULL;
    return core_fail(ctx, WAN_ERR_FORMAT, "not base64: unexpected %s at offset %zu",
                     at < n ? "character" : "end", at);
  }
  if (rest >= 2) *to++ = (uint8_t)(bits >> (rest == 2 ? 4 : 10));
  if (rest == 3) *to++ = (uint8_t)(bits >> 2);
  *size = (size_t)(to - *out);
  return WAN_OK;
}
