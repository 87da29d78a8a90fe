#define _GNU_SOURCE
#include "core/ctx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* Every block is preceded by one header, a cache line so that the payload stays 64-byte aligned. */
typedef struct mem_header {
  size_t size;   /* payload bytes */
  size_t mapped; /* bytes of the mapping, 0 when the block came from the heap */
  char pad[48];
} mem_header;
_Static_assert(sizeof(mem_header) == 64, "the header must keep the payload aligned");

enum { MAP_THRESHOLD = 2 << 20 }; /* one huge page: smaller blocks gain nothing from a mapping */

void core_ctx_init(core_ctx *ctx) {
  memset(ctx, 0, sizeof *ctx);
  atomic_init(&ctx->cancelled, false);
  atomic_init(&ctx->mem_current, 0);
  atomic_init(&ctx->mem_peak, 0);
  atomic_init(&ctx->mem_fail_in, -1);
  atomic_init(&ctx->device_current, 0);
  atomic_init(&ctx->device_peak, 0);
}

wan_status core_fail(core_ctx *ctx, wan_status status, const char *fmt, ...) {
  if (ctx) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(ctx->message, sizeof ctx->message, fmt, ap);
    va_end(ap);
  }
  return status;
}

wan_status core_prefix(core_ctx *ctx, wan_status status, const char *fmt, ...) {
  if (!ctx || status == WAN_OK) return status;
  char old[CORE_MESSAGE_MAX];
  memcpy(old, ctx->message, sizeof old);
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(ctx->message, sizeof ctx->message, fmt, ap);
  va_end(ap);
  if (n < 0 || n + 3 >= CORE_MESSAGE_MAX) return status;
  size_t room = sizeof ctx->message - (size_t)n - 3, length = strnlen(old, room);
  memcpy(ctx->message + n, ": ", 2);
  memcpy(ctx->message + n + 2, old, length); /* cut where it does not fit */
  ctx->message[(size_t)n + 2 + length] = 0;
  return status;
}

void core_log(core_ctx *ctx, wan_log_level level, const char *fmt, ...) {
  if (!ctx || !ctx->log) return;
  char text[CORE_MESSAGE_MAX];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  ctx->log(ctx->log_user, level, text);
}

void core_cancel(core_ctx *ctx) {
  atomic_store(&ctx->cancelled, true);
}

wan_status core_check_cancel(core_ctx *ctx) {
  if (!atomic_load(&ctx->cancelled)) return WAN_OK;
  return core_fail(ctx, WAN_ERR_CANCELLED, "cancelled");
}

static void account(atomic_uint_least64_t *current, atomic_uint_least64_t *high, int64_t bytes) {
  uint64_t now = atomic_fetch_add(current, (uint64_t)bytes) + (uint64_t)bytes;
  uint64_t peak = atomic_load(high);
  while (bytes > 0 && now > peak && !atomic_compare_exchange_weak(high, &peak, now)) {
  }
}

void core_mem_add(core_ctx *ctx, int64_t bytes) {
  if (ctx) account(&ctx->mem_current, &ctx->mem_peak, bytes);
}

void core_device_add(core_ctx *ctx, int64_t bytes) {
  if (ctx) account(&ctx->device_current, &ctx->device_peak, bytes);
}

uint64_t core_device_current(const core_ctx *ctx) {
  return atomic_load(&ctx->device_current);
}

uint64_t core_device_peak(const core_ctx *ctx) {
  return atomic_load(&ctx->device_peak);
}

uint64_t core_mem_current(const core_ctx *ctx) {
  return atomic_load(&ctx->mem_current);
}

uint64_t core_mem_peak(const core_ctx *ctx) {
  return atomic_load(&ctx->mem_peak);
}

void core_mem_reset_peak(core_ctx *ctx) {
  atomic_store(&ctx->mem_peak, atomic_load(&ctx->mem_current));
  atomic_store(&ctx->device_peak, atomic_load(&ctx->device_current));
}

/* True when the fault injection of the tests wants this allocation to fail. */
static bool injected_failure(core_ctx *ctx) {
  int_least64_t left = atomic_load(&ctx->mem_fail_in);
  if (left < 0) return false;
  return atomic_fetch_sub(&ctx->mem_fail_in, 1) == 0;
}

static void *no_memory(core_ctx *ctx, size_t size) {
  core_fail(ctx, WAN_ERR_MEMORY, "out of memory: %zu bytes could not be allocated (%llu bytes held)", size,
            ctx ? (unsigned long long)core_mem_current(ctx) : 0ULL);
  return NULL;
}

static void *alloc_block(core_ctx *ctx, size_t size, bool zero) {
  if (size > SIZE_MAX / 2) return no_memory(ctx, size);
  if (ctx && injected_failure(ctx)) return no_memory(ctx, size);
  if (ctx && ctx->mem_limit && core_mem_current(ctx) + size > ctx->mem_limit) {
    core_fail(ctx, WAN_ERR_MEMORY,
              "memory limit reached: %zu more bytes do not fit into the limit of %llu bytes "
              "(%llu held); raise the limit, or ask for fewer frames or a smaller size",
              size, (unsigned long long)ctx->mem_limit, (unsigned long long)core_mem_current(ctx));
    return NULL;
  }
  size_t total = size + sizeof(mem_header);
  mem_header *h;
  size_t mapped = 0;
  if (total >= MAP_THRESHOLD) {
    mapped = (total + 4095) & ~(size_t)4095;
    h = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (h == MAP_FAILED) return no_memory(ctx, size);
#ifdef MADV_HUGEPAGE
    madvise(h, mapped, MADV_HUGEPAGE); /* only a hint: its failure changes nothing but speed */
#endif
  } else {
    h = aligned_alloc(64, (total + 63) & ~(size_t)63);
    if (!h) return no_memory(ctx, size);
    if (zero) memset(h, 0, total);
  }
  h->size = size;
  h->mapped = mapped;
  core_mem_add(ctx, (int64_t)size);
  return h + 1;
}

void *core_alloc(core_ctx *ctx, size_t size) {
  return alloc_block(ctx, size, false);
}

void *core_calloc(core_ctx *ctx, size_t count, size_t size) {
  if (size && count > SIZE_MAX / size) return no_memory(ctx, SIZE_MAX);
  return alloc_block(ctx, count * size, true);
}

void core_free(core_ctx *ctx, void *p) {
  if (!p) return;
  mem_header *h = (mem_header *)p - 1;
  core_mem_add(ctx, -(int64_t)h->size);
  if (h->mapped)
    munmap(h, h->mapped);
  else
    free(h);
}

void *core_realloc(core_ctx *ctx, void *p, size_t size) {
  void *q = alloc_block(ctx, size, false);
  if (!q || !p) return q;
  size_t old = ((mem_header *)p - 1)->size;
  memcpy(q, p, old < size ? old : size);
  core_free(ctx, p);
  return q;
}

char *core_strdup(core_ctx *ctx, const char *s) {
  size_t n = strlen(s) + 1;
  char *p = core_alloc(ctx, n);
  if (p) memcpy(p, s, n);
  return p;
}

char *core_asprintf(core_ctx *ctx, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(NULL, 0, fmt, ap);
  va_end(ap);
  if (n < 0) return no_memory(ctx, 0);
  char *p = core_alloc(ctx, (size_t)n + 1);
  if (!p) return NULL;
  va_start(ap, fmt);
  vsnprintf(p, (size_t)n + 1, fmt, ap);
  va_end(ap);
  return p;
}

double core_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
