/* context.c: the context of a command, its messages on stderr, and Ctrl-C. */
#define _GNU_SOURCE /* sigaction */
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

/* A signal handler can be told nothing: the one context of this process has to be found through a
 * global. */
static _Atomic(wan_context *) running;

/* SA_RESETHAND has restored the default: a second Ctrl-C ends the process at once. */
static void on_signal(int signal) {
  (void)signal;
  wan_context *context = atomic_load(&running);
  if (context) wan_context_cancel(context);
}

static void on_log(void *user, wan_log_level level, const char *message) {
  bool verbose = *(const bool *)user;
  if (level == WAN_LOG_ERROR)
    cli_fail(0, "%s", message);
  else if (level == WAN_LOG_NOTICE)
    cli_note("%s", message);
  else if (verbose)
    fprintf(stderr, "wan: %s\n", message);
}

/* "14G", "512M", "1.5G" */
static bool memory_size(const cli_args *args, option_id id, const char *name, uint64_t *out) {
  const char *text = args->value[id];
  char *end;
  if (!text) return true;
  double x = strtod(text, &end);
  static const char units[] = "KMGT";
  double scale = 1;
  const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
  if (unit) {
    for (const char *u = units; u <= unit; u++) scale *= 1024;
    end++;
  }
  if (end == text || *end || !(x > 0) || x * scale > 1e18) {
    cli_fail(EXIT_USAGE, "%s %s: a size such as 14G is needed", name, text);
    return false;
  }
  *out = (uint64_t)(x * scale);
  return true;
}

static bool context_params(const cli_args *args, wan_context_params *p) {
  static const char *const precisions[] = {"bf16", "f32", "fp8", NULL};
  static const bool quiet = false, verbose = true;
  long long threads = 0;
  p->backend = args->value[OPT_BACKEND];
  p->profile = args->value[OPT_PROFILE] != NULL;
  p->log = on_log;
  p->log_user = (void *)(args->value[OPT_VERBOSE] ? &verbose : &quiet);
  if (args->value[OPT_PRECISION]) {
    int i = cli_choice(args, OPT_PRECISION, "--precision", precisions);
    if (i < 0) return false;
    p->precision = (wan_precision)(WAN_PRECISION_BF16 + i);
  }
  if (!cli_int(args, OPT_THREADS, "--threads", 1, 4096, &threads)) return false;
  p->threads = (int)threads;
  return memory_size(args, OPT_MEMORY, "--memory", &p->memory_limit) &&
         memory_size(args, OPT_VRAM, "--vram", &p->device_limit);
}

/* For a device that this machine may not have: its limit is enough to plan by. */
static wan_status create_plan_context(wan_context_params *p, wan_context **context) {
  wan_context_params quiet = *p;
  quiet.log = NULL;
  if (wan_context_create(&quiet, context) == WAN_OK) {
    wan_context_destroy(*context);
  } else {
    cli_note("no usable CUDA device here: planned without times");
    p->plan_only = true;
  }
  return wan_context_create(p, context);
}

wan_context *cli_open(const cli_args *args, bool plan, int *code) {
  wan_context_params params;
  wan_context *context;
  wan_context_params_init(&params);
  *code = EXIT_USAGE;
  if (!context_params(args, &params)) return NULL;
  bool device = params.backend && strcmp(params.backend, "cuda") == 0 && params.device_limit;
  wan_status s =
      plan && device ? create_plan_context(&params, &context) : wan_context_create(&params, &context);
  *code = s == WAN_OK ? EXIT_FINE : EXIT_ERROR; /* the message has come through the log */
  if (s == WAN_ERR_MEMORY) cli_fail(0, "out of memory");
  if (s != WAN_OK) return NULL;
  atomic_store(&running, context);
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  signal(SIGXFSZ, SIG_IGN); /* a file at its size limit is an error of write(), as a full disk is */
  return context;
}

void cli_close(wan_context *context) {
  if (!context) return;
  char *profile = wan_context_profile(context);
  if (profile && *profile) fputs(profile, stderr);
  wan_free(profile);
  atomic_store(&running, NULL);
  wan_context_destroy(context);
}
