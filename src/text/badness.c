/* badness.c: the heuristic of ftfy 6.3 (Robyn Speer), as a table of short patterns. A position of a
 * pattern is a set of characters: classes, listed characters, or both. Text is bad as soon as one
 * pattern matches anywhere; patterns of the original that others imply are left out. */
#include "text/badness.h"

#include "text/unicode.h"

#include <string.h>
#include <uchar.h>

static const struct {
  uint16_t first, last;
  uint32_t classes;
} runs[] = {
#include "text/tables/char_classes.inc"
};

uint32_t char_classes(int32_t c) {
  size_t lo = 0, hi = sizeof runs / sizeof runs[0];
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    if (c < runs[mid].first)
      hi = mid;
    else if (c > runs[mid].last)
      lo = mid + 1;
    else
      return runs[mid].classes;
  }
  return 0;
}

/* Short names for the table, and classes that follow from ASCII or Unicode instead of the table. */
enum {
  COMMON = CC_COMMON,
  C1 = CC_C1,
  BAD = CC_BAD,
  LAW = CC_LAW,
  MONEY = CC_CURRENCY,
  OPEN = CC_START_PUNCTUATION,
  CLOSE = CC_END_PUNCTUATION,
  NUM = CC_NUMERIC,
  FACE = CC_KAOMOJI,
  UP = CC_UPPER_ACCENTED,
  LOW = CC_LOWER_ACCENTED,
  ALPHABET = CC_UPPER_COMMON | CC_LOWER_COMMON,
  BOX = CC_BOX,
  AZ_LOW = 1 << 20,   /* a-z */
  AZ = 1 << 21,       /* A-Z, a-z */
  NOT_AZ = 1 << 22,   /* any other character */
  SPACE = 1 << 23,    /* white space */
  WORD = 1 << 24,     /* letter, digit, underscore */
  NOT_LINE = 1 << 25, /* anything but a line feed */
  START = 1 << 26     /* no character: the text starts here */
};

typedef struct place {
  uint32_t classes;
  const char32_t *also; /* further characters, or NULL */
} place;

enum { PLACES = 7 };

#define CLASS(c) \
  { (c), NULL }
#define CHARS(s) \
  { 0, U##s }
#define BOTH(c, s) \
  { (c), U##s }
#define ARABIC_TAIL BOTH(COMMON | MONEY | BAD | NUM | OPEN, "\u0178\u0160\u00ae\u00b0\u00b5\u00bb")

static const place patterns[][PLACES] = {
    {CLASS(C1)},
    {CLASS(BAD | LOW | UP | BOX | OPEN | CLOSE | MONEY | NUM | LAW), CLASS(BAD)},
    {CLASS(AZ), CLASS(ALPHABET), CLASS(BAD)},
    {CLASS(BAD), CLASS(LOW | UP | BOX | OPEN | CLOSE | MONEY | NUM | LAW)},
    {CLASS(LOW | CC_LOWER_COMMON | BOX | CLOSE | MONEY | NUM), CLASS(UP)},
    {CLASS(BOX | CLOSE | MONEY | NUM), CLASS(LOW)},
    {CLASS(LOW | BOX | CLOSE), CLASS(MONEY)},
    {CLASS(SPACE), CLASS(UP), CLASS(MONEY)},
    {CLASS(UP | BOX), CLASS(NUM | LAW)},
    {CLASS(LOW | UP | BOX | MONEY | CLOSE), CLASS(OPEN), CLASS(NUM)},
    {CLASS(LOW | UP | MONEY | NUM | BOX | LAW), CLASS(CLOSE), CLASS(OPEN)},
    {CLASS(MONEY | NUM | BOX), CLASS(OPEN)},
    {CLASS(AZ_LOW), CLASS(UP), CLASS(OPEN | MONEY)},
    {CLASS(BOX), CLASS(FACE)},
    {CLASS(LOW | UP | MONEY | NUM | OPEN | CLOSE | LAW), CLASS(BOX)},
    {CLASS(BOX), CLASS(CLOSE)},
    {CLASS(LOW | UP), CLASS(OPEN | CLOSE), CLASS(WORD)},
    /* the oe ligature where no unaccented letter follows; a degree sign behind a capital */
    {CHARS("Œœ"), CLASS(NOT_AZ)},
    {CLASS(UP), CHARS("°")},
    /* windows-1252: pairs, Arabic (two pairs wanted), South Asian scripts */
    {CHARS("ÂÃÎÐ"), BOTH(OPEN | CLOSE, "€œŠš¢£Ÿž\u00a0\u00ad®©°·»–—´")},
    {CHARS("×"), CHARS("²³")},
    {CHARS("ØÙ"), ARABIC_TAIL, CHARS("ØÙ"), ARABIC_TAIL},
    {CHARS("à"), CHARS("²µ¹¼½¾")},
    /* MacRoman */
    {CHARS("√"), CHARS("±∂†≠®™´≤≥¥µø")},
    {CHARS("≈"), CHARS("°¢")},
    {CHARS("‚"), CHARS("Ä"), CHARS("ìîïòôúùû†°¢π")},
    {CHARS("‚"), CHARS("âó"), CHARS("àä°ê")},
    /* windows-1251: punctuation, Latin-1 and Cyrillic, twice misread */
    {CHARS("в"), CHARS("Ђ")},
    {CHARS("ВГРС"), BOTH(C1 | BAD | OPEN | CLOSE | MONEY, "°µ"), CHARS("ВГРС")},
    {CHARS("Г"), CHARS("ў"), CHARS("В"), CHARS("Ђ"), CHARS("В"), CLASS(NOT_LINE), BOTH(AZ, " ")},
    /* windows-1252: a with grave or circumflex between words */
    {CLASS(AZ_LOW), CHARS("ÃÂ"), CHARS(" ")},
    {CLASS(AZ_LOW), CLASS(SPACE), CHARS("ÃÂ"), CHARS(" ")},
    {CLASS(START), CHARS("ÃÂ"), CHARS(" ")},
    {BOTH(AZ_LOW | CLOSE, ".,?!"), CHARS("Â"), BOTH(OPEN | CLOSE, " ")},
    /* windows-1253: punctuation, Latin-1 and Greek */
    {CHARS("β"), CHARS("€"), CHARS("™\u00a0Ά\u00ad®°")},
    {CHARS("ΒΓΞΟ"), BOTH(C1 | BAD | OPEN | CLOSE | MONEY, "°"), CHARS("ΒΓΞΟ")}};

static uint32_t all_classes(int32_t c) {
  uint32_t m = char_classes(c);
  bool low = c >= 'a' && c <= 'z';
  if (low) m |= AZ_LOW;
  m |= low || (c >= 'A' && c <= 'Z') ? AZ : NOT_AZ;
  if (unicode_is_space(c)) m |= SPACE;
  if (unicode_is_word(c)) m |= WORD;
  if (c != '\n') m |= NOT_LINE;
  return m;
}

static bool fits(const place *p, int32_t c, uint32_t classes) {
  if (p->classes & classes) return true;
  for (const char32_t *s = p->also; s && *s; s++)
    if (*s == (char32_t)c) return true;
  return false;
}

/* Does the pattern match at position i, whose classes are window[0]? */
static bool matches(const place *p, const utext *t, size_t i, const uint32_t window[PLACES]) {
  int skip = p[0].classes == START;
  if (skip && i != 0) return false;
  for (int k = 0; k + skip < PLACES; k++) {
    const place *q = &p[k + skip];
    if (!q->classes && !q->also) return true;
    if (i + (size_t)k >= t->n || !fits(q, t->c[i + (size_t)k], window[k])) return false;
  }
  return true;
}

bool text_is_bad(const utext *t) {
  uint32_t window[PLACES] = {0}; /* classes of the characters from i on */
  for (size_t i = 0; i < t->n && i + 1 < PLACES; i++) window[i + 1] = all_classes(t->c[i]);
  for (size_t i = 0; i < t->n; i++) {
    memmove(window, window + 1, sizeof window - sizeof window[0]);
    window[PLACES - 1] = i + PLACES - 1 < t->n ? all_classes(t->c[i + PLACES - 1]) : 0;
    for (size_t k = 0; k < sizeof patterns / sizeof patterns[0]; k++)
      if (matches(patterns[k], t, i, window)) return true;
  }
  return false;
}
