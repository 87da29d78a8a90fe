/* registry.c: the one place that names backends. */
#include "backend/backend.h"
#include "backend/profile.h"
#include "backend/registry.h"

#include <string.h>

static const struct {
  const char *name;
  wan_status (*open)(backend *be, const backend_config *config);
} backends[] = {
/* best first */
#ifdef WAN_HAVE_CUDA
    {"cuda", backend_cuda_open},
#endif
#ifdef WAN_HAVE_CPU
    {"cpu", backend_cpu_open},
#endif
    {"ref", backend_ref_open},
};

enum { BACKENDS = sizeof backends / sizeof backends[0] };

const char *backend_name(int i) {
  return i >= 0 && i < BACKENDS ? backends[i].name : NULL;
}

void backend_close(backend *be) {
  if (!be) return;
  be->top = NULL;
  if (be->ops) {
    scope_trim(be);
    be->ops->close(be);
  }
  core_free(be->ctx, be->profile);
  core_free(be->ctx, be);
}

static wan_status open_one(core_ctx *ctx, int i, const backend_config *config, backend **out) {
  backend *be = core_calloc(ctx, 1, sizeof *be);
  if (!be) return WAN_ERR_MEMORY;
  be->ctx = ctx;
  be->precision = config->precision == WAN_PRECISION_DEFAULT ? WAN_PRECISION_BF16 : config->precision;
  be->act = be->precision == WAN_PRECISION_F32 ? DT_F32 : DT_BF16;
  be->product = be->precision == WAN_PRECISION_FP8 ? DT_E4M3_ROWS : be->act;
  wan_status s = WAN_OK;
  if (config->profile && !(be->profile = core_calloc(ctx, 1, sizeof *be->profile))) s = WAN_ERR_MEMORY;
  if (s == WAN_OK) s = backends[i].open(be, config);
  if (s != WAN_OK) {
    be->ops = NULL; /* a failed open has released its own state */
    backend_close(be);
    return s;
  }
  *out = be;
  return WAN_OK;
}

wan_status backend_open(core_ctx *ctx, const backend_config *config, backend **out) {
  *out = NULL;
  for (int i = 0; i < BACKENDS; i++) {
    if (config->name && strcmp(config->name, backends[i].name) != 0) continue;
    wan_status s = open_one(ctx, i, config, out);
    bool final =
        s == WAN_OK || s == WAN_ERR_MEMORY || s == WAN_ERR_UNSUPPORTED; /* slower ones lack it, too */
    if (final || config->name || i + 1 == BACKENDS) return s;
    core_log(ctx, WAN_LOG_INFO, "backend %s is not used: %s", backends[i].name, ctx->message);
  }
  char known[64] = "";
  for (int i = 0; i < BACKENDS; i++) {
    if (i) strncat(known, ", ", sizeof known - strlen(known) - 1);
    strncat(known, backends[i].name, sizeof known - strlen(known) - 1);
  }
  return core_fail(ctx, WAN_ERR_ARGUMENT, "backend \"%s\" is not in this build, which has: %s", config->name,
                   known);
}
