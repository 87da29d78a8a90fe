/* sources.c: a network is one file, or shards that an index.json lists. The index is as hostile as any
 * other download: it may only name files that lie beside it.
 */
#include "weights/sources.h"

#include "core/file.h"

#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>

enum { INDEX_LIMIT = 16 << 20 }; /* bytes; the largest official index has 100 kB */

const char *sources_base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

static bool ends_with(const char *s, const char *end) {
  size_t n = strlen(s), m = strlen(end);
  return n >= m && strcmp(s + n - m, end) == 0;
}

static wan_status add_path(core_ctx *ctx, sources *s, char *path) {
  if (!path) return WAN_ERR_MEMORY;
  char **grown = core_realloc(ctx, s->path, ((size_t)s->count + 1) * sizeof *grown);
  if (!grown) {
    core_free(ctx, path);
    return WAN_ERR_MEMORY;
  }
  s->path = grown;
  s->path[s->count++] = path;
  return WAN_OK;
}

void sources_free(core_ctx *ctx, sources *s) {
  for (int64_t i = 0; i < s->count; i++) core_free(ctx, s->path[i]);
  core_free(ctx, s->path);
  json_decref(s->index);
  *s = (sources){0};
}

/* A plain name, so that the file lies beside the index. */
static bool is_plain_name(const char *file) {
  return *file && !strchr(file, '/') && !strchr(file, '\\') && strcmp(file, ".") != 0 &&
         strcmp(file, "..") != 0;
}

static wan_status parse_index(core_ctx *ctx, const char *path, sources *s) {
  char *text = NULL;
  size_t size = 0;
  json_error_t e;
  CORE_TRY(core_read_text(ctx, path, INDEX_LIMIT, &text, &size));
  s->index = json_loadb(text, size, JSON_REJECT_DUPLICATES, &e);
  core_free(ctx, text);
  if (!s->index)
    return core_fail(ctx, WAN_ERR_FORMAT, "%s: not valid JSON: %s (line %d)", path, e.text, e.line);
  s->weight_map = json_object_get(s->index, "weight_map");
  if (!json_is_object(s->weight_map) || json_object_size(s->weight_map) == 0)
    return core_fail(ctx, WAN_ERR_FORMAT, "%s: no \"weight_map\" object that names the shards", path);
  return WAN_OK;
}

/* The shard that holds tensor `name`: check its name and that it exists, add its path. */
static wan_status add_shard(core_ctx *ctx, sources *s, const char *index, const char *name,
                            const char *file) {
  if (!is_plain_name(file))
    return core_fail(
        ctx, WAN_ERR_FORMAT,
        "%s: tensor %s is said to be in \"%s\"; a shard must lie beside the index, its name can't "
        "contain a path",
        index, name, file);
  int dir = (int)(sources_base_name(index) - index);
  char *path = core_asprintf(ctx, "%.*s%s", dir, index, file);
  CORE_TRY(add_path(ctx, s, path));
  if (!core_path_exists(path))
    return core_fail(ctx, WAN_ERR_IO, "%s: the shard is missing; %s says that tensor %s is in it", path,
                     index, name);
  return WAN_OK;
}

static wan_status read_index(core_ctx *ctx, const char *path, sources *s) {
  CORE_TRY(parse_index(ctx, path, s));
  json_t *seen = json_object(), *value;
  if (!seen) return core_fail(ctx, WAN_ERR_MEMORY, "%s: out of memory reading the index", path);
  const char *name;
  wan_status status = WAN_OK;
  json_object_foreach((json_t *)(uintptr_t)s->weight_map, name, value) {
    const char *file = json_string_value(value);
    if (!file)
      status = core_fail(ctx, WAN_ERR_FORMAT, "%s: the file of tensor %s is not a string", path, name);
    else if (!json_object_get(seen, file))
      status = json_object_set_new(seen, file, json_true()) == 0
                   ? add_shard(ctx, s, path, name, file)
                   : core_fail(ctx, WAN_ERR_MEMORY, "%s: out of memory reading the index", path);
    if (status != WAN_OK) break;
  }
  json_decref(seen);
  return status;
}

/* Add dir/pattern, sorted by name. The directory's own name is protected from being a pattern. */
static wan_status add_matches(core_ctx *ctx, const char *dir, const char *pattern, sources *s) {
  char *full = core_alloc(ctx, 2 * strlen(dir) + strlen(pattern) + 2), *p = full;
  if (!full) return WAN_ERR_MEMORY;
  for (const char *d = dir; *d; d++) {
    if (strchr("\\*?[", *d)) *p++ = '\\';
    *p++ = *d;
  }
  *p++ = '/';
  strcpy(p, pattern);
  glob_t found = {0};
  int r = glob(full, 0, NULL, &found);
  wan_status status = WAN_OK;
  if (r == GLOB_NOSPACE) status = core_fail(ctx, WAN_ERR_MEMORY, "%s: out of memory listing the folder", dir);
  for (size_t i = 0; r == 0 && status == WAN_OK && i < found.gl_pathc; i++)
    status = add_path(ctx, s, core_strdup(ctx, found.gl_pathv[i]));
  globfree(&found);
  core_free(ctx, full);
  return status;
}

/* Look for an index, else for files; *index is the index's path or NULL. Nothing found is no error. */
static wan_status search_directory(core_ctx *ctx, const char *dir, sources *s, char **index) {
  static const char *const stems[] = {"diffusion_pytorch_model", "model"};
  *index = NULL;
  for (size_t i = 0; i < sizeof stems / sizeof stems[0] && !s->count; i++) {
    char *name = core_asprintf(ctx, "%s/%s.safetensors.index.json", dir, stems[i]);
    if (!name) return WAN_ERR_MEMORY;
    if (core_path_exists(name)) {
      *index = name;
      return WAN_OK;
    }
    core_free(ctx, name);
    char pattern[64] = ""; /* not "model*": the text encoder's file is called models_t5... */
    strcat(strcat(pattern, stems[i]), "[.-]*safetensors");
    CORE_TRY(add_matches(ctx, dir, pattern, s));
  }
  return WAN_OK;
}

static wan_status read_directory(core_ctx *ctx, const char *dir, sources *s) {
  char *index;
  CORE_TRY(search_directory(ctx, dir, s, &index));
  wan_status status = WAN_OK;
  if (index)
    status = read_index(ctx, index, s);
  else if (!s->count)
    status = core_fail(
        ctx, WAN_ERR_IO,
        "%s: no weights here: expected diffusion_pytorch_model*.safetensors or model*.safetensors", dir);
  core_free(ctx, index);
  return status;
}

wan_status sources_exist(core_ctx *ctx, const char *dir, bool *yes) {
  sources s = {0};
  char *index;
  wan_status status = search_directory(ctx, dir, &s, &index);
  *yes = index || s.count;
  core_free(ctx, index);
  sources_free(ctx, &s);
  return status;
}

wan_status sources_find(core_ctx *ctx, const char *path, sources *out) {
  *out = (sources){0};
  wan_status status;
  if (core_path_is_dir(path))
    status = read_directory(ctx, path, out);
  else if (ends_with(path, ".json"))
    status = read_index(ctx, path, out);
  else
    status = add_path(ctx, out, core_strdup(ctx, path));
  if (status != WAN_OK) sources_free(ctx, out);
  return status;
}
