/* model.h: a checkpoint directory: where its parts are, what kind of model they make, and the
 * defaults that kind comes with. */
#ifndef WAN_PIPELINE_MODEL_H
#define WAN_PIPELINE_MODEL_H

#include "backend/backend.h"
#include "dit/dit.h"
#include "pipeline/rates.h"
#include "weights/model_dir.h"

enum { EXPERT_HIGH = 0, EXPERT_LOW = 1 }; /* a model with one expert has only the first */

/* The path of a part, or WAN_ERR_IO with a message that says which file belongs where. */
wan_status model_need(core_ctx *ctx, const model_dir *dir, model_part part, const char **path);

struct wan_model {
  backend *be;
  core_ctx *ctx;
  model_dir dir;
  wan_family family;
  int experts;
  dit_config config[2];
  int vae_z, vae_stride; /* latent channels, pixels a latent pixel */
  uint64_t fingerprint;  /* 0: not computed yet */
  rates *rates;          /* NULL until a plan was made */
};

/* All parts present, experts of one shape, VAE and transformer with one latent. */
wan_status model_open(backend *be, const char *dir, wan_model **out);
void model_close(wan_model *m);
/* WAN_OK, or a message when the context was opened for planning only. */
wan_status model_can_compute(const wan_model *m);
wan_model_info model_info(const wan_model *m);
wan_family family_of(const dit_config *config);
const char *family_name(wan_family family); /* "t2v", "i2v", "ti2v" */
/* Hash of names, dtypes and shapes of all tensors, of 64 bytes of each (32 at its start, 32 in its
 * middle) and of the tokenizer: tells models apart without reading them. Never 0. */
wan_status model_fingerprint(wan_model *m, uint64_t *out);
wan_status model_describe(core_ctx *ctx, const char *dir, bool json, char **out);

extern const char *const model_negative; /* the official negative prompt of the t2v, i2v and ti2v tasks */

#endif
