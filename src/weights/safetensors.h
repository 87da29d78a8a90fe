/* safetensors.h: read and write .safetensors files. */
#ifndef WAN_WEIGHTS_SAFETENSORS_H
#define WAN_WEIGHTS_SAFETENSORS_H

#include "core/ctx.h"
#include "core/file.h"
#include "core/tensor.h"

typedef struct safetensors safetensors;

/* Every offset, overlap, shape and dtype is checked before this returns. Tensors point into the mapped
 * file, at whatever offset it gives them: a pointer may be unaligned for its dtype. */
wan_status safetensors_open(core_ctx *ctx, const char *path, safetensors **out);
void safetensors_close(safetensors *s);
int64_t safetensors_count(const safetensors *s);
const char *safetensors_name(const safetensors *s, int64_t i);
tensor safetensors_tensor(const safetensors *s, int64_t i);              /* data in the mapping */
tensor safetensors_find(const safetensors *s, const char *name);         /* null tensor when absent */
const char *safetensors_metadata(const safetensors *s, const char *key); /* NULL when absent */

typedef struct named_tensor {
  const char *name;
  tensor value; /* host memory */
} named_tensor;
/* metadata: NULL-terminated list key, value, key, value, ..., or NULL. Temporary name, then renamed. */
wan_status safetensors_write(core_ctx *ctx, const char *path, int n, const named_tensor *tensors,
                             const char *const *metadata);

#endif
