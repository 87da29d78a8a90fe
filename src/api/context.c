/* context.c: the public context: settings, error message, memory account, cancellation. */
#include "api/context.h"

#include <string.h>

const char *wan_version(void) {
  return WAN_VERSION;
}

const char *wan_status_name(wan_status status) {
  static const char *const names[] = {"ok",          "argument error", "input/output error", "format error",
                                      "unsupported", "out of memory",  "numeric error",      "backend error",
                                      "cancelled",   "network error"};
  return (unsigned)status < sizeof names / sizeof *names ? names[status] : "unknown status";
}

void wan_context_params_init(wan_context_params *params) {
  *params = (wan_context_params){.size = sizeof *params};
}

wan_status wan_context_create(const wan_context_params *params, wan_context **out) {
  *out = NULL;
  wan_context_params p;
  wan_context_params_init(&p);
  if (params) CONTEXT_ADOPT(p, params);
  wan_context *c = core_calloc(NULL, 1, sizeof *c);
  if (!c) return WAN_ERR_MEMORY;
  core_ctx_init(&c->core);
  c->core.log = p.log;
  c->core.log_user = p.log_user;
  c->core.mem_limit = p.memory_limit;
  c->core.device_limit = p.device_limit;
  backend_config config = {p.backend, p.precision, p.threads, p.profile};
  wan_status s =
      p.plan_only ? backend_open_dry(&c->core, &config, &c->be) : backend_open(&c->core, &config, &c->be);
  if (s != WAN_OK) { /* there is no context to keep the message: it goes to the log */
    core_log(&c->core, WAN_LOG_ERROR, "%s", c->core.message);
    core_free(NULL, c);
    return s;
  }
  c->base = scope_begin(c->be);
  *out = c;
  return WAN_OK;
}

void wan_context_destroy(wan_context *c) {
  if (!c) return;
  scope_end(c->be, c->base);
  backend_close(c->be);
  core_free(NULL, c);
}

wan_status context_done(wan_context *c, wan_status status) {
  uint64_t peak = core_mem_peak(&c->core);
  if (peak > c->peak) c->peak = peak;
  peak = core_device_peak(&c->core);
  if (peak > c->device_peak) c->device_peak = peak;
  scope_end(c->be, c->base);
  if (status == WAN_OK) return status;
  backend_clear(c->be);
  scope_trim(c->be);
  if (status == WAN_ERR_CANCELLED) atomic_store(&c->core.cancelled, false);
  return status;
}

wan_status context_hand_out(wan_context *c, wan_status status, char *text, char **out) {
  *out = text ? core_strdup(NULL, text) : NULL;
  core_free(&c->core, text);
  if (status == WAN_OK && text && !*out) status = core_fail(&c->core, WAN_ERR_MEMORY, "out of memory");
  if (status != WAN_OK) {
    core_free(NULL, *out);
    *out = NULL;
  }
  return context_done(c, status);
}

const char *wan_context_error(const wan_context *c) {
  return c ? c->core.message : "";
}

void wan_context_cancel(wan_context *c) {
  core_cancel(&c->core);
}

uint64_t wan_context_memory(const wan_context *c) {
  return core_mem_current(&c->core);
}

uint64_t wan_context_memory_peak(const wan_context *c) {
  uint64_t now = core_mem_peak(&c->core);
  return now > c->peak ? now : c->peak;
}

uint64_t wan_context_device_memory(const wan_context *c) {
  return core_device_current(&c->core);
}

uint64_t wan_context_device_memory_peak(const wan_context *c) {
  uint64_t now = core_device_peak(&c->core);
  return now > c->device_peak ? now : c->device_peak;
}

const char *wan_context_backend(const wan_context *c) {
  return c->be->ops->name;
}

char *wan_context_profile(wan_context *c) {
  char *text = NULL;
  context_hand_out(c, WAN_OK, backend_profile_text(c->be), &text);
  return text;
}

void wan_free(void *p) {
  core_free(NULL, p);
}
