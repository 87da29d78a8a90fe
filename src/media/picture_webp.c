/* picture_webp.c: WebP through libwebp, and the EXIF orientation through libexif. */
#include "media/internal.h"

#include <string.h>

#ifdef WAN_HAVE_IMAGES
#include <webp/decode.h>
#include <libexif/exif-data.h>

int exif_orientation(const uint8_t *data, size_t size) {
  static const char header[6] = "Exif\0";
  uint8_t *block = NULL;
  int orientation = 1;
  if (size > 0xffff) return 1; /* libexif counts in 16 bits where it matters, and so does JPEG */
  if (size < sizeof header || memcmp(data, header, sizeof header) != 0) {
    if (!(block = core_alloc(NULL, size + sizeof header))) return 1;
    memcpy(block, header, sizeof header);
    memcpy(block + sizeof header, data, size);
    data = block;
    size += sizeof header;
  }
  ExifData *exif = exif_data_new_from_data(data, (unsigned)size);
  ExifEntry *entry = exif ? exif_content_get_entry(exif->ifd[EXIF_IFD_0], EXIF_TAG_ORIENTATION) : NULL;
  if (entry && entry->format == EXIF_FORMAT_SHORT && entry->size >= 2)
    orientation = exif_get_short(entry->data, exif_data_get_byte_order(exif));
  if (exif) exif_data_unref(exif);
  core_free(NULL, block);
  return orientation >= 1 && orientation <= 8 ? orientation : 1;
}

static uint32_t le32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Chunks of the RIFF container: name (4), length (4), content, a pad byte when the length is odd. */
static int riff_orientation(const uint8_t *data, size_t size) {
  for (size_t at = 12; at + 8 <= size;) {
    size_t n = le32(data + at + 4), left = size - at - 8;
    if (n > left) return 1;
    if (memcmp(data + at, "EXIF", 4) == 0) return exif_orientation(data + at + 8, n);
    n += n & 1;
    if (n > left) return 1;
    at += 8 + n;
  }
  return 1;
}

wan_status webp_decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out) {
  WebPBitstreamFeatures f;
  if (WebPGetFeatures(data, size, &f) != VP8_STATUS_OK)
    return core_fail(ctx, WAN_ERR_FORMAT, "%s: broken WebP file: its header is damaged", name);
  CORE_TRY(picture_check_size(ctx, name, (uint64_t)f.width, (uint64_t)f.height));
  if (f.has_animation)
    return core_fail(ctx, WAN_ERR_UNSUPPORTED,
                     "%s: an animated WebP file, give a still picture (one of its frames)", name);
  int channels = f.has_alpha ? 4 : 3;
  size_t row = (size_t)f.width * (size_t)channels, bytes = row * (size_t)f.height;
  uint8_t *pixels = core_alloc(ctx, bytes);
  if (!pixels) return WAN_ERR_MEMORY;
  uint8_t *done = channels == 4 ? WebPDecodeRGBAInto(data, size, pixels, bytes, (int)row)
                                : WebPDecodeRGBInto(data, size, pixels, bytes, (int)row);
  if (!done) {
    core_free(ctx, pixels);
    return core_fail(ctx, WAN_ERR_FORMAT, "%s: broken WebP file: the picture is damaged or cut short", name);
  }
  *out = (decoded){f.width, f.height, channels, pixels, riff_orientation(data, size)};
  return WAN_OK;
}

#else

int exif_orientation(const uint8_t *data, size_t size) {
  (void)data, (void)size;
  return 1;
}

wan_status webp_decode(core_ctx *ctx, const uint8_t *data, size_t size, const char *name, decoded *out) {
  (void)data, (void)size, (void)out;
  return core_fail(ctx, WAN_ERR_UNSUPPORTED, "%s: this build has no picture support (libwebp is missing)",
                   name);
}
#endif
