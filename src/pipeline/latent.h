/* latent.h: latents where they meet the outside: files and noise are [C, T, h, w] (PyTorch's order),
 * the engine is [T, h, w, C]. */
#ifndef WAN_PIPELINE_LATENT_H
#define WAN_PIPELINE_LATENT_H

#include "pipeline/settings.h"
#include "weights/safetensors.h"

/* [C, n] <-> [n, C]: moves the channels last, or first. */
void channels_last(const float *in, int64_t C, int64_t n, float *out);
void channels_first(const float *in, int64_t C, int64_t n, float *out);
/* A float tensor of a safetensors file as F32 host memory (core_free(out->data)). dim[i] < 0 accepts any
 * extent >= 1; a mismatch is WAN_ERR_FORMAT naming file, tensor and shapes. */
wan_status latent_read(core_ctx *ctx, const safetensors *file, const char *path, const char *name, int ndim,
                       const int64_t *dim, tensor *out);
/* [C, count] values drawn in PyTorch's order. */
wan_status noise_draw(core_ctx *ctx, wan_rng rng, int64_t seed, float *out, size_t count);
/* The run's noise, host F32 [T, h, w, C] (core_free): from the generator or the noise file. */
wan_status noise_make(core_ctx *ctx, const run_settings *s, float **out);
/* Write x, F32 [T, h, w, C] in backend memory, as "latent" [C, T, h, w]. metadata as safetensors_write(). */
wan_status latent_save(backend *be, const char *path, tensor x, const char *const *metadata);
/* Read "latent" [C, T, h, w] into backend memory F32 [T, h, w, C] (tensor_free). */
wan_status latent_load(backend *be, const char *path, int64_t channels, tensor *out);

#endif
