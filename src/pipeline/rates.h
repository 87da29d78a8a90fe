/* rates.h: how long the operations of a run will take on a backend. Samples of the very calls are timed: the
 * matrices and kernels of the checkpoint with fewer rows, attention over fewer heads. So a plan knows no
 * machine and no kernel, and stays right when they change. Measurements are kept for the next plan. */
#ifndef WAN_PIPELINE_RATES_H
#define WAN_PIPELINE_RATES_H

#include "backend/backend.h"

typedef struct rates rates;

wan_status rates_open(backend *be, rates **out);
void rates_close(rates *r);

typedef struct run_time {
  double compute; /* seconds of all operations */
  double load;    /* seconds of loading every weight once: reading, converting, packing */
} run_time;

/* The calls that `dry` (backend_open_dry()) has seen; the checkpoint must still be open. */
wan_status rates_price(rates *r, const backend *dry, run_time *out);

#endif
