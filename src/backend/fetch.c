/* fetch.c: results on their way to the host while the next operations run. A backend whose memory is the
 * host's, or that has no such way, copies at once. */
#include "backend/backend.h"

bool backend_fetches_behind(const backend *be) {
  return be->ops->fetch_begin != NULL;
}

wan_status backend_fetch_open(backend *be, size_t bytes, backend_fetch *f) {
  *f = (backend_fetch){.bytes = bytes};
  if (backend_fetches_behind(be)) return be->ops->fetch_open(be, f);
  f->host = core_alloc(be->ctx, bytes);
  return f->host ? WAN_OK : WAN_ERR_MEMORY;
}

void backend_fetch_close(backend *be, backend_fetch *f) {
  if (backend_fetches_behind(be))
    be->ops->fetch_close(be, f);
  else
    core_free(be->ctx, f->host);
  *f = (backend_fetch){0};
}

wan_status backend_fetch_begin(backend *be, backend_fetch *f, tensor src) {
  const size_t bytes = tensor_bytes(&src);
  if (be->failed) return be->failed;
  if (bytes > f->bytes)
    return backend_fail(be, WAN_ERR_ARGUMENT, "fetch: %zu bytes into a buffer of %zu", bytes, f->bytes);
  if (!backend_fetches_behind(be)) {
    tensor_download(be, f->host, src);
    return backend_status(be);
  }
  wan_status s = be->ops->fetch_begin(be, f, src.data, bytes);
  if (s != WAN_OK) be->failed = s;
  return s;
}

wan_status backend_fetch_end(backend *be, backend_fetch *f) {
  if (be->failed || !backend_fetches_behind(be)) return be->failed;
  wan_status s = be->ops->fetch_end(be, f);
  if (s != WAN_OK) be->failed = s;
  return s;
}
