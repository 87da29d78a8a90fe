/* random_tensors.h: a network that no file holds: names and shapes, with random values. For measuring
 * without a checkpoint. */
#ifndef WAN_WEIGHTS_RANDOM_TENSORS_H
#define WAN_WEIGHTS_RANDOM_TENSORS_H

#include "core/ctx.h"
#include "core/tensor.h"

typedef struct random_tensors random_tensors;

wan_status random_tensors_create(core_ctx *ctx, random_tensors **out);
void random_tensors_close(random_tensors *r);
/* A bf16 tensor with this official name, which also says how its values are spread: activations stay of unit
 * variance, as in a trained network. A failure is kept and given back by fill(), so a network is a list. */
void random_tensors_add(random_tensors *r, int ndim, const int64_t *dim, const char *name_fmt, ...)
    CORE_PRINTF(4, 5);
/* Makes the values; nothing can be added afterwards. */
wan_status random_tensors_fill(random_tensors *r);

int64_t random_tensors_count(const random_tensors *r);
const char *random_tensors_name(const random_tensors *r, int64_t i);
tensor random_tensors_tensor(const random_tensors *r, int64_t i);

#endif
