/* added_tokens.h: tokens that are recognised in the raw text, before it is normalised and split. */
#ifndef WAN_TEXT_ADDED_TOKENS_H
#define WAN_TEXT_ADDED_TOKENS_H

#include "core/ctx.h"

typedef struct added_token {
  char *text;
  size_t size; /* bytes */
  int32_t id;
  bool eats_left, eats_right; /* "lstrip", "rstrip": white space beside it vanishes */
  bool single_word;           /* only between characters that are no word characters */
} added_token;

typedef struct added_tokens {
  added_token *item;
  int count;
} added_tokens;

/* Where an id comes from when a file names a token without one. */
typedef int32_t (*added_token_id)(void *user, const char *text);

/* The tokens of a tokenizer folder: tokenizer.json, tokenizer_config.json, special_tokens_map.json,
 * whichever exist; of two entries for one text the first read stays. */
wan_status added_tokens_read(core_ctx *ctx, const char *dir, added_token_id id_of, void *user,
                             added_tokens *out);
/* Add one unless its text is known already. */
wan_status added_tokens_put(core_ctx *ctx, added_tokens *list, added_token token);
void added_tokens_free(core_ctx *ctx, added_tokens *list);
/* The next token in text[from..n): the leftmost, of those the longest. NULL when there is none.
 * [*begin, *end) is what it replaces, including white space that it eats. */
const added_token *added_tokens_next(const added_tokens *list, const char *text, size_t n, size_t from,
                                     size_t *begin, size_t *end);

#endif
