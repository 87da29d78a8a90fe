/* dit.h: the Wan diffusion transformer: one expert, its conditioning, one forward pass.
 * Source: "Wan: Open and Advanced Large-Scale Video Generative Models" and the official
 * wan/modules/model.py; precision and traps in docs/NUMERICS.md.
 */
#ifndef WAN_DIT_DIT_H
#define WAN_DIT_DIT_H

#include "backend/backend.h"
#include "weights/weights.h"

enum {
  DIT_PASSES_MAX = 4
}; /* conditionings in one call: conditional, unconditional, skip-layer, one spare */

typedef enum dit_type { DIT_T2V, DIT_I2V, DIT_TI2V } dit_type;

/* config.json where it has the key, tensor shapes otherwise; a contradiction is an error. */
typedef struct dit_config {
  dit_type type;
  int64_t dim, ffn_dim, freq_dim, text_dim, text_len, in_dim, out_dim;
  int heads, layers;
  float eps;
} dit_config;

typedef struct dit dit;
typedef struct dit_text dit_text;

/* Open the expert stored in `path` (a directory with safetensors, or a file); config.json is looked for in
 * the directory or beside the file.
 * Weights stay mapped; `keep_bytes` is how many bytes of prepared weights may stay loaded between
 * passes (0: every block is loaded for its use only). */
wan_status dit_open(backend *be, const char *path, uint64_t keep_bytes, dit **out);
/* The same from an open set, which it takes over, also when it fails. What only a config.json could say is as
 * in the official models. */
wan_status dit_open_set(backend *be, weight_set *set, uint64_t keep_bytes, dit **out);
void dit_close(dit *d);
const dit_config *dit_get_config(const dit *d);
const weight_set *dit_weights(const dit *d);
/* How many blocks stay loaded; the others are streamed. */
int dit_resident_blocks(const dit *d);
/* With a backend in fp8: true makes passes compute in bf16 from here on, false goes back to fp8. Weights that
 * change are unloaded and come from the file again; which blocks stay loaded is decided anew, by `keep_bytes`
 * as in dit_open(). No-op in other precisions. */
void dit_set_exact(dit *d, bool exact, uint64_t keep_bytes);
/* Map ahead of use: asks the system to read the expert's pages (before an expert switch). */
void dit_prefetch(dit *d);
/* Unload every prepared weight (the other expert takes over). */
void dit_drop(dit *d);

/* Conditioning on one prompt: context F32 host [n, text_dim], n <= text_len; rows n..text_len-1 are
 * zero by contract. The text embedding runs here; each block's cross-attention keys and values are
 * computed the first time a forward pass needs them and kept. */
wan_status dit_text_create(dit *d, tensor context, dit_text **out);
void dit_text_free(dit_text *t);

/* Timesteps: count is 1 (all tokens), T (one a latent frame) or T*(h/2)*(w/2) (one a token). */
typedef struct dit_timesteps {
  const float *t;
  int64_t count;
} dit_timesteps;

typedef struct dit_options {
  const uint64_t *skip_layers; /* a mask for each conditioning: bit i leaves block i out of that pass
                                  (skip-layer guidance); NULL: none */
  void (*on_block)(void *user, int block, int blocks); /* progress; may be NULL */
  void *user;
} dit_options;

/* One velocity per conditioning, n of them over the same latent, block by block so that each
 * block's weights are loaded once. x F32 [T, h, w, in_dim], h and w even; velocity[i] F32
 * [T, h, w, out_dim] preallocated by the caller. Non-finite values are WAN_ERR_NUMERIC and name the
 * block; cancellation is honoured between blocks. options may be NULL. */
wan_status dit_forward(dit *d, tensor x, dit_timesteps time, int n, dit_text *const *text,
                       const tensor *velocity, const dit_options *options);

#endif
