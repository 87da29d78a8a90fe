/* code_pages.h: the one-byte encodings in which UTF-8 is most often misread, in the order of trial. */
#ifndef WAN_TEXT_CODE_PAGES_H
#define WAN_TEXT_CODE_PAGES_H

#include "text/utext.h"

/* "Sloppy" pages let undefined bytes pass and encode the replacement character as byte 1A. */
typedef struct code_page {
  const char *name;
  int sloppy, count;
  struct {
    uint16_t c;
    uint8_t byte;
  } pair[129]; /* sorted by c */
} code_page;

enum { CODE_PAGES = 10, CODE_PAGE_LATIN1 = 0, CODE_PAGE_MACROMAN = 8 };

const code_page *code_page_get(int i);
/* Append the bytes of text; false when the page lacks one of its characters. */
bool code_page_encode(const code_page *page, const utext *text, utext *bytes);
/* windows-1252 for U+0080..9F, where it is defined; other characters unchanged. */
int32_t c1_to_windows(int32_t c);

#endif
