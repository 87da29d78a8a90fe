/* badness.h: does a text look misdecoded? */
#ifndef WAN_TEXT_BADNESS_H
#define WAN_TEXT_BADNESS_H

#include "text/tables/char_classes.h"
#include "text/utext.h"

/* CC_* bits of a character. */
uint32_t char_classes(int32_t c);
/* Any sequence of characters that hardly occurs but in misdecoded text? */
bool text_is_bad(const utext *t);

#endif
