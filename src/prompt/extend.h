/* extend.h: a language model writes a prompt out (what the official code does in prompt_extend.py). */
#ifndef WAN_PROMPT_EXTEND_H
#define WAN_PROMPT_EXTEND_H

#include "core/ctx.h"

enum { EXTEND_PROMPT_MAX = 8 << 10 }; /* bytes of an extended prompt: several times what 512 tokens cover */

/* Fills out, whose strings are on nobody's account: core_free(NULL, ..), also on failure. */
wan_status extend_prompt(core_ctx *ctx, const wan_extend_params *params, wan_extend_result *out);
void extend_result_free(wan_extend_result *r);
/* core_free */
wan_status extend_result_json(core_ctx *ctx, const wan_extend_result *r, char **json);

/* The system prompt of a task: a constant. */
const char *extend_system_prompt(wan_family family, wan_language language, bool with_prompt, bool with_image);

#endif
