/* model_dir.h: what a downloaded model folder holds, in whichever layout it was published. */
#ifndef WAN_WEIGHTS_MODEL_DIR_H
#define WAN_WEIGHTS_MODEL_DIR_H

#include "core/ctx.h"
#include "weights/model_config.h"

typedef enum model_part {
  MODEL_DIT,     /* the transformer; with two experts the one for high noise */
  MODEL_DIT_LOW, /* the low-noise expert, of two */
  MODEL_VAE,
  MODEL_TEXT,      /* the UMT5 encoder */
  MODEL_TOKENIZER, /* a folder with spiece.model */
  MODEL_PARTS
} model_part;

typedef struct model_dir {
  char *root;
  char *part[MODEL_PARTS];           /* where it is, or NULL: missing or (second expert) not needed */
  const char *expected[MODEL_PARTS]; /* where it should be, below root; NULL: not needed */
  const char *layout;                /* "official", "diffusers" or "mlx" */
  const char *family;                /* "t2v", "i2v", "ti2v"; "" when the transformer is missing */
  int experts;                       /* 1 or 2 */
  double boundary;                   /* model_index.json's boundary_ratio, 0 when absent */
  model_config config;               /* of the (first) transformer; zeros when there is no config.json */
} model_dir;

/* Look, and tell what is there. A missing part is no error here; a folder that is none of the known
 * layouts is, and so is a model of another kind (Wan2.1-I2V, VACE, S2V, Animate, FLF2V), by name. */
wan_status model_dir_open(core_ctx *ctx, const char *dir, model_dir *out);
void model_dir_close(core_ctx *ctx, model_dir *m);
/* WAN_OK, or WAN_ERR_IO with the list of what is missing. */
wan_status model_dir_require_all(core_ctx *ctx, const model_dir *m);
/* "transformer", "low-noise transformer", "VAE", "text encoder", "tokenizer" */
const char *model_part_name(model_part part);

/* What `wan info` prints: the parts with their dimensions, sizes and dtypes. *out by core_free. */
wan_status model_info_text(core_ctx *ctx, const model_dir *m, char **out);
wan_status model_info_json(core_ctx *ctx, const model_dir *m, char **out);

#endif
