/* clean.c: the official cleaning of a prompt: ftfy's fix_text with its default settings, HTML references
 * decoded twice, white space collapsed. Each step reads one text and writes the next. */
#include "text/text.h"

#include "text/entities.h"
#include "text/mojibake.h"
#include "text/unicode.h"
#include "text/utext.h"

#include <string.h>
#include <utf8proc.h>

/* Each round undoes one layer of damage; bounds the time that a hostile text can take. */
enum { ROUNDS_MAX = 256 };

/* Ligatures of Latin letters, full and half width forms. */
static const struct {
  uint16_t c;
  int32_t to[3]; /* 0 behind the last */
} replacements[] = {
#include "text/tables/replacements.inc"
};

static void replace_forms(const utext *in, utext *out) {
  for (size_t i = 0; i < in->n; i++) {
    size_t lo = 0, hi = sizeof replacements / sizeof replacements[0];
    while (lo < hi && replacements[(lo + hi) / 2].c != in->c[i]) {
      if (in->c[i] < replacements[(lo + hi) / 2].c)
        hi = (lo + hi) / 2;
      else
        lo = (lo + hi) / 2 + 1;
    }
    if (lo >= hi) {
      utext_push(out, in->c[i]);
      continue;
    }
    const int32_t *to = replacements[(lo + hi) / 2].to;
    for (int k = 0; k < 3 && to[k]; k++) utext_push(out, to[k]);
  }
}

static void straighten(const utext *in, utext *out) { /* quotation marks and line breaks */
  for (size_t i = 0; i < in->n; i++) {
    int32_t c = in->c[i];
    if (c == 0x2bc || (c >= 0x2018 && c <= 0x201b)) c = '\'';
    if (c >= 0x201c && c <= 0x201f) c = '"';
    if (c == '\r' && i + 1 < in->n && in->c[i + 1] == '\n') continue;
    if (c == '\r' || c == 0x2028 || c == 0x2029 || c == 0x85) c = '\n';
    utext_push(out, c);
  }
}

/* ESC [ digits and semicolons, letter: its length, or 0 */
static size_t terminal_escape(const utext *t, size_t i) {
  size_t at = i + 2;
  if (i + 2 >= t->n || t->c[i] != 0x1b || t->c[i + 1] != '[') return 0;
  while (at < t->n && (t->c[at] == ';' || unicode_is_digit(t->c[at]))) at++;
  bool letter = at < t->n && ((t->c[at] >= 'a' && t->c[at] <= 'z') || (t->c[at] >= 'A' && t->c[at] <= 'Z'));
  return letter ? at + 1 - i : 0;
}

static bool is_control(int32_t c) {
  return (c >= 0 && c <= 0x08) || c == 0x0b || (c >= 0x0e && c <= 0x1f) || c == 0x7f ||
         (c >= 0x206a && c <= 0x206f) || c == 0xfeff || (c >= 0xfff9 && c <= 0xfffc);
}

static void remove_controls(const utext *in, utext *out) { /* and terminal escapes */
  for (size_t i = 0; i < in->n;) {
    size_t k = terminal_escape(in, i);
    if (!k && !is_control(in->c[i])) utext_push(out, in->c[i]);
    i += k ? k : 1;
  }
}

static void compose(const utext *in, utext *out) { /* NFC */
  enum { FIRST_AFFECTED = 0x300 };
  const int options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
  bool plain = true;
  for (size_t i = 0; i < in->n && plain; i++) plain = in->c[i] < FIRST_AFFECTED;
  if (plain) {
    utext_append(out, in->c, in->n);
    return;
  }
  size_t size;
  char *s = utext_to_utf8(in, &size);
  const utf8proc_uint8_t *bytes = (const utf8proc_uint8_t *)s;
  utf8proc_ssize_t n = s ? utf8proc_decompose(bytes, (utf8proc_ssize_t)size, NULL, 0, options) : -1;
  int32_t *c = n >= 0 ? core_alloc(in->ctx, ((size_t)n + 1) * sizeof *c) : NULL;
  if (c) {
    n = utf8proc_decompose(bytes, (utf8proc_ssize_t)size, c, n, options);
    n = utf8proc_normalize_utf32(c, n, options);
    if (n > 0) utext_append(out, c, (size_t)n);
  } else {
    out->failed = true;
  }
  core_free(in->ctx, c);
  core_free(in->ctx, s);
}

/* ---- Lines ---- */

typedef void step(const utext *in, utext *out);

static void apply(utext *text, utext *spare, step *f) {
  utext_clear(spare);
  f(text, spare);
  utext_swap(text, spare);
}

/* All of ftfy's fixes, again and again until nothing changes. */
static void fix_line(utext *line, bool unescape) {
  utext before = {.ctx = line->ctx}, spare = {.ctx = line->ctx};
  for (int round = 0; round < ROUNDS_MAX && !line->failed; round++) {
    utext_clear(&before);
    utext_append(&before, line->c, line->n);
    if (unescape) apply(line, &spare, entities_unescape_strict);
    mojibake_fix(line);
    mojibake_fix_c1(line);
    apply(line, &spare, replace_forms);
    apply(line, &spare, straighten);
    apply(line, &spare, remove_controls);
    apply(line, &spare, compose);
    line->failed = line->failed || before.failed;
    if (utext_equal(&before, line)) break;
  }
  utext_free(&before);
  utext_free(&spare);
}

/* References are decoded up to the first line with a '<': from there on the text counts as HTML. */
static void fix_text(const utext *in, utext *out) {
  utext line = {.ctx = in->ctx};
  bool unescape = true;
  for (size_t i = 0, end; i < in->n && !out->failed; i = end) {
    for (end = i; end < in->n && in->c[end] != '\n'; end++)
      if (in->c[end] == '<') unescape = false;
    if (end < in->n) end++;
    utext_clear(&line);
    utext_append(&line, in->c + i, end - i);
    fix_line(&line, unescape);
    utext_append(out, line.c, line.n);
    out->failed = out->failed || line.failed;
  }
  utext_free(&line);
}

static void collapse(const utext *in, utext *out) { /* white space */
  bool gap = false;
  for (size_t i = 0; i < in->n; i++) {
    bool space = unicode_is_space(in->c[i]);
    if (!space) {
      if (gap && out->n) utext_push(out, ' ');
      utext_push(out, in->c[i]);
    }
    gap = space;
  }
}

wan_status text_clean(core_ctx *ctx, const char *in, char **out) {
  utext text = {.ctx = ctx}, spare = {.ctx = ctx};
  size_t size = strlen(in), offset = 0;
  wan_status s = WAN_OK;
  *out = NULL;
  if (size > TEXT_MAX_BYTES)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "the prompt has %zu bytes, more than %d", size,
                     (int)TEXT_MAX_BYTES);
  if (!utext_from_utf8(&text, in, size, &offset)) {
    s = core_fail(ctx, WAN_ERR_ARGUMENT, "the prompt is not valid UTF-8 at byte %zu", offset);
  } else {
    apply(&text, &spare, fix_text);
    apply(&text, &spare, entities_unescape);
    apply(&text, &spare, entities_unescape);
    apply(&text, &spare, collapse);
    s = utext_status(&text);
    if (s == WAN_OK && !(*out = utext_to_utf8(&text, NULL))) s = WAN_ERR_MEMORY;
  }
  utext_free(&text);
  utext_free(&spare);
  return s;
}
