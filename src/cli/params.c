/* params.c: options -> wan_generate_params, on top of whatever is in there (defaults, or a replayed
 * video's settings). */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static bool get_int(const cli_args *args, option_id id, const char *name, long long min, int *out) {
  long long n = *out;
  if (!cli_int(args, id, name, min, INT_MAX, &n)) return false;
  *out = (int)n;
  return true;
}

/* "a,b,c" into at most `max` numbers; their count, or -1 after a message. */
static int list(const char *text, const char *name, int max, double *out) {
  int n = 0;
  for (const char *p = text;; p++) {
    char *end;
    double x = strtod(p, &end);
    if (end == p || (*end && *end != ',') || n == max) {
      cli_fail(EXIT_USAGE, "%s %s: up to %d numbers A,B,... are needed", name, text, max);
      return -1;
    }
    out[n++] = x;
    if (!*end) return n;
    p = end;
  }
}

static bool get_lists(const cli_args *args, wan_generate_params *p, cli_lists *lists) {
  double values[CLI_LIST_MAX];
  if (args->value[OPT_SIGMAS]) {
    int n = list(args->value[OPT_SIGMAS], "--sigmas", CLI_LIST_MAX, values);
    if (n < 0) return false;
    for (int i = 0; i < n; i++) lists->sigmas[i] = (float)values[i];
    if (p->steps && p->steps != n && args->value[OPT_STEPS]) {
      cli_fail(EXIT_USAGE, "--sigmas gives %d steps, --steps %d", n, p->steps);
      return false;
    }
    p->sigmas = lists->sigmas;
    p->steps = n;
  }
  if (args->value[OPT_SLG_LAYERS]) {
    int n = list(args->value[OPT_SLG_LAYERS], "--slg-layers", 64, values);
    if (n < 0) return false;
    for (int i = 0; i < n; i++) lists->layers[i] = (int)values[i];
    p->skip_layers = lists->layers;
    p->skip_layer_count = n;
  }
  for (int i = 0; i < args->frame_image_count; i++) {
    char *end;
    long frame = strtol(args->frame_image[i], &end, 10);
    if (end == args->frame_image[i] || *end != ':' || !end[1] || frame < INT_MIN || frame > INT_MAX) {
      cli_fail(EXIT_USAGE, "--frame-image %s: N:FILE is needed, such as 40:middle.png", args->frame_image[i]);
      return false;
    }
    lists->images[i] = (wan_frame_image){(int)frame, end + 1};
  }
  if (args->frame_image_count) {
    p->frame_images = lists->images;
    p->frame_image_count = args->frame_image_count;
  }
  return true;
}

static bool get_choices(const cli_args *args, wan_generate_params *p) {
  static const char *const samplers[] = {"unipc", "dpm++", "euler", "dpmpp", NULL};
  static const char *const schedules[] = {"official", "diffusers", NULL}, *const rngs[] = {"torch-cpu",
                                                                                           "philox", NULL};
  static const char *const on_nan[] = {"fail", "retry", NULL};
  int i;
  if (args->value[OPT_SAMPLER]) {
    if ((i = cli_choice(args, OPT_SAMPLER, "--sampler", samplers)) < 0) return false;
    p->sampler = i == 3 ? WAN_SAMPLER_DPMPP : (wan_sampler)i;
  }
  if (args->value[OPT_SCHEDULE]) {
    if ((i = cli_choice(args, OPT_SCHEDULE, "--schedule", schedules)) < 0) return false;
    p->schedule = (wan_schedule)i;
  }
  if (args->value[OPT_RNG]) {
    if ((i = cli_choice(args, OPT_RNG, "--rng", rngs)) < 0) return false;
    p->rng = (wan_rng)i;
  }
  if (args->value[OPT_ON_NAN]) {
    if ((i = cli_choice(args, OPT_ON_NAN, "--on-nan", on_nan)) < 0) return false;
    p->on_nan = (wan_on_nan)i;
  }
  return true;
}

static bool get_guidance(const cli_args *args, wan_generate_params *p) {
  if (!cli_pair(args, OPT_GUIDANCE, "--guidance", true, &p->guidance_low, &p->guidance_high) ||
      !cli_real(args, OPT_GUIDANCE_LOW, "--guidance-low", &p->guidance_low) ||
      !cli_real(args, OPT_GUIDANCE_HIGH, "--guidance-high", &p->guidance_high))
    return false;
  const option_id ids[] = {OPT_GUIDANCE, OPT_GUIDANCE_LOW, OPT_GUIDANCE_HIGH};
  for (int i = 0; i < 3; i++)
    if (args->value[ids[i]] &&
        strchr(args->value[ids[i]], '-')) { /* a negative number means "default" in the API */
      cli_fail(EXIT_USAGE, "guidance %s: at least 0 is needed", args->value[ids[i]]);
      return false;
    }
  p->cfg_zero_star |= args->value[OPT_CFG_ZERO_STAR] != NULL;
  p->apg |= args->value[OPT_APG] != NULL;
  return cli_pair(args, OPT_GUIDANCE_INTERVAL, "--guidance-interval", false, &p->guidance_start,
                  &p->guidance_end) &&
         get_int(args, OPT_ZERO_INIT, "--zero-init", 0, &p->zero_init_steps) &&
         cli_real(args, OPT_APG_ETA, "--apg-eta", &p->apg_eta) &&
         cli_real(args, OPT_APG_NORM, "--apg-norm", &p->apg_norm) &&
         cli_real(args, OPT_APG_MOMENTUM, "--apg-momentum", &p->apg_momentum) &&
         cli_real(args, OPT_SLG_SCALE, "--slg-scale", &p->skip_layer_scale) &&
         cli_pair(args, OPT_SLG_INTERVAL, "--slg-interval", false, &p->skip_layer_start, &p->skip_layer_end);
}

static bool get_numbers(const cli_args *args, wan_generate_params *p) {
  long long seed = p->seed;
  /* A negative seed means random, as in generate.py. */
  if (!cli_int(args, OPT_SEED, "--seed", LLONG_MIN, LLONG_MAX, &seed)) return false;
  p->seed = seed < 0 ? -1 : seed;
  return cli_size(args->value[OPT_SIZE], "--size", &p->width, &p->height) &&
         get_int(args, OPT_FRAMES, "--frames", 1, &p->frames) &&
         get_int(args, OPT_VIDEO_FRAMES, "--video-frames", 1, &p->video_frames) &&
         get_int(args, OPT_STEPS, "--steps", 1, &p->steps) &&
         get_int(args, OPT_STEPS_HIGH, "--steps-high", 0, &p->steps_high) &&
         get_int(args, OPT_STEPS_LOW, "--steps-low", 0, &p->steps_low) &&
         get_int(args, OPT_CRF, "--crf", 0, &p->crf) && cli_real(args, OPT_FPS, "--fps", &p->fps) &&
         cli_real(args, OPT_SHIFT, "--shift", &p->shift) &&
         cli_real(args, OPT_BOUNDARY, "--boundary", &p->boundary);
}

bool cli_generate_params(const cli_args *args, wan_generate_params *p, cli_lists *lists) {
  const struct {
    option_id id;
    const char **out;
  } texts[] = {{OPT_PROMPT, &p->prompt},
               {OPT_NEGATIVE, &p->negative},
               {OPT_IMAGE, &p->image_path},
               {OPT_LAST_FRAME, &p->last_image_path},
               {OPT_VIDEO, &p->video_path},
               {OPT_NOISE, &p->noise_path},
               {OPT_OUTPUT, &p->output_path},
               {OPT_SAVE_LATENT, &p->save_latent_path},
               {OPT_FROM_LATENT, &p->from_latent_path},
               {OPT_CHECKPOINT, &p->checkpoint_path}};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    if (args->value[texts[i].id]) *texts[i].out = args->value[texts[i].id];
  p->no_exif |= args->value[OPT_NO_EXIF] != NULL;
  return get_numbers(args, p) && get_lists(args, p, lists) && get_choices(args, p) && get_guidance(args, p);
}
