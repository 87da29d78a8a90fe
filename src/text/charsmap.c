/* charsmap.c: the map comes from the model file, so every step in its double array is checked; a
 * step outside of it ends the search, as a missing key does. */
#include "text/charsmap.h"

#include <string.h>
#include <utf8proc.h>

/* The tokenizers library looks a whole grapheme cluster up when it is shorter than this many bytes,
 * and the single characters of longer ones. */
enum { GRAPHEME_BYTES = 6 };

static uint32_t read_u32(const unsigned char *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

wan_status charsmap_open(core_ctx *ctx, const char *path, const unsigned char *blob, size_t size,
                         charsmap *out) {
  *out = (charsmap){0};
  if (!size) return WAN_OK;
  size_t array = size >= 4 ? read_u32(blob) : 0;
  if (size < 4 || array > size - 4 || array % 4 || array == 0 || (size > 4 + array && blob[size - 1] != 0))
    return core_fail(ctx, WAN_ERR_FORMAT,
                     "%s: the normalisation map of %zu bytes is damaged (its index would have %zu bytes)",
                     path, size, array);
  out->units = blob + 4;
  out->unit_count = array / 4;
  out->text = blob + 4 + array;
  out->text_size = size - 4 - array;
  return WAN_OK;
}

/* Unit layout of darts-clone: bits 0-7 label, bit 8 "a value hangs here", bit 9 offset scale, bits
 * 10-30 offset; a value has bit 31 set. */
static uint32_t unit_offset(uint32_t u) {
  return (u >> 10) << ((u & (1u << 9)) >> 6);
}

/* Replacement of the shortest key that starts `text`, NULL when there is none. */
static const char *lookup(const charsmap *m, const char *text, size_t n) {
  if (!m->unit_count) return NULL;
  size_t at = unit_offset(read_u32(m->units));
  for (size_t i = 0; i < n; i++) {
    unsigned char c = (unsigned char)text[i];
    at ^= c;
    if (at >= m->unit_count) return NULL;
    uint32_t u = read_u32(m->units + 4 * at);
    if ((u & (1u << 31 | 0xff)) != c) return NULL;
    at ^= unit_offset(u);
    if (at >= m->unit_count) return NULL;
    if (u & (1u << 8)) {
      uint32_t value = read_u32(m->units + 4 * at) & ~(1u << 31);
      return value < m->text_size ? (const char *)m->text + value : NULL;
    }
  }
  return NULL;
}

typedef struct sink {
  core_ctx *ctx;
  char *data;
  size_t size, room;
} sink;

static wan_status put(sink *s, const char *text, size_t n) {
  if (n > s->room - s->size) {
    size_t room = 2 * (s->size + n);
    char *more = core_realloc(s->ctx, s->data, room);
    if (!more) return WAN_ERR_MEMORY;
    s->data = more;
    s->room = room;
  }
  memcpy(s->data + s->size, text, n);
  s->size += n;
  return WAN_OK;
}

static size_t char_bytes(const char *text, size_t n) {
  utf8proc_int32_t c;
  utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &c);
  return k > 0 ? (size_t)k : 1;
}

/* Bytes of the extended grapheme cluster that starts text. */
static size_t grapheme_bytes(const char *text, size_t n) {
  utf8proc_int32_t a, b, state = 0;
  size_t used = char_bytes(text, n);
  utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &a);
  while (used < n) {
    size_t k = char_bytes(text + used, n - used);
    utf8proc_iterate((const utf8proc_uint8_t *)text + used, (utf8proc_ssize_t)(n - used), &b);
    if (utf8proc_grapheme_break_stateful(a, b, &state)) break;
    a = b;
    used += k;
  }
  return used;
}

static wan_status put_grapheme(sink *s, const charsmap *m, const char *text, size_t n) {
  const char *whole = n < GRAPHEME_BYTES ? lookup(m, text, n) : NULL;
  if (whole) return put(s, whole, strlen(whole));
  for (size_t i = 0, k; i < n; i += k) {
    k = char_bytes(text + i, n - i);
    const char *one = lookup(m, text + i, k);
    CORE_TRY(one ? put(s, one, strlen(one)) : put(s, text + i, k));
  }
  return WAN_OK;
}

wan_status charsmap_apply(core_ctx *ctx, const charsmap *map, const char *text, size_t n, char **out,
                          size_t *out_size) {
  sink s = {.ctx = ctx, .room = n + 16};
  *out = NULL;
  if (!(s.data = core_alloc(ctx, s.room))) return WAN_ERR_MEMORY;
  wan_status status = WAN_OK;
  for (size_t i = 0, k; i < n && status == WAN_OK; i += k) {
    k = grapheme_bytes(text + i, n - i);
    status = put_grapheme(&s, map, text + i, k);
  }
  if (status != WAN_OK) {
    core_free(ctx, s.data);
    return status;
  }
  *out = s.data;
  *out_size = s.size;
  return WAN_OK;
}
