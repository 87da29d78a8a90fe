/* video_sequence.c: a video as numbered PNG files. The path is a pattern such as "out/frame_%04d.png"
 * (one %d, optionally zero-padded; %% is a percent sign), a plain "clip.png", which becomes clip_0000.png
 * and so on, or a folder, which is created when missing and gets frame_0000.png and so on. Every picture
 * keeps a temporary name until the whole sequence is there. The first picture carries the metadata.
 */
#define _GNU_SOURCE
#include "media/internal.h"

#include <errno.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

struct png_sequence {
  char *pattern, *made_dir; /* made_dir: the folder this sequence created, else NULL */
  char *metadata;
  char *path, *temp; /* names of the frame at hand: the encoding thread allocates nothing */
  size_t room;       /* of path and of temp */
  int width, height, count;
};

/* The number's place in a pattern: *prefix characters before it, its digits, and what follows. */
static bool find_number(const char *pattern, size_t *prefix, int *digits, const char **rest) {
  int found = 0;
  for (const char *p = pattern; *p; p++) {
    if (*p != '%') continue;
    if (p[1] == '%') {
      p++;
      continue;
    }
    const char *q = p + 1;
    int n = 0;
    while (*q >= '0' && *q <= '9' && n < 100) n = n * 10 + (*q++ - '0');
    if (*q != 'd' || n > 9) return false;
    *prefix = (size_t)(p - pattern);
    *digits = n;
    *rest = q + 1;
    p = q;
    found++;
  }
  return found == 1;
}

/* Append n characters of a pattern, "%%" as "%"; returns the new end. */
static char *unescape(char *to, const char *from, size_t n) {
  for (const char *end = from + n; from < end; from++) {
    *to++ = *from;
    if (from[0] == '%' && from[1] == '%') from++;
  }
  return to;
}

/* Put the names of one frame into path and temp. */
static void name_frame(png_sequence *s, int index) {
  size_t prefix = 0;
  int digits = 0;
  const char *rest = "";
  find_number(s->pattern, &prefix, &digits, &rest); /* checked by open */
  char *to = unescape(s->path, s->pattern, prefix);
  to += snprintf(to, s->room - (size_t)(to - s->path), "%0*d", digits, index);
  *unescape(to, rest, strlen(rest)) = 0;
  snprintf(s->temp, s->room, "%s.part-%ld", s->path, (long)getpid());
}

static wan_status set_pattern(core_ctx *ctx, const char *path, png_sequence *s) {
  size_t prefix;
  int digits;
  const char *rest;
  if (strchr(path, '%')) {
    if (!find_number(path, &prefix, &digits, &rest))
      return core_fail(ctx, WAN_ERR_ARGUMENT,
                       "%s: a pattern holds exactly one number, such as frame_%%04d.png (%%%% for a percent "
                       "sign)",
                       path);
    s->pattern = core_strdup(ctx, path);
    return s->pattern ? WAN_OK : WAN_ERR_MEMORY;
  }
  size_t stem = strlen(path) - (strlen(path) > 4 ? 4 : 0);
  if (strcasecmp(path + stem, ".png") == 0) {
    s->pattern = core_asprintf(ctx, "%.*s_%%04d%s", (int)stem, path, path + stem);
    return s->pattern ? WAN_OK : WAN_ERR_MEMORY;
  }
  if (!core_path_is_dir(path)) {
    if (mkdir(path, 0777) != 0)
      return core_fail(ctx, WAN_ERR_IO, "%s: can't create the folder: %s", path, strerror(errno));
    if (!(s->made_dir = core_strdup(ctx, path))) {
      rmdir(path);
      return WAN_ERR_MEMORY;
    }
  }
  s->pattern = core_path_join(ctx, path, "frame_%04d.png");
  return s->pattern ? WAN_OK : WAN_ERR_MEMORY;
}

wan_status png_sequence_open(core_ctx *ctx, const video_params *params, png_sequence **out) {
  *out = NULL;
  png_sequence *s = core_calloc(ctx, 1, sizeof *s);
  if (!s) return WAN_ERR_MEMORY;
  s->width = params->width;
  s->height = params->height;
  wan_status status = set_pattern(ctx, params->path, s);
  if (status == WAN_OK && params->metadata && !(s->metadata = core_strdup(ctx, params->metadata)))
    status = WAN_ERR_MEMORY;
  if (status == WAN_OK) {
    s->room = strlen(s->pattern) + 64; /* the number and the temporary ending */
    s->path = core_alloc(ctx, s->room);
    s->temp = core_alloc(ctx, s->room);
    if (!s->path || !s->temp) status = WAN_ERR_MEMORY;
  }
  if (status != WAN_OK) {
    png_sequence_close(ctx, s);
    return status;
  }
  *out = s;
  return WAN_OK;
}

static wan_status io_error(core_ctx *ctx, const char *path) {
  return core_fail(ctx, WAN_ERR_IO, "%s: can't write: %s", path, strerror(errno));
}

wan_status png_sequence_frame(core_ctx *ctx, png_sequence *s, const uint8_t *rgb) {
  name_frame(s, s->count);
  FILE *f = fopen(s->temp, "wb");
  if (!f) return io_error(ctx, s->path);
  s->count++;
  wan_status status =
      png_encode(ctx, f, s->path, s->width, s->height, rgb, s->count == 1 ? s->metadata : NULL);
  bool failed = status == WAN_OK && fsync(fileno(f)) != 0;
  if (fclose(f) != 0) failed = true;
  return status == WAN_OK && failed ? io_error(ctx, s->path) : status;
}

wan_status png_sequence_finish(core_ctx *ctx, png_sequence *s) {
  if (!s->count) return core_fail(ctx, WAN_ERR_ARGUMENT, "%s: a video without frames", s->pattern);
  for (int i = 0; i < s->count; i++) {
    name_frame(s, i);
    if (rename(s->temp, s->path) != 0) return io_error(ctx, s->path);
  }
  s->count = 0; /* nothing temporary is left, and the folder stays */
  core_free(ctx, s->made_dir);
  s->made_dir = NULL;
  return WAN_OK;
}

void png_sequence_close(core_ctx *ctx, png_sequence *s) {
  for (int i = 0; i < s->count; i++) {
    name_frame(s, i);
    unlink(s->temp);
  }
  if (s->made_dir) rmdir(s->made_dir); /* fails when something else has been put there, and rightly so */
  core_free(ctx, s->pattern);
  core_free(ctx, s->path);
  core_free(ctx, s->temp);
  core_free(ctx, s->made_dir);
  core_free(ctx, s->metadata);
  core_free(ctx, s);
}
