/* unicode.h: character classes as Python's `re` and `str` define them, which the official cleaning
 * relies on. */
#ifndef WAN_TEXT_UNICODE_H
#define WAN_TEXT_UNICODE_H

#include <stdbool.h>
#include <stdint.h>

bool unicode_is_space(int32_t c); /* \s, str.isspace() */
bool unicode_is_word(int32_t c);  /* \w */
bool unicode_is_digit(int32_t c); /* \d */

#endif
