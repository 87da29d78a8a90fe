/* registry.h: the entry of each backend. It fills be->ops, be->impl, be->host_memory and be->threads,
 * or explains why this machine can't run it and leaves nothing behind. */
#ifndef WAN_BACKEND_REGISTRY_H
#define WAN_BACKEND_REGISTRY_H

#include "backend/backend.h"

wan_status backend_ref_open(backend *be, const backend_config *config);
wan_status backend_cpu_open(backend *be, const backend_config *config);
wan_status backend_cuda_open(backend *be, const backend_config *config);

#endif
