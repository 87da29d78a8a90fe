/* base64.h: RFC 4648 with padding. */
#ifndef WAN_PROMPT_BASE64_H
#define WAN_PROMPT_BASE64_H

#include "core/ctx.h"

/* Characters that n bytes become, without the terminating NUL. */
size_t base64_length(size_t n);
void base64_encode(const uint8_t *data, size_t n, char *out); /* base64_length(n)+1 characters */
/* White space is skipped. WAN_ERR_FORMAT with the offset of the first character that does not belong.
 * *out by core_free. */
wan_status base64_decode(core_ctx *ctx, const char *text, size_t n, uint8_t **out, size_t *size);

#endif
