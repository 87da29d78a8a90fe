/* args.c: reading the command line. popt finds the options; values are kept as text and read by the
 * command that needs them, so that a stored set of settings (--replay) can be applied first. */
#define _GNU_SOURCE /* open_memstream, strdup */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

int cli_fail(int code, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  fputs("wan: ", stderr);
  vfprintf(stderr, fmt, ap);
  fputc('\n', stderr);
  va_end(ap);
  return code;
}

void cli_note(const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  fputs("wan: note: ", stderr);
  vfprintf(stderr, fmt, ap);
  fputc('\n', stderr);
  va_end(ap);
}

int cli_status(const wan_context *context, wan_status status) {
  if (status == WAN_OK) return EXIT_FINE;
  const char *message = wan_context_error(context);
  return cli_fail(status == WAN_ERR_CANCELLED ? EXIT_CANCELLED : EXIT_ERROR, "%s",
                  *message ? message : wan_status_name(status));
}

/* ---- Finding options ---- */

static const struct poptOption *find_option(const struct poptOption *table, const char *name, size_t length) {
  for (; table->longName || table->shortName || table->arg; table++) {
    if ((table->argInfo & POPT_ARG_MASK) == POPT_ARG_INCLUDE_TABLE) {
      const struct poptOption *found = find_option(table->arg, name, length);
      if (found) return found;
    } else if (table->longName && strlen(table->longName) == length &&
               strncmp(table->longName, name, length) == 0) {
      return table;
    }
  }
  return NULL;
}

/* "--frame_num=5" -> "--frame-num=5" where that is an option: generate.py spells with underscores. */
static char *with_dashes(const struct poptOption *table, const char *arg) {
  char *copy = strdup(arg);
  if (!copy || strncmp(copy, "--", 2) != 0) return copy;
  size_t length = strcspn(copy + 2, "=");
  for (size_t i = 2; i < length + 2; i++)
    if (copy[i] == '_') copy[i] = '-';
  if (!find_option(table, copy + 2, length)) memcpy(copy, arg, strlen(arg));
  return copy;
}

static const struct poptOption *find_value(const struct poptOption *table, int id) {
  for (; table->longName || table->shortName || table->arg; table++) {
    bool group = (table->argInfo & POPT_ARG_MASK) == POPT_ARG_INCLUDE_TABLE;
    const struct poptOption *found = group ? find_value(table->arg, id) : table->val == id ? table : NULL;
    if (found) return found;
  }
  return NULL;
}

/* An option that is accepted for the sake of official command lines: remembered once, by name. */
static void note(cli_args *args, const char *name) {
  for (int i = 0; i < args->noted_count; i++)
    if (strcmp(args->noted[i], name) == 0) return;
  if (args->noted_count < (int)(sizeof args->noted / sizeof *args->noted))
    args->noted[args->noted_count++] = name;
}

/* Takes the value over. */
static int keep(cli_args *args, const cli_command *command, int id, char *value) {
  if (id >= OPT_NOTED) {
    free(value);
    note(args, find_value(command->options, id)->longName);
    return EXIT_FINE;
  }
  if (!value && !(value = strdup(""))) return cli_fail(EXIT_ERROR, "out of memory");
  if (id != OPT_FRAME_IMAGE) {
    free(args->value[id]);
    args->value[id] = value;
    return EXIT_FINE;
  }
  if (args->frame_image_count == CLI_FRAMES_MAX) {
    free(value);
    return cli_fail(EXIT_USAGE, "--frame-image: at most %d are possible", CLI_FRAMES_MAX);
  }
  args->frame_image[args->frame_image_count++] = value;
  return EXIT_FINE;
}

static int read_options(const cli_command *command, poptContext con, cli_args *args) {
  int id, code = EXIT_FINE;
  while (code == EXIT_FINE && (id = poptGetNextOpt(con)) > 0)
    code = keep(args, command, id, poptGetOptArg(con));
  if (code == EXIT_FINE && id < -1)
    code = cli_fail(EXIT_USAGE, "%s: %s; try: wan %s --help", poptBadOption(con, POPT_BADOPTION_NOALIAS),
                    poptStrerror(id), command->name);
  const char **rest = code == EXIT_FINE ? poptGetArgs(con) : NULL;
  for (; rest && *rest && code == EXIT_FINE; rest++) {
    if (args->rest_count == CLI_REST_MAX)
      code = cli_fail(EXIT_USAGE, "unexpected argument: %s", *rest);
    else if (!(args->rest[args->rest_count++] = strdup(*rest)))
      code = cli_fail(EXIT_ERROR, "out of memory");
  }
  if (args->value[OPT_ULYSSES] && strcmp(args->value[OPT_ULYSSES], "1") != 0) note(args, "ulysses-size");
  return code;
}

int cli_parse(const cli_command *command, int argc, char **argv, cli_args *args, bool *help) {
  *args = (cli_args){0};
  char **copy = calloc((size_t)argc + 1, sizeof *copy);
  if (!copy) return cli_fail(EXIT_ERROR, "out of memory");
  int code = EXIT_FINE;
  for (int i = 0; i < argc; i++)
    if (!(copy[i] = i ? with_dashes(command->options, argv[i]) : strdup("wan")))
      code = cli_fail(EXIT_ERROR, "out of memory");
  poptContext con = code ? NULL : poptGetContext("wan", argc, (const char **)copy, command->options, 0);
  if (con) {
    code = read_options(command, con, args);
    poptFreeContext(con);
  }
  for (int i = 0; i < argc; i++) free(copy[i]);
  free(copy);
  *help = args->value[OPT_HELP] != NULL;
  return code;
}

void cli_print_help(const cli_command *command) {
  const char *argv[] = {"wan", NULL};
  printf("Usage: wan %s %s\n%s\n", command->name, command->usage, command->summary);
  poptContext con = poptGetContext("wan", 1, argv, command->options, 0);
  poptSetOtherOptionHelp(con, " ");
  /* popt prints a usage line of its own first; ours says more. */
  char *text = NULL;
  size_t size = 0;
  FILE *f = open_memstream(&text, &size);
  if (f) {
    poptPrintHelp(con, f, 0);
    fclose(f);
    char *body = strchr(text, '\n');
    if (body) fputs(body + 1, stdout);
  }
  free(text);
  poptFreeContext(con);
}

void cli_args_free(cli_args *args) {
  for (int i = 0; i < OPT_COUNT; i++) free(args->value[i]);
  for (int i = 0; i < args->frame_image_count; i++) free(args->frame_image[i]);
  for (int i = 0; i < args->rest_count; i++) free(args->rest[i]);
  *args = (cli_args){0};
}

/* ---- Values ---- */

bool cli_int(const cli_args *args, option_id id, const char *name, long long min, long long max,
             long long *out) {
  const char *text = args->value[id];
  char *end;
  if (!text) return true;
  errno = 0;
  long long n = strtoll(text, &end, 10);
  if (errno || end == text || *end || n < min || n > max) {
    cli_fail(EXIT_USAGE, "%s %s: a whole number between %lld and %lld is needed", name, text, min, max);
    return false;
  }
  *out = n;
  return true;
}

static bool number_at(const char **text, double *out) {
  char *end;
  *out = strtod(*text, &end);
  bool fine = end != *text && isfinite(*out);
  *text = end;
  return fine;
}

bool cli_real(const cli_args *args, option_id id, const char *name, double *out) {
  const char *text = args->value[id];
  double x;
  if (!text) return true;
  if (!number_at(&text, &x) || *text) {
    cli_fail(EXIT_USAGE, "%s %s: a number is needed", name, args->value[id]);
    return false;
  }
  *out = x;
  return true;
}

bool cli_pair(const cli_args *args, option_id id, const char *name, bool one, double *a, double *b) {
  const char *text = args->value[id];
  double x, y;
  if (!text) return true;
  bool fine = number_at(&text, &x);
  y = x;
  if (fine && !(one && !*text)) fine = *text++ == ',' && number_at(&text, &y) && !*text;
  if (!fine) {
    cli_fail(EXIT_USAGE, "%s %s: %stwo numbers A,B are needed", name, args->value[id],
             one ? "a number or " : "");
    return false;
  }
  *a = x;
  *b = y;
  return true;
}

bool cli_size(const char *text, const char *name, int *width, int *height) {
  char *end, *last = NULL;
  if (!text) return true;
  long w = strtol(text, &end, 10), h = 0;
  bool fine = end != text && strchr("xX*", *end) && *end;
  if (fine) h = strtol(end + 1, &last, 10);
  if (!fine || last == end + 1 || *last || w < 1 || h < 1 || w > 1 << 20 || h > 1 << 20) {
    cli_fail(EXIT_USAGE, "%s %s: width x height is needed, such as 1280x704", name, text);
    return false;
  }
  *width = (int)w;
  *height = (int)h;
  return true;
}

int cli_choice(const cli_args *args, option_id id, const char *name, const char *const *names) {
  char known[128] = "";
  for (int i = 0; names[i]; i++) {
    if (strcmp(args->value[id], names[i]) == 0) return i;
    snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", names[i]);
  }
  cli_fail(EXIT_USAGE, "%s %s: one of %s is needed", name, args->value[id], known);
  return -1;
}
