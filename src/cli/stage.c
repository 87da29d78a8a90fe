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

static const struct poptOption vision_options[] = {
    {"video", 0, POPT_ARG_STRING, NULL, OPT_VIDEO, "vision-video: the clip", "FILE"},
    {"frame-image", 0, POPT_ARG_STRING, NULL, OPT_FRAME_IMAGE, "vision-video: instead, frame N (repeated)",
     "N:SOURCE"},
    {"size", 's', POPT_ARG_STRING, NULL, OPT_SIZE, "smart-resize: the size; others: aim at it", "WxH"},
    {"factor", 0, POPT_ARG_STRING, NULL, OPT_FACTOR, "sides become multiples of it; default 28", "N"},
    {"min-pixels", 0, POPT_ARG_STRING, NULL, OPT_MIN_PIXELS, "least area of a picture or frame", "N"},
    {"max-pixels", 0, POPT_ARG_STRING, NULL, OPT_MAX_PIXELS, "largest area of a picture or frame", "N"},
    {"total-pixels", 0, POPT_ARG_STRING, NULL, OPT_TOTAL_PIXELS, "largest area of all frames together", "N"},
    {"fps", 0, POPT_ARG_STRING, NULL, OPT_FPS, "frames taken a second; default 2", "X"},
    {"frames", 'f', POPT_ARG_STRING, NULL, OPT_FRAMES, "frames taken, instead of by rate", "N"},
    {"min-frames", 0, POPT_ARG_STRING, NULL, OPT_MIN_FRAMES, "by rate: at least; default 4", "N"},
    {"max-frames", 0, POPT_ARG_STRING, NULL, OPT_MAX_FRAMES, "by rate: at most; default 768", "N"},
    {"start", 0, POPT_ARG_STRING, NULL, OPT_START, "vision-video: part of the clip, in seconds", "X"},
    {"end", 0, POPT_ARG_STRING, NULL, OPT_END, "vision-video: its end", "X"},
    {"total-frames", 0, POPT_ARG_STRING, NULL, OPT_TOTAL_FRAMES, "smart-nframes: of the clip", "N"},
    {"video-fps", 0, POPT_ARG_STRING, NULL, OPT_VIDEO_FPS, "smart-nframes: of the clip", "X"},
    POPT_TABLEEND};

#define GROUP(table, title) \
  { NULL, 0, POPT_ARG_INCLUDE_TABLE, (void *)(table), 0, title, NULL }
static const struct poptOption options[] = {
    GROUP(stage_options, "Stage:"),
    GROUP(vision_options, "smart-resize, smart-nframes, vision-image, vision-video:"),
    GROUP(options_machine, "Model and machine:"),
    GROUP(options_steps, "schedule, denoise:"),
    GROUP(options_guidance, "denoise:"),
    POPT_TABLEEND};

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

static bool read_vision(const cli_args *args, wan_stage_params *p) {
  wan_vision_params *v = &p->vision;
  const struct {
    option_id id;
    const char *name;
    int *out;
  } counts[] = {{OPT_FACTOR, "--factor", &v->factor},
                {OPT_MIN_FRAMES, "--min-frames", &v->frames_min},
                {OPT_MAX_FRAMES, "--max-frames", &v->frames_max},
                {OPT_TOTAL_FRAMES, "--total-frames", &p->total_frames}};
  for (int i = 0; i < 4; i++) {
    long long n = *counts[i].out;
    if (!cli_int(args, counts[i].id, counts[i].name, 1, 1 << 30, &n)) return false;
    *counts[i].out = (int)n;
  }
  const struct {
    option_id id;
    const char *name;
    int64_t *out;
  } areas[] = {{OPT_MIN_PIXELS, "--min-pixels", &v->min_pixels},
               {OPT_MAX_PIXELS, "--max-pixels", &v->max_pixels},
               {OPT_TOTAL_PIXELS, "--total-pixels", &v->total_pixels}};
  for (int i = 0; i < 3; i++) {
    long long n = *areas[i].out;
    if (!cli_int(args, areas[i].id, areas[i].name, 1, 1LL << 40, &n)) return false;
    *areas[i].out = n;
  }
  v->width = p->generate.width;
  v->height = p->generate.height;
  v->frames = p->generate.frames;
  v->fps = p->generate.fps;
  v->no_exif = p->generate.no_exif;
  v->allow_remote = true; /* whoever runs the command chose the address */
  return cli_real(args, OPT_START, "--start", &v->start) && cli_real(args, OPT_END, "--end", &v->end) &&
         cli_real(args, OPT_VIDEO_FPS, "--video-fps", &p->video_fps);
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
      !cli_size(args->value[OPT_AREA], "--area", &p.area_width, &p.area_height) || !read_vision(args, &p))
    return EXIT_USAGE;
  p.generate.image_path = NULL; /* --image is the image stage's input, not a run's first frame */
  wan_context *context = cli_open(args, false, &code);
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
    "vae-decode, schedule, denoise, noise, image, smart-resize, smart-nframes, vision-image,\n"
    "vision-video. docs/CLI.md lists what each reads and writes.",
    "NAME [--model DIR] [--in FILE] [--out FILE] [options]", options, run};
