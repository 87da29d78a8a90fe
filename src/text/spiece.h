/* spiece.h: what the engine reads by itself from a spiece.model file (a protobuf ModelProto). */
#ifndef WAN_TEXT_SPIECE_H
#define WAN_TEXT_SPIECE_H

#include "core/ctx.h"

/* The `type` of a piece in sentencepiece_model.proto. */
enum { SPIECE_NORMAL = 1, SPIECE_UNKNOWN, SPIECE_CONTROL, SPIECE_USER_DEFINED, SPIECE_UNUSED, SPIECE_BYTE };

typedef struct spiece_slice {
  const unsigned char *data;
  size_t size;
} spiece_slice;

typedef struct spiece {
  int pieces;
  int unk, eos, pad;       /* ids; pad is -1 when the model has none */
  spiece_slice unk_piece;  /* text of the unknown piece */
  spiece_slice normalizer; /* precompiled character map, empty for the identity */
} spiece;

/* Check the whole structure of a model and describe it; *out points into data. */
wan_status spiece_parse(core_ctx *ctx, const char *path, const unsigned char *data, size_t size, spiece *out);
/* Id of a piece, -1 when absent. Walks the file: for the handful of look-ups while opening. */
int spiece_find(const unsigned char *data, size_t size, const char *piece);
/* A copy of the model that splits text as Hugging Face's fast tokenizer does: control pieces are
 * ordinary pieces, and the text arrives normalised. *out by core_free. */
wan_status spiece_plain_copy(core_ctx *ctx, const unsigned char *data, size_t size, unsigned char **out,
                             size_t *out_size);

#endif
