/* condition.h: what a run is conditioned on: prompts through the text encoder, pictures through the VAE. */
#ifndef WAN_PIPELINE_CONDITION_H
#define WAN_PIPELINE_CONDITION_H

#include "pipeline/denoise.h"

/* Clean, tokenize and encode one text: host F32 [n, dim] (core_free(out->data)). progress: NULL or two
 * values: which of `texts` this is, and of how many. */
typedef struct text_progress {
  run_progress *progress;
  int index, texts;
} text_progress;
struct umt5;
struct tokenizer;
wan_status condition_tokens(core_ctx *ctx, struct tokenizer *tok, const char *text, int32_t *ids, int *n);
wan_status condition_encode(core_ctx *ctx, struct umt5 *encoder, const int32_t *ids, int n,
                            text_progress *progress, tensor *out);
/* Both prompts of the run into d->context. */
wan_status condition_text(wan_model *m, denoiser *d, uint64_t keep_bytes);

/* Latent frames that encoding will make (0: no pictures): the steps of WAN_STAGE_ENCODE. */
int condition_chunks(const wan_model *m, const run_settings *s);
/* Pictures into d->first and d->given (TI2V) or d->y (I2V). */
wan_status condition_pictures(wan_model *m, denoiser *d, uint64_t keep_bytes);
/* One given picture as the model sees it: host F32 [height, width, 3] in -1..1, allocated by the caller. */
wan_status condition_pixels(core_ctx *ctx, wan_family family, const picture *in, int width, int height,
                            float *out);

#endif
