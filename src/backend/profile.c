/* profile.c: the table of operations as text. */
#include "backend/profile.h"

#include <stdio.h>

const char *backend_profile_name(profile_op op) {
  static const char *const names[PROF_COUNT] = {
      "linear",   "ada_norm",     "layer_norm",  "rms_norm",      "qk_norm_rope", "attention",
      "gate_add", "channel_norm", "conv",        "upsample_conv", "elementwise",  "reshape",
      "embed",    "reduce",       "weight_load", "transfer"};
  return names[op];
}

char *backend_profile_text(backend *be) {
  if (!be->profile || be->dry) return NULL;
  double total = 0;
  for (int i = 0; i < PROF_COUNT; i++) total += be->profile->row[i].seconds;
  size_t cap = 96 * (PROF_COUNT + 2), used = 0;
  char *text = core_alloc(be->ctx, cap);
  if (!text) return NULL;
  used += (size_t)snprintf(text, cap, "%-14s %9s %10s %9s %9s %7s\n", "operation", "calls", "seconds",
                           "GFLOP/s", "GB/s", "share");
  for (int i = 0; i < PROF_COUNT; i++) {
    const backend_profile_row *r = &be->profile->row[i];
    if (!r->calls || used >= cap) continue;
    double s = r->seconds > 1e-12 ? r->seconds : 1e-12;
    used +=
        (size_t)snprintf(text + used, cap - used, "%-14s %9llu %10.3f %9.1f %9.2f %6.1f%%\n",
                         backend_profile_name((profile_op)i), (unsigned long long)r->calls, r->seconds,
                         r->flops / s / 1e9, r->bytes / s / 1e9, total > 0 ? 100 * r->seconds / total : 0);
  }
  return text;
}
