/* vision_source.c: where pictures come from. A data URL and a server's answer are hostile bytes: their size
 * is limited, and only what the picture decoders recognise is taken, whatever the address or its headers say.
 */
#include <string.h>

#include "prompt/base64.h"
#include "prompt/http.h"
#include "prompt/vision.h"

static const double FETCH_SECONDS = 60;
enum { FETCH_REDIRECTS = 5 };

static wan_status from_data_url(core_ctx *ctx, const char *url, const picture_options *options,
                                picture *out) {
  const char *mark = strstr(url, "base64,");
  uint8_t *data;
  size_t size;
  if (!mark) return core_fail(ctx, WAN_ERR_FORMAT, "a data URL without \"base64,\": only base64 can be read");
  mark += strlen("base64,");
  size_t n = strlen(mark);
  if (n > base64_length(VISION_SOURCE_MAX))
    return core_fail(ctx, WAN_ERR_FORMAT, "a data URL of %zu characters, more than %zu", n,
                     base64_length(VISION_SOURCE_MAX));
  wan_status s = base64_decode(ctx, mark, n, &data, &size);
  if (s != WAN_OK) return core_prefix(ctx, s, "a data URL");
  s = picture_load_memory(ctx, data, size, "the data URL's picture", options, out);
  core_free(ctx, data);
  return s;
}

static wan_status from_server(core_ctx *ctx, const char *url, const picture_options *options, picture *out) {
  char shown[HTTP_URL_TEXT];
  http_request q = {
      .url = url, .limit = VISION_SOURCE_MAX, .redirects = FETCH_REDIRECTS, .timeout = FETCH_SECONDS};
  http_response r;
  http_url_text(url, shown);
  CORE_TRY(http_perform(ctx, &q, &r));
  wan_status s = r.status == 200
                     ? picture_load_memory(ctx, r.body, r.size, shown, options, out)
                     : core_fail(ctx, WAN_ERR_NETWORK, "%s: no picture: HTTP status %ld", shown, r.status);
  http_response_free(ctx, &r);
  return s;
}

wan_status vision_source(core_ctx *ctx, const char *source, const wan_vision_params *p, picture *out) {
  picture_options options = {p->no_exif};
  *out = (picture){0};
  if (http_is_url(source)) {
    char shown[HTTP_URL_TEXT];
    if (p->allow_remote) return from_server(ctx, source, &options, out);
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%s: pictures from the network are not allowed here",
                     http_url_text(source, shown));
  }
  if (strncmp(source, "data:image", 10) == 0) return from_data_url(ctx, source, &options, out);
  return picture_load(ctx, strncmp(source, "file://", 7) == 0 ? source + 7 : source, &options, out);
}

wan_status vision_picture(core_ctx *ctx, const char *source, const wan_vision_params *p, picture *out) {
  picture whole;
  int width, height;
  *out = (picture){0};
  CORE_TRY(vision_source(ctx, source, p, &whole));
  bool given = p->width > 0 && p->height > 0; /* a given size counts with the default limits, as upstream */
  wan_status s = given ? vision_smart_resize(ctx, p->width, p->height, p->factor, 0, 0, &width, &height)
                       : vision_smart_resize(ctx, whole.width, whole.height, p->factor, (double)p->min_pixels,
                                             (double)p->max_pixels, &width, &height);
  if (s == WAN_OK) s = picture_resize(ctx, &whole, width, height, RESIZE_BICUBIC, out);
  picture_free(ctx, &whole);
  return s;
}
