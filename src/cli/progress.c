/* progress.c: the event stream on stderr: a bar that is redrawn on a terminal, plain lines elsewhere, or one
 * JSON object a line. */
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli/cli.h"

bool progress_choose(const cli_args *args, progress_view *view) {
  static const char *const names[] = {"bar", "plain", "json", "none", NULL};
  *view = (progress_view){.style = isatty(STDERR_FILENO) ? PROGRESS_BAR : PROGRESS_PLAIN,
                          .printed = -1,
                          .stage = WAN_STAGE_COUNT};
  if (!args->value[OPT_PROGRESS]) return true;
  int i = cli_choice(args, OPT_PROGRESS, "--progress", names);
  if (i >= 0) view->style = (progress_style)i;
  return i >= 0;
}

/* "1h02m", "3m12s", "45s" */
static const char *duration(double seconds, char *buf, size_t size) {
  long s = (long)(seconds + 0.5);
  if (seconds < 0)
    snprintf(buf, size, "?");
  else if (s >= 3600)
    snprintf(buf, size, "%ldh%02ldm", s / 3600, s / 60 % 60);
  else if (s >= 60)
    snprintf(buf, size, "%ldm%02lds", s / 60, s % 60);
  else
    snprintf(buf, size, "%lds", s);
  return buf;
}

static int terminal_width(void) {
  struct winsize w;
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

static void draw_bar(progress_view *view, const wan_progress *p) {
  char head[80], tail[48], left[32];
  int n = snprintf(head, sizeof head, "%-7s %d/%d%s%s ", wan_stage_name(p->stage), p->step, p->steps,
                   p->expert ? " " : "", p->expert ? p->expert : "");
  int m = snprintf(tail, sizeof tail, " %3.0f%%  %s left", p->fraction * 100,
                   duration(p->seconds_left, left, sizeof left));
  int room = terminal_width() - 1 - n - m - 2;
  fprintf(stderr, "\r%s", head);
  if (room >= 5) {
    int full = (int)(p->fraction * room);
    fputc('[', stderr);
    for (int i = 0; i < room; i++) fputc(i < full ? '#' : '-', stderr);
    fputc(']', stderr);
  }
  fprintf(stderr, "%s\033[K", tail);
  fflush(stderr);
  view->line_open = true;
}

static void print_json(const wan_progress *p) {
  fprintf(stderr,
          "{\"stage\":\"%s\",\"step\":%d,\"steps\":%d,\"fraction\":%.5f,\"elapsed\":%.3f,\"left\":%.3f,"
          "\"expert\":%s%s%s,\"memory\":%llu,\"memory_peak\":%llu,\"device_memory\":%llu,"
          "\"device_memory_peak\":%llu,\"retries\":%d}\n",
          wan_stage_name(p->stage), p->step, p->steps, p->fraction, p->seconds_elapsed, p->seconds_left,
          p->expert ? "\"" : "", p->expert ? p->expert : "null", p->expert ? "\"" : "",
          (unsigned long long)p->memory, (unsigned long long)p->memory_peak,
          (unsigned long long)p->device_memory, (unsigned long long)p->device_memory_peak, p->retries);
}

static void print_plain(const wan_progress *p) {
  char left[32], elapsed[32];
  fprintf(stderr, "%s %d/%d%s%s  %.0f%%  %s elapsed, %s left\n", wan_stage_name(p->stage), p->step, p->steps,
          p->expert ? " " : "", p->expert ? p->expert : "", p->fraction * 100,
          duration(p->seconds_elapsed, elapsed, sizeof elapsed),
          duration(p->seconds_left, left, sizeof left));
}

void progress_show(progress_view *view, const wan_progress *p) {
  /* A redrawn bar may move ten times a second, lines appear when something is done or after a while. */
  bool news = p->stage != view->stage || p->step != view->step;
  double wait = view->style == PROGRESS_BAR ? 0.1 : 30;
  if (view->style == PROGRESS_NONE || (!news && p->seconds_elapsed - view->printed < wait)) return;
  view->printed = p->seconds_elapsed;
  view->stage = p->stage;
  view->step = p->step;
  if (view->style == PROGRESS_BAR)
    draw_bar(view, p);
  else if (view->style == PROGRESS_JSON)
    print_json(p);
  else
    print_plain(p);
}

void progress_finish(progress_view *view) {
  if (view->line_open) fputs("\r\033[K", stderr);
  view->line_open = false;
}
