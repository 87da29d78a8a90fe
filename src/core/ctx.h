/* ctx.h: what every part of the engine needs from its caller: one place for the error message,
 * the memory account, the log and the cancel flag. A core_ctx belongs to one wan_context and is
 * used by one thread at a time, except for core_cancel(), core_alloc() and core_free(), which are
 * thread-safe.
 *
 * Errors: whoever detects a fault calls core_fail() with one precise message (which file, tensor,
 * flag or offset; what was expected, what was found, what to do); everyone else passes the status on.
 */
#ifndef WAN_CORE_CTX_H
#define WAN_CORE_CTX_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <wan/wan.h>

#if defined(__GNUC__)
#define CORE_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define CORE_PRINTF(fmt, args)
#endif

/* Propagate a failing status; for use where there is nothing to clean up. */
#define CORE_TRY(expr)                                       \
  do {                                                       \
    wan_status core_try_status_ = (expr);                    \
    if (core_try_status_ != WAN_OK) return core_try_status_; \
  } while (0)

enum { CORE_MESSAGE_MAX = 2048 };

typedef struct core_ctx {
  char message[CORE_MESSAGE_MAX]; /* of the last core_fail(), UTF-8 */
  wan_log_fn log;
  void *log_user;
  atomic_bool cancelled;
  atomic_uint_least64_t mem_current, mem_peak; /* bytes */
  uint64_t mem_limit;                          /* 0: none */
  atomic_int_least64_t mem_fail_in; /* >= 0: this many more allocations succeed, then one fails (tests) */
  /* The same of a device's own memory: all that the process takes there, the driver's share included. */
  atomic_uint_least64_t device_current, device_peak;
  uint64_t device_limit; /* 0: none */
} core_ctx;

void core_ctx_init(core_ctx *ctx);

/* Record the message, return status. Never returns WAN_OK. ctx may be NULL (message is dropped). */
wan_status core_fail(core_ctx *ctx, wan_status status, const char *fmt, ...) CORE_PRINTF(3, 4);
/* Put "context: " in front of the message already recorded, return status unchanged. */
wan_status core_prefix(core_ctx *ctx, wan_status status, const char *fmt, ...) CORE_PRINTF(3, 4);
void core_log(core_ctx *ctx, wan_log_level level, const char *fmt, ...) CORE_PRINTF(3, 4);

void core_cancel(core_ctx *ctx);
/* WAN_OK, or WAN_ERR_CANCELLED with its message once core_cancel() was called. */
wan_status core_check_cancel(core_ctx *ctx);

/* Checked, counted allocation. 64-byte aligned. Returns NULL and records a message on failure
 * (also when mem_limit would be exceeded). size 0 gives a valid pointer. Allocations of 2 MiB and
 * more are mapped on their own, so that freeing returns them to the system at once. */
void *core_alloc(core_ctx *ctx, size_t size);
void *core_calloc(core_ctx *ctx, size_t count, size_t size); /* zeroed; checks count*size */
void *core_realloc(core_ctx *ctx, void *p, size_t size);
void core_free(core_ctx *ctx, void *p); /* p may be NULL */
char *core_strdup(core_ctx *ctx, const char *s);
/* printf into a new string; NULL with a message on failure. */
char *core_asprintf(core_ctx *ctx, const char *fmt, ...) CORE_PRINTF(2, 3);
/* Count bytes held on our behalf by something else (a library's scratch, weights used in a mapped file). */
void core_mem_add(core_ctx *ctx, int64_t bytes);
uint64_t core_mem_current(const core_ctx *ctx);
uint64_t core_mem_peak(const core_ctx *ctx);
void core_mem_reset_peak(core_ctx *ctx); /* the peaks become the current values: start of a stage */
/* The account of device memory; host memory and device memory are never added up. */
void core_device_add(core_ctx *ctx, int64_t bytes);
uint64_t core_device_current(const core_ctx *ctx);
uint64_t core_device_peak(const core_ctx *ctx);

/* Seconds from an arbitrary start, monotonic. */
double core_now(void);

#endif
