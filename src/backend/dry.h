/* dry.h: what the backend that only counts was asked for, call by call, so that a plan can time samples of
 * the same calls on a real one. */
#ifndef WAN_BACKEND_DRY_H
#define WAN_BACKEND_DRY_H

#include "backend/profile.h"

/* Equal calls are one entry. Tensors have shapes and dtypes, no content. */
typedef struct dry_call {
  profile_op op; /* PROF_LINEAR, PROF_ATTENTION, PROF_CONV, PROF_UPSAMPLE_CONV or PROF_WEIGHT_LOAD */
  tensor x, out; /* attention: x are the queries */
  tensor keys;   /* attention only */
  weight w;      /* role and source; of equal calls the first one's */
  op_act act;
  bool add;            /* conv: a residual is added */
  bool frames;         /* conv: its frames lie apart */
  conv_spec conv;      /* without addresses */
  attention_spec spec; /* without addresses */
  uint64_t count;
} dry_call;

/* The calls since the backend was opened or last told to forget them; valid until the next operation. */
int64_t backend_dry_calls(const backend *be, const dry_call **calls);
/* Forget calls and profile. */
void backend_dry_forget(backend *be);

#endif
