/* dit_internal.h: the parameters of the transformer, shared by the files of this room. */
#ifndef WAN_DIT_INTERNAL_H
#define WAN_DIT_INTERNAL_H

#include "dit/dit.h"

enum { DIT_LAYERS_MAX = 64 }; /* bits of a skip mask; the largest official model has 40 */

typedef struct dit_linear {
  weight w, b;
} dit_linear;

typedef struct dit_attention {
  dit_linear q, k, v, o;
  weight norm_q, norm_k;
} dit_attention;

typedef struct dit_block {
  weight modulation; /* [1, 6, dim] */
  dit_attention self, cross;
  weight norm3_w, norm3_b;
  dit_linear ffn0, ffn2;
  weight_group group;
  residency_mode mode;
  bool coarse; /* large products and self-attention in the backend's product dtype; otherwise in act */
} dit_block;

struct dit {
  backend *be;
  weight_set *set;
  dit_config config;
  dit_linear patch, text0, text2, time0, time2, time_proj, head;
  weight head_modulation;
  weight_group patch_group, text_group, time_group, head_group;
  uint64_t keep_bytes;       /* of prepared weights, between passes */
  residency_mode outer_mode; /* of the four groups above */
  dit_block *blocks;
  tensor rope; /* F32 [L, head_dim/2, 2] of the grid below, kept between steps */
  int64_t rope_grid[3];
};

struct dit_text {
  dit *d;
  tensor context;           /* act [rows, dim]: the prompt's rows, then one that stands for all padding */
  tensor key_bias;          /* F32 [rows]: 0, ..., log(number of padding rows); null without padding */
  tensor k[DIT_LAYERS_MAX]; /* act [rows, dim], made by the first pass through the block */
  tensor v[DIT_LAYERS_MAX];
};

/* Fill d->config; config_path NULL when the checkpoint has no config.json. */
wan_status dit_read_config(dit *d, const char *config_path);
/* The rotary table of a grid of T x gh x gw tokens into d->rope. */
void dit_make_rope(dit *d, int64_t T, int64_t gh, int64_t gw);
/* sin/cos features of n timesteps: F32 [n, freq_dim] in the current scope. */
tensor dit_time_features(dit *d, const float *t, int64_t n);

#endif
