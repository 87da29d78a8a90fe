/* params.c: the initial values of the public structures, which are the documented defaults. */
#include <wan/wan.h>

#include "core/ctx.h"

const char *wan_stage_name(wan_stage stage) {
  static const char *const names[] = {"prepare", "text", "encode", "denoise", "decode", "finish"};
  return (unsigned)stage < WAN_STAGE_COUNT ? names[stage] : "unknown stage";
}

void wan_generate_params_init(wan_generate_params *p) {
  *p = (wan_generate_params){.size = sizeof *p,
                             .guidance_low = -1,
                             .guidance_high = -1,
                             .guidance_end = 1,
                             .seed = -1,
                             .crf = -1,
                             /* The values of the papers' own experiments: APG section 5, SLG in SD 3.5. */
                             .apg_eta = 0,
                             .apg_norm = 0,
                             .apg_momentum = -0.5,
                             .skip_layer_scale = 2.8,
                             .skip_layer_start = 0.01,
                             .skip_layer_end = 0.2};
}

void wan_generate_result_init(wan_generate_result *r) {
  *r = (wan_generate_result){.size = sizeof *r};
}

void wan_model_info_init(wan_model_info *i) {
  *i = (wan_model_info){.size = sizeof *i};
}

void wan_plan_init(wan_plan *p) {
  *p = (wan_plan){.size = sizeof *p};
}

void wan_bench_params_init(wan_bench_params *p) {
  *p = (wan_bench_params){.size = sizeof *p};
}

void wan_extend_params_init(wan_extend_params *p) {
  *p = (wan_extend_params){.size = sizeof *p, .seed = -1};
}

void wan_extend_result_init(wan_extend_result *r) {
  *r = (wan_extend_result){.size = sizeof *r};
}

void wan_vision_params_init(wan_vision_params *p) {
  *p = (wan_vision_params){.size = sizeof *p};
}

void wan_vision_frames_init(wan_vision_frames *f) {
  *f = (wan_vision_frames){.size = sizeof *f};
}

void wan_stage_params_init(wan_stage_params *p) {
  *p = (wan_stage_params){.size = sizeof *p};
  wan_generate_params_init(&p->generate);
  wan_vision_params_init(&p->vision);
}
