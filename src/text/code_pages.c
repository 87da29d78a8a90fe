/* code_pages.c: see code_pages.h; the tables are generated. */
#include "text/code_pages.h"

static const code_page pages[CODE_PAGES] = {
#include "text/tables/code_pages.inc"
};

static const uint16_t c1[32] = {
#include "text/tables/c1.inc"
};

const code_page *code_page_get(int i) {
  return &pages[i];
}

static int byte_of(const code_page *page, int32_t c) {
  enum { SUBSTITUTE = 0x1a };
  if (c < 0x80 && !(c == SUBSTITUTE && page->sloppy)) return c;
  int lo = 0, hi = page->count;
  while (lo < hi) {
    int mid = (lo + hi) / 2;
    if (page->pair[mid].c == c) return page->pair[mid].byte;
    if (c < page->pair[mid].c)
      hi = mid;
    else
      lo = mid + 1;
  }
  return -1;
}

bool code_page_encode(const code_page *page, const utext *text, utext *bytes) {
  for (size_t i = 0; i < text->n; i++) {
    int b = byte_of(page, text->c[i]);
    if (b < 0) return false;
    utext_push(bytes, b);
  }
  return true;
}

int32_t c1_to_windows(int32_t c) {
  return c >= 0x80 && c <= 0x9f ? c1[c - 0x80] : c;
}
