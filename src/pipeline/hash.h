/* hash.h: 64-bit FNV-1a (Fowler, Noll, Vo): identifies models and files by content. It guards against
 * mistakes, not against an adversary. */
#ifndef WAN_PIPELINE_HASH_H
#define WAN_PIPELINE_HASH_H

#include "core/ctx.h"

#define HASH_START UINT64_C(0xcbf29ce484222325)
uint64_t hash_bytes(uint64_t hash, const void *data, size_t size);
/* The string with its terminator, so that "ab","c" and "a","bc" differ. */
uint64_t hash_text(uint64_t hash, const char *text);
/* All bytes of a file. */
wan_status hash_file(core_ctx *ctx, const char *path, uint64_t *hash);

#endif
