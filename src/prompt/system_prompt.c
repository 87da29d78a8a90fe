/* system_prompt.c: which text goes to the language model. */
#include "prompt/extend.h"

typedef enum system_kind { SYSTEM_TEXT, SYSTEM_PICTURE, SYSTEM_PICTURE_ALONE, SYSTEM_KINDS } system_kind;

static const char *const texts[SYSTEM_KINDS][2] = {
#include "prompt/tables/system_prompts.inc"
};

/* The official rule (decide_system_prompt): TI2V follows whether there is a picture, and has no text of its
 * own for an empty prompt; I2V follows whether there is a prompt. */
static system_kind kind_of(wan_family family, bool with_prompt, bool with_image) {
  if (family == WAN_FAMILY_TI2V) return with_image ? SYSTEM_PICTURE : SYSTEM_TEXT;
  if (family == WAN_FAMILY_I2V) return with_prompt ? SYSTEM_PICTURE : SYSTEM_PICTURE_ALONE;
  return SYSTEM_TEXT;
}

const char *extend_system_prompt(wan_family family, wan_language language, bool with_prompt,
                                 bool with_image) {
  return texts[kind_of(family, with_prompt, with_image)][language == WAN_LANGUAGE_EN];
}
