/* settings.h: a request with every default filled in and every contradiction refused. What a run
 * does depends on nothing but the model, the backend and this. */
#ifndef WAN_PIPELINE_SETTINGS_H
#define WAN_PIPELINE_SETTINGS_H

#include "media/media.h"
#include "pipeline/model.h"
#include "sampler/sampler.h"

/* A pixel frame whose content is given. */
typedef struct run_frame {
  int frame;
  picture pixels; /* as in the file, any size */
} run_frame;

typedef struct run_settings {
  const wan_generate_params *params; /* the caller's; strings and callbacks are read from there */
  const char *prompt, *negative;
  int ask_width, ask_height; /* what was asked for: with pictures only the area counts */
  int width, height, frames; /* of the result */
  int64_t T, h, w, C;        /* of the latent */
  int experts, steps;
  double shift, boundary, fps;
  double guidance[2]; /* by expert */
  sampler_kind sampler;
  schedule plan;
  int64_t seed;
  uint64_t skip_mask; /* skip-layer guidance: bit i leaves block i out of the extra pass; 0: off */
  run_frame *given;   /* in the order of their frames */
  int given_count;
  int given_clip;      /* the first frames 0..given_clip-1 come from a clip */
  uint64_t given_hash; /* of the files that the given frames come from; 0: none */
  uint64_t noise_hash; /* of the noise file; 0: none */
} run_settings;

/* Check and complete params. Notices (rounding, untrained sizes) go to the log. bare: whatever conditions the
 * run comes from elsewhere (a latent, a stage's input), so that an I2V model needs no picture. */
wan_status settings_resolve(wan_model *m, const wan_generate_params *params, bool bare, run_settings *out);
void settings_free(core_ctx *ctx, run_settings *s);

/* What step k does. */
typedef struct step_plan {
  double t;
  float sigma;
  int expert;
  double guidance;
  bool zero;   /* CFG-Zero*: the velocity is zero, no pass is made */
  bool uncond; /* a pass on the negative prompt */
  bool skip;   /* a pass with blocks left out */
} step_plan;
step_plan settings_step(const run_settings *s, int k);
/* Does any step use the negative prompt? */
bool settings_use_negative(const run_settings *s);
/* Passes through the transformer over all steps. */
int settings_passes(const run_settings *s);
/* The table that `wan generate --dry-run` prints. */
wan_status settings_table(core_ctx *ctx, const run_settings *s, char **text);

/* All settings as JSON (docs/CLI.md, "settings"); core_free. Needs the model for its fingerprint. */
wan_status settings_to_json(wan_model *m, const run_settings *s, char **out);
/* The reverse, into initialised parameters; *storage (on nobody's account: core_free(NULL, ..)) holds the
 * strings and arrays. */
wan_status settings_from_json(core_ctx *ctx, const char *json, wan_generate_params *params, void **storage);
/* WAN_ERR_ARGUMENT naming the first setting that differs between two such texts. Output names, the
 * library's version and the number of threads do not count. */
wan_status settings_compare(core_ctx *ctx, const char *saved, const char *now, const char *file);
/* The seed in such a text, or -1. */
int64_t settings_json_seed(const char *json);

#endif
