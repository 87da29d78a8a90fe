/* main.c: `wan COMMAND ...`. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

static const cli_command *const commands[] = {&cli_generate, &cli_extend, &cli_stage, &cli_info,
                                              &cli_plan,     &cli_bench,  &cli_frame};
enum { COMMANDS = sizeof commands / sizeof *commands };

static const cli_command *find(const char *name) {
  for (int i = 0; i < COMMANDS; i++)
    if (strcmp(name, commands[i]->name) == 0) return commands[i];
  return NULL;
}

static int help(const char *about) {
  if (about) {
    const cli_command *c = find(about);
    if (!c) return cli_fail(EXIT_USAGE, "there is no command %s; try: wan help", about);
    cli_print_help(c);
    return EXIT_FINE;
  }
  printf("wan %s: video generation with Wan2.2\n\nUsage: wan COMMAND [options]\n\n", wan_version());
  for (int i = 0; i < COMMANDS; i++)
    printf("  %-9s %.*s\n", commands[i]->name, (int)strcspn(commands[i]->summary, ":.\n"),
           commands[i]->summary);
  printf("  %-9s %s\n  %-9s %s\n\nwan help COMMAND shows a command's options.\n", "help",
         "Show this, or a command's help.", "version", "Print the version.");
  return EXIT_FINE;
}

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "help";
  if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
    int code = help(argc > 2 ? argv[2] : NULL);
    return argc > 1 ? code : EXIT_USAGE;
  }
  if (strcmp(name, "version") == 0 || strcmp(name, "--version") == 0) {
    printf("wan %s\n", wan_version());
    return EXIT_FINE;
  }
  const cli_command *command = find(name);
  if (!command) return cli_fail(EXIT_USAGE, "there is no command %s; try: wan help", name);
  cli_args args;
  bool wants_help;
  int code = cli_parse(command, argc - 1, argv + 1, &args, &wants_help);
  if (code == EXIT_FINE && wants_help)
    cli_print_help(command);
  else if (code == EXIT_FINE)
    code = command->run(&args);
  cli_args_free(&args);
  if (code == EXIT_FINE && fflush(stdout) != 0)
    code = cli_fail(EXIT_ERROR, "standard output can't be written");
  return code;
}
