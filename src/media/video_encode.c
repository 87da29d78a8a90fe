/* video_encode.c: MP4, WebM and GIF through FFmpeg's libraries (4.4 to 7).
 *
 * Colour: RGB is converted with the BT.709 matrix, limited range, and the stream says so; any player then
 * shows the colours that went in. (The original writer converts with BT.601 and leaves the stream
 * untagged, which players take for BT.709 in HD.)
 * The same frames give the same bytes: fixed thread counts, and FFmpeg's bit-exact mode, which leaves out
 * version strings and dates. (Not of pictures smaller than 128x128: there x264 depends on what is in memory.)
 * FFmpeg logs to stderr by default and libraries must not print; its log level is process-wide, so it is
 * lowered only where it still has the default value: a program that set its own keeps it.
 */
#include "media/internal.h"

#include <string.h>

#ifdef WAN_HAVE_FFMPEG
#include <libavcodec/avcodec.h>
#include <libavfilter/avfilter.h>
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>

/* Encoder threads: as many as keep pace with a GPU that decodes 30 frames of 1280x704 a second. A processor
 * that decodes takes seconds a frame and leaves them little to do. x264's output depends on their number, so
 * it is the same everywhere. */
enum { ENCODER_THREADS = 8 };

struct av_encoder {
  core_outfile file;
  char *metadata;
  video_format format;
  int width, height, crf;
  bool started;          /* header written, trailer not */
  AVRational frame_time; /* seconds a frame */
  int64_t frames;
  AVFormatContext *muxer;
  AVStream *stream;
  AVCodecContext *codec;
  AVPacket *packet;
  AVFrame *source, *picture; /* source: RGB (GIF); picture: what the codec takes */
  struct SwsContext *scaler;
  AVFilterGraph *graph; /* GIF: palette and dither */
  AVFilterContext *graph_in, *graph_out;
};

typedef struct encoder_choice {
  const char *name;
  int crf; /* default quality; -1: the encoder has none and gets a bit rate */
} encoder_choice;

/* In order of preference. crf 10 is what the original's writer uses (quality 8). VP9 is the WebM codec
 * that every browser plays; 24 is of about the same transparency. */
static const encoder_choice mp4_encoders[] = {
    {"libx264", 10}, {"libopenh264", -1}, {"h264_nvenc", -1}, {"h264_videotoolbox", -1}};
static const encoder_choice webm_encoders[] = {{"libvpx-vp9", 24}, {"libaom-av1", 20}};
static const encoder_choice gif_encoders[] = {{"gif", -1}};

static const encoder_choice *choices(video_format format, size_t *n) {
  switch (format) {
  case VIDEO_MP4:
    *n = sizeof mp4_encoders / sizeof *mp4_encoders;
    return mp4_encoders;
  case VIDEO_WEBM:
    *n = sizeof webm_encoders / sizeof *webm_encoders;
    return webm_encoders;
  case VIDEO_GIF:
    *n = 1;
    return gif_encoders;
  case VIDEO_PNG_SEQUENCE:
    break;
  }
  *n = 0;
  return NULL;
}

static wan_status av_fail(core_ctx *ctx, const av_encoder *e, const char *what, int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = "";
  av_strerror(code, text, sizeof text);
  return core_fail(ctx, code == AVERROR(ENOMEM) ? WAN_ERR_MEMORY : WAN_ERR_IO, "%s: %s: %s", e->file.path,
                   what, text);
}

static void quiet(void) {
  if (av_log_get_level() == AV_LOG_INFO) av_log_set_level(AV_LOG_QUIET);
}

bool video_format_available(video_format format) {
#ifdef WAN_HAVE_IMAGES
  if (format == VIDEO_PNG_SEQUENCE) return true;
#endif
  size_t n;
  const encoder_choice *list = choices(format, &n);
  for (size_t i = 0; i < n; i++)
    if (avcodec_find_encoder_by_name(list[i].name)) return true;
  return false;
}

static void set_codec_options(av_encoder *e, const encoder_choice *choice) {
  AVCodecContext *c = e->codec;
  c->width = e->width;
  c->height = e->height;
  c->time_base = e->frame_time;
  c->framerate = av_inv_q(e->frame_time);
  c->thread_count = ENCODER_THREADS;
  c->flags |= AV_CODEC_FLAG_BITEXACT;
  if (e->muxer->oformat->flags & AVFMT_GLOBALHEADER) c->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  if (e->format == VIDEO_GIF) {
    c->pix_fmt = AV_PIX_FMT_PAL8;
    return;
  }
  c->pix_fmt = AV_PIX_FMT_YUV420P;
  c->colorspace = AVCOL_SPC_BT709;
  c->color_primaries = AVCOL_PRI_BT709;
  c->color_trc = AVCOL_TRC_BT709;
  c->color_range = AVCOL_RANGE_MPEG;
  c->chroma_sample_location = AVCHROMA_LOC_LEFT;
  if (choice->crf < 0) { /* a bit rate of 0.25 bits a pixel: generous for H.264 */
    c->bit_rate = (int64_t)(0.25 * e->width * e->height * av_q2d(c->framerate));
    return;
  }
  av_opt_set_int(c->priv_data, "crf", e->crf >= 0 ? e->crf : choice->crf, 0);
  if (e->format != VIDEO_WEBM) return;
  av_opt_set_int(c->priv_data, "cpu-used", 4, 0); /* of 0..8; twice the speed of the default */
  av_opt_set_int(c->priv_data, "row-mt", 1, 0);
}

/* The first encoder of the list that this machine has and that opens. */
static wan_status open_codec(core_ctx *ctx, av_encoder *e) {
  size_t n;
  const encoder_choice *list = choices(e->format, &n);
  int code = AVERROR_ENCODER_NOT_FOUND;
  for (size_t i = 0; i < n; i++) {
    const AVCodec *codec = avcodec_find_encoder_by_name(list[i].name);
    if (!codec) continue;
    if (!(e->codec = avcodec_alloc_context3(codec))) return av_fail(ctx, e, "encoder", AVERROR(ENOMEM));
    set_codec_options(e, &list[i]);
    if ((code = avcodec_open2(e->codec, codec, NULL)) >= 0) return WAN_OK;
    avcodec_free_context(&e->codec);
  }
  if (code != AVERROR_ENCODER_NOT_FOUND) return av_fail(ctx, e, "the encoder could not be opened", code);
  return core_fail(ctx, WAN_ERR_UNSUPPORTED, "%s: FFmpeg on this machine has no encoder for it (such as %s)",
                   e->file.path, list[0].name);
}

static wan_status open_muxer(core_ctx *ctx, av_encoder *e) {
  static const char *const names[] = {[VIDEO_MP4] = "mp4", [VIDEO_WEBM] = "webm", [VIDEO_GIF] = "gif"};
  char *url = core_asprintf(ctx, "file:%s", e->file.temp); /* no other protocol, whatever the name says */
  if (!url) return WAN_ERR_MEMORY;
  int code = avformat_alloc_output_context2(&e->muxer, NULL, names[e->format], url);
  if (code >= 0) code = avio_open(&e->muxer->pb, url, AVIO_FLAG_WRITE);
  core_free(ctx, url);
  if (code < 0) return av_fail(ctx, e, "can't open for writing", code);
  e->muxer->flags |= AVFMT_FLAG_BITEXACT;
  return WAN_OK;
}

static wan_status start_stream(core_ctx *ctx, av_encoder *e) {
  if (!(e->stream = avformat_new_stream(e->muxer, NULL))) return av_fail(ctx, e, "stream", AVERROR(ENOMEM));
  e->stream->time_base = e->codec->time_base;
  e->stream->avg_frame_rate = e->codec->framerate;
  int code = avcodec_parameters_from_context(e->stream->codecpar, e->codec);
  if (code < 0) return av_fail(ctx, e, "stream", code);
  AVDictionary *options = NULL;
  if (e->metadata && e->format != VIDEO_GIF)
    code = av_dict_set(&e->muxer->metadata, e->format == VIDEO_WEBM ? "COMMENT" : "comment", e->metadata, 0);
  if (code >= 0 && e->format == VIDEO_MP4) code = av_dict_set(&options, "movflags", "+faststart", 0);
  if (code >= 0) code = avformat_write_header(e->muxer, &options);
  av_dict_free(&options);
  e->started = code >= 0;
  return code < 0 ? av_fail(ctx, e, "can't write", code) : WAN_OK;
}

/* RGB -> BT.709 limited range. */
static wan_status open_scaler(core_ctx *ctx, av_encoder *e) {
  e->scaler =
      sws_getContext(e->width, e->height, AV_PIX_FMT_RGB24, e->width, e->height, AV_PIX_FMT_YUV420P,
                     SWS_BICUBIC | SWS_ACCURATE_RND | SWS_BITEXACT | SWS_FULL_CHR_H_INP, NULL, NULL, NULL);
  if (!e->scaler) return av_fail(ctx, e, "colour conversion", AVERROR(ENOMEM));
  const int *matrix = sws_getCoefficients(SWS_CS_ITU709);
  sws_setColorspaceDetails(e->scaler, matrix, 1, matrix, 0, 0, 1 << 16, 1 << 16);
  return WAN_OK;
}

/* GIF: 256 colours chosen anew for every frame, error diffusion. One palette for all would need all
 * frames in memory. */
static wan_status open_graph(core_ctx *ctx, av_encoder *e) {
  char source[128];
  snprintf(source, sizeof source, "video_size=%dx%d:pix_fmt=%d:time_base=%d/%d", e->width, e->height,
           (int)AV_PIX_FMT_RGB24, e->frame_time.num, e->frame_time.den);
  if (!(e->graph = avfilter_graph_alloc())) return av_fail(ctx, e, "palette", AVERROR(ENOMEM));
  e->graph->nb_threads = 1;
  AVFilterInOut *first = avfilter_inout_alloc(), *last = avfilter_inout_alloc();
  int code = first && last ? 0 : AVERROR(ENOMEM);
  if (code >= 0)
    code = avfilter_graph_create_filter(&e->graph_in, avfilter_get_by_name("buffer"), "in", source, NULL,
                                        e->graph);
  if (code >= 0)
    code = avfilter_graph_create_filter(&e->graph_out, avfilter_get_by_name("buffersink"), "out", NULL, NULL,
                                        e->graph);
  if (code >= 0) {
    *first = (AVFilterInOut){av_strdup("in"), e->graph_in, 0, NULL};
    *last = (AVFilterInOut){av_strdup("out"), e->graph_out, 0, NULL};
    code =
        avfilter_graph_parse_ptr(e->graph,
                                 "[in]split[a][b];[a]palettegen=stats_mode=single:reserve_transparent=0[p];"
                                 "[b][p]paletteuse=new=1:dither=sierra2_4a[out]",
                                 &last, &first, NULL);
  }
  if (code >= 0) code = avfilter_graph_config(e->graph, NULL);
  avfilter_inout_free(&first);
  avfilter_inout_free(&last);
  return code < 0 ? av_fail(ctx, e, "palette", code) : WAN_OK;
}

static wan_status open_frames(core_ctx *ctx, av_encoder *e) {
  e->packet = av_packet_alloc();
  e->picture = av_frame_alloc();
  e->source = av_frame_alloc();
  if (!e->packet || !e->picture || !e->source) return av_fail(ctx, e, "frame", AVERROR(ENOMEM));
  if (e->format == VIDEO_GIF) return open_graph(ctx, e);
  AVFrame *f = e->picture;
  f->format = AV_PIX_FMT_YUV420P;
  f->width = e->width;
  f->height = e->height;
  f->colorspace = e->codec->colorspace;
  f->color_primaries = e->codec->color_primaries;
  f->color_trc = e->codec->color_trc;
  f->color_range = e->codec->color_range;
  f->chroma_location = e->codec->chroma_sample_location;
  int code = av_frame_get_buffer(f, 0);
  return code < 0 ? av_fail(ctx, e, "frame", code) : open_scaler(ctx, e);
}

wan_status av_encoder_open(core_ctx *ctx, const video_params *params, av_encoder **out) {
  *out = NULL;
  quiet();
  av_encoder *e = core_calloc(ctx, 1, sizeof *e);
  if (!e) return WAN_ERR_MEMORY;
  e->format = params->format;
  e->width = params->width;
  e->height = params->height;
  e->crf = params->crf;
  e->frame_time = av_inv_q(av_d2q(params->fps, 100000));
  wan_status s = core_outfile_begin(ctx, params->path, &e->file);
  if (s == WAN_OK && params->metadata && !(e->metadata = core_strdup(ctx, params->metadata)))
    s = WAN_ERR_MEMORY;
  if (s == WAN_OK) s = open_muxer(ctx, e);
  if (s == WAN_OK) s = open_codec(ctx, e);
  if (s == WAN_OK) s = open_frames(ctx, e);
  if (s == WAN_OK) s = start_stream(ctx, e);
  if (s != WAN_OK) {
    av_encoder_close(ctx, e);
    return s;
  }
  *out = e;
  return WAN_OK;
}

/* Give the codec one frame (NULL: the end) and write the packets it has ready. */
static wan_status encode(core_ctx *ctx, av_encoder *e, const AVFrame *frame) {
  int code = avcodec_send_frame(e->codec, frame);
  if (code < 0) return av_fail(ctx, e, "the encoder refused a frame", code);
  for (;;) {
    code = avcodec_receive_packet(e->codec, e->packet);
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return WAN_OK;
    if (code < 0) return av_fail(ctx, e, "the encoder failed", code);
    if (!e->packet->duration) e->packet->duration = 1;
    av_packet_rescale_ts(e->packet, e->codec->time_base, e->stream->time_base);
    e->packet->stream_index = e->stream->index;
    code = av_interleaved_write_frame(e->muxer, e->packet);
    if (code >= 0) code = e->muxer->pb->error;
    if (code < 0) return av_fail(ctx, e, "can't write", code);
  }
}

static wan_status encode_yuv(core_ctx *ctx, av_encoder *e, const uint8_t *rgb) {
  int code = av_frame_make_writable(e->picture);
  if (code < 0) return av_fail(ctx, e, "frame", code);
  int stride = 3 * e->width;
  sws_scale(e->scaler, &rgb, &stride, 0, e->height, e->picture->data, e->picture->linesize);
  e->picture->pts = e->frames++;
  return encode(ctx, e, e->picture);
}

static wan_status drain_graph(core_ctx *ctx, av_encoder *e) {
  for (;;) {
    int code = av_buffersink_get_frame(e->graph_out, e->picture);
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return WAN_OK;
    if (code < 0) return av_fail(ctx, e, "palette", code);
    wan_status s = encode(ctx, e, e->picture);
    av_frame_unref(e->picture);
    if (s != WAN_OK) return s;
  }
}

static wan_status encode_gif(core_ctx *ctx, av_encoder *e, const uint8_t *rgb) {
  AVFrame *f = e->source;
  f->format = AV_PIX_FMT_RGB24;
  f->width = e->width;
  f->height = e->height;
  f->pts = e->frames++;
  int code = av_frame_get_buffer(f, 0);
  if (code < 0) return av_fail(ctx, e, "frame", code);
  size_t row = (size_t)e->width * 3;
  for (int y = 0; y < e->height; y++)
    memcpy(f->data[0] + (ptrdiff_t)y * f->linesize[0], rgb + (size_t)y * row, row);
  code = av_buffersrc_add_frame(e->graph_in, f); /* takes the reference */
  av_frame_unref(f);
  return code < 0 ? av_fail(ctx, e, "palette", code) : drain_graph(ctx, e);
}

wan_status av_encoder_frame(core_ctx *ctx, av_encoder *e, const uint8_t *rgb) {
  return e->format == VIDEO_GIF ? encode_gif(ctx, e, rgb) : encode_yuv(ctx, e, rgb);
}

static wan_status flush(core_ctx *ctx, av_encoder *e) {
  if (e->format == VIDEO_GIF) {
    int code = av_buffersrc_add_frame(e->graph_in, NULL);
    if (code < 0) return av_fail(ctx, e, "palette", code);
    CORE_TRY(drain_graph(ctx, e));
  }
  CORE_TRY(encode(ctx, e, NULL));
  e->started = false;
  int code = av_write_trailer(e->muxer);
  if (code >= 0) code = e->muxer->pb->error;
  int closed = avio_closep(&e->muxer->pb);
  if (code >= 0) code = closed;
  return code < 0 ? av_fail(ctx, e, "can't write", code) : WAN_OK;
}

wan_status av_encoder_finish(core_ctx *ctx, av_encoder *e) {
  if (!e->frames) return core_fail(ctx, WAN_ERR_ARGUMENT, "%s: a video without frames", e->file.path);
  CORE_TRY(flush(ctx, e));
  if (e->format == VIDEO_GIF && e->metadata)
    CORE_TRY(gif_append_comment(ctx, e->file.temp, e->file.path, e->metadata));
  return core_outfile_commit(ctx, &e->file);
}

void av_encoder_close(core_ctx *ctx, av_encoder *e) {
  /* FFmpeg 5.1's GIF muxer frees the packet that it holds back nowhere else. */
  if (e->started && e->format == VIDEO_GIF) av_write_trailer(e->muxer);
  if (e->muxer) avio_closep(&e->muxer->pb);
  avformat_free_context(e->muxer);
  avcodec_free_context(&e->codec);
  avfilter_graph_free(&e->graph);
  sws_freeContext(e->scaler);
  av_frame_free(&e->picture);
  av_frame_free(&e->source);
  av_packet_free(&e->packet);
  core_outfile_abort(ctx, &e->file);
  core_free(ctx, e->metadata);
  core_free(ctx, e);
}

#else

bool video_format_available(video_format format) {
#ifdef WAN_HAVE_IMAGES
  return format == VIDEO_PNG_SEQUENCE;
#else
  (void)format;
  return false;
#endif
}

wan_status av_encoder_open(core_ctx *ctx, const video_params *params, av_encoder **out) {
  *out = NULL;
  return core_fail(
      ctx, WAN_ERR_UNSUPPORTED,
      "%s: this build has no video support (FFmpeg's libraries are missing); a PNG sequence works",
      params->path);
}

/* Never reached: without a successful open there is no encoder. */
wan_status av_encoder_frame(core_ctx *ctx, av_encoder *e, const uint8_t *rgb) {
  (void)e, (void)rgb;
  return core_fail(ctx, WAN_ERR_UNSUPPORTED, "no video support");
}

wan_status av_encoder_finish(core_ctx *ctx, av_encoder *e) {
  (void)e;
  return core_fail(ctx, WAN_ERR_UNSUPPORTED, "no video support");
}

void av_encoder_close(core_ctx *ctx, av_encoder *e) {
  (void)ctx, (void)e;
}
#endif
