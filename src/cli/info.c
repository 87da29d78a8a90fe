/* info.c: `wan info DIR` and `wan frame VIDEO`: looking at files. */
#include <stdio.h>

#include "cli/cli.h"

static const struct poptOption info_options[] = {
    {"json", 0, POPT_ARG_NONE, NULL, OPT_JSON, "as JSON", NULL},
    {"settings", 0, POPT_ARG_NONE, NULL, OPT_REPLAY, "DIR is a video: print the settings it was made with",
     NULL},
    {"help", 'h', POPT_ARG_NONE, NULL, OPT_HELP, "show this help", NULL},
    POPT_TABLEEND};

static int info(cli_args *args) {
  int code;
  if (args->rest_count != 1)
    return cli_fail(EXIT_USAGE, "wan info needs one directory; try: wan info --help");
  wan_context *context = cli_open(args, false, &code);
  if (!context) return code;
  char *text = NULL;
  wan_status s = args->value[OPT_REPLAY]
                     ? wan_video_settings(context, args->rest[0], &text)
                     : wan_model_describe(context, args->rest[0], args->value[OPT_JSON] != NULL, &text);
  if (s == WAN_OK) printf("%s%s", text, text[0] && args->value[OPT_REPLAY] ? "\n" : "");
  wan_free(text);
  code = cli_status(context, s);
  cli_close(context);
  return code;
}

const cli_command cli_info = {"info",
                              "Show what a checkpoint directory holds: family, sizes, what is missing.",
                              "DIR [options]", info_options, info};

static const struct poptOption frame_options[] = {
    {"index", 0, POPT_ARG_STRING, NULL, OPT_INDEX, "frame, counted from 0; negative: from the end; default 0",
     "N"},
    {"output", 'o', POPT_ARG_STRING, NULL, OPT_OUTPUT, "picture to write", "FILE.png"},
    {"help", 'h', POPT_ARG_NONE, NULL, OPT_HELP, "show this help", NULL},
    POPT_TABLEEND};

static int frame(cli_args *args) {
  int code;
  long long index = 0;
  if (args->rest_count != 1 || !args->value[OPT_OUTPUT])
    return cli_fail(EXIT_USAGE, "wan frame needs a video and -o FILE.png; try: wan frame --help");
  if (!cli_int(args, OPT_INDEX, "--index", -1000000, 1000000, &index)) return EXIT_USAGE;
  wan_context *context = cli_open(args, false, &code);
  if (!context) return code;
  code = cli_status(context, wan_video_frame(context, args->rest[0], (int)index, args->value[OPT_OUTPUT]));
  cli_close(context);
  return code;
}

const cli_command cli_frame = {"frame", "Write one frame of a video as a PNG picture.",
                               "VIDEO -o FILE.png [options]", frame_options, frame};
