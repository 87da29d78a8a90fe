/* model_config.h: the numbers of a transformer's config.json, official or diffusers spelling. */
#ifndef WAN_WEIGHTS_MODEL_CONFIG_H
#define WAN_WEIGHTS_MODEL_CONFIG_H

#include "core/ctx.h"

typedef struct model_config { /* 0 or "": the key is absent */
  char model_type[16];        /* "t2v", "i2v" or "ti2v"; diffusers files do not say */
  int64_t dim, ffn_dim, freq_dim, text_dim, text_len, in_dim, out_dim, heads, layers;
  double eps;
} model_config;

/* Read the file. A value that no Wan model can have is WAN_ERR_FORMAT; a well-formed description of a
 * network this library does not run (another patch size, s2v, VACE, ...) is WAN_ERR_UNSUPPORTED. */
wan_status model_config_read(core_ctx *ctx, const char *path, model_config *out);

#endif
