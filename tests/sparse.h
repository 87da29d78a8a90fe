/* sparse.h: checkpoints of official size that take no room on the disk: a header, and data that was never
 * written.
 */
#ifndef WAN_TESTS_SPARSE_H
#define WAN_TESTS_SPARSE_H

#include <stdbool.h>
#include <stdint.h>

#include "scratch.h"

/* A safetensors file with the names and shapes of models/names/LIST.txt, all zeros. False: the file system
 * has no such files. */
static inline bool sparse_checkpoint(scratch *dir, const char *list, const char *type, int size,
                                     const char *to) {
  static char header[1 << 18], line[256];
  char path[512], names[512];
  snprintf(names, sizeof names, WAN_SOURCE_DIR "/models/names/%s.txt", list);
  FILE *in = fopen(names, "r");
  assert_non_null(in);
  size_t used = 0;
  int64_t at = 0;
  while (fgets(line, sizeof line, in)) {
    int64_t n = size;
    char *dims = strchr(line, ' '), shape[128] = "";
    *dims++ = 0;
    for (char *d = strtok(dims, " \n"); d; d = strtok(NULL, " \n")) {
      n *= atoll(d);
      strcat(strcat(shape, *shape ? "," : ""), d);
    }
    used += (size_t)snprintf(header + used, sizeof header - used,
                             "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%lld,%lld]}",
                             used ? ',' : '{', line, type, shape, (long long)at, (long long)(at + n));
    at += n;
  }
  fclose(in);
  header[used++] = '}';
  uint64_t length = used;
  snprintf(path, sizeof path, "%s", scratch_path(dir, to));
  FILE *out = fopen(path, "wb");
  assert_true(fwrite(&length, 8, 1, out) == 1 && fwrite(header, 1, used, out) == used && fclose(out) == 0);
  return truncate(path, (off_t)(8 + length) + at) == 0;
}

#endif
