/* stage.c: `wan stage NAME`: one part of the pipeline on tensors in files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const struct poptOption stage_options[] = {
    {"in", 0, POPT_ARG_STRING, NULL, OPT_IN, "input tensors (safetensors)", "FILE"},
    {"out", 'o', POPT_ARG_STRING, NULL, OPT_OUTPUT, "output tensors (safetensors)", "FILE"},
    {"text", 0, POPT_ARG_STRING, NULL, OPT_TEXT, "clean, tokenize, text: the text", "TEXT"},
    {"expert", 0, POPT_ARG_STRING, NULL, OPT_EXPERT, "dit: high or low, with two experts", "NAME"},
    {"shape", 0, POPT_ARG_STRING, NULL, OPT_SHAPE, "noise: channels and latent size", "C,T,h,w"},
    {"area", 0, POPT_ARG_STRING, NULL, OPT_AREA, "image: the area to fill", "WxH"},
    {"image", 'i', POPT_ARG_STRING, NULL, OPT_IMAGE, "image: the picture", "FILE"},
    {"no-exif", 0, POPT_ARG_NONE, NULL, OPT_NO_EXIF, "image: ignore the orientation tag", NULL},
    {"seed", 0, POPT_ARG_STRING, NULL, OPT_SEED, "noise: the seed", "N"},
    {"rng", 0, POPT_ARG_STRING, NULL, OPT_RNG, "noise: torch-cpu (default) or philox", "NAME"},
    POPT_TABLEEND};

#define GROUP(table, title) \
  { NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)(table), 0, title, NULL }
static const struct poptOption options[] = {
    GROUP(stage_options, "Stage:"), GROUP(options_machine, "Model and machine:"),
    GROUP(options_steps, "schedule, denoise:"), GROUP(options_guidance, "denoise:"), POPT_TABLEEND};

static bool read_shape(const char *text, int64_t shape[4]) {
  if (!text) return true;
  const char *p = text;
  for (int i = 0; i < 4; i++) {
    char *end;
    long long n = strtoll(p, &end, 10);
    if (end == p || n < 1 || n > 1 << 30 || *end != (i < 3 ? ',' : 0)) {
      cli_fail(EXIT_USAGE, "--shape %s: four positive numbers C,T,h,w are needed", text);
      return false;
    }
    shape[i] = n;
    p = end + 1;
  }
  return true;
}

static int run(cli_args *args) {
  wan_stage_params p;
  cli_lists lists;
  int code;
  if (args->rest_count != 1)
    return cli_fail(EXIT_USAGE, "wan stage needs the name of one stage; try: wan stage --help");
  wan_stage_params_init(&p);
  p.stage = args->rest[0];
  p.model_dir = args->value[OPT_MODEL];
  p.in_path = args->value[OPT_IN];
  p.out_path = args->value[OPT_OUTPUT];
  p.text = args->value[OPT_TEXT];
  p.expert = args->value[OPT_EXPERT];
  p.image_path = args->value[OPT_IMAGE];
  if (!cli_generate_params(args, &p.generate, &lists) || !read_shape(args->value[OPT_SHAPE], p.shape) ||
      !cli_size(args->value[OPT_AREA], "--area", &p.area_width, &p.area_height))
    return EXIT_USAGE;
  p.generate.image_path = NULL; /* --image is the image stage's input, not a run's first frame */
  wan_context *context = cli_open(args, &code);
  if (!context) return code;
  char *text = NULL;
  wan_status s = wan_stage_run(context, &p, &text);
  if (text) puts(text);
  wan_free(text);
  code = cli_status(context, s);
  cli_close(context);
  return code;
}

const cli_command cli_stage = {
    "stage",
    "Run one part of the pipeline on tensors in files: tokenize, clean, text, dit, vae-encode,\n"
    "vae-decode, schedule, denoise, noise, image. docs/CLI.md lists what each reads and writes.",
    "NAME [--model DIR] [--in FILE] [--out FILE] [options]", options, run};
