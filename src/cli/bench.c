/* bench.c: `wan bench`: the table of stages, each beside what this machine could do at best. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

#define GROUP(table, title) \
  { NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)(table), 0, title, NULL }
#define TEXT(name, letter, id, descr, arg) \
  { name, letter, POPT_ARG_STRING, NULL, id, descr, arg }

static const struct poptOption measuring_options[] = {
    TEXT("stage", 0, OPT_STAGE, "only stages whose names start so", "NAME"),
    TEXT("repeat", 0, OPT_REPEAT, "runs of each, after one that is not counted; default 3", "N"),
    TEXT("size", 's', OPT_SIZE, "width x height; default: the official sizes, on a processor smaller ones",
         "WxH"),
    TEXT("frames", 'f', OPT_FRAMES, "number of frames, 4n+1", "N"),
    TEXT("tokens", 0, OPT_TOKENS, "length of the prompt; default 512", "N"),
    TEXT("layers", 0, OPT_LAYERS,
         "random weights: layers of transformer and text encoder; default: all, on a "
         "processor 2",
         "N"),
    {"json", 0, POPT_ARG_NONE, NULL, OPT_JSON, "one JSON object a line", NULL},
    POPT_TABLEEND};
static const struct poptOption bench_options[] = {
    GROUP(measuring_options, "Measuring:"), GROUP(options_machine, "Model and machine:"), POPT_TABLEEND};

static void print_row(void *user, const wan_bench_row *r) {
  (void)user;
  printf("%-13s %-48s ", r->stage, r->what);
  if (r->skipped) {
    printf("%s\n", r->skipped);
  } else if (r->seconds_floor > 0) {
    printf("%10.4f s %10.4f s  %4.2f  %7.2f GiB%s\n", r->seconds, r->seconds_floor,
           r->seconds_floor / r->seconds,
           (double)(r->device_memory_peak ? r->device_memory_peak : r->memory_peak) / (1 << 30),
           r->streamed ? "  weights streamed" : "");
  } else if (r->flops > 0) {
    printf("%10.4f s  %.2f TFLOP/s\n", r->seconds, r->flops / r->seconds / 1e12);
  } else {
    printf("%10.4f s  %.1f GB/s\n", r->seconds, r->bytes / r->seconds / 1e9);
  }
  fflush(stdout);
}

/* No string in a row needs escaping. */
static void print_json(void *user, const wan_bench_row *r) {
  const char *backend = user;
  printf("{\"stage\": \"%s\", \"what\": \"%s\", \"backend\": \"%s\", \"flops\": %.6g, \"bytes\": %.6g",
         r->stage, r->what, backend, r->flops, r->bytes);
  if (r->tokens) printf(", \"tokens\": %lld", (long long)r->tokens);
  if (r->seconds_floor > 0) printf(", \"floor\": %.6f", r->seconds_floor);
  if (r->skipped)
    printf(", \"skipped\": \"%s\"", r->skipped);
  else
    printf(", \"seconds\": %.6f, \"min\": %.6f, \"max\": %.6f, \"runs\": %d", r->seconds, r->seconds_min,
           r->seconds_max, r->runs);
  if (r->memory_peak)
    printf(", \"memory_peak\": %llu, \"device_memory_peak\": %llu, \"streamed\": %s",
           (unsigned long long)r->memory_peak, (unsigned long long)r->device_memory_peak,
           r->streamed ? "true" : "false");
  printf("}\n");
  fflush(stdout);
}

static bool bench_params(const cli_args *args, wan_bench_params *p) {
  long long repeat = 0, tokens = 0, layers = 0;
  wan_generate_params size;
  cli_lists lists;
  wan_generate_params_init(&size);
  wan_bench_params_init(p);
  if (!cli_int(args, OPT_REPEAT, "--repeat", 1, 1000, &repeat) ||
      !cli_int(args, OPT_TOKENS, "--tokens", 1, 512, &tokens) ||
      !cli_int(args, OPT_LAYERS, "--layers", 1, 1000, &layers) || !cli_generate_params(args, &size, &lists))
    return false;
  p->model = args->value[OPT_MODEL];
  p->stage = args->value[OPT_STAGE];
  p->repeat = (int)repeat;
  p->tokens = (int)tokens;
  p->layers = (int)layers;
  p->width = size.width;
  p->height = size.height;
  p->frames = size.frames;
  return true;
}

static int bench(cli_args *args) {
  wan_bench_params p;
  int code;
  if (args->rest_count) return cli_fail(EXIT_USAGE, "unexpected argument: %s", args->rest[0]);
  if (!bench_params(args, &p)) return EXIT_USAGE;
  wan_context *context = cli_open(args, false, &code);
  if (!context) return code;
  const char *backend = wan_context_backend(context);
  bool json = args->value[OPT_JSON] != NULL;
  if (!json) printf("%-13s %-48s %12s %12s %5s %11s\n", "stage", backend, "median", "floor", "share", "peak");
  code =
      cli_status(context, wan_bench(context, &p, json ? print_json : print_row, (void *)(uintptr_t)backend));
  cli_close(context);
  return code;
}

const cli_command cli_bench = {
    "bench",
    "Time each stage beside what this machine could do at best; with --profile: by "
    "operation.",
    "[options]", bench_options, bench};
