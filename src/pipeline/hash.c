/* hash.c: FNV-1a, byte by byte: files are hashed once a run and are small (pictures, noise). */
#include "pipeline/hash.h"

#include <string.h>

#include "core/file.h"

uint64_t hash_bytes(uint64_t hash, const void *data, size_t size) {
  const unsigned char *p = data;
  for (size_t i = 0; i < size; i++) hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
  return hash;
}

uint64_t hash_text(uint64_t hash, const char *text) {
  return hash_bytes(hash, text, strlen(text) + 1);
}

wan_status hash_file(core_ctx *ctx, const char *path, uint64_t *hash) {
  core_map map;
  CORE_TRY(core_map_open(ctx, path, &map));
  *hash = hash_bytes(HASH_START, map.data, map.size);
  core_map_close(&map);
  return WAN_OK;
}
