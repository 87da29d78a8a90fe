/* mojibake.c: what ftfy 6.3 calls fix_encoding. If the text looks bad and all of it could have come from
 * one of the known one-byte encodings, its bytes in that encoding are read as UTF-8, with some mending
 * of bytes that were lost on the way. Where no encoding works for the whole, stretches that look like
 * misread UTF-8 are mended by themselves. */
#include "text/mojibake.h"

#include "text/badness.h"
#include "text/code_pages.h"

#include <string.h>

enum {
  ROUNDS_MAX = 256, /* each round undoes one misreading; more than three do not occur in practice */
  DEPTH_MAX = 16    /* of stretches within stretches */
};

static void fix(utext *text, int depth);

/* The byte at i, -1 behind the end. */
static int byte_at(const utext *b, size_t i) {
  return i < b->n ? (int)b->c[i] : -1;
}

static bool in_range(int c, int first, int last) {
  return c >= first && c <= last;
}

static bool is_tail(int c) {
  return in_range(c, 0x80, 0xbf);
}

/* ---- Blanks that were no-break spaces (byte A0) ---- */

/* Length of a sequence at i that would be UTF-8 if its one blank were A0, or 0. Lead bytes are limited
 * to those that give likely characters. */
static size_t blank_sequence(const utext *b, size_t i) {
  int a = byte_at(b, i), c = byte_at(b, i + 1), d = byte_at(b, i + 2), e = byte_at(b, i + 3);
  bool c_tail = is_tail(c) && c != 0x85 && c != 0xa0, d_tail = is_tail(d) && d != 0x85 && d != 0xa0;
  if (c == ' ' && (a == 0xc2 || a == 0xc3 || a == 0xc5 || a == 0xce || a == 0xd0 || a == 0xd9)) return 2;
  if ((a == 0xe2 || a == 0xe3) && c == ' ' && d_tail) return 3;
  if (in_range(a, 0xe0, 0xe3) && c_tail && d == ' ') return 3;
  if (a != 0xf0) return 0;
  bool one_blank = (c == ' ') + (d == ' ') + (e == ' ') == 1;
  return one_blank && (c == ' ' || is_tail(c)) && (d == ' ' || is_tail(d)) && (e == ' ' || is_tail(e)) ? 4
                                                                                                       : 0;
}

static bool has_blank_sequence(const utext *b) {
  for (size_t i = 0; i < b->n; i++)
    if (blank_sequence(b, i)) return true;
  return false;
}

static bool follows(const utext *b, size_t i, const char *text) {
  for (; *text; text++, i++)
    if (byte_at(b, i) != *text) return false;
  return true;
}

/* C3 and a blank is "à" as a word by itself, unless one of the Portuguese words that start with it
 * follows: both the A0 and the blank are put back. */
static bool is_grave_word(const utext *b, size_t i) {
  static const char *const not_before[] = {" ", "quele", "quela", "quilo", "s "};
  if (!follows(b, i + 1, " ") || byte_at(b, i) != 0xc3) return false;
  for (size_t k = 0; k < sizeof not_before / sizeof not_before[0]; k++)
    if (follows(b, i + 2, not_before[k])) return false;
  return true;
}

static void restore_a0(utext *bytes) {
  utext out = {.ctx = bytes->ctx};
  for (size_t i = 0; i < bytes->n; i++) {
    utext_push(&out, bytes->c[i]);
    if (is_grave_word(bytes, i)) utext_push(&out, 0xa0);
  }
  for (size_t i = 0; i < out.n;) {
    size_t k = blank_sequence(&out, i);
    for (size_t j = i; j < i + k; j++)
      if (out.c[j] == ' ') out.c[j] = 0xa0;
    i += k ? k : 1;
  }
  utext_swap(bytes, &out);
  utext_free(&out);
}

/* ---- Bytes that were lost (1A in the sloppy pages, sometimes a question mark) ---- */

/* Is each of c[0..n) a tail byte, 1A, or, once and at `question` only, '?' or 1A? */
static bool lossy_tails(const utext *b, size_t i, int n, int question) {
  for (int k = 0; k < n; k++) {
    int c = byte_at(b, i + (size_t)k);
    if (k == question ? c != '?' && c != 0x1a : c != 0x1a && !is_tail(c)) return false;
  }
  return true;
}

static size_t lossy_sequence(const utext *b, size_t i) {
  int a = byte_at(b, i), c = byte_at(b, i + 1), d = byte_at(b, i + 2);
  if (in_range(a, 0xc2, 0xdf) && c == 0x1a) return 2;
  if (in_range(a, 0xc2, 0xc3) && c == '?') return 2;
  if (a == 0xed && in_range(c, 0xa0, 0xaf) && byte_at(b, i + 3) == 0xed && /* a surrogate pair */
      in_range(byte_at(b, i + 4), 0xb0, 0xbf)) {
    int f = byte_at(b, i + 5);
    bool d_lost = d == 0x1a || d == '?', f_lost = f == 0x1a || f == '?';
    if ((d_lost || f_lost) && (d_lost || is_tail(d)) && (f_lost || is_tail(f))) return 6;
  }
  int tails = in_range(a, 0xe0, 0xef) ? 2 : in_range(a, 0xf0, 0xf4) ? 3 : 0;
  for (int k = 0; k < tails; k++)
    if (lossy_tails(b, i + 1, tails, k)) return (size_t)tails + 1;
  return a == 0x1a ? 1 : 0;
}

/* Sequences with a lost byte become the replacement character. */
static void replace_lost(utext *bytes) {
  static const int32_t replacement[] = {0xef, 0xbf, 0xbd};
  utext out = {.ctx = bytes->ctx};
  for (size_t i = 0; i < bytes->n;) {
    size_t k = lossy_sequence(bytes, i);
    if (k)
      utext_append(&out, replacement, 3);
    else
      utext_push(&out, bytes->c[i]);
    i += k ? k : 1;
  }
  utext_swap(bytes, &out);
  utext_free(&out);
}

/* ---- Reading as UTF-8 ---- */

/* The surrogate pair written as two three-byte sequences at i: its character, or 0. The lenient
 * decoder of ftfy lets a final line feed pass for the last byte. */
static int32_t cesu_pair(const utext *b, size_t i) {
  int c = byte_at(b, i + 1), d = byte_at(b, i + 2), e = byte_at(b, i + 4), f = byte_at(b, i + 5);
  if (byte_at(b, i) != 0xed || !in_range(c, 0xa0, 0xaf) || !is_tail(d) || byte_at(b, i + 3) != 0xed ||
      !in_range(e, 0xb0, 0xbf) || !(is_tail(f) || (f == '\n' && i + 6 == b->n)))
    return 0;
  return 0x10000 + ((c & 0x0f) << 16) + ((d & 0x3f) << 10) + ((e & 0x0f) << 6) + (f & 0x3f);
}

/* C0 80 for U+0000, as Java writes it; or C0 before a final line feed. */
static bool is_java_null(const utext *b, size_t i) {
  int c = byte_at(b, i + 1);
  return byte_at(b, i) == 0xc0 && (c == 0x80 || (c == '\n' && i + 2 == b->n));
}

static bool read_utf8(const utext *bytes, utext *out) {
  for (size_t i = 0; i < bytes->n;) {
    char s[4];
    size_t n = 0, offset;
    int a = byte_at(bytes, i);
    int32_t pair = cesu_pair(bytes, i);
    if (pair) {
      utext_push(out, pair);
      i += 6;
    } else if (is_java_null(bytes, i)) {
      utext_push(out, 0);
      i += 2;
    } else {
      size_t want = a < 0x80 ? 1 : a < 0xe0 ? 2 : a < 0xf0 ? 3 : 4;
      for (; n < want && i + n < bytes->n; n++) s[n] = (char)bytes->c[i + n];
      if (!utext_from_utf8(out, s, n, &offset)) return false;
      i += n;
    }
  }
  return true;
}

/* Was the text read in this page? Then *bytes has its bytes; true, with the text replaced, if they are
 * UTF-8. *possible tells of the page alone. */
static bool reread(utext *text, int number, bool *possible) {
  const code_page *page = code_page_get(number);
  utext bytes = {.ctx = text->ctx}, fixed = {.ctx = text->ctx};
  bool done = false;
  *possible = code_page_encode(page, text, &bytes);
  if (*possible) {
    if (number != CODE_PAGE_MACROMAN && has_blank_sequence(&bytes)) restore_a0(&bytes);
    if (page->sloppy) replace_lost(&bytes);
    done = read_utf8(&bytes, &fixed);
  }
  text->failed = text->failed || bytes.failed || fixed.failed;
  if (done) utext_swap(text, &fixed);
  utext_free(&bytes);
  utext_free(&fixed);
  return done;
}

/* ---- Stretches ---- */

/* Length of the run of misread UTF-8 sequences that starts at i, or 0. */
static size_t misread_run(const utext *t, size_t i) {
  size_t at = i;
  if (i > 0 && char_classes(t->c[i - 1]) & CC_UTF8_CONTINUATION_STRICT) return 0;
  while (at < t->n) {
    uint32_t m = char_classes(t->c[at]);
    size_t tails = m & CC_UTF8_FIRST_OF_2 ? 1 : m & CC_UTF8_FIRST_OF_3 ? 2 : m & CC_UTF8_FIRST_OF_4 ? 3 : 0;
    if (!tails || tails >= t->n - at) break;
    size_t k = 1;
    while (k <= tails && char_classes(t->c[at + k]) & CC_UTF8_CONTINUATION) k++;
    if (k <= tails) break;
    at += k;
  }
  return at - i;
}

static void fix_stretches(utext *text, int depth) {
  utext out = {.ctx = text->ctx}, part = {.ctx = text->ctx};
  for (size_t i = 0; i < text->n;) {
    size_t k = misread_run(text, i);
    utext_clear(&part);
    utext_append(&part, text->c + i, k ? k : 1);
    /* only what is shorter than the text, or this would not end */
    if (k && k < text->n && depth < DEPTH_MAX && text_is_bad(&part)) fix(&part, depth + 1);
    utext_append(&out, part.c, part.n);
    i += k ? k : 1;
  }
  out.failed = out.failed || part.failed;
  utext_swap(text, &out);
  utext_free(&part);
  utext_free(&out);
}

/* ---- The whole ---- */

/* Latin-1 that may have been windows-1252: possible when it has none of the undefined bytes. */
static bool from_windows(utext *text) {
  bool changed = false;
  for (size_t i = 0; i < text->n; i++) {
    int32_t c = text->c[i];
    if (!in_range(c, 0x80, 0x9f)) continue;
    if (c1_to_windows(c) == c) return false;
    changed = true;
  }
  if (changed) mojibake_fix_c1(text);
  return changed;
}

static bool is_ascii(const utext *t) {
  for (size_t i = 0; i < t->n; i++)
    if (t->c[i] >= 0x80) return false;
  return true;
}

static void fix_once(utext *text, int depth) {
  bool possible, latin1 = false;
  if (is_ascii(text) || !text_is_bad(text)) return;
  for (int i = 0; i < CODE_PAGES; i++) {
    if (reread(text, i, &possible)) return;
    if (i == CODE_PAGE_LATIN1) latin1 = possible;
  }
  utext before = {.ctx = text->ctx};
  utext_append(&before, text->c, text->n);
  fix_stretches(text, depth);
  bool changed = before.failed || !utext_equal(&before, text);
  text->failed = text->failed || before.failed;
  utext_free(&before);
  if (changed || (latin1 && from_windows(text))) return;
  mojibake_fix_c1(text);
}

static void fix(utext *text, int depth) {
  utext before = {.ctx = text->ctx};
  for (int round = 0; round < ROUNDS_MAX && !text->failed && !before.failed; round++) {
    utext_clear(&before);
    utext_append(&before, text->c, text->n);
    fix_once(text, depth);
    if (utext_equal(&before, text)) break;
  }
  text->failed = text->failed || before.failed;
  utext_free(&before);
}

void mojibake_fix(utext *text) {
  if (!is_ascii(text)) fix(text, 0);
}

void mojibake_fix_c1(utext *text) {
  for (size_t i = 0; i < text->n; i++) text->c[i] = c1_to_windows(text->c[i]);
}
