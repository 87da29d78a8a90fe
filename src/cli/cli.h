/* cli.h: what the subcommands of `wan` share: options, messages, the context, the progress display. */
#ifndef WAN_CLI_CLI_H
#define WAN_CLI_CLI_H

#include <popt.h>
#include <wan/wan.h>

enum { EXIT_FINE = 0, EXIT_ERROR = 1, EXIT_USAGE = 2, EXIT_CANCELLED = 130 };

/* Every option of every command; several names may share one. */
typedef enum option_id {
  OPT_NONE = 0,
  OPT_HELP,
  /* model and machine */
  OPT_MODEL,
  OPT_BACKEND,
  OPT_PRECISION,
  OPT_THREADS,
  OPT_MEMORY,
  OPT_VRAM,
  OPT_PROFILE,
  OPT_VERBOSE,
  /* what to make */
  OPT_PROMPT,
  OPT_NEGATIVE,
  OPT_IMAGE,
  OPT_LAST_FRAME,
  OPT_FRAME_IMAGE,
  OPT_VIDEO,
  OPT_VIDEO_FRAMES,
  OPT_NO_EXIF,
  OPT_SIZE,
  OPT_FRAMES,
  OPT_FPS,
  OPT_SEED,
  OPT_RNG,
  OPT_NOISE,
  /* steps */
  OPT_STEPS,
  OPT_STEPS_HIGH,
  OPT_STEPS_LOW,
  OPT_SHIFT,
  OPT_SAMPLER,
  OPT_SCHEDULE,
  OPT_SIGMAS,
  OPT_BOUNDARY,
  OPT_ON_NAN,
  /* guidance */
  OPT_GUIDANCE,
  OPT_GUIDANCE_LOW,
  OPT_GUIDANCE_HIGH,
  OPT_GUIDANCE_INTERVAL,
  OPT_CFG_ZERO_STAR,
  OPT_ZERO_INIT,
  OPT_APG,
  OPT_APG_ETA,
  OPT_APG_NORM,
  OPT_APG_MOMENTUM,
  OPT_SLG_LAYERS,
  OPT_SLG_SCALE,
  OPT_SLG_INTERVAL,
  /* output */
  OPT_OUTPUT,
  OPT_CRF,
  OPT_SAVE_LATENT,
  OPT_FROM_LATENT,
  OPT_CHECKPOINT,
  OPT_PREVIEW,
  OPT_REPLAY,
  OPT_DRY_RUN,
  OPT_PROGRESS,
  /* the official command line */
  OPT_TASK,
  OPT_ULYSSES,
  /* prompt extension */
  OPT_EXTEND,
  OPT_EXTEND_REQUIRED,
  OPT_EXTEND_METHOD,
  OPT_EXTEND_URL,
  OPT_EXTEND_MODEL,
  OPT_EXTEND_LANG,
  OPT_EXTEND_SYSTEM,
  OPT_EXTEND_TIMEOUT,
  /* vision-language sizes */
  OPT_FACTOR,
  OPT_MIN_PIXELS,
  OPT_MAX_PIXELS,
  OPT_TOTAL_PIXELS,
  OPT_MIN_FRAMES,
  OPT_MAX_FRAMES,
  OPT_TOTAL_FRAMES,
  OPT_VIDEO_FPS,
  OPT_START,
  OPT_END,
  /* other commands */
  OPT_JSON,
  OPT_IN,
  OPT_TEXT,
  OPT_EXPERT,
  OPT_SHAPE,
  OPT_AREA,
  OPT_INDEX,
  OPT_REPEAT,
  OPT_STAGE,
  OPT_TOKENS,
  OPT_LAYERS,
  OPT_COUNT,
  OPT_NOTED = 1000 /* and up, one each: accepted without effect */
} option_id;

enum { CLI_REST_MAX = 4, CLI_FRAMES_MAX = 64, CLI_LIST_MAX = 1000 };

/* What was given. Values are text until a command reads them. */
typedef struct cli_args {
  char *value[OPT_COUNT];            /* NULL: not given; "" for switches */
  char *frame_image[CLI_FRAMES_MAX]; /* OPT_FRAME_IMAGE may be repeated */
  int frame_image_count;
  char *rest[CLI_REST_MAX]; /* arguments that are no options */
  int rest_count;
  const char *noted[32]; /* options without effect that were given */
  int noted_count;
} cli_args;

typedef struct cli_command {
  const char *name, *summary, *usage;
  const struct poptOption *options;
  int (*run)(cli_args *args);
} cli_command;

extern const cli_command cli_generate, cli_extend, cli_stage, cli_info, cli_plan, cli_bench, cli_frame;

/* Groups of options, options.c. */
extern const struct poptOption options_machine[], options_content[], options_steps[], options_guidance[],
    options_output[], options_extend[], options_service[], options_official[];

/* EXIT_FINE, or EXIT_USAGE after a message. *help: --help was given. */
int cli_parse(const cli_command *command, int argc, char **argv, cli_args *args, bool *help);
void cli_print_help(const cli_command *command);
void cli_args_free(cli_args *args);

/* One line on stderr, "wan: ...". Returns the exit code given. */
int cli_fail(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void cli_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The exit code of a status; prints the context's message when it failed. */
int cli_status(const wan_context *context, wan_status status);

/* Values as numbers: false after a message. Absent options leave *out alone. */
bool cli_int(const cli_args *args, option_id id, const char *name, long long min, long long max,
             long long *out);
bool cli_real(const cli_args *args, option_id id, const char *name, double *out);
/* "a,b": two numbers, or one that stands for both when `one` is set. */
bool cli_pair(const cli_args *args, option_id id, const char *name, bool one, double *a, double *b);
/* "1280x704", also with '*'. */
bool cli_size(const char *text, const char *name, int *width, int *height);
/* Index of the value in a NULL-terminated list; -1 after a message. */
int cli_choice(const cli_args *args, option_id id, const char *name, const char *const *names);

/* Storage behind the pointers of wan_generate_params. */
typedef struct cli_lists {
  float sigmas[CLI_LIST_MAX];
  int layers[64];
  wan_frame_image images[CLI_FRAMES_MAX];
  void *replay; /* wan_free */
} cli_lists;
/* Fill params from the options (on top of what is in there). */
bool cli_generate_params(const cli_args *args, wan_generate_params *params, cli_lists *lists);

/* The options of options_service. *storage: free() what is in it afterwards. EXIT_FINE, or a code after a
 * message. */
int cli_extend_params(const cli_args *args, wan_extend_params *params, char **storage);
/* --extend: puts the extended prompt into params. *prompt: free() it when params is no longer used. */
int cli_extend_prompt(wan_context *context, const cli_args *args, wan_family family,
                      wan_generate_params *params, char **prompt);

/* The context of a command: options, log to stderr, Ctrl-C. NULL after a message, *code set. plan: one that
 * only plans will do where `--backend cuda --vram SIZE` asks for a device that is not here. */
wan_context *cli_open(const cli_args *args, bool plan, int *code);
void cli_close(wan_context *context);

/* ---- Progress ---- */

typedef enum progress_style { PROGRESS_BAR, PROGRESS_PLAIN, PROGRESS_JSON, PROGRESS_NONE } progress_style;
typedef struct progress_view {
  progress_style style;
  bool line_open; /* a bar stands on the last line */
  double printed; /* seconds_elapsed of the last output */
  wan_stage stage;
  int step;
} progress_view;
/* From --progress, or from what stderr is. False after a message. */
bool progress_choose(const cli_args *args, progress_view *view);
void progress_show(progress_view *view, const wan_progress *progress);
void progress_finish(progress_view *view); /* ends an open line */

#endif
