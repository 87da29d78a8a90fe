/* entities.h: HTML character references. */
#ifndef WAN_TEXT_ENTITIES_H
#define WAN_TEXT_ENTITIES_H

#include "text/utext.h"

/* As browsers and Python's html.unescape: references without a semicolon count too. out is empty. */
void entities_unescape(const utext *in, utext *out);
/* As ftfy: only references closed by a semicolon, some names also in capitals. out is empty. */
void entities_unescape_strict(const utext *in, utext *out);

#endif
