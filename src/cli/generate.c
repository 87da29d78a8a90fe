/* generate.c: `wan generate`: a prompt, perhaps pictures, and a checkpoint make a video. */
#define _GNU_SOURCE /* localtime_r, strdup */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"

#define GROUP(table, title) \
  { NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)(table), 0, title, NULL }

static const struct poptOption options[] = {GROUP(options_machine, "Model and machine:"),
                                            GROUP(options_content, "What to make:"),
                                            GROUP(options_steps, "Steps:"),
                                            GROUP(options_guidance, "Guidance:"),
                                            GROUP(options_output, "Output:"),
                                            GROUP(options_extend, "Prompt extension:"),
                                            GROUP(options_service, NULL),
                                            GROUP(options_official, "Flags of the official generate.py:"),
                                            POPT_TABLEEND};

typedef struct job {
  cli_args *args;
  wan_context *context;
  wan_model *model;
  wan_model_info info;
  wan_generate_params params;
  cli_lists lists;
  progress_view view;
  char *replayed; /* JSON */
  char *extended; /* the prompt */
  char *name;     /* the default output name */
} job;

/* ---- The official command line ---- */

static void note_ignored(const cli_args *args) {
  for (int i = 0; i < args->noted_count; i++) cli_note("--%s has no effect here", args->noted[i]);
}

/* The task of a Wan2.1 or Wan2.2 command line against what the directory holds. */
static int check_task(const job *j) {
  static const struct {
    const char *name;
    wan_family family;
    int experts;
  } tasks[] = {{"t2v-A14B", WAN_FAMILY_T2V, 2},
               {"i2v-A14B", WAN_FAMILY_I2V, 2},
               {"ti2v-5B", WAN_FAMILY_TI2V, 1},
               {"t2v-14B", WAN_FAMILY_T2V, 1},
               {"t2v-1.3B", WAN_FAMILY_T2V, 1}};
  const char *task = j->args->value[OPT_TASK];
  if (!task) return EXIT_FINE;
  for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++) {
    if (strcmp(task, tasks[i].name) != 0) continue;
    if (tasks[i].family == j->info.family && tasks[i].experts == j->info.experts) return EXIT_FINE;
    return cli_fail(EXIT_ERROR, "--task %s: the checkpoint in %s is of another kind; see wan info %s", task,
                    j->args->value[OPT_MODEL], j->args->value[OPT_MODEL]);
  }
  return cli_fail(EXIT_USAGE,
                  "--task %s: not supported; t2v-A14B, i2v-A14B, ti2v-5B, t2v-14B and t2v-1.3B are", task);
}

/* {task}_{size}_{ulysses_size}_{prompt}_{time}.mp4, as generate.py names its files. */
static char *default_name(const job *j) {
  static const char *const tasks[] = {"t2v-A14B", "i2v-A14B", "ti2v-5B"};
  const wan_generate_params *p = &j->params;
  const char *task = j->args->value[OPT_TASK];
  if (!task)
    task = j->info.family == WAN_FAMILY_T2V && j->info.experts == 1 ? "t2v-14B" : tasks[j->info.family];
  char prompt[50 * 4 + 1], when[32];
  size_t used = 0;
  int points = 0;
  for (const char *c = p->prompt; *c && points <= 50 && used + 1 < sizeof prompt; c++) {
    if ((*c & 0xc0) != 0x80 && ++points > 50) break; /* not a continuation byte: a new code point */
    prompt[used++] = (char)(*c == ' ' || *c == '/' ? '_' : *c);
  }
  prompt[used] = 0;
  time_t now = time(NULL);
  struct tm local;
  strftime(when, sizeof when, "%Y%m%d_%H%M%S", localtime_r(&now, &local));
  size_t size = strlen(task) + sizeof prompt + 96;
  char *name = malloc(size);
  if (name)
    snprintf(name, size, "%s_%d*%d_%s_%s_%s.mp4", task, p->width ? p->width : j->info.width,
             p->height ? p->height : j->info.height,
             j->args->value[OPT_ULYSSES] ? j->args->value[OPT_ULYSSES] : "1", prompt, when);
  return name;
}

/* ---- Running ---- */

static void on_progress(void *user, const wan_progress *p) {
  job *j = user;
  progress_show(&j->view, p);
}

static void on_preview(void *user, int step, int width, int height, const uint8_t *rgb) {
  job *j = user;
  (void)step;
  if (wan_write_png(j->context, j->args->value[OPT_PREVIEW], width, height, rgb) != WAN_OK)
    cli_note("no preview: %s", wan_context_error(j->context));
}

static int prepare(job *j) {
  cli_args *args = j->args;
  wan_generate_params_init(&j->params);
  if (args->value[OPT_REPLAY]) {
    wan_status s = wan_video_settings(j->context, args->value[OPT_REPLAY], &j->replayed);
    if (s == WAN_OK) s = wan_generate_params_from_json(j->context, j->replayed, &j->params, &j->lists.replay);
    if (s != WAN_OK) return cli_status(j->context, s);
  }
  if (!cli_generate_params(args, &j->params, &j->lists)) return EXIT_USAGE;
  if (args->value[OPT_PROMPT]) j->params.original_prompt = NULL; /* that of a replayed video */
  if (args->value[OPT_EXTEND] && j->params.original_prompt) j->params.prompt = j->params.original_prompt;
  if (!j->params.prompt && !j->params.from_latent_path && !args->value[OPT_DRY_RUN])
    return cli_fail(EXIT_USAGE, "a prompt is needed: -p TEXT");
  if (!j->params.prompt) j->params.prompt = "";
  if (!args->value[OPT_MODEL]) return cli_fail(EXIT_USAGE, "a model is needed: --model DIR");
  if (!progress_choose(args, &j->view)) return EXIT_USAGE;
  note_ignored(args);
  wan_status s = wan_model_open(j->context, args->value[OPT_MODEL], &j->model);
  if (s == WAN_OK) {
    wan_model_info_init(&j->info);
    s = wan_model_get_info(j->model, &j->info);
  }
  return s == WAN_OK ? check_task(j) : cli_status(j->context, s);
}

static int dry_run(job *j) {
  char *table = NULL;
  wan_status s = wan_plan_steps(j->model, &j->params, &table);
  if (s == WAN_OK) fputs(table, stdout);
  wan_free(table);
  return cli_status(j->context, s);
}

static int generate(job *j) {
  wan_generate_params *p = &j->params;
  int code = p->from_latent_path ? EXIT_FINE
                                 : cli_extend_prompt(j->context, j->args, j->info.family, p, &j->extended);
  if (code != EXIT_FINE) return code;
  if (!p->output_path) {
    if (!(j->name = default_name(j))) return cli_fail(EXIT_ERROR, "out of memory");
    p->output_path = j->name;
  }
  p->progress = on_progress;
  if (j->args->value[OPT_PREVIEW]) p->preview = on_preview;
  p->user = j;
  wan_generate_result result;
  wan_generate_result_init(&result);
  wan_status s = wan_generate(j->model, p, &result);
  progress_finish(&j->view);
  if (s != WAN_OK) return cli_status(j->context, s);
  double seconds = 0;
  for (int i = 0; i < WAN_STAGE_COUNT; i++) seconds += result.seconds[i];
  uint64_t device = wan_context_device_memory_peak(j->context);
  printf("%s: %dx%d, %d frames at %g fps, seed %lld, %.1f s, %.2f GiB", p->output_path, result.width,
         result.height, result.frames, result.fps, (long long)result.seed, seconds,
         (double)wan_context_memory_peak(j->context) / (1 << 30));
  if (device) printf(", %.2f GiB on the device", (double)device / (1 << 30));
  if (result.retries) printf(", %d steps made again in bf16", result.retries);
  putchar('\n');
  return EXIT_FINE;
}

static int run(cli_args *args) {
  job j = {.args = args};
  int code;
  if (args->rest_count) return cli_fail(EXIT_USAGE, "unexpected argument: %s", args->rest[0]);
  j.context = cli_open(args, false, &code);
  if (!j.context) return code;
  code = prepare(&j);
  if (code == EXIT_FINE) code = args->value[OPT_DRY_RUN] ? dry_run(&j) : generate(&j);
  wan_model_close(j.model);
  wan_free(j.lists.replay);
  wan_free(j.replayed);
  free(j.name);
  free(j.extended);
  cli_close(j.context);
  return code;
}

const cli_command cli_generate = {"generate",
                                  "Make a video from a text, and from pictures where the model takes them.",
                                  "--model DIR -p TEXT [-i PICTURE] [-o VIDEO] [options]", options, run};
