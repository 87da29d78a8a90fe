/* utext.h: growable text as code points (or as bytes, one an element), the form that all cleaning
 * steps work on. Running out of memory is sticky: later pushes do nothing, utext_status() tells. */
#ifndef WAN_TEXT_UTEXT_H
#define WAN_TEXT_UTEXT_H

#include "core/ctx.h"

typedef struct utext {
  core_ctx *ctx;
  int32_t *c;
  size_t n, room;
  bool failed;
} utext;

void utext_push(utext *t, int32_t c);
void utext_append(utext *t, const int32_t *c, size_t n);
void utext_clear(utext *t);
void utext_free(utext *t);
void utext_swap(utext *a, utext *b);
bool utext_equal(const utext *a, const utext *b);
wan_status utext_status(const utext *t);

/* Append the code points of n bytes of UTF-8; false at the first invalid sequence, *offset is its byte. */
bool utext_from_utf8(utext *t, const char *s, size_t n, size_t *offset);
/* As a NUL-terminated string; NULL when memory is short. */
char *utext_to_utf8(const utext *t, size_t *size);
/* Bytes of the character c in UTF-8, written to out. */
int utf8_put(int32_t c, unsigned char out[4]);

#endif
