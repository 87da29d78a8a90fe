/* context.h: what the public handle holds. */
#ifndef WAN_API_CONTEXT_H
#define WAN_API_CONTEXT_H

#include "backend/backend.h"

struct wan_context {
  core_ctx core;
  backend *be;
  scope_mark base;      /* nothing may be left above it between calls */
  uint64_t peak;        /* most bytes ever held; core's own peak starts anew with each stage */
  uint64_t device_peak; /* the same on the device */
};

/* Every call that may fail ends here: scopes closed, the backend usable again, a cancellation consumed. */
wan_status context_done(wan_context *c, wan_status status);
/* Text for the caller, who frees it with wan_free(): it leaves the context's account. NULL stays NULL. */
wan_status context_hand_out(wan_context *c, wan_status status, char *text, char **out);

/* A caller built against an older header passes a shorter structure: what it lacks keeps its default. */
#define CONTEXT_ADOPT(into, from)                                                   \
  do {                                                                              \
    size_t adopt_size_ = (from)->size < sizeof(into) ? (from)->size : sizeof(into); \
    memcpy(&(into), (from), adopt_size_);                                           \
    (into).size = sizeof(into);                                                     \
  } while (0)

#endif
