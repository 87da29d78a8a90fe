/* zip.h: where the entries of a mapped zip file lie. */
#ifndef WAN_WEIGHTS_ZIP_H
#define WAN_WEIGHTS_ZIP_H

#include "core/ctx.h"
#include "core/file.h"

typedef struct zip_entry {
  char *name;
  const unsigned char *data; /* in the mapping */
  uint64_t size;             /* bytes in the file */
  bool stored;               /* as they are: neither compressed nor encrypted */
  uint64_t begin, end;       /* bytes of the file: local header and data */
} zip_entry;

typedef struct zip_directory {
  zip_entry *item; /* sorted by name */
  int64_t count;
} zip_directory;

/* path is for messages only. Every entry is inside the file; entries don't overlap, names are unique. */
wan_status zip_open(core_ctx *ctx, const char *path, core_map map, zip_directory *out);
void zip_close(core_ctx *ctx, zip_directory *zip);
/* NULL when absent. */
const zip_entry *zip_find(const zip_directory *zip, const char *name);

#endif
