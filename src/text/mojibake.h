/* mojibake.h: undo the reading of UTF-8 in a wrong encoding. */
#ifndef WAN_TEXT_MOJIBAKE_H
#define WAN_TEXT_MOJIBAKE_H

#include "text/utext.h"

/* In place; text that does not look damaged stays as it is. */
void mojibake_fix(utext *text);
/* C1 control characters to what windows-1252 has in their place. */
void mojibake_fix_c1(utext *text);

#endif
