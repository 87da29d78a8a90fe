/* video_writer.c: frames go through a small ring to a thread that encodes them, so that encoding overlaps
 * the decoding of the next latents. The thread has a message buffer of its own (a core_ctx belongs to one
 * thread); its first failure is handed over at the next push or at finish. After a failure it keeps
 * emptying the ring, so that push never waits for a thread that has given up.
 */
#include "media/internal.h"

#include <math.h>
#include <pthread.h>
#include <string.h>
#include <strings.h>

/* Frames in flight. A decoder delivers them in bursts of four (one latent frame), so one burst fits
 * while the previous one is encoded: at 1280x704 that is 22 MB. */
enum { RING = 8 };

struct video_writer {
  core_ctx *ctx;
  size_t frame_bytes;
  uint8_t *ring; /* [RING][frame_bytes] */

  av_encoder *av; /* one of the two */
  png_sequence *png;

  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t filled, freed;
  int head, count; /* guarded by lock, as all below */
  bool closing, dropping;
  wan_status status;
  core_ctx worker; /* the thread's; its message is read once status is set */
};

static const struct {
  const char *ending;
  video_format format;
} endings[] = {{".mp4", VIDEO_MP4}, {".m4v", VIDEO_MP4},          {".webm", VIDEO_WEBM},
               {".gif", VIDEO_GIF}, {".png", VIDEO_PNG_SEQUENCE}, {"/", VIDEO_PNG_SEQUENCE}};

bool video_format_from_path(const char *path, video_format *out) {
  size_t n = strlen(path);
  for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
    size_t m = strlen(endings[i].ending);
    if (n < m || strcasecmp(path + n - m, endings[i].ending) != 0) continue;
    *out = endings[i].format;
    return true;
  }
  return false;
}

static wan_status encode(video_writer *w, const uint8_t *rgb) {
  return w->av ? av_encoder_frame(&w->worker, w->av, rgb) : png_sequence_frame(&w->worker, w->png, rgb);
}

static void *run(void *arg) {
  video_writer *w = arg;
  pthread_mutex_lock(&w->lock);
  for (;;) {
    while (!w->count && !w->closing) pthread_cond_wait(&w->filled, &w->lock);
    if (!w->count) break;
    const uint8_t *frame = w->ring + (size_t)w->head * w->frame_bytes;
    bool skip = w->dropping || w->status != WAN_OK;
    pthread_mutex_unlock(&w->lock);
    wan_status s = skip ? WAN_OK : encode(w, frame);
    pthread_mutex_lock(&w->lock);
    if (s != WAN_OK) w->status = s;
    w->head = (w->head + 1) % RING;
    w->count--;
    pthread_cond_signal(&w->freed);
  }
  pthread_mutex_unlock(&w->lock);
  return NULL;
}

static wan_status check_params(core_ctx *ctx, const video_params *p) {
  CORE_TRY(picture_check_size(ctx, p->path, p->width < 0 ? 0 : (uint64_t)p->width,
                              p->height < 0 ? 0 : (uint64_t)p->height));
  if (!(p->fps > 0) || p->fps > 1000)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%s: %g frames a second, expected more than 0 and up to 1000",
                     p->path, p->fps);
  int coarsest = p->format == VIDEO_WEBM ? 63 : 51; /* the scales of VP9 and AV1, and of H.264 */
  if (p->crf < -1 || p->crf > coarsest)
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%s: crf %d, expected 0 (best) to %d, or -1 for the default",
                     p->path, p->crf, coarsest);
  bool halved = p->format == VIDEO_MP4 || p->format == VIDEO_WEBM;
  if (halved && (p->width % 2 || p->height % 2))
    return core_fail(ctx, WAN_ERR_ARGUMENT,
                     "%s: %dx%d pixels, but this format stores colour at half size and needs even sides",
                     p->path, p->width, p->height);
  return WAN_OK;
}

static void writer_free(video_writer *w) {
  if (w->av) av_encoder_close(w->ctx, w->av);
  if (w->png) png_sequence_close(w->ctx, w->png);
  pthread_cond_destroy(&w->filled);
  pthread_cond_destroy(&w->freed);
  pthread_mutex_destroy(&w->lock);
  core_free(w->ctx, w->ring);
  core_free(w->ctx, w);
}

wan_status video_writer_open(core_ctx *ctx, const video_params *params, video_writer **out) {
  *out = NULL;
  CORE_TRY(check_params(ctx, params));
  video_writer *w = core_calloc(ctx, 1, sizeof *w);
  if (!w) return WAN_ERR_MEMORY;
  w->ctx = ctx;
  core_ctx_init(&w->worker);
  pthread_mutex_init(&w->lock, NULL);
  pthread_cond_init(&w->filled, NULL);
  pthread_cond_init(&w->freed, NULL);
  w->frame_bytes = (size_t)params->width * (size_t)params->height * 3;
  w->ring = core_calloc(ctx, RING, w->frame_bytes);
  wan_status s = w->ring ? WAN_OK : WAN_ERR_MEMORY;
  if (s == WAN_OK)
    s = params->format == VIDEO_PNG_SEQUENCE ? png_sequence_open(ctx, params, &w->png)
                                             : av_encoder_open(ctx, params, &w->av);
  if (s == WAN_OK && pthread_create(&w->thread, NULL, run, w) != 0)
    s = core_fail(ctx, WAN_ERR_MEMORY, "%s: the encoder's thread could not be started", params->path);
  if (s != WAN_OK) {
    writer_free(w);
    return s;
  }
  *out = w;
  return WAN_OK;
}

wan_status video_writer_push(video_writer *w, const uint8_t *rgb) {
  pthread_mutex_lock(&w->lock);
  while (w->count == RING && w->status == WAN_OK) pthread_cond_wait(&w->freed, &w->lock);
  wan_status s = w->status;
  int slot = (w->head + w->count) % RING;
  pthread_mutex_unlock(&w->lock);
  if (s != WAN_OK) return core_fail(w->ctx, s, "%s", w->worker.message);
  memcpy(w->ring + (size_t)slot * w->frame_bytes, rgb, w->frame_bytes); /* the slot is ours until counted */
  pthread_mutex_lock(&w->lock);
  w->count++;
  pthread_cond_signal(&w->filled);
  pthread_mutex_unlock(&w->lock);
  return WAN_OK;
}

/* Let the thread empty the ring (drop: without encoding) and end. */
static void join(video_writer *w, bool drop) {
  pthread_mutex_lock(&w->lock);
  w->closing = true;
  w->dropping = drop;
  pthread_cond_signal(&w->filled);
  pthread_mutex_unlock(&w->lock);
  pthread_join(w->thread, NULL);
}

wan_status video_writer_finish(video_writer *w) {
  join(w, false);
  core_ctx *ctx = w->ctx;
  wan_status s = w->status;
  if (s != WAN_OK) core_fail(ctx, s, "%s", w->worker.message);
  if (s == WAN_OK) s = w->av ? av_encoder_finish(ctx, w->av) : png_sequence_finish(ctx, w->png);
  writer_free(w);
  return s;
}

void video_writer_abort(video_writer *w) {
  if (!w) return;
  join(w, true);
  writer_free(w);
}
