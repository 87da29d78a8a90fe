/* scratch.h: a private folder for the files a test writes, removed at the end. */
#ifndef WAN_TESTS_SCRATCH_H
#define WAN_TESTS_SCRATCH_H

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct scratch {
  char dir[64];
  char path[8][512]; /* the last names handed out */
  int next;
} scratch;

static inline void scratch_open(scratch *s) {
  memset(s, 0, sizeof *s);
  strcpy(s->dir, "/tmp/wan-test-XXXXXX");
  if (!mkdtemp(s->dir)) abort();
}

/* dir/name; valid for the next seven calls. Folders in the name are made. */
static inline const char *scratch_path(scratch *s, const char *name) {
  char *p = s->path[s->next++ % 8];
  size_t n = strlen(s->dir);
  memcpy(p, s->dir, n);
  snprintf(p + n, sizeof s->path[0] - n, "/%s", name);
  for (char *q = p + n + 1; (q = strchr(q, '/')); q++) {
    *q = 0;
    mkdir(p, 0777);
    *q = '/';
  }
  return p;
}

static inline const char *scratch_write(scratch *s, const char *name, const void *data, size_t size) {
  const char *path = scratch_path(s, name);
  FILE *f = fopen(path, "wb");
  if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
  return path;
}

static inline const char *scratch_text(scratch *s, const char *name, const char *text) {
  return scratch_write(s, name, text, strlen(text));
}

static inline int scratch_remove_(const char *path, const struct stat *st, int flag, struct FTW *at) {
  (void)st, (void)flag, (void)at;
  return remove(path);
}

static inline void scratch_close(scratch *s) {
  nftw(s->dir, scratch_remove_, 8, FTW_DEPTH | FTW_PHYS);
}

#endif
