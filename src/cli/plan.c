/* plan.c: `wan plan`: what a run will cost. */
#include <stdio.h>

#include "cli/cli.h"

#define GROUP(table, title) \
  { NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)(table), 0, title, NULL }

static const struct poptOption plan_options[] = {
    GROUP(options_machine, "Model and machine:"), GROUP(options_content, "What to make:"),
    GROUP(options_steps, "Steps:"), GROUP(options_guidance, "Guidance:"), POPT_TABLEEND};

/* Context, model and parameters of a command; an exit code. */
typedef struct session {
  wan_context *context;
  wan_model *model;
  wan_generate_params params;
  cli_lists lists;
} session;

static int session_open(const cli_args *args, bool plan, session *s) {
  int code;
  *s = (session){0};
  if (args->rest_count) return cli_fail(EXIT_USAGE, "unexpected argument: %s", args->rest[0]);
  if (!args->value[OPT_MODEL]) return cli_fail(EXIT_USAGE, "a model is needed: --model DIR");
  wan_generate_params_init(&s->params);
  if (!cli_generate_params(args, &s->params, &s->lists)) return EXIT_USAGE;
  if (!(s->context = cli_open(args, plan, &code))) return code;
  return cli_status(s->context, wan_model_open(s->context, args->value[OPT_MODEL], &s->model));
}

static void session_close(session *s) {
  wan_model_close(s->model);
  cli_close(s->context);
}

/* How much of a stage's weights stays loaded, as text. */
static const char *resident_text(const wan_plan *p, int stage, char *text, size_t size) {
  if (!p->weights[stage])
    snprintf(text, size, "-");
  else if (p->resident[stage] >= p->weights[stage])
    snprintf(text, size, "all");
  else if (stage == WAN_STAGE_DENOISE)
    snprintf(text, size, "%d of %d blocks", p->blocks_resident, p->blocks);
  else
    snprintf(text, size, "streamed");
  return text;
}

static void print_stage(const wan_plan *p, const char *name, double flops, double seconds, uint64_t host,
                        uint64_t device, const char *resident) {
  printf("%-8s  %10.3f", name, flops / 1e12);
  if (p->timed)
    printf("  %10.2f", seconds);
  else
    printf("  %10s", "-");
  printf("  %10.3f", (double)host / (1 << 30));
  if (p->device_budget) printf("  %10.3f", (double)device / (1 << 30));
  printf("  %s\n", resident);
}

static void print_plan(const wan_plan *p) {
  printf("%dx%d, %d frames, %d steps, %lld tokens, %d expert%s\n", p->width, p->height, p->frames, p->steps,
         (long long)p->tokens, p->experts, p->experts == 1 ? "" : "s");
  printf("%-8s  %10s  %10s  %10s%s  %s\n", "stage", "TFLOP", "seconds", "peak GiB",
         p->device_budget ? "  device GiB" : "", "weights loaded");
  double flops = 0, seconds = 0;
  uint64_t peak = 0, device = 0;
  char text[32];
  for (int i = 0; i < WAN_STAGE_COUNT; i++) {
    if (p->flops[i] == 0) continue;
    print_stage(p, wan_stage_name((wan_stage)i), p->flops[i], p->seconds[i], p->memory_peak[i],
                p->device_memory_peak[i], resident_text(p, i, text, sizeof text));
    flops += p->flops[i];
    seconds += p->seconds[i];
    if (p->memory_peak[i] > peak) peak = p->memory_peak[i];
    if (p->device_memory_peak[i] > device) device = p->device_memory_peak[i];
  }
  print_stage(p, "all", flops, seconds, peak, device, "");
  if (!p->fits) printf("this does not fit: %s\n", p->refusal);
}

static int plan(cli_args *args) {
  session s;
  int code = session_open(args, true, &s);
  if (code == EXIT_FINE) {
    wan_plan p;
    wan_plan_init(&p);
    wan_status status = wan_plan_generate(s.model, &s.params, &p);
    if (status == WAN_OK) print_plan(&p);
    code = cli_status(s.context, status);
  }
  session_close(&s);
  return code;
}

const cli_command cli_plan = {"plan", "Print expected memory and time by stage; nothing is loaded.",
                              "--model DIR [options]", plan_options, plan};
