/* bench_work.c: each stage is opened, run and closed as the pipeline does it, so that its time and memory are
 * those of a real run. Inputs are random and of the usual size: zeros run faster on some hardware. */
#include "pipeline/bench_work.h"

#include <math.h>

#include "dit/dit.h"
#include "text/text.h"
#include "vae/vae.h"

enum { PROMPT_ROWS = 128 }; /* of an ordinary prompt; attention to it costs next to nothing */

float *bench_random(core_ctx *ctx, int64_t n, uint64_t seed) {
  float *p = core_alloc(ctx, (size_t)n * sizeof *p);
  uint64_t state = seed;
  for (int64_t i = 0; p && i < n; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    p[i] = (float)(int32_t)(state >> 32) * (0x1p-31f * 1.7320508f);
  }
  return p;
}

typedef struct task {
  backend *be;
  const bench_work *w;
  uint64_t keep;
  bench_times *times;
  int runs;
  float *host;     /* inputs */
  uint64_t before; /* bytes held at the start */
} task;

/* Bytes of the memory that the backend works in. */
static uint64_t held(const backend *be) {
  return be->host_memory ? core_mem_current(be->ctx) : core_device_current(be->ctx);
}

static wan_status open_weights(task *t, weight_kind kind, weight_set **set) {
  core_ctx *ctx = t->be->ctx;
  return t->w->path ? weight_set_open(ctx, t->w->path, kind, set)
                    : bench_net_open(ctx, t->w->net, t->w->layers, set);
}

static wan_status repeat(task *t, wan_status (*body)(task *t, void *arg), void *arg) {
  for (int i = -1; i < t->runs; i++) {
    scope_mark mark = scope_begin(t->be);
    double start = core_now();
    wan_status s = body(t, arg);
    if (s == WAN_OK) s = backend_sync(t->be);
    scope_end(t->be, mark);
    CORE_TRY(s);
    if (i >= 0) t->times->seconds[i] = core_now() - start;
    CORE_TRY(core_check_cancel(t->be->ctx));
  }
  return WAN_OK;
}

/* Sides in latent pixels; the transformer's patches take two of them. */
static wan_status latent_size(task *t, int stride, int patch, int64_t *T, int64_t *h, int64_t *w) {
  const bench_work *k = t->w;
  const int step = stride * patch;
  if (k->width < step || k->height < step || k->width % step || k->height % step || k->frames < 1 ||
      k->frames % 4 != 1)
    return core_fail(
        t->be->ctx, WAN_ERR_ARGUMENT,
        "%dx%d, %d frames: sides must be multiples of %d and frames one more than a multiple of 4", k->width,
        k->height, k->frames, step);
  *T = (k->frames - 1) / 4 + 1;
  *h = k->height / stride;
  *w = k->width / stride;
  return WAN_OK;
}

/* ---- Transformer ---- */

typedef struct dit_task {
  dit *d;
  dit_text *text;
  tensor x, v; /* F32 [T, h, w, channels] */
} dit_task;

static wan_status pass(task *t, void *arg) {
  dit_task *k = arg;
  const float time = 500;
  (void)t;
  return dit_forward(k->d, k->x, (dit_timesteps){&time, 1}, 1, &k->text, &k->v, NULL);
}

static wan_status prepare_dit(task *t, dit_task *k) {
  backend *be = t->be;
  const dit_config *c = dit_get_config(k->d);
  int64_t T, h, w;
  CORE_TRY(latent_size(t, c->out_dim == 48 ? 16 : 8, 2, &T, &h, &w));
  t->times->tokens = T * (h / 2) * (w / 2);
  t->times->layers = c->layers;
  k->x = TENSOR_NEW(be, DT_F32, T, h, w, c->in_dim);
  k->v = TENSOR_NEW(be, DT_F32, T, h, w, c->out_dim);
  const int64_t rows = PROMPT_ROWS < c->text_len ? PROMPT_ROWS : c->text_len;
  const int64_t latent = tensor_count(&k->x), prompt = rows * c->text_dim;
  if (!(t->host = bench_random(be->ctx, latent > prompt ? latent : prompt, 1))) return WAN_ERR_MEMORY;
  tensor_upload(be, k->x, t->host);
  CORE_TRY(dit_text_create(k->d, TENSOR_OF(DT_F32, t->host, rows, c->text_dim), &k->text));
  return backend_sync(be);
}

static wan_status run_dit(task *t) {
  dit_task k = {0};
  weight_set *set;
  wan_status s = WAN_OK;
  if (t->w->path) { /* with its config.json */
    s = dit_open(t->be, t->w->path, t->keep, &k.d);
  } else {
    CORE_TRY(open_weights(t, WEIGHTS_DIT, &set));
    s = dit_open_set(t->be, set, t->keep, &k.d);
  }
  scope_mark mark = scope_begin(t->be);
  if (s == WAN_OK) s = prepare_dit(t, &k);
  if (s == WAN_OK) s = repeat(t, pass, &k);
  t->times->weights = held(t->be) - t->before;
  dit_text_free(k.text);
  scope_end(t->be, mark);
  dit_close(k.d);
  return s;
}

/* ---- Autoencoder ---- */

typedef struct vae_task {
  vae *v;
  int64_t T, h, w; /* of the latent */
} vae_task;

static wan_status decode(task *t, void *arg) {
  vae_task *k = arg;
  backend *be = t->be;
  const int64_t z = vae_get_info(k->v).z, frame = k->h * k->w * z;
  vae_decoder *d;
  CORE_TRY(vae_decoder_open(k->v, k->h, k->w, &d));
  wan_status s = WAN_OK;
  for (int64_t i = 0; i < k->T && s == WAN_OK; i++) {
    scope_mark mark = scope_begin(be);
    tensor x = TENSOR_NEW(be, DT_F32, 1, k->h, k->w, z), frames;
    tensor_upload(be, x, t->host + i * frame);
    s = vae_decoder_push(d, x, &frames);
    scope_end(be, mark);
  }
  vae_decoder_close(d);
  return s;
}

static wan_status encode(task *t, void *arg) {
  vae_task *k = arg;
  backend *be = t->be;
  const int64_t H = t->w->height, W = t->w->width;
  vae_encoder *e;
  CORE_TRY(vae_encoder_open(k->v, H, W, &e));
  wan_status s = WAN_OK;
  for (int64_t f = 0; f < t->w->frames && s == WAN_OK; f += f ? 4 : 1) {
    scope_mark mark = scope_begin(be);
    tensor x = TENSOR_NEW(be, DT_F32, f ? 4 : 1, H, W, 3), latent;
    tensor_upload(be, x, t->host); /* the same four pictures again: the network does not mind */
    s = vae_encoder_push(e, x, &latent);
    scope_end(be, mark);
  }
  vae_encoder_close(e);
  return s;
}

static wan_status run_vae(task *t) {
  const bool decoding = t->w->kind == BENCH_DECODE;
  vae_task k = {0};
  weight_set *set;
  CORE_TRY(open_weights(t, WEIGHTS_VAE, &set));
  wan_status s = vae_open_set(t->be, set, t->keep, &k.v);
  vae_info info = {0};
  if (s == WAN_OK) {
    info = vae_get_info(k.v);
    s = latent_size(t, info.spatial_stride, 1, &k.T, &k.h, &k.w);
  }
  const int64_t values = decoding ? k.T * k.h * k.w * info.z : 4 * (int64_t)t->w->height * t->w->width * 3;
  if (s == WAN_OK && !(t->host = bench_random(t->be->ctx, values, 1))) s = WAN_ERR_MEMORY;
  for (int64_t i = 0; s == WAN_OK && !decoding && i < values; i++) t->host[i] *= 0.57f; /* pixels: -1..1 */
  if (s == WAN_OK) s = repeat(t, decoding ? decode : encode, &k);
  t->times->weights = held(t->be) - t->before;
  vae_close(k.v);
  return s;
}

/* ---- Text encoder ---- */

typedef struct text_task {
  umt5 *u;
  int32_t ids[TEXT_MAX_TOKENS];
} text_task;

static wan_status encode_text(task *t, void *arg) {
  text_task *k = arg;
  return umt5_encode(k->u, k->ids, t->w->tokens, t->host, NULL, NULL);
}

static wan_status run_text(task *t) {
  text_task k = {0};
  weight_set *set;
  if (t->w->tokens < 1 || t->w->tokens > TEXT_MAX_TOKENS)
    return core_fail(t->be->ctx, WAN_ERR_ARGUMENT, "%d tokens: 1 to %d are possible", t->w->tokens,
                     TEXT_MAX_TOKENS);
  t->times->tokens = t->w->tokens;
  CORE_TRY(open_weights(t, WEIGHTS_TEXT, &set));
  wan_status s = umt5_open_set(t->be, set, t->keep, &k.u);
  if (s == WAN_OK) t->times->layers = umt5_layers(k.u);
  for (int i = 0; s == WAN_OK && i < t->w->tokens; i++) k.ids[i] = (int32_t)(i * 7919 % umt5_vocab(k.u));
  if (s == WAN_OK &&
      !(t->host = core_calloc(t->be->ctx, (size_t)(t->w->tokens * umt5_dim(k.u)), sizeof(float))))
    s = WAN_ERR_MEMORY;
  if (s == WAN_OK) s = repeat(t, encode_text, &k);
  t->times->weights = held(t->be) - t->before;
  umt5_close(k.u);
  return s;
}

wan_status bench_work_run(backend *be, const bench_work *w, uint64_t keep, int runs, bench_times *out) {
  *out = (bench_times){0};
  task t = {.be = be, .w = w, .keep = keep, .times = out, .runs = runs, .before = held(be)};
  wan_status s = WAN_OK;
  switch (w->kind) {
  case BENCH_DIT:
    s = run_dit(&t);
    break;
  case BENCH_DECODE:
  case BENCH_ENCODE:
    s = run_vae(&t);
    break;
  case BENCH_TEXT:
    s = run_text(&t);
    break;
  }
  core_free(be->ctx, t.host);
  return s;
}
