/* video_gif.c: the comment of a GIF file. FFmpeg does not write one, and reads one at the end only after all
 * frames, so this walks the file's blocks itself (GIF89a specification): header, then extensions (0x21) and
 * images (0x2c), then the trailer (0x3b). Extension and image data are chains of sub-blocks: a length byte,
 * that many bytes, 0 ends the chain.
 */
#include "media/internal.h"

#include <errno.h>
#include <string.h>

enum { TRAILER = 0x3b, EXTENSION = 0x21, COMMENT = 0xfe, IMAGE = 0x2c, SUBBLOCK_MAX = 255 };

/* Replace the trailer by a comment extension and a new trailer. */
static bool write_comment(FILE *f, const char *text) {
  if (fseek(f, -1, SEEK_END) != 0 || fgetc(f) != TRAILER || fseek(f, -1, SEEK_END) != 0) return false;
  bool ok = fputc(EXTENSION, f) != EOF && fputc(COMMENT, f) != EOF;
  for (size_t left = strlen(text); ok && left;) {
    size_t n = left < SUBBLOCK_MAX ? left : SUBBLOCK_MAX;
    ok = fputc((int)n, f) != EOF && fwrite(text, 1, n, f) == n;
    text += n;
    left -= n;
  }
  return ok && fputc(0, f) != EOF && fputc(TRAILER, f) != EOF;
}

wan_status gif_append_comment(core_ctx *ctx, const char *path, const char *name, const char *text) {
  FILE *f = fopen(path, "r+b");
  errno = 0;
  bool ok = f && write_comment(f, text);
  if (f && fclose(f) != 0) ok = false;
  if (ok) return WAN_OK;
  return core_fail(ctx, WAN_ERR_IO, "%s: can't write the comment: %s", name,
                   errno ? strerror(errno) : "unexpected end of the GIF file");
}

/* Length of a chain of sub-blocks including its end, and of its content; false when cut short. */
static bool chain(const uint8_t *p, size_t size, size_t *length, size_t *content) {
  size_t at = 0;
  for (*content = 0; at < size && p[at]; at += 1 + (size_t)p[at]) *content += p[at];
  *length = at + 1;
  return at < size;
}

static char *chain_text(core_ctx *ctx, const uint8_t *p, size_t content) {
  char *text = core_alloc(ctx, content + 1), *to = text;
  if (!text) return NULL;
  for (; *p; p += 1 + *p) {
    memcpy(to, p + 1, *p);
    to += *p;
  }
  *to = 0;
  return text;
}

/* Bytes of the colour table that a flags byte announces. */
static size_t table_bytes(uint8_t flags) {
  return flags & 0x80 ? (size_t)3 << ((flags & 7) + 1) : 0;
}

wan_status gif_read_comment(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, char **out) {
  *out = NULL;
  size_t at = size > 13 ? 13 + table_bytes(data[10]) : size;
  while (at + 2 < size && data[at] != TRAILER) {
    size_t skip = 2, length, content;
    if (data[at] == IMAGE) {
      if (at + 10 >= size) break;
      skip = 10 + table_bytes(data[at + 9]) + 1; /* descriptor, table, LZW code size */
    } else if (data[at] != EXTENSION) {
      break;
    }
    bool comment = data[at] == EXTENSION && data[at + 1] == COMMENT;
    if (skip >= size - at || !chain(data + at + skip, size - at - skip, &length, &content)) break;
    if (comment) {
      *out = chain_text(ctx, data + at + skip, content);
      return *out ? WAN_OK : WAN_ERR_MEMORY;
    }
    at += skip + length;
  }
  if (at < size && data[at] == TRAILER) return WAN_OK;
  return core_fail(ctx, WAN_ERR_FORMAT, "%s: broken GIF file at byte %zu", name, at);
}
