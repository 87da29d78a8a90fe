/* wan.h: the public interface of libwan, Wan2.2 video generation.
 *
 * Ownership: every *_create/_open call hands the caller an object that the matching *_destroy/_close
 * releases; on failure *out is set to NULL and nothing has to be released. Strings and arrays in
 * parameter structures stay the caller's and need to live only for the duration of the call.
 * Errors: fallible functions return a wan_status; wan_context_error() gives the one message that
 * explains it, valid until the next call on the same context. The library never prints, exits or
 * aborts. Threads: one context must not be used by two threads at once (wan_context_cancel() is the
 * exception, it may be called from any thread or signal handler); separate contexts are independent.
 * Parameter structures start with their own size, so that later versions can add fields:
 * initialise them with the matching *_init function.
 */
#ifndef WAN_WAN_H
#define WAN_WAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define WAN_API __attribute__((visibility("default")))
#else
#define WAN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define WAN_VERSION_MAJOR 0
#define WAN_VERSION_MINOR 1
#define WAN_VERSION_PATCH 0
/* "major.minor.patch" of the library that is running. */
WAN_API const char *wan_version(void);

typedef enum wan_status {
  WAN_OK = 0,
  WAN_ERR_ARGUMENT,    /* a parameter is out of its range or contradicts another */
  WAN_ERR_IO,          /* a file can't be opened, read or written */
  WAN_ERR_FORMAT,      /* a file's content is not what its format demands */
  WAN_ERR_UNSUPPORTED, /* well formed, but a variant that this build does not run */
  WAN_ERR_MEMORY,      /* an allocation failed, or a memory limit would be exceeded */
  WAN_ERR_NUMERIC,     /* a non-finite value appeared in a computation */
  WAN_ERR_BACKEND,     /* a compute library or device driver failed */
  WAN_ERR_CANCELLED,   /* wan_context_cancel() was called */
  WAN_ERR_NETWORK      /* a remote service could not be reached or refused */
} wan_status;

/* A short constant name, such as "format error". */
WAN_API const char *wan_status_name(wan_status status);

/* ---- Context: settings, error message, memory accounting, cancellation ---- */

typedef struct wan_context wan_context;

typedef enum wan_precision {
  WAN_PRECISION_DEFAULT = 0, /* bf16 */
  WAN_PRECISION_BF16,        /* bf16 operands, f32 accumulation, f32 residual stream */
  WAN_PRECISION_F32          /* everything in f32: the exact path */
} wan_precision;

typedef enum wan_log_level { WAN_LOG_ERROR, WAN_LOG_NOTICE, WAN_LOG_INFO, WAN_LOG_DEBUG } wan_log_level;
typedef void (*wan_log_fn)(void *user, wan_log_level level, const char *message);

typedef struct wan_context_params {
  size_t size;
  const char *backend; /* "ref", "cpu", "cuda", or NULL: the best one this machine runs */
  wan_precision precision;
  int threads;           /* CPU threads; 0: one per available core */
  uint64_t memory_limit; /* bytes the engine may hold; 0: what the machine has available */
  bool profile;          /* collect per-operation times, see wan_context_profile() */
  wan_log_fn log;        /* NULL: silent */
  void *log_user;
} wan_context_params;

WAN_API void wan_context_params_init(wan_context_params *params);
WAN_API wan_status wan_context_create(const wan_context_params *params, wan_context **out);
WAN_API void wan_context_destroy(wan_context *context);
/* The message of the last failure, "" if there was none. context may be NULL. */
WAN_API const char *wan_context_error(const wan_context *context);
/* Ask the running call to stop within one transformer block; it returns WAN_ERR_CANCELLED. */
WAN_API void wan_context_cancel(wan_context *context);
/* Bytes now held and the most ever held by this context (weights prepared for the backend,
 * activations, caches; mapped files are not counted, the operating system can drop their pages). */
WAN_API uint64_t wan_context_memory(const wan_context *context);
WAN_API uint64_t wan_context_memory_peak(const wan_context *context);
/* Name of the backend in use ("cpu", ...). */
WAN_API const char *wan_context_backend(const wan_context *context);
/* A table of per-operation calls, time, FLOP/s and GB/s as text; empty unless params.profile.
 * Caller frees it with wan_free(). NULL when memory is short. */
WAN_API char *wan_context_profile(wan_context *context);
WAN_API void wan_free(void *p);

#ifdef __cplusplus
}
#endif
#endif
