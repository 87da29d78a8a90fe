/* profile.h: per-operation time and work, kept by the op wrappers when the profile is on. */
#ifndef WAN_BACKEND_PROFILE_H
#define WAN_BACKEND_PROFILE_H

#include "backend/backend.h"

typedef enum profile_op {
  PROF_LINEAR,
  PROF_ADA_NORM,
  PROF_LAYER_NORM,
  PROF_RMS_NORM,
  PROF_QK_NORM_ROPE,
  PROF_ATTENTION,
  PROF_GATE_ADD,
  PROF_CHANNEL_NORM,
  PROF_CONV,
  PROF_UPSAMPLE_CONV,
  PROF_ELEMENTWISE, /* cast, mul, activate, lincomb, affine, concat, to_u8 */
  PROF_RESHAPE,     /* patchify, shuffles, duplicate/average shortcuts */
  PROF_EMBED,
  PROF_REDUCE, /* all_finite, dot */
  PROF_WEIGHT_LOAD,
  PROF_TRANSFER, /* upload, download, copy */
  PROF_COUNT
} profile_op;

typedef struct backend_profile_row {
  uint64_t calls;
  double seconds, flops, bytes;
} backend_profile_row;

struct backend_profile {
  backend_profile_row row[PROF_COUNT];
};

const char *backend_profile_name(profile_op op);

#endif
