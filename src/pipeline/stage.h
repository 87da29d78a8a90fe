/* stage.h: one part of the pipeline on tensors in files: the parity door (docs/CLI.md, "wan stage"). Names
 * and shapes are a contract with tests outside of this project. */
#ifndef WAN_PIPELINE_STAGE_H
#define WAN_PIPELINE_STAGE_H

#include "backend/backend.h"
#include "pipeline/latent.h"

/* *text: what the stage prints (core_free), or NULL. */
wan_status stage_run(backend *be, const wan_stage_params *params, char **text);

/* What a stage works with. */
typedef struct stage_call {
  backend *be;
  core_ctx *ctx;
  const wan_stage_params *p;
  model_dir dir;   /* empty where no model was given */
  safetensors *in; /* NULL where no input was given */
  char *text;
} stage_call;

/* A float input tensor as F32 host memory (core_free), see latent_read(). */
wan_status stage_input(const stage_call *c, const char *name, int ndim, const int64_t *dim, tensor *out);
/* An F32 input [C, T, h, w] in backend memory as [T, h, w, C] (tensor_free). */
wan_status stage_input_video(const stage_call *c, const char *name, int64_t channels, tensor *out);
/* Write x, F32 [T, h, w, C] in backend memory, as `name` [C, T, h, w]. */
wan_status stage_output_video(const stage_call *c, const char *name, tensor x);
wan_status stage_output(const stage_call *c, int n, const named_tensor *tensors);

/* stage_text.c, stage_model.c, stage_denoise.c */
wan_status stage_clean(stage_call *c);
wan_status stage_tokenize(stage_call *c);
wan_status stage_text(stage_call *c);
wan_status stage_dit(stage_call *c);
wan_status stage_vae_encode(stage_call *c);
wan_status stage_vae_decode(stage_call *c);
wan_status stage_schedule(stage_call *c);
wan_status stage_denoise(stage_call *c);
wan_status stage_noise(stage_call *c);
wan_status stage_image(stage_call *c);
/* stage_vision.c */
wan_status stage_smart_resize(stage_call *c);
wan_status stage_smart_nframes(stage_call *c);
wan_status stage_vision_image(stage_call *c);
wan_status stage_vision_video(stage_call *c);

#endif
