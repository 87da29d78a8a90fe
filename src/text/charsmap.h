/* charsmap.h: SentencePiece's precompiled normalisation, applied as Hugging Face's tokenizers do. */
#ifndef WAN_TEXT_CHARSMAP_H
#define WAN_TEXT_CHARSMAP_H

#include "core/ctx.h"

/* A Darts double array over UTF-8 keys, and the NUL-terminated replacements its values point at. */
typedef struct charsmap {
  const unsigned char *units; /* u32 little endian each */
  size_t unit_count;
  const unsigned char *text;
  size_t text_size;
} charsmap;

/* blob: u32 size of the double array, the array, the replacements. An empty blob is the identity. */
wan_status charsmap_open(core_ctx *ctx, const char *path, const unsigned char *blob, size_t size,
                         charsmap *out);
/* Normalise valid UTF-8 text of n bytes; *out by core_free. */
wan_status charsmap_apply(core_ctx *ctx, const charsmap *map, const char *text, size_t n, char **out,
                          size_t *out_size);

#endif
