/* generate.h: a whole run, from parameters to a finished video. */
#ifndef WAN_PIPELINE_GENERATE_H
#define WAN_PIPELINE_GENERATE_H

#include "pipeline/settings.h"

wan_status generate_run(wan_model *m, const wan_generate_params *params, wan_generate_result *result);

#endif
