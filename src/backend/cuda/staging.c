/* staging.c: weights on their way from a mapped file to the device, in one of two ways.
 *
 * The first times through two pinned buffers: several threads fill one while the device reads the other. That
 * is all there is for weights that are loaded once. A weight that is loaded again and again, because it is
 * streamed, has its pages pinned where they are, in the system's page cache, and the device reads them itself
 * at the speed of the bus, with no thread in between. Pinned pages can't be reclaimed, so they count as held
 * memory, and only as many are pinned as the limit on host memory leaves (cuda_mem_reserve). */
#include "backend/cuda/cuda.h"

#include <string.h>

enum {
  COPY_THREADS =
      8,         /* 37 GB/s from the page cache to pinned memory; 4 reach 25, 16 get into each other's way */
  PIN_AFTER = 2, /* loads: pinning costs as much as three of them */
  PIN_LEAST = 256 << 10, /* bytes: smaller ones share pages with their neighbours */
  PIN_MARGIN = 64 << 20, /* of the limit on host memory that is left to others */
  PAGE = 4096
};

/* Pages [begin, end) that the driver knows. */
struct cuda_pin {
  const char *begin, *end;
};

/* ---- Through pinned buffers ---- */

/* Several threads fill a buffer faster than one where the source is in the page cache. */
static void copy_host(char *to, const char *from, size_t bytes) {
  enum { PIECE = 1 << 20 };
  int64_t pieces = (int64_t)((bytes + PIECE - 1) / PIECE);
#pragma omp parallel for schedule(dynamic) num_threads(COPY_THREADS) if (pieces > 1)
  for (int64_t i = 0; i < pieces; i++) {
    size_t at = (size_t)i * PIECE, n = bytes - at < PIECE ? bytes - at : PIECE;
    memcpy(to + at, from + at, n);
  }
}

/* Room for `bytes` in the current buffer, or in the next one once the device has read that. All that lies in
 * a buffer was sent on one stream, so the last event tells. */
static wan_status staging_room(backend *be, size_t bytes) {
  cuda_state *c = cuda_of(be);
  bool fits = c->staging[c->staging_now] && c->staging_stream == c->stream &&
              c->staging_used + bytes <= DEVICE_STAGING_BYTES;
  if (fits) return WAN_OK;
  int i = (c->staging_now + 1) % DEVICE_STAGING_BUFFERS;
  if (!c->staging[i]) {
    CORE_TRY(
        cuda_check(be, cudaMallocHost(&c->staging[i], DEVICE_STAGING_BYTES), "allocating pinned memory"));
    core_mem_add(be->ctx, DEVICE_STAGING_BYTES);
    CORE_TRY(cuda_check(be, cudaEventCreateWithFlags(&c->staging_free[i], cudaEventDisableTiming),
                        "creating an event"));
  }
  CORE_TRY(cuda_check(be, cudaEventSynchronize(c->staging_free[i]), "copying weights to the device"));
  c->staging_now = i;
  c->staging_used = 0;
  c->staging_stream = c->stream;
  return WAN_OK;
}

static char *staging_now(const cuda_state *c) {
  return (char *)c->staging[c->staging_now] + c->staging_used;
}

/* A copy from or to the next `bytes` of the buffer was issued. */
static wan_status staging_sent(backend *be, size_t bytes) {
  enum { LINE = 256 };
  cuda_state *c = cuda_of(be);
  c->staging_used += (bytes + LINE - 1) / LINE * LINE;
  return cuda_check(be, cudaEventRecord(c->staging_free[c->staging_now], c->stream), "recording an event");
}

static wan_status upload_staged(backend *be, char *dst, const char *host, size_t bytes) {
  cuda_state *c = cuda_of(be);
  for (size_t at = 0; at < bytes; at += DEVICE_STAGING_BYTES) {
    size_t n = bytes - at < DEVICE_STAGING_BYTES ? bytes - at : DEVICE_STAGING_BYTES;
    CORE_TRY(staging_room(be, n));
    copy_host(staging_now(c), host + at, n);
    CORE_TRY(cuda_check(be, cudaMemcpyAsync(dst + at, staging_now(c), n, cudaMemcpyHostToDevice, c->stream),
                        "copying weights to the device"));
    CORE_TRY(staging_sent(be, n));
  }
  return WAN_OK;
}

wan_status cuda_upload_rows(backend *be, void *dst, const void *table, size_t row, const int32_t *ids,
                            int64_t n) {
  cuda_state *c = cuda_of(be);
  const int64_t fit = (int64_t)(DEVICE_STAGING_BYTES / row);
  for (int64_t at = 0; at < n; at += fit) {
    const int64_t count = n - at < fit ? n - at : fit;
    CORE_TRY(staging_room(be, (size_t)count * row));
    char *to = staging_now(c);
#pragma omp parallel for num_threads(COPY_THREADS) if (count > 64)
    for (int64_t k = 0; k < count; k++)
      memcpy(to + (size_t)k * row, (const char *)table + (size_t)ids[at + k] * row, row);
    CORE_TRY(cuda_check(be,
                        cudaMemcpyAsync((char *)dst + (size_t)at * row, to, (size_t)count * row,
                                        cudaMemcpyHostToDevice, c->stream),
                        "copying rows to the device"));
    CORE_TRY(staging_sent(be, (size_t)count * row));
  }
  return WAN_OK;
}

/* Through pinned memory where that pays: the driver's own way for pageable memory is one thread's copy. */
wan_status cuda_download(backend *be, void *host, const void *src, size_t bytes) {
  enum { SMALL = 1 << 20 };
  cuda_state *c = cuda_of(be);
  if (bytes <= SMALL) {
    if (bytes)
      CORE_TRY(cuda_check(be, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, c->stream),
                          "copying from the device"));
    return cuda_sync(be);
  }
  for (size_t at = 0; at < bytes; at += DEVICE_STAGING_BYTES) {
    size_t n = bytes - at < DEVICE_STAGING_BYTES ? bytes - at : DEVICE_STAGING_BYTES;
    CORE_TRY(staging_room(be, n));
    char *to = staging_now(c);
    CORE_TRY(cuda_check(be, cudaMemcpyAsync(to, (const char *)src + at, n, cudaMemcpyDeviceToHost, c->stream),
                        "copying from the device"));
    CORE_TRY(staging_sent(be, n));
    CORE_TRY(cuda_sync(be));
    copy_host((char *)host + at, to, n);
  }
  return WAN_OK;
}

/* ---- From pinned pages ---- */

/* The pin that holds p; NULL when none does, *next then is where the next one begins. */
static const cuda_pin *pin_at(const cuda_state *c, const char *p, const char **next) {
  *next = NULL;
  for (int i = 0; i < c->pin_count; i++) {
    const cuda_pin *pin = &c->pin[i];
    if (p >= pin->begin && p < pin->end) return pin;
    if (pin->begin > p && (!*next || pin->begin < *next)) *next = pin->begin;
  }
  return NULL;
}

static bool pin_pages(backend *be, const char *begin, const char *end) {
  cuda_state *c = cuda_of(be);
  const size_t bytes = (size_t)(end - begin);
  const uint64_t limit = be->ctx->mem_limit, held = core_mem_current(be->ctx);
  if (c->pin_bytes + bytes > c->pin_room || (limit && held + bytes + PIN_MARGIN > limit)) return false;
  if (c->pin_count == c->pin_max) {
    int more = c->pin_max ? 2 * c->pin_max : 64;
    cuda_pin *list = core_realloc(be->ctx, c->pin, (size_t)more * sizeof *list);
    if (!list) return false;
    c->pin = list;
    c->pin_max = more;
  }
  if (cudaHostRegister((void *)(uintptr_t)begin, bytes, cudaHostRegisterReadOnly) != cudaSuccess) {
    cudaGetLastError(); /* the system does not allow it for such pages: it is not tried again */
    c->pin_room = 0;
    return false;
  }
  c->pin[c->pin_count++] = (cuda_pin){begin, end};
  c->pin_bytes += bytes;
  core_mem_add(be->ctx, (int64_t)bytes);
  return true;
}

/* Pin what is not yet pinned of [p, p+bytes). */
static void pin_range(backend *be, const char *p, size_t bytes) {
  const char *at = (const char *)((uintptr_t)p / PAGE * PAGE), *next;
  const char *end = (const char *)(((uintptr_t)p + bytes + PAGE - 1) / PAGE * PAGE);
  while (at < end) {
    const cuda_pin *pin = pin_at(cuda_of(be), at, &next);
    const char *stop = pin ? pin->end : next && next < end ? next : end;
    if (!pin && !pin_pages(be, at, stop)) return;
    at = stop;
  }
}

wan_status cuda_upload_weight(backend *be, void *dst, const weight *w) {
  cuda_state *c = cuda_of(be);
  const char *from = w->src.data, *next;
  char *to = dst;
  size_t left = tensor_bytes(&w->src);
  if (w->loads >= PIN_AFTER && left >= PIN_LEAST && c->pin_room) pin_range(be, from, left);
  while (left) {
    const cuda_pin *pin = pin_at(c, from, &next);
    const char *stop = pin ? pin->end : next;
    size_t n = stop && (size_t)(stop - from) < left ? (size_t)(stop - from) : left;
    CORE_TRY(pin ? cuda_check(be, cudaMemcpyAsync(to, from, n, cudaMemcpyHostToDevice, c->stream),
                              "copying weights to the device")
                 : upload_staged(be, to, from, n));
    from += n;
    to += n;
    left -= n;
  }
  return WAN_OK;
}

static void unpin(backend *be, int i) {
  cuda_state *c = cuda_of(be);
  const size_t bytes = (size_t)(c->pin[i].end - c->pin[i].begin);
  cudaHostUnregister((void *)(uintptr_t)c->pin[i].begin);
  c->pin_bytes -= bytes;
  core_mem_add(be->ctx, -(int64_t)bytes);
  c->pin[i] = c->pin[--c->pin_count];
}

void cuda_weight_forget(backend *be, weight *w) {
  cuda_state *c = cuda_of(be);
  const char *begin = w->src.data, *end = begin + tensor_bytes(&w->src);
  bool waited = false;
  for (int i = c->pin_count - 1; i >= 0; i--) {
    if (c->pin[i].begin >= end || c->pin[i].end <= begin) continue;
    if (!waited) { /* copies from these pages may be under way */
      cudaStreamSynchronize(c->side_stream);
      cudaStreamSynchronize(c->main_stream);
      waited = true;
    }
    unpin(be, i);
  }
}

void cuda_staging_close(backend *be) {
  cuda_state *c = cuda_of(be);
  while (c->pin_count) unpin(be, c->pin_count - 1);
  core_free(be->ctx, c->pin);
  for (int i = 0; i < DEVICE_STAGING_BUFFERS; i++) {
    if (!c->staging[i]) continue;
    if (c->staging_free[i]) cudaEventDestroy(c->staging_free[i]);
    cudaFreeHost(c->staging[i]);
    core_mem_add(be->ctx, -(int64_t)DEVICE_STAGING_BYTES);
  }
}
