/* stage_text.c: clean, tokenize, text. */
#include <string.h>

#include "pipeline/condition.h"
#include "pipeline/stage.h"
#include "text/text.h"

wan_status stage_clean(stage_call *c) {
  if (!c->p->text) return core_fail(c->ctx, WAN_ERR_ARGUMENT, "stage clean needs --text");
  return text_clean(c->ctx, c->p->text, &c->text);
}

/* Ids of --text; the mask is 1 for the n real ones. */
static wan_status tokens_of_text(stage_call *c, int32_t *ids, int *n) {
  const char *path;
  tokenizer *tok = NULL;
  CORE_TRY(model_need(c->ctx, &c->dir, MODEL_TOKENIZER, &path));
  CORE_TRY(tokenizer_open(c->ctx, path, &tok));
  wan_status s = condition_tokens(c->ctx, tok, c->p->text, ids, n);
  tokenizer_close(tok);
  return s;
}

wan_status stage_tokenize(stage_call *c) {
  int32_t ids[TEXT_MAX_TOKENS];
  int64_t out[TEXT_MAX_TOKENS] = {0}, mask[TEXT_MAX_TOKENS] = {0};
  int n;
  if (!c->p->text) return core_fail(c->ctx, WAN_ERR_ARGUMENT, "stage tokenize needs --text");
  CORE_TRY(tokens_of_text(c, ids, &n));
  for (int i = 0; i < n; i++) out[i] = ids[i], mask[i] = 1;
  return stage_output(c, 2,
                      (named_tensor[]){{"input_ids", TENSOR_OF(DT_I64, out, TEXT_MAX_TOKENS)},
                                       {"attention_mask", TENSOR_OF(DT_I64, mask, TEXT_MAX_TOKENS)}});
}

static wan_status tokens_of_file(stage_call *c, int32_t *ids, int *n) {
  tensor t = safetensors_find(c->in, "input_ids"), m = safetensors_find(c->in, "attention_mask");
  if (t.type != DT_I64 || m.type != DT_I64 || tensor_count(&t) != TEXT_MAX_TOKENS ||
      tensor_count(&m) != TEXT_MAX_TOKENS)
    return core_fail(c->ctx, WAN_ERR_FORMAT,
                     "%s: \"input_ids\" and \"attention_mask\" of I64 [%d] are needed", c->p->in_path,
                     TEXT_MAX_TOKENS);
  for (*n = 0; *n < TEXT_MAX_TOKENS; ++*n) {
    int64_t id, real;
    memcpy(&id, (const char *)t.data + (size_t)*n * sizeof id, sizeof id); /* may be unaligned in the file */
    memcpy(&real, (const char *)m.data + (size_t)*n * sizeof real, sizeof real);
    if (!real) break;
    if (id < 0 || id > INT32_MAX)
      return core_fail(c->ctx, WAN_ERR_FORMAT, "%s: token %d is %lld", c->p->in_path, *n, (long long)id);
    ids[*n] = (int32_t)id;
  }
  if (*n == 0)
    return core_fail(c->ctx, WAN_ERR_FORMAT, "%s: the attention mask hides every token", c->p->in_path);
  return WAN_OK;
}

wan_status stage_text(stage_call *c) {
  int32_t ids[TEXT_MAX_TOKENS];
  int n;
  const char *path;
  if (!c->p->text == !c->in)
    return core_fail(c->ctx, WAN_ERR_ARGUMENT, "stage text needs either --text or --in with the tokens");
  CORE_TRY(model_need(c->ctx, &c->dir, MODEL_TEXT, &path));
  CORE_TRY(c->in ? tokens_of_file(c, ids, &n) : tokens_of_text(c, ids, &n));
  umt5 *encoder = NULL;
  tensor context = {0};
  text_progress none = {0};
  CORE_TRY(umt5_open(c->be, path, 0, &encoder));
  wan_status s = condition_encode(c->ctx, encoder, ids, n, &none, &context);
  umt5_close(encoder);
  if (s == WAN_OK) s = stage_output(c, 1, &(named_tensor){"context", context});
  core_free(c->ctx, context.data);
  return s;
}
