/* zip.c: a zip file read through its central directory only.
 *
 * A checkpoint of 11 GB is used where it lies: a tensor must point into the mapped file. The zip
 * libraries at hand (libzip among them) hand out decompressed copies and keep the position of the data
 * to themselves, so this file follows PKWARE's APPNOTE for the one case that counts: stored entries,
 * with or without the 64-bit records. Checksums are not verified: that would read every byte at once.
 */
#include "weights/zip.h"

#include <stdlib.h>
#include <string.h>

enum { /* record sizes and signatures of APPNOTE 4.3 */
       END_SIZE = 22,
       END64_SIZE = 56,
       LOCATOR_SIZE = 20,
       CENTRAL_SIZE = 46,
       LOCAL_SIZE = 30,
       COMMENT_MAX = 65535,
       EXTRA_ZIP64 = 1,
};
static const uint32_t END = 0x06054b50, END64 = 0x06064b50, LOCATOR = 0x07064b50, CENTRAL = 0x02014b50,
                      LOCAL = 0x04034b50, FULL32 = 0xffffffff;

typedef struct reader {
  core_ctx *ctx;
  const char *path;
  const unsigned char *data;
  uint64_t size;
  uint64_t dir, dir_end, count; /* the central directory */
} reader;

static uint64_t get(const unsigned char *p, int bytes) {
  uint64_t v = 0;
  while (bytes-- > 0) v = v << 8 | p[bytes];
  return v;
}

static uint32_t get32(const unsigned char *p) {
  return (uint32_t)get(p, 4);
}

static wan_status damaged(const reader *r, const char *what, uint64_t at) {
  return core_fail(r->ctx, WAN_ERR_FORMAT, "%s: damaged zip file: %s at byte %llu; is the download complete?",
                   r->path, what, (unsigned long long)at);
}

/* The end record is the last thing in the file, but for a comment of known length. */
static wan_status find_end(const reader *r, uint64_t *at) {
  uint64_t lowest = r->size > END_SIZE + COMMENT_MAX ? r->size - END_SIZE - COMMENT_MAX : 0;
  for (uint64_t p = r->size < END_SIZE ? 0 : r->size - END_SIZE + 1; p-- > lowest;)
    if (get32(r->data + p) == END && get(r->data + p + 20, 2) == r->size - p - END_SIZE) {
      *at = p;
      return WAN_OK;
    }
  return core_fail(r->ctx, WAN_ERR_FORMAT,
                   "%s: a zip file without its directory at the end: the file is cut off", r->path);
}

/* The 64-bit end record, which the locator in front of the end record points to. */
static wan_status read_end64(reader *r, uint64_t end, uint64_t *dir_size) {
  if (end < LOCATOR_SIZE || get32(r->data + end - LOCATOR_SIZE) != LOCATOR)
    return damaged(r, "no 64-bit directory locator before the end record", end);
  uint64_t at = get(r->data + end - LOCATOR_SIZE + 8, 8), limit = end - LOCATOR_SIZE;
  if (limit < END64_SIZE || at > limit - END64_SIZE || get32(r->data + at) != END64)
    return damaged(r, "no 64-bit end record where the locator points", at);
  r->count = get(r->data + at + 32, 8);
  *dir_size = get(r->data + at + 40, 8);
  r->dir = get(r->data + at + 48, 8);
  r->dir_end = at;
  return WAN_OK;
}

static wan_status find_directory(reader *r) {
  uint64_t end = 0;
  CORE_TRY(find_end(r, &end));
  const unsigned char *p = r->data + end;
  uint64_t dir_size = get32(p + 12);
  if (get(p + 4, 2) != get(p + 6, 2) && get(p + 4, 2) != 0xffff)
    return core_fail(r->ctx, WAN_ERR_UNSUPPORTED, "%s: a zip file in several volumes is not supported",
                     r->path);
  r->count = get(p + 10, 2);
  r->dir = get32(p + 16);
  r->dir_end = end;
  if (r->count == 0xffff || dir_size == FULL32 || r->dir == FULL32) CORE_TRY(read_end64(r, end, &dir_size));
  if (r->dir > r->dir_end || dir_size > r->dir_end - r->dir)
    return damaged(r, "directory out of bounds", r->dir);
  r->dir_end = r->dir + dir_size;
  if (r->count > dir_size / CENTRAL_SIZE) return damaged(r, "too many entries for the directory", r->dir);
  return WAN_OK;
}

/* Replace the fields that are all ones by those of the zip64 extra field, which has them in this order. */
static wan_status widen(const reader *r, const unsigned char *extra, uint64_t n, uint64_t at,
                        uint64_t *const field[3]) {
  while (n >= 4) {
    uint64_t id = get(extra, 2), size = get(extra + 2, 2);
    if (size > n - 4) return damaged(r, "extra field out of bounds", at);
    const unsigned char *p = extra + 4;
    if (id == EXTRA_ZIP64) {
      for (int i = 0; i < 3; i++) {
        if (*field[i] != FULL32) continue;
        if (size < 8) return damaged(r, "64-bit sizes missing", at);
        *field[i] = get(p, 8);
        p += 8;
        size -= 8;
      }
      return WAN_OK;
    }
    extra = p + size;
    n -= 4 + size;
  }
  for (int i = 0; i < 3; i++)
    if (*field[i] == FULL32) return damaged(r, "64-bit sizes missing", at);
  return WAN_OK;
}

/* Find the data of an entry behind its local header at e->begin. */
static wan_status locate(const reader *r, zip_entry *e, size_t name_length) {
  if (r->dir < LOCAL_SIZE || e->begin > r->dir - LOCAL_SIZE || get32(r->data + e->begin) != LOCAL)
    return damaged(r, "an entry without its header", e->begin);
  const unsigned char *p = r->data + e->begin;
  uint64_t n = get(p + 26, 2), at = e->begin + LOCAL_SIZE + n + get(p + 28, 2);
  if (at > r->dir || e->size > r->dir - at) return damaged(r, "an entry that is out of bounds", e->begin);
  if (n != name_length || memcmp(p + LOCAL_SIZE, e->name, n) != 0)
    return damaged(r, "an entry with two different names", e->begin);
  e->data = r->data + at;
  e->end = at + e->size;
  return WAN_OK;
}

/* The directory record at *at; moves *at past it. */
static wan_status read_entry(const reader *r, uint64_t *at, zip_entry *e) {
  const unsigned char *p = r->data + *at;
  if (r->dir_end - *at < CENTRAL_SIZE || get32(p) != CENTRAL) return damaged(r, "no directory record", *at);
  uint64_t flags = get(p + 8, 2), method = get(p + 10, 2), packed = get32(p + 20);
  uint64_t name = get(p + 28, 2), extra = get(p + 30, 2), comment = get(p + 32, 2);
  e->size = get32(p + 24);
  e->begin = get32(p + 42);
  if (name + extra + comment > r->dir_end - *at - CENTRAL_SIZE)
    return damaged(r, "directory record cut off", *at);
  uint64_t *const wide[3] = {&e->size, &packed, &e->begin};
  CORE_TRY(widen(r, p + CENTRAL_SIZE + name, extra, *at, wide));
  if (memchr(p + CENTRAL_SIZE, 0, name)) return damaged(r, "a name with a zero byte", *at);
  e->name = core_asprintf(r->ctx, "%.*s", (int)name, (const char *)p + CENTRAL_SIZE);
  if (!e->name) return WAN_ERR_MEMORY;
  e->stored = method == 0 && packed == e->size && !(flags & 1);
  e->size = packed;
  CORE_TRY(locate(r, e, name));
  *at += CENTRAL_SIZE + name + extra + comment;
  return WAN_OK;
}

static int by_position(const void *a, const void *b) {
  const zip_entry *x = a, *y = b;
  return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const zip_entry *)a)->name, ((const zip_entry *)b)->name);
}

static wan_status check_entries(const reader *r, zip_directory *zip) {
  qsort(zip->item, (size_t)zip->count, sizeof *zip->item, by_position);
  for (int64_t i = 1; i < zip->count; i++)
    if (zip->item[i].begin < zip->item[i - 1].end)
      return damaged(r, "two entries overlap", zip->item[i].begin);
  qsort(zip->item, (size_t)zip->count, sizeof *zip->item, by_name);
  for (int64_t i = 1; i < zip->count; i++)
    if (strcmp(zip->item[i].name, zip->item[i - 1].name) == 0)
      return damaged(r, "a second entry of the same name", zip->item[i].begin);
  return WAN_OK;
}

wan_status zip_open(core_ctx *ctx, const char *path, core_map map, zip_directory *out) {
  reader r = {.ctx = ctx, .path = path, .data = map.data, .size = map.size};
  *out = (zip_directory){0};
  CORE_TRY(find_directory(&r));
  out->item = core_calloc(ctx, (size_t)r.count, sizeof *out->item);
  if (!out->item) return WAN_ERR_MEMORY;
  out->count = (int64_t)r.count;
  wan_status status = WAN_OK;
  uint64_t at = r.dir;
  for (int64_t i = 0; status == WAN_OK && i < out->count; i++) status = read_entry(&r, &at, &out->item[i]);
  if (status == WAN_OK && at != r.dir_end) status = damaged(&r, "directory longer than its entries", at);
  if (status == WAN_OK) status = check_entries(&r, out);
  if (status != WAN_OK) zip_close(ctx, out);
  return status;
}

void zip_close(core_ctx *ctx, zip_directory *zip) {
  for (int64_t i = 0; i < zip->count; i++) core_free(ctx, zip->item[i].name);
  core_free(ctx, zip->item);
  *zip = (zip_directory){0};
}

const zip_entry *zip_find(const zip_directory *zip, const char *name) {
  zip_entry key = {.name = (char *)(uintptr_t)name};
  return bsearch(&key, zip->item, (size_t)zip->count, sizeof *zip->item, by_name);
}
