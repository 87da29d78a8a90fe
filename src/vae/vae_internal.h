/* vae_internal.h: the networks of both versions, described once. Encoder and decoder have a first
 * convolution, four levels, a middle and a head. The versions differ in widths, in the names of their
 * tensors, and in that 2.2 adds a parameter-free shortcut around each level and works on 2x2 pixel blocks.
 */
#ifndef WAN_VAE_INTERNAL_H
#define WAN_VAE_INTERNAL_H

#include "vae/vae.h"

enum { VAE_LEVELS = 4, VAE_RES_MAX = 3, VAE_SLOTS = 40 /* 34 causal convolutions in the larger decoder */ };

typedef struct vae_conv {
  weight w, b;
} vae_conv;

typedef struct vae_res {
  weight gamma1, gamma2;
  vae_conv conv1, conv2, shortcut;
  bool has_shortcut; /* 1x1x1 convolution where the width changes */
  int64_t cin, cout;
} vae_res;

/* Spatial attention within each frame, one head as wide as the channels. */
typedef struct vae_attention {
  weight gamma;
  vae_conv q, k, v, proj;
} vae_attention;

typedef enum vae_resample_kind {
  RESAMPLE_NONE,
  RESAMPLE_DOWN2D,
  RESAMPLE_DOWN3D,
  RESAMPLE_UP2D,
  RESAMPLE_UP3D
} vae_resample_kind;

typedef struct vae_level {
  vae_res res[VAE_RES_MAX];
  int n_res;
  vae_resample_kind kind;
  vae_conv resample, time; /* time only for the 3D kinds */
  int64_t cin, cout;       /* of the whole level */
  weight_group group;
} vae_level;

/* One direction: encoder or decoder. */
typedef struct vae_net {
  vae_conv first; /* conv1 of the direction */
  vae_res middle0, middle2;
  vae_attention middle1;
  vae_level level[VAE_LEVELS];
  weight head_gamma;
  vae_conv head;
  vae_conv point; /* the 1x1x1 convolution between network and latent (top level conv1 / conv2) */
  weight_group ends, middle;
} vae_net;

struct vae {
  backend *be;
  weight_set *set;
  vae_info info;
  vae_net encoder, decoder;
  residency_mode encoder_mode, decoder_mode;
};

enum { VAE_PAST = 2, VAE_NOW = 4 /* frames a convolution looks back, and takes at a time */ };

/* State of a stream: the past of each causal convolution, in execution order: the last frames that entered
 * it, in act. Each direction's convolutions take their slots in the same order in every push, so a counter
 * addresses them. Frames are never copied: what enters a convolution stays as its past, and the memory of the
 * frame that is forgotten takes the next one that enters a convolution of that size. */
typedef struct vae_stream {
  vae *v;
  bool started;                     /* the first frame has passed */
  int slot;                         /* next slot in this push */
  tensor past[VAE_SLOTS][VAE_PAST]; /* [1, H, W, C], oldest first; null: before the clip, zeros */
  tensor spare[VAE_NOW];            /* forgotten frames */
} vae_stream;

wan_status vae_bind(vae *v); /* find the version, bind everything */

/* Latent statistics (wan/modules/vae2_1.py and vae2_2.py): NULL for channel counts without official ones. */
const float *vae_latent_mean(int64_t z);
const float *vae_latent_std(int64_t z);

/* The building blocks, in blocks.c. What runs from block to block has the dtype of x. `out` is allocated by
 * the caller and has the result's shape. */

/* out = conv(silu(norm(x))) [+ residual], or conv(x) where there is no gamma. 3x3x3. */
void vae_causal_conv(vae_stream *s, tensor x, const weight *gamma, const vae_conv *conv, tensor residual,
                     tensor out);
/* In place. */
void vae_middle(vae_stream *s, const vae_net *net, tensor x);
/* A tensor for the level's result in the current scope. */
tensor vae_level_result(vae_stream *s, const vae_level *l, tensor x);
void vae_run_level(vae_stream *s, vae_level *l, residency_mode mode, tensor x, tensor out);
/* An upsampling level in two steps, so that its wide frames can be made one by one: vae_up_begin() gives
 * narrow frames in the caller's scope, vae_up_frames() turns those from `first` on into the level's result.
 * x has to stay. The caller holds the level's weights. */
tensor vae_up_begin(vae_stream *s, const vae_level *l, tensor x);
void vae_up_frames(vae_stream *s, const vae_level *l, tensor x, tensor narrow, int64_t first, tensor out);
void vae_stream_close(vae_stream *s);

#endif
