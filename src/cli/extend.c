/* extend.c: `wan extend`: a language model writes a prompt out; and the same as a part of `wan generate`. */
#define _GNU_SOURCE /* strdup */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

enum { SYSTEM_MAX = 64 << 10 }; /* bytes of a system prompt */

static const struct poptOption extend_options[] = {
    {"prompt", 'p', POPT_ARG_STRING, NULL, OPT_PROMPT, "what to write out", "TEXT"},
    {"image", 'i', POPT_ARG_STRING, NULL, OPT_IMAGE, "first picture: file, address or data URL", "SOURCE"},
    {"no-exif", 0, POPT_ARG_NONE, NULL, OPT_NO_EXIF, "ignore the picture's orientation tag", NULL},
    {"task", 0, POPT_ARG_STRING, NULL, OPT_TASK,
     "t2v-A14B, i2v-A14B or ti2v-5B; default: i2v with a picture, else t2v", "NAME"},
    {"lang", 0, POPT_ARG_STRING, NULL, OPT_EXTEND_LANG, "language of the result: zh (default) or en", "NAME"},
    {"seed", 0, POPT_ARG_STRING, NULL, OPT_SEED, "for the service; default: random", "N"},
    {"json", 0, POPT_ARG_NONE, NULL, OPT_JSON, "print the whole record as JSON", NULL},
    {"verbose", 'v', POPT_ARG_NONE, NULL, OPT_VERBOSE, "say more about what is done", NULL},
    {"help", 'h', POPT_ARG_NONE, NULL, OPT_HELP, "show this help", NULL},
    POPT_TABLEEND};

static const struct poptOption options[] = {
    {NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)extend_options, 0, "What to extend:", NULL},
    {NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)options_service, 0, "Who extends it:", NULL},
    POPT_TABLEEND};

static char *read_system(const char *path) {
  FILE *f = fopen(path, "rb");
  char *text = f ? calloc(1, SYSTEM_MAX + 1) : NULL;
  size_t n = text ? fread(text, 1, SYSTEM_MAX + 1, f) : 0;
  const char *why = !f                            ? "can't open it"
                    : !text                       ? "out of memory"
                    : ferror(f)                   ? "can't read it"
                    : n > SYSTEM_MAX              ? "more than 64 KiB"
                    : n == 0 || strlen(text) != n ? "not a text"
                                                  : NULL;
  if (f) fclose(f);
  if (!why) return text;
  cli_fail(EXIT_ERROR, "--extend-system %s: %s", path, why);
  free(text);
  return NULL;
}

int cli_extend_params(const cli_args *args, wan_extend_params *p, char **storage) {
  static const char *const methods[] = {"local_qwen", "dashscope", "openai", NULL}, *const languages[] = {
                                                                                        "zh", "en", NULL};
  int i;
  p->model = args->value[OPT_EXTEND_MODEL];
  p->url = args->value[OPT_EXTEND_URL];
  p->allow_remote = true; /* whoever runs the command chose the address */
  p->no_exif = args->value[OPT_NO_EXIF] != NULL;
  if (args->value[OPT_EXTEND_METHOD]) {
    if ((i = cli_choice(args, OPT_EXTEND_METHOD, "--extend-method", methods)) < 0) return EXIT_USAGE;
    p->method = (wan_extend_method)i;
  }
  if (args->value[OPT_EXTEND_LANG]) {
    if ((i = cli_choice(args, OPT_EXTEND_LANG, "--extend-lang", languages)) < 0) return EXIT_USAGE;
    p->language = (wan_language)i;
  }
  if (!cli_real(args, OPT_EXTEND_TIMEOUT, "--extend-timeout", &p->timeout)) return EXIT_USAGE;
  if (args->value[OPT_EXTEND_TIMEOUT] && !(p->timeout > 0 && p->timeout <= 86400))
    return cli_fail(EXIT_USAGE, "--extend-timeout %s: more than 0 and at most 86400 seconds are needed",
                    args->value[OPT_EXTEND_TIMEOUT]);
  if (!args->value[OPT_EXTEND_SYSTEM]) return EXIT_FINE;
  p->system_prompt = *storage = read_system(args->value[OPT_EXTEND_SYSTEM]);
  return *storage ? EXIT_FINE : EXIT_ERROR;
}

static bool choose_family(const char *task, bool with_image, wan_family *out) {
  static const struct {
    const char *start;
    wan_family family;
  } tasks[] = {{"t2v", WAN_FAMILY_T2V}, {"ti2v", WAN_FAMILY_TI2V}, {"i2v", WAN_FAMILY_I2V}};
  *out = with_image ? WAN_FAMILY_I2V : WAN_FAMILY_T2V;
  if (!task) return true;
  for (int i = 0; i < 3; i++) {
    size_t n = strlen(tasks[i].start);
    if (strncmp(task, tasks[i].start, n) != 0 || (task[n] && task[n] != '-')) continue;
    *out = tasks[i].family;
    return true;
  }
  cli_fail(EXIT_USAGE, "--task %s: prompts are extended for t2v, i2v and ti2v", task);
  return false;
}

static int print_result(wan_context *context, const cli_args *args, wan_status s,
                        const wan_extend_result *r) {
  int code = cli_status(context, s);
  char *json = NULL;
  if (!args->value[OPT_JSON]) {
    if (s == WAN_OK) puts(r->prompt);
    return code;
  }
  s = wan_extend_result_json(context, r, &json);
  if (s == WAN_OK) puts(json);
  wan_free(json);
  return code != EXIT_FINE ? code : cli_status(context, s);
}

static int run(cli_args *args) {
  wan_extend_params p;
  wan_extend_result r;
  char *storage = NULL;
  long long seed = -1;
  wan_extend_params_init(&p);
  wan_extend_result_init(&r);
  if (args->rest_count) return cli_fail(EXIT_USAGE, "unexpected argument: %s", args->rest[0]);
  if (!args->value[OPT_PROMPT] && !args->value[OPT_IMAGE])
    return cli_fail(EXIT_USAGE, "a prompt or a picture is needed: -p TEXT, -i FILE");
  if (!cli_int(args, OPT_SEED, "--seed", INT64_MIN, INT64_MAX, &seed)) return EXIT_USAGE;
  p.prompt = args->value[OPT_PROMPT] ? args->value[OPT_PROMPT] : "";
  p.image = args->value[OPT_IMAGE];
  p.seed = seed;
  if (!choose_family(args->value[OPT_TASK], p.image != NULL, &p.family)) return EXIT_USAGE;
  int code = cli_extend_params(args, &p, &storage);
  if (code != EXIT_FINE) return code;
  args->value[OPT_BACKEND] = strdup("ref"); /* nothing is computed */
  wan_context *context = cli_open(args, false, &code);
  if (context) code = print_result(context, args, wan_extend(context, &p, &r), &r);
  wan_extend_result_free(&r);
  cli_close(context);
  free(storage);
  return code;
}

const cli_command cli_extend = {"extend", "Let a language model write a prompt out, and print it.",
                                "-p TEXT [-i PICTURE] [options]", options, run};

/* ---- For wan generate ---- */

/* An interrupted run goes on with the prompt it began with: the service would give another one. */
static bool resumed_prompt(wan_context *context, const wan_generate_params *p, char **prompt) {
  wan_generate_params saved;
  char *json = NULL;
  void *storage = NULL;
  *prompt = NULL;
  if (!p->checkpoint_path || wan_checkpoint_settings(context, p->checkpoint_path, &json) != WAN_OK)
    return false;
  wan_generate_params_init(&saved);
  if (wan_generate_params_from_json(context, json, &saved, &storage) == WAN_OK && saved.original_prompt &&
      strcmp(saved.original_prompt, p->prompt) == 0)
    *prompt = strdup(saved.prompt);
  wan_free(storage);
  wan_free(json);
  return *prompt != NULL;
}

int cli_extend_prompt(wan_context *context, const cli_args *args, wan_family family, wan_generate_params *p,
                      char **prompt) {
  wan_extend_params e;
  wan_extend_result r;
  char *storage = NULL;
  *prompt = NULL;
  if (!args->value[OPT_EXTEND]) return EXIT_FINE;
  if (resumed_prompt(context, p, prompt)) {
    p->original_prompt = p->prompt;
    p->prompt = *prompt;
    return EXIT_FINE;
  }
  wan_extend_params_init(&e);
  wan_extend_result_init(&r);
  e.family = family;
  e.prompt = p->prompt;
  e.image = p->image_path;
  e.seed = p->seed;
  int code = cli_extend_params(args, &e, &storage);
  if (code != EXIT_FINE) return code;
  wan_status s = wan_extend(context, &e, &r);
  if (s == WAN_OK) {
    *prompt = strdup(r.prompt);
    if (!*prompt) code = cli_fail(EXIT_ERROR, "out of memory");
    cli_note("extended prompt: %s", r.prompt);
    p->original_prompt = p->prompt;
    p->prompt = *prompt;
    p->seed = r.seed; /* one seed for both, as generate.py has it */
  } else if (s == WAN_ERR_CANCELLED || args->value[OPT_EXTEND_REQUIRED]) {
    code = cli_status(context, s);
  } else {
    cli_note("the prompt is used as it is, it could not be extended: %s", wan_context_error(context));
  }
  wan_extend_result_free(&r);
  free(storage);
  return code;
}
