/* checkpoint.h: the state of a denoising run in a safetensors file: everything that the remaining steps
 * need, so that a resumed run ends in the same bits. */
#ifndef WAN_PIPELINE_CHECKPOINT_H
#define WAN_PIPELINE_CHECKPOINT_H

#include "pipeline/denoise.h"

/* Write after d->solver.done steps. Atomic: the file is the old or the new state. settings: JSON. */
wan_status checkpoint_save(denoiser *d, const char *path, const char *settings);
/* Does the file belong to these settings? Then fill in contexts, conditions, slots and the solver's
 * position. Otherwise WAN_ERR_ARGUMENT naming the first difference. */
wan_status checkpoint_load(denoiser *d, const char *path, const char *settings);
/* Its settings (core_free). */
wan_status checkpoint_settings(core_ctx *ctx, const char *path, char **settings);
/* The seed of a checkpoint, for a run that was started with a random one; -1 when unreadable. */
int64_t checkpoint_seed(core_ctx *ctx, const char *path);

#endif
