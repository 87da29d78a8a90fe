/* utext.c: see utext.h. */
#include "text/utext.h"

#include <string.h>

static bool reserve(utext *t, size_t more) {
  if (t->failed) return false;
  if (more <= t->room - t->n) return true;
  size_t room = 2 * (t->n + more) + 32;
  int32_t *c = core_realloc(t->ctx, t->c, room * sizeof *c);
  if (!c) {
    t->failed = true;
    return false;
  }
  t->c = c;
  t->room = room;
  return true;
}

void utext_push(utext *t, int32_t c) {
  if (reserve(t, 1)) t->c[t->n++] = c;
}

void utext_append(utext *t, const int32_t *c, size_t n) {
  if (!n || !reserve(t, n)) return;
  memcpy(t->c + t->n, c, n * sizeof *c);
  t->n += n;
}

void utext_clear(utext *t) {
  t->n = 0;
}

void utext_free(utext *t) {
  core_free(t->ctx, t->c);
  *t = (utext){.ctx = t->ctx, .failed = t->failed};
}

void utext_swap(utext *a, utext *b) {
  utext old = *a;
  *a = *b;
  *b = old;
  a->failed = b->failed = a->failed || b->failed;
}

bool utext_equal(const utext *a, const utext *b) {
  return a->n == b->n && (a->n == 0 || memcmp(a->c, b->c, a->n * sizeof *a->c) == 0);
}

wan_status utext_status(const utext *t) {
  return t->failed ? WAN_ERR_MEMORY : WAN_OK;
}

/* Length of a well-formed sequence (Unicode, table 3-7), 0 when it is none. */
static size_t sequence(const unsigned char *s, size_t n) {
  unsigned char a = s[0];
  size_t k = a < 0x80 ? 1 : a < 0xc2 ? 0 : a < 0xe0 ? 2 : a < 0xf0 ? 3 : a < 0xf5 ? 4 : 0;
  if (k == 0 || k > n) return 0;
  unsigned char low = a == 0xe0 ? 0xa0 : a == 0xf0 ? 0x90 : 0x80;
  unsigned char high = a == 0xed ? 0x9f : a == 0xf4 ? 0x8f : 0xbf;
  if (k > 1 && (s[1] < low || s[1] > high)) return 0;
  for (size_t i = 2; i < k; i++)
    if ((s[i] & 0xc0) != 0x80) return 0;
  return k;
}

bool utext_from_utf8(utext *t, const char *text, size_t n, size_t *offset) {
  const unsigned char *s = (const unsigned char *)text;
  for (size_t i = 0, k; i < n; i += k) {
    *offset = i;
    if (!(k = sequence(s + i, n - i))) return false;
    int32_t c = k == 1 ? s[i] : s[i] & (0xff >> (k + 1));
    for (size_t j = 1; j < k; j++) c = c << 6 | (s[i + j] & 0x3f);
    utext_push(t, c);
  }
  return true;
}

int utf8_put(int32_t c, unsigned char out[4]) {
  int k = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (int i = k - 1; i > 0; i--, c >>= 6) out[i] = (unsigned char)(0x80 | (c & 0x3f));
  static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
  out[0] = (unsigned char)(lead[k] | c);
  return k;
}

char *utext_to_utf8(const utext *t, size_t *size) {
  unsigned char *s = core_alloc(t->ctx, 4 * t->n + 1);
  if (!s) return NULL;
  size_t n = 0;
  for (size_t i = 0; i < t->n; i++) n += (size_t)utf8_put(t->c[i], s + n);
  s[n] = 0;
  if (size) *size = n;
  return (char *)s;
}
