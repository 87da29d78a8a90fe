/* condition_text.c: prompt -> context. The encoder is open only while it works. */
#include "pipeline/condition.h"

#include "text/text.h"

wan_status condition_tokens(core_ctx *ctx, tokenizer *tok, const char *text, int32_t *ids, int *n) {
  char *clean = NULL;
  CORE_TRY(text_clean(ctx, text, &clean));
  wan_status s = tokenizer_encode(tok, clean, ids, n);
  core_free(ctx, clean);
  return s;
}

static void on_layer(void *user, int layer, int layers) {
  text_progress *p = user;
  if (p->progress) progress_at(p->progress, p->index, (layer + 1.0) / (layers + 1));
}

wan_status condition_encode(core_ctx *ctx, umt5 *encoder, const int32_t *ids, int n, text_progress *progress,
                            tensor *out) {
  int64_t dim = umt5_dim(encoder);
  float *data = core_alloc(ctx, (size_t)n * (size_t)dim * sizeof *data);
  if (!data) return WAN_ERR_MEMORY;
  wan_status s = umt5_encode(encoder, ids, n, data, on_layer, progress);
  if (s != WAN_OK) {
    core_free(ctx, data);
    return s;
  }
  *out = TENSOR_OF(DT_F32, data, n, dim);
  return WAN_OK;
}

static wan_status encode_all(denoiser *d, tokenizer *tok, umt5 *encoder) {
  const char *text[2] = {d->s->prompt, d->s->negative};
  int texts = settings_use_negative(d->s) ? 2 : 1;
  text_progress progress = {d->progress, 0, texts};
  for (; progress.index < texts; progress.index++) {
    int32_t ids[TEXT_MAX_TOKENS];
    int n;
    CORE_TRY(condition_tokens(d->ctx, tok, text[progress.index], ids, &n));
    if (n == TEXT_MAX_TOKENS)
      core_log(d->ctx, WAN_LOG_NOTICE, "the %s is cut to the %d tokens that the model takes",
               progress.index ? "negative prompt" : "prompt", TEXT_MAX_TOKENS);
    CORE_TRY(condition_encode(d->ctx, encoder, ids, n, &progress, &d->context[progress.index]));
    if (d->progress) progress_at(d->progress, progress.index + 1, 0);
    CORE_TRY(core_check_cancel(d->ctx));
  }
  return WAN_OK;
}

wan_status condition_text(wan_model *m, denoiser *d, uint64_t keep_bytes) {
  tokenizer *tok = NULL;
  umt5 *encoder = NULL;
  wan_status s = tokenizer_open(m->ctx, m->dir.part[MODEL_TOKENIZER], &tok);
  if (s == WAN_OK) s = umt5_open(m->be, m->dir.part[MODEL_TEXT], keep_bytes, &encoder);
  if (s == WAN_OK && umt5_dim(encoder) != m->config[0].text_dim)
    s = core_fail(
        m->ctx, WAN_ERR_FORMAT,
        "%s: the text encoder makes %lld channels, the transformer takes %lld: they are not of one model",
        m->dir.part[MODEL_TEXT], (long long)umt5_dim(encoder), (long long)m->config[0].text_dim);
  if (s == WAN_OK && tokenizer_vocab_size(tok) > umt5_vocab(encoder))
    s = core_fail(
        m->ctx, WAN_ERR_FORMAT,
        "%s: the tokenizer has %d tokens, the text encoder (%s) knows %lld: they are not of one model",
        m->dir.part[MODEL_TOKENIZER], tokenizer_vocab_size(tok), m->dir.part[MODEL_TEXT],
        (long long)umt5_vocab(encoder));
  if (s == WAN_OK) s = encode_all(d, tok, encoder);
  if (encoder) umt5_close(encoder);
  if (tok) tokenizer_close(tok);
  return s;
}
