/* bench_models.h: the official networks with random weights, to be measured without a checkpoint. */
#ifndef WAN_PIPELINE_BENCH_MODELS_H
#define WAN_PIPELINE_BENCH_MODELS_H

#include "weights/weights.h"

typedef enum bench_net { NET_DIT_5B, NET_DIT_14B, NET_VAE21, NET_VAE22, NET_TEXT } bench_net;

enum { DIT_5B_LAYERS = 30, DIT_14B_LAYERS = 40, TEXT_LAYERS = 24 };

/* layers: of the transformer or the text encoder, 0 for all. */
wan_status bench_net_open(core_ctx *ctx, bench_net net, int layers, weight_set **out);

#endif
