/* entities.c: two readings of "&name;", after the HTML 5 standard (13.2.5.72 and following), the
 * behaviour of Python's html module and of ftfy. */
#include "text/entities.h"

#include "text/code_pages.h"

#include <string.h>

typedef struct entity {
  const char *name; /* with its semicolon, where it has one */
  int32_t c[3];     /* 0 behind the last */
} entity;

static const entity entities[] = {
#include "text/tables/entities.inc"
};
static const entity capitals[] = {
#include "text/tables/entities_upper.inc"
};

enum {
  NAME_MAX_CHARS = 32,   /* a name of the standard and its semicolon have at most 32 */
  STRICT_MAX_CHARS = 24, /* what ftfy looks at */
  UNICODE_LAST = 0x10ffff
};

static const entity *find(const entity *table, size_t count, const char *name) {
  size_t lo = 0, hi = count;
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    int d = strcmp(name, table[mid].name);
    if (d == 0) return &table[mid];
    if (d < 0)
      hi = mid;
    else
      lo = mid + 1;
  }
  return NULL;
}

static const entity *find_html(const char *name) {
  return find(entities, sizeof entities / sizeof entities[0], name);
}

static void push_entity(utext *out, const entity *e) {
  for (int i = 0; i < 3 && e->c[i]; i++) utext_push(out, e->c[i]);
}

static int digit(int32_t c, int base) {
  int d = c >= '0' && c <= '9'   ? c - '0'
          : c >= 'a' && c <= 'f' ? c - 'a' + 10
          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                 : 99;
  return d < base ? d : -1;
}

/* Code points that the standard forbids in a reference; they vanish. */
static bool is_forbidden(int32_t c) {
  return (c >= 0x01 && c <= 0x08) || c == 0x0b || (c >= 0x0e && c <= 0x1f) || c == 0x7f ||
         (c >= 0xfdd0 && c <= 0xfdef) || (c & 0xfffe) == 0xfffe;
}

/* A numeric reference whose '#' is at i: its end (behind the semicolon, if any), and the character in
 * *c, 0 for none. 0 when there are no digits. */
static size_t numeric(const utext *in, size_t i, int32_t *c) {
  size_t at = i + 1;
  int base = 10;
  if (at < in->n && (in->c[at] == 'x' || in->c[at] == 'X')) {
    base = 16;
    at++;
  }
  size_t first = at;
  int32_t value = 0;
  for (int d; at < in->n && (d = digit(in->c[at], base)) >= 0; at++)
    if (value <= UNICODE_LAST) value = value * base + d;
  if (at == first) return 0;
  if (at < in->n && in->c[at] == ';') at++;
  if (value >= 0x80 && value <= 0x9f)
    *c = c1_to_windows(value);
  else if (value == 0 || (value >= 0xd800 && value <= 0xdfff) || value > UNICODE_LAST)
    *c = 0xfffd;
  else
    *c = is_forbidden(value) ? 0 : value;
  return at;
}

/* Characters that may follow '&' in a named reference. */
static bool ends_name(int32_t c) {
  return c == '\t' || c == '\n' || c == '\f' || c == ' ' || c == '<' || c == '&' || c == '#' || c == ';';
}

/* The named reference whose first letter is at i: pushes what it stands for and returns its end; of an
 * unclosed one the longest known beginning counts. i when no name is known. */
static size_t named(const utext *in, size_t i, utext *out) {
  char name[NAME_MAX_CHARS + 2];
  size_t n = 0;
  while (n < NAME_MAX_CHARS && i + n < in->n && !ends_name(in->c[i + n]) && in->c[i + n] < 0x80 &&
         in->c[i + n] > 0) {
    name[n] = (char)in->c[i + n];
    n++;
  }
  if (n && i + n < in->n && in->c[i + n] == ';') {
    memcpy(name + n, ";", 2);
    const entity *e = find_html(name);
    if (e) {
      push_entity(out, e);
      return i + n + 1;
    }
  }
  for (; n > 1; n--) {
    name[n] = 0;
    const entity *e = find_html(name);
    if (!e) continue;
    push_entity(out, e);
    return i + n;
  }
  return i;
}

void entities_unescape(const utext *in, utext *out) {
  for (size_t i = 0; i < in->n;) {
    int32_t c = in->c[i++];
    size_t end = i;
    if (c == '&' && i < in->n) {
      int32_t number;
      if (in->c[i] != '#') {
        end = named(in, i, out);
      } else if ((end = numeric(in, i, &number))) {
        if (number) utext_push(out, number);
      } else {
        end = i;
      }
    }
    if (end == i) utext_push(out, c);
    i = end;
  }
}

static bool is_alnum(int32_t c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* "#?[0-9A-Za-z]{1,24};" from i on: its end, or 0. */
static size_t strict_end(const utext *in, size_t i) {
  if (i < in->n && in->c[i] == '#') i++;
  size_t n = 0;
  while (n <= STRICT_MAX_CHARS && i + n < in->n && is_alnum(in->c[i + n])) n++;
  return n && n <= STRICT_MAX_CHARS && i + n < in->n && in->c[i + n] == ';' ? i + n + 1 : 0;
}

/* Replaces the reference [i, end), or returns false. */
static bool strict_replace(const utext *in, size_t i, size_t end, utext *out) {
  if (in->c[i] == '#') {
    int32_t c;
    if (numeric(in, i, &c) != end || c == ';') return false;
    if (c) utext_push(out, c);
    return true;
  }
  char name[STRICT_MAX_CHARS + 2];
  for (size_t k = i; k < end; k++) name[k - i] = (char)in->c[k];
  name[end - i] = 0;
  const entity *e = find_html(name);
  if (!e) e = find(capitals, sizeof capitals / sizeof capitals[0], name);
  if (e) push_entity(out, e);
  return e != NULL;
}

void entities_unescape_strict(const utext *in, utext *out) {
  for (size_t i = 0; i < in->n; i++) {
    size_t end = in->c[i] == '&' ? strict_end(in, i + 1) : 0;
    if (end && strict_replace(in, i + 1, end, out))
      i = end - 1;
    else
      utext_push(out, in->c[i]);
  }
}
