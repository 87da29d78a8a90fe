/* denoise.h: the one denoising loop of all tasks. The caller fills in what conditions the run; the loop
 * owns the sample, the solver's history and the experts. */
#ifndef WAN_PIPELINE_DENOISE_H
#define WAN_PIPELINE_DENOISE_H

#include "pipeline/progress.h"
#include "pipeline/settings.h"

typedef struct denoiser {
  backend *be;
  core_ctx *ctx;
  const model_dir *dir;
  const run_settings *s;
  uint64_t keep_bytes;     /* of prepared weights, see dit_open() */
  uint64_t keep_retry;     /* the same in bf16, while a step of fp8 is made again */
  size_t scopes;           /* to reserve, see scope_reserve(); 0: nothing */
  tensor context[2];       /* host F32 [n, text_dim]: prompt, negative (null when no step uses it) */
  tensor slot[SLOT_COUNT]; /* F32 [T, h, w, C], null until the solver uses them; X is the sample */
  tensor momentum;         /* the same, for adaptive projected guidance */
  tensor first;            /* the same: given latent frames (TI2V); null: none */
  bool *given;             /* [T]: which ones */
  tensor y;                /* F32 [T, h, w, 20]: mask and picture latent (I2V); null: none */
  sampler solver;
  /* Called after each step; may be NULL. */
  wan_status (*on_step)(void *user, int done);
  /* Called before the solver's step with an estimate of the finished middle latent frame,
   * F32 [1, h, w, C]; may be NULL. */
  wan_status (*on_estimate)(void *user, int step, tensor frame);
  void *user;
  run_progress *progress; /* may be NULL */

  dit *expert[2]; /* private: opened when needed */
  dit_text *text[2];
  int active; /* whose text[] that is; -1: none */
} denoiser;

/* Fields above `solver` are the caller's to fill after this, X through denoiser_start(). */
void denoiser_init(denoiser *d, backend *be, const model_dir *dir, const run_settings *s);
/* Set the sample: noise host F32 [T, h, w, C], with given frames put in. */
wan_status denoiser_start(denoiser *d, const float *noise);
/* Steps solver.done .. steps-1. */
wan_status denoiser_run(denoiser *d);
/* Close the experts and free everything but the sample (SLOT_X). */
void denoiser_release(denoiser *d);
void denoiser_free(denoiser *d);

#endif
