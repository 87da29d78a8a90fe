#define _GNU_SOURCE
#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static wan_status io_error(core_ctx *ctx, const char *what, const char *path) {
  return core_fail(ctx, WAN_ERR_IO, "%s: %s: %s", path, what, strerror(errno));
}

/* Open a regular file for reading; fd and size out. */
static wan_status open_regular(core_ctx *ctx, const char *path, int *fd, size_t *size) {
  *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a named pipe must not make us wait for a writer */
  if (*fd < 0) return io_error(ctx, "can't open", path);
  struct stat st;
  if (fstat(*fd, &st) != 0) {
    wan_status s = io_error(ctx, "can't stat", path);
    close(*fd);
    return s;
  }
  if (!S_ISREG(st.st_mode)) {
    close(*fd);
    return core_fail(ctx, WAN_ERR_IO, "%s: not a regular file", path);
  }
  *size = (size_t)st.st_size;
  return WAN_OK;
}

wan_status core_map_open(core_ctx *ctx, const char *path, core_map *out) {
  int fd;
  *out = (core_map){0};
  CORE_TRY(open_regular(ctx, path, &fd, &out->size));
  wan_status s = WAN_OK;
  if (out->size) {
    void *p = mmap(NULL, out->size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
      s = io_error(ctx, "can't map", path);
    else
      out->data = p;
  }
  close(fd);
  if (s != WAN_OK) *out = (core_map){0};
  return s;
}

wan_status core_map_scratch(core_ctx *ctx, size_t size, core_map *out) {
  *out = (core_map){0};
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    return core_fail(ctx, WAN_ERR_MEMORY, "out of memory: %zu bytes could not be mapped", size);
  *out = (core_map){.data = p, .size = size};
  return WAN_OK;
}

void core_map_close(core_map *map) {
  if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
  *map = (core_map){0};
}

/* Whole pages that contain (grow) or lie inside (shrink) the range. */
static void advise(const void *address, size_t bytes, int advice, bool inside) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), a = (uintptr_t)address, b = a + bytes;
  uintptr_t lo = inside ? (a + page - 1) / page * page : a / page * page;
  uintptr_t hi = inside ? b / page * page : (b + page - 1) / page * page;
  if (hi > lo) madvise((void *)lo, hi - lo, advice); /* a hint */
}

void core_map_prefetch(const void *address, size_t bytes) {
  advise(address, bytes, MADV_WILLNEED, false);
}

void core_map_drop(const void *address, size_t bytes) {
  advise(address, bytes, MADV_DONTNEED, true);
}

wan_status core_read_text(core_ctx *ctx, const char *path, size_t limit, char **out, size_t *size) {
  int fd;
  size_t n;
  *out = NULL;
  CORE_TRY(open_regular(ctx, path, &fd, &n));
  wan_status s = WAN_OK;
  char *text = NULL;
  if (n > limit)
    s = core_fail(ctx, WAN_ERR_FORMAT, "%s: %zu bytes, more than the %zu expected of such a file", path, n,
                  limit);
  else if (!(text = core_alloc(ctx, n + 1)))
    s = WAN_ERR_MEMORY;
  for (size_t got = 0; s == WAN_OK && got < n;) {
    ssize_t r = read(fd, text + got, n - got);
    if (r < 0 && errno == EINTR) continue;
    if (r < 0) s = io_error(ctx, "can't read", path);
    if (r == 0) s = core_fail(ctx, WAN_ERR_IO, "%s: the file shrank while it was read", path);
    if (r > 0) got += (size_t)r;
  }
  close(fd);
  if (s != WAN_OK) {
    core_free(ctx, text);
    return s;
  }
  text[n] = 0;
  *out = text;
  if (size) *size = n;
  return WAN_OK;
}

wan_status core_outfile_begin(core_ctx *ctx, const char *path, core_outfile *out) {
  *out = (core_outfile){0};
  if (!*path) return core_fail(ctx, WAN_ERR_ARGUMENT, "the output file name is empty");
  if (core_path_is_dir(path)) return core_fail(ctx, WAN_ERR_IO, "%s: is a directory, give a file name", path);
  out->path = core_strdup(ctx, path);
  out->temp = core_asprintf(ctx, "%s.part-%ld", path, (long)getpid());
  if (!out->path || !out->temp) {
    core_outfile_abort(ctx, out);
    return WAN_ERR_MEMORY;
  }
  int fd = open(out->temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    wan_status s = io_error(ctx, "can't create the output file", path);
    core_free(ctx, out->temp); /* nothing to remove */
    out->temp = NULL;
    core_outfile_abort(ctx, out);
    return s;
  }
  close(fd);
  return WAN_OK;
}

wan_status core_outfile_commit(core_ctx *ctx, core_outfile *f) {
  wan_status s = WAN_OK;
  int fd = open(f->temp, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || fsync(fd) != 0) s = io_error(ctx, "can't write", f->temp);
  if (fd >= 0) close(fd);
  if (s == WAN_OK && rename(f->temp, f->path) != 0)
    s = io_error(ctx, "can't rename the finished file to", f->path);
  if (s == WAN_OK) {
    core_free(ctx, f->temp);
    f->temp = NULL;
  }
  core_outfile_abort(ctx, f);
  return s;
}

void core_outfile_abort(core_ctx *ctx, core_outfile *f) {
  if (f->temp) unlink(f->temp);
  core_free(ctx, f->temp);
  core_free(ctx, f->path);
  *f = (core_outfile){0};
}

bool core_path_exists(const char *path) {
  return access(path, F_OK) == 0;
}

bool core_path_is_dir(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool core_path_is_file(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

char *core_path_join(core_ctx *ctx, const char *dir, const char *name) {
  size_t n = strlen(dir);
  return core_asprintf(ctx, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
}
