/* bench.h: how fast this machine runs each stage, and how fast it could. */
#ifndef WAN_PIPELINE_BENCH_H
#define WAN_PIPELINE_BENCH_H

#include "pipeline/model.h"

/* Calls row for the two ceilings and for each stage as it is done. A stage that does not fit the memory is a
 * row that says so. */
wan_status bench_run(backend *be, const wan_bench_params *params, wan_bench_fn row, void *user);

#endif
