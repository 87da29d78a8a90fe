/* bench.h: timing the transformer of a checkpoint. */
#ifndef WAN_PIPELINE_BENCH_H
#define WAN_PIPELINE_BENCH_H

#include "pipeline/settings.h"

wan_status bench_forward(wan_model *m, const wan_generate_params *params, int repeat,
                         wan_bench_result *result);

#endif
