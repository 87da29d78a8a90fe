/* text.h: from a prompt to the transformer's context: cleaning, tokens, UMT5 encoder. */
#ifndef WAN_TEXT_TEXT_H
#define WAN_TEXT_TEXT_H

#include "backend/backend.h"
#include "weights/weights.h"

enum {
  TEXT_MAX_TOKENS = 512,    /* including the closing </s> */
  TEXT_MAX_BYTES = 64 << 10 /* longest prompt accepted, far more than 511 pieces cover */
};

/* The official cleaning, mode "whitespace": ftfy's default fixes, HTML entities twice, white space
 * collapsed. in is UTF-8 (invalid UTF-8: WAN_ERR_ARGUMENT with the byte offset); *out by core_free. */
wan_status text_clean(core_ctx *ctx, const char *in, char **out);

typedef struct tokenizer tokenizer;
/* dir_or_file: a directory with spiece.model (and optionally tokenizer.json / special tokens), or
 * the spiece.model file. */
wan_status tokenizer_open(core_ctx *ctx, const char *dir_or_file, tokenizer **out);
void tokenizer_close(tokenizer *t);
int tokenizer_vocab_size(const tokenizer *t);
/* Ids of the (already cleaned) text: at most 511 pieces, then </s>. *n counts them all. */
wan_status tokenizer_encode(tokenizer *t, const char *text, int32_t ids[TEXT_MAX_TOKENS], int *n);

typedef struct umt5 umt5;
/* path: the .pth or safetensors of the encoder (official or transformers names). */
wan_status umt5_open(backend *be, const char *path, uint64_t keep_bytes, umt5 **out);
wan_status umt5_open_set(backend *be, weight_set *set, uint64_t keep_bytes,
                         umt5 **out); /* takes the set over */
void umt5_close(umt5 *u);
int64_t umt5_dim(const umt5 *u);
int64_t umt5_vocab(const umt5 *u);
int umt5_layers(const umt5 *u);
const weight_set *umt5_weights(const umt5 *u);
/* Encode n ids (only real tokens, no padding) into host memory out F32 [n, dim]. progress may be
 * NULL; it is called after each layer. */
wan_status umt5_encode(umt5 *u, const int32_t *ids, int n, float *out,
                       void (*progress)(void *user, int layer, int layers), void *user);

#endif
