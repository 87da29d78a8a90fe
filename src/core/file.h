/* file.h: files mapped for reading, and files that appear whole or not at all. */
#ifndef WAN_CORE_FILE_H
#define WAN_CORE_FILE_H

#include "core/ctx.h"

/* A read-only mapping. data is NULL for an empty file. */
typedef struct core_map {
  const unsigned char *data;
  size_t size;
} core_map;

wan_status core_map_open(core_ctx *ctx, const char *path, core_map *out);
void core_map_close(core_map *map);
/* Zeroed memory that behaves like a mapped file (core_map_drop() keeps its content) but is in none; its maker
 * may write to it. Not counted, as mapped files are not. */
wan_status core_map_scratch(core_ctx *ctx, size_t size, core_map *out);
/* Hints about [offset, offset+bytes): bring the pages in, or drop them from this process. */
void core_map_prefetch(const void *address, size_t bytes);
void core_map_drop(const void *address, size_t bytes);

/* The whole file as a NUL-terminated string (core_free); larger than `limit` bytes is an error. */
wan_status core_read_text(core_ctx *ctx, const char *path, size_t limit, char **out, size_t *size);

/* Output that is written under a temporary name in the same folder ("NAME.part-PID") and renamed to
 * `path` by core_outfile_commit(). core_outfile_abort() (or commit failing) removes it. */
typedef struct core_outfile {
  char *path, *temp; /* temp: the name to write to */
} core_outfile;
wan_status core_outfile_begin(core_ctx *ctx, const char *path, core_outfile *out);
wan_status core_outfile_commit(core_ctx *ctx, core_outfile *f); /* flushes to disk, then renames */
void core_outfile_abort(core_ctx *ctx, core_outfile *f);        /* safe after commit: no-op */

bool core_path_exists(const char *path);
bool core_path_is_dir(const char *path);
bool core_path_is_file(const char *path); /* a regular one: not a pipe, on which opening would wait */
/* dir/name as a new string. */
char *core_path_join(core_ctx *ctx, const char *dir, const char *name);

#endif
