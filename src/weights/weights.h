/* weights.h: a checkpoint directory as a set of named tensors, whatever the container.
 *
 * A weight_set is one network's parameters (a DiT expert, the text encoder, a VAE): opened from
 * safetensors (single file or shards with index.json) or a PyTorch .pth (zip), names translated to
 * the official ones (models/names) from the official, diffusers, ComfyUI-prefixed and MLX families.
 * Files are mapped, not read: a tensor's data points into the mapping.
 *
 * A model binds each parameter it wants with weight_set_bind(), which checks that it exists and has
 * the expected shape, and finally calls weight_set_finish(), which fails and names every tensor of
 * the file that nobody asked for. So a missing, extra or misshapen tensor is an error that names it.
 */
#ifndef WAN_WEIGHTS_WEIGHTS_H
#define WAN_WEIGHTS_WEIGHTS_H

#include "backend/backend.h"

typedef struct weight_set weight_set;

typedef enum weight_kind { WEIGHTS_DIT, WEIGHTS_TEXT, WEIGHTS_VAE } weight_kind;

/* Open path: a .safetensors file, an index.json, a .pth file, or a directory that holds
 * diffusion_pytorch_model*.safetensors (or model*.safetensors). kind selects the name map. */
wan_status weight_set_open(core_ctx *ctx, const char *path, weight_kind kind, weight_set **out);
/* The same from tensors that no file holds; takes them over, also when it fails. */
typedef struct random_tensors random_tensors;
wan_status weight_set_open_random(core_ctx *ctx, random_tensors *tensors, weight_kind kind, weight_set **out);
void weight_set_close(weight_set *set);
const char *weight_set_path(const weight_set *set);
/* Whose names the file used: "official", "diffusers", "transformers", "mlx", ... */
const char *weight_set_family(const weight_set *set);

/* Iterate (canonical names, file order): count and i-th tensor. The tensor's data is host memory. */
int64_t weight_set_count(const weight_set *set);
const char *weight_set_name(const weight_set *set, int64_t i);
tensor weight_set_tensor(const weight_set *set, int64_t i);
/* The tensor with this canonical name; the null tensor when absent (no message). */
tensor weight_set_find(const weight_set *set, const char *name);
/* Total elements of all tensors. */
int64_t weight_set_parameters(const weight_set *set);

/* Bind `w` to the tensor printf(name_fmt, ...): it must exist, be a float type, and have exactly
 * these dims. Records a message naming file, tensor, expected and found shape otherwise. */
wan_status weight_set_bind(weight_set *set, weight *w, weight_role role, int ndim, const int64_t *dim,
                           const char *name_fmt, ...) CORE_PRINTF(6, 7);
#define WEIGHT_DIMS(...)                                                         \
  (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]) { \
    __VA_ARGS__                                                                  \
  }
/* The same for rows [row0, row0+dim[0]) of a taller tensor whose first dimension is `rows`. */
wan_status weight_set_bind_rows(weight_set *set, weight *w, weight_role role, int ndim, const int64_t *dim,
                                int64_t row0, int64_t rows, const char *name_fmt, ...) CORE_PRINTF(8, 9);
/* Every tensor bound? Otherwise WAN_ERR_FORMAT naming the first few extra ones and their number. */
wan_status weight_set_finish(weight_set *set);

/* ---- Residency: which weights are loaded into the backend, and for how long ---- */

enum { WEIGHT_GROUP_MAX = 64 };

/* Weights that are used together (a transformer block, a VAE level), bound from one weight_set: their
 * sources are file mappings, whose pages can be dropped and read again. */
typedef struct weight_group {
  weight *item[WEIGHT_GROUP_MAX];
  int count;
  int users; /* acquisitions not yet released */
} weight_group;

void weight_group_add(weight_group *group, weight *w); /* w must outlive the group */
/* What the backend will hold for the group. */
size_t weight_group_bytes(backend *be, const weight_group *group);

typedef enum residency_mode {
  RESIDENCY_KEEP,  /* loaded at first use, stays until weight_group_drop() */
  RESIDENCY_STREAM /* loaded for its use only; mapped pages are handed back after the copy */
} residency_mode;

/* Load the group's weights (a no-op for those loaded). Pair with weight_group_release(), which under
 * RESIDENCY_STREAM unloads them again. */
wan_status weight_group_acquire(backend *be, weight_group *group);
void weight_group_release(backend *be, weight_group *group, residency_mode mode);
/* Ask the operating system to read the group's pages in the background. */
void weight_group_prefetch(backend *be, weight_group *group);
/* Called once the operations before the group's use are issued: a device that works behind the host loads the
 * group meanwhile. Takes the group's memory from here on; a following acquire and release go as ever. */
void weight_group_load_ahead(backend *be, weight_group *group, residency_mode mode);
/* Unload whatever is loaded, for good: the files may be closed then. */
void weight_group_drop(backend *be, weight_group *group);

#endif
