/* protocol.h: the two ways of asking a language model, as text: what is sent, and how the answer is read. */
#ifndef WAN_PROMPT_PROTOCOL_H
#define WAN_PROMPT_PROTOCOL_H

#include "core/ctx.h"

typedef enum protocol { PROTOCOL_DASHSCOPE, PROTOCOL_OPENAI } protocol;

typedef struct question {
  protocol protocol;
  const char *model, *system, *user;
  const char *picture; /* data URL, or NULL: the text endpoint */
  int64_t seed;
  int max_tokens; /* 0: the service decides */
} question;

/* base with the endpoint's path behind it; core_free. */
char *protocol_url(core_ctx *ctx, const question *q, const char *base);
/* The request as JSON; core_free. WAN_ERR_ARGUMENT when a text is not UTF-8. */
wan_status protocol_request(core_ctx *ctx, const question *q, char **json);
/* The text in a successful answer (WAN_ERR_FORMAT where there is none), as the model wrote it; core_free. */
wan_status protocol_answer(core_ctx *ctx, protocol p, const char *body, size_t size, char **text);
/* What an unsuccessful answer says, on one line of printable text; "" where that can't be told. */
void protocol_reason(const char *body, size_t size, char *out, size_t out_size);
/* Make a model's text a prompt: no reasoning in front (<think>...</think>), no control characters, no white
 * space at the ends, at most `limit` bytes. In place. */
void protocol_tidy(char *text, size_t limit);

#endif
