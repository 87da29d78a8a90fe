/* vae.h: the causal video autoencoders Wan2.1 (z 16, stride 4x8x8) and Wan2.2 (z 48, stride
 * 4x16x16) as streams. Which one a file holds, and all widths, follow from its tensors.
 * The state of a stream is the history of each causal convolution; output is the same as that of one
 * causal pass over the whole clip (docs/NUMERICS.md).
 */
#ifndef WAN_VAE_VAE_H
#define WAN_VAE_VAE_H

#include "backend/backend.h"
#include "weights/weights.h"

typedef struct vae vae;
typedef struct vae_decoder vae_decoder;
typedef struct vae_encoder vae_encoder;

typedef struct vae_info {
  int version;         /* 21 or 22 */
  int64_t z;           /* latent channels */
  int spatial_stride;  /* 8 or 16 pixels a latent pixel */
  int temporal_stride; /* 4 */
} vae_info;

wan_status vae_open(backend *be, const char *path, uint64_t keep_bytes, vae **out);
wan_status vae_open_set(backend *be, weight_set *set, uint64_t keep_bytes,
                        vae **out); /* takes the set over */
void vae_close(vae *v);
vae_info vae_get_info(const vae *v);
const weight_set *vae_weights(const vae *v);

/* Decoder for latents of h x w. push takes one normalised latent frame F32 [1, h, w, z] and returns
 * pixel frames in -1..1 (not clamped), F32 [n, H, W, 3], n = 1 for the first push and 4 after; the
 * result lives in the caller's current scope. */
wan_status vae_decoder_open(vae *v, int64_t h, int64_t w, vae_decoder **out);
wan_status vae_decoder_push(vae_decoder *d, tensor latent, tensor *frames);
void vae_decoder_close(vae_decoder *d);

/* Encoder for frames of H x W pixels (multiples of the spatial stride). push takes pixel frames F32
 * [n, H, W, 3] in -1..1, n = 1 for the first push and 4 after, and returns one normalised latent
 * frame (the mean) F32 [1, h, w, z] in the caller's current scope. */
wan_status vae_encoder_open(vae *v, int64_t H, int64_t W, vae_encoder **out);
wan_status vae_encoder_push(vae_encoder *e, tensor frames, tensor *latent);
void vae_encoder_close(vae_encoder *e);

#endif
