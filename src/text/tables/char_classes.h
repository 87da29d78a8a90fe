/* char_classes.h: bits of char_classes.inc. Written by tools/text_tables.py. */
#ifndef WAN_TEXT_CHAR_CLASSES_H
#define WAN_TEXT_CHAR_CLASSES_H

enum {
  CC_COMMON = 1 << 0,
  CC_C1 = 1 << 1,
  CC_BAD = 1 << 2,
  CC_LAW = 1 << 3,
  CC_CURRENCY = 1 << 4,
  CC_START_PUNCTUATION = 1 << 5,
  CC_END_PUNCTUATION = 1 << 6,
  CC_NUMERIC = 1 << 7,
  CC_KAOMOJI = 1 << 8,
  CC_UPPER_ACCENTED = 1 << 9,
  CC_LOWER_ACCENTED = 1 << 10,
  CC_UPPER_COMMON = 1 << 11,
  CC_LOWER_COMMON = 1 << 12,
  CC_BOX = 1 << 13,
  CC_UTF8_FIRST_OF_2 = 1 << 14,
  CC_UTF8_FIRST_OF_3 = 1 << 15,
  CC_UTF8_FIRST_OF_4 = 1 << 16,
  CC_UTF8_CONTINUATION = 1 << 17,
  CC_UTF8_CONTINUATION_STRICT = 1 << 18,
};

#endif
