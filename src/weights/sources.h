/* sources.h: which files make up one network. */
#ifndef WAN_WEIGHTS_SOURCES_H
#define WAN_WEIGHTS_SOURCES_H

#include "core/ctx.h"

#include <jansson.h>

typedef struct sources {
  char **path; /* in the order in which the tensors are listed */
  int64_t count;
  json_t *index;            /* the parsed index.json that named them, or NULL */
  const json_t *weight_map; /* in index: tensor name -> file name */
} sources;

/* path: a weight file, an index.json, or a directory. With a directory its index decides; without one,
 * every diffusion_pytorch_model*.safetensors or else every model.*safetensors and model-*.safetensors. */
wan_status sources_find(core_ctx *ctx, const char *path, sources *out);
/* Does the directory hold anything that sources_find() would consider? */
wan_status sources_exist(core_ctx *ctx, const char *dir, bool *yes);
void sources_free(core_ctx *ctx, sources *s);
/* The part after the last '/'. */
const char *sources_base_name(const char *path);

#endif
