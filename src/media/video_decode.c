/* video_decode.c: frames and the stored metadata out of a video file. Only plain local files of the formats
 * that people exchange are opened: playlists and the like could make FFmpeg fetch something else.
 */
#include "media/internal.h"

#include <string.h>

#ifdef WAN_HAVE_FFMPEG
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/imgutils.h>
#include <libswscale/swscale.h>

enum { DECODER_THREADS = 2 };

typedef struct reader {
  core_ctx *ctx;
  const char *path;
  AVFormatContext *demuxer;
  AVCodecContext *codec;
  AVStream *stream;
  AVPacket *packet;
  AVFrame *frame;
  struct SwsContext *scaler;
  uint8_t *rgb; /* of width x height below */
  int width, height, format, index;
} reader;

static wan_status av_fail(const reader *r, const char *what, int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = "";
  av_strerror(code, text, sizeof text);
  return core_fail(r->ctx, code == AVERROR(ENOMEM) ? WAN_ERR_MEMORY : WAN_ERR_FORMAT, "%s: %s: %s", r->path,
                   what, text);
}

static wan_status open_container(reader *r) {
  if (av_log_get_level() == AV_LOG_INFO) av_log_set_level(AV_LOG_QUIET); /* as in video_encode.c */
  if (!core_path_is_file(r->path))
    return core_fail(r->ctx, WAN_ERR_IO, "%s: %s", r->path,
                     core_path_exists(r->path) ? "not a regular file" : "no such file");
  char *url = core_asprintf(r->ctx, "file:%s", r->path);
  if (!url) return WAN_ERR_MEMORY;
  AVDictionary *options = NULL;
  av_dict_set(&options, "protocol_whitelist", "file", 0);
  av_dict_set(&options, "format_whitelist", "mov,matroska,webm,gif,avi,mpegts,ogg", 0);
  int code = avformat_open_input(&r->demuxer, url, NULL, &options);
  av_dict_free(&options);
  core_free(r->ctx, url);
  return code < 0 ? av_fail(r, "can't be read as a video", code) : WAN_OK;
}

static wan_status open_codec(reader *r) {
  int code = avformat_find_stream_info(r->demuxer, NULL);
  if (code < 0) return av_fail(r, "can't be read as a video", code);
  code = av_find_best_stream(r->demuxer, AVMEDIA_TYPE_VIDEO, -1, -1, NULL, 0);
  if (code < 0) return core_fail(r->ctx, WAN_ERR_FORMAT, "%s: there is no video in this file", r->path);
  r->stream = r->demuxer->streams[code];
  const AVCodec *codec = avcodec_find_decoder(r->stream->codecpar->codec_id);
  if (!codec)
    return core_fail(r->ctx, WAN_ERR_UNSUPPORTED, "%s: FFmpeg has no decoder for its codec \"%s\"", r->path,
                     avcodec_get_name(r->stream->codecpar->codec_id));
  r->codec = avcodec_alloc_context3(codec);
  r->packet = av_packet_alloc();
  r->frame = av_frame_alloc();
  if (!r->codec || !r->packet || !r->frame) return av_fail(r, "decoder", AVERROR(ENOMEM));
  code = avcodec_parameters_to_context(r->codec, r->stream->codecpar);
  r->codec->thread_count = DECODER_THREADS;
  r->codec->err_recognition = AV_EF_EXPLODE | AV_EF_CRCCHECK;
  if (code >= 0) code = avcodec_open2(r->codec, codec, NULL);
  return code < 0 ? av_fail(r, "decoder", code) : WAN_OK;
}

/* Buffers and the colour conversion for the frame at hand; only the first one, or after a change. */
static wan_status prepare(reader *r) {
  const AVFrame *f = r->frame;
  if (r->scaler && f->width == r->width && f->height == r->height && f->format == r->format) return WAN_OK;
  CORE_TRY(picture_check_size(r->ctx, r->path, f->width < 0 ? 0 : (uint64_t)f->width,
                              f->height < 0 ? 0 : (uint64_t)f->height));
  sws_freeContext(r->scaler);
  core_free(r->ctx, r->rgb);
  r->width = f->width;
  r->height = f->height;
  r->format = f->format;
  r->rgb = core_alloc(r->ctx, (size_t)f->width * (size_t)f->height * 3);
  r->scaler =
      sws_getContext(f->width, f->height, f->format, f->width, f->height, AV_PIX_FMT_RGB24,
                     SWS_BICUBIC | SWS_ACCURATE_RND | SWS_BITEXACT | SWS_FULL_CHR_H_INT, NULL, NULL, NULL);
  if (!r->rgb) return WAN_ERR_MEMORY;
  if (!r->scaler) return av_fail(r, "colour conversion", AVERROR(ENOMEM));
  /* Untagged streams are taken for BT.601, as FFmpeg's own tools do. */
  int space = f->colorspace == AVCOL_SPC_UNSPECIFIED ? SWS_CS_DEFAULT : (int)f->colorspace;
  sws_setColorspaceDetails(r->scaler, sws_getCoefficients(space), f->color_range == AVCOL_RANGE_JPEG,
                           sws_getCoefficients(SWS_CS_DEFAULT), 1, 0, 1 << 16, 1 << 16);
  return WAN_OK;
}

static wan_status deliver(reader *r, video_sink sink, void *user) {
  CORE_TRY(prepare(r));
  uint8_t *planes[4] = {r->rgb};
  int strides[4] = {3 * r->width};
  sws_scale(r->scaler, (const uint8_t *const *)r->frame->data, r->frame->linesize, 0, r->height, planes,
            strides);
  return sink(user, r->index++, r->width, r->height, r->rgb);
}

/* One packet in (NULL: the end), all frames it completes out. */
static wan_status decode(reader *r, const AVPacket *packet, video_sink sink, void *user) {
  int code = avcodec_send_packet(r->codec, packet);
  if (code < 0 && code != AVERROR_EOF) return av_fail(r, "damaged video data", code);
  for (;;) {
    code = avcodec_receive_frame(r->codec, r->frame);
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return WAN_OK;
    if (code < 0) return av_fail(r, "damaged video data", code);
    wan_status s = deliver(r, sink, user);
    av_frame_unref(r->frame);
    if (s != WAN_OK) return s;
  }
}

static wan_status read_all(reader *r, video_sink sink, void *user) {
  wan_status s = WAN_OK;
  int code;
  while (s == WAN_OK && (code = av_read_frame(r->demuxer, r->packet)) >= 0) {
    if (r->packet->stream_index == r->stream->index) s = decode(r, r->packet, sink, user);
    av_packet_unref(r->packet);
    if (s == WAN_OK) s = core_check_cancel(r->ctx);
  }
  if (s == WAN_OK && code != AVERROR_EOF) s = av_fail(r, "can't be read", code);
  return s == WAN_OK ? decode(r, NULL, sink, user) : s;
}

static void reader_close(reader *r) {
  sws_freeContext(r->scaler);
  av_frame_free(&r->frame);
  av_packet_free(&r->packet);
  avcodec_free_context(&r->codec);
  avformat_close_input(&r->demuxer);
  core_free(r->ctx, r->rgb);
}

wan_status video_read_frames(core_ctx *ctx, const char *path, video_sink sink, void *user, double *fps) {
  reader r = {.ctx = ctx, .path = path};
  wan_status s = open_container(&r);
  if (s == WAN_OK) s = open_codec(&r);
  if (s == WAN_OK && fps) {
    AVRational rate = av_guess_frame_rate(r.demuxer, r.stream, NULL);
    *fps = rate.num > 0 && rate.den > 0 ? av_q2d(rate) : 0;
  }
  if (s == WAN_OK) s = read_all(&r, sink, user);
  if (s == WAN_OK && !r.index) s = core_fail(ctx, WAN_ERR_FORMAT, "%s: a video without frames", path);
  reader_close(&r);
  return s;
}

static wan_status container_comment(core_ctx *ctx, const char *path, char **out) {
  reader r = {.ctx = ctx, .path = path};
  wan_status s = open_container(&r);
  const AVDictionaryEntry *entry = s == WAN_OK ? av_dict_get(r.demuxer->metadata, "comment", NULL, 0) : NULL;
  if (entry && !(*out = core_strdup(ctx, entry->value))) s = WAN_ERR_MEMORY;
  reader_close(&r);
  return s;
}

#else

wan_status video_read_frames(core_ctx *ctx, const char *path, video_sink sink, void *user, double *fps) {
  (void)sink, (void)user, (void)fps;
  return core_fail(ctx, WAN_ERR_UNSUPPORTED,
                   "%s: this build has no video support (FFmpeg's libraries are "
                   "missing)",
                   path);
}

static wan_status container_comment(core_ctx *ctx, const char *path, char **out) {
  return video_read_frames(ctx, path, NULL, out, NULL);
}
#endif

wan_status video_read_metadata(core_ctx *ctx, const char *path, char **out) {
  core_map map;
  *out = NULL;
  CORE_TRY(core_map_open(ctx, path, &map));
  bool gif = map.size > 6 && memcmp(map.data, "GIF8", 4) == 0;
  wan_status s = gif                                 ? gif_read_comment(ctx, map.data, map.size, path, out)
                 : png_recognise(map.data, map.size) ? png_read_comment(ctx, map.data, map.size, path, out)
                                                     : container_comment(ctx, path, out);
  core_map_close(&map);
  if (s == WAN_OK && !*out)
    s = core_fail(ctx, WAN_ERR_FORMAT, "%s: no settings are stored in this file", path);
  return s;
}
