/* extend.c: one extension from request to record. The steps: settle what the caller left open, turn the
 * picture into a data URL of the size the service wants, ask (again where that can help), read the answer.
 * Whatever happens, the record tells what was used and how it ended. The key is overwritten in everything
 * that the service sends back before anyone reads it. */
#define _GNU_SOURCE /* nanosleep */
#include "prompt/extend.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/rng.h"
#include "prompt/base64.h"
#include "prompt/http.h"
#include "prompt/protocol.h"
#include "prompt/vision.h"

static const char DASHSCOPE_URL[] = "https://dashscope.aliyuncs.com/api/v1";
static const char LOCAL_URL[] = "http://127.0.0.1:8080/v1";
static const double TIMEOUT_SECONDS = 180, BACKOFF_SECONDS = 0.5;
enum {
  ATTEMPTS = 4,               /* as the official code makes */
  ANSWER_MAX = 1 << 20,       /* bytes */
  LOCAL_TOKENS = 512,         /* the official limit for local models */
  DASHSCOPE_AREA = 512 * 512, /* pixels, the official limit */
  KEY_MIN = 8                 /* shorter ones are placeholders, not secrets to be blotted out */
};
/* What the official processor of the local vision model is given: 256 and 1280 tokens of 28 x 28. */
static const double LOCAL_MIN_PIXELS = 256 * 28 * 28, LOCAL_MAX_PIXELS = 1280 * 28 * 28;

typedef struct extension {
  core_ctx *ctx;
  const wan_extend_params *p;
  question q;
  const char *base, *key;
  char *key_copy, *picture, *url, *body; /* core_free */
  double deadline;
} extension;

/* ---- What is asked, and whom ---- */

/* Names that the official command line knows for published models. */
static const char *full_model_name(const char *name) {
  static const char *const names[][2] = {{"QwenVL2.5_3B", "Qwen/Qwen2.5-VL-3B-Instruct"},
                                         {"QwenVL2.5_7B", "Qwen/Qwen2.5-VL-7B-Instruct"},
                                         {"Qwen2.5_3B", "Qwen/Qwen2.5-3B-Instruct"},
                                         {"Qwen2.5_7B", "Qwen/Qwen2.5-7B-Instruct"},
                                         {"Qwen2.5_14B", "Qwen/Qwen2.5-14B-Instruct"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(name, names[i][0]) == 0) return names[i][1];
  return name;
}

static bool has_picture(const wan_extend_params *p) {
  return p->image || p->pixels.rgb;
}

static wan_status choose_service(extension *e) {
  const wan_extend_params *p = e->p;
  const char *model = p->model, *base = p->url;
  bool seen = has_picture(p);
  switch (p->method) {
  case WAN_EXTEND_DASHSCOPE:
    e->q.protocol = PROTOCOL_DASHSCOPE;
    if (!model) model = seen ? "qwen-vl-max" : "qwen-plus";
    if (!base) base = getenv("DASH_API_URL");
    if (!base || !*base) base = DASHSCOPE_URL;
    break;
  case WAN_EXTEND_LOCAL_QWEN:
    e->q.protocol = PROTOCOL_OPENAI;
    e->q.max_tokens = LOCAL_TOKENS;
    model = full_model_name(model ? model : seen ? "QwenVL2.5_7B" : "Qwen2.5_14B");
    if (!base) base = LOCAL_URL;
    break;
  case WAN_EXTEND_OPENAI:
    e->q.protocol = PROTOCOL_OPENAI;
    if (!model || !base)
      return core_fail(e->ctx, WAN_ERR_ARGUMENT, "the OpenAI protocol needs %s",
                       base ? "the name of a model" : "the address of a service (such as https://HOST/v1)");
    break;
  default:
    return core_fail(e->ctx, WAN_ERR_ARGUMENT, "there is no extension method %d", (int)p->method);
  }
  e->q.model = model;
  e->base = base;
  return WAN_OK;
}

static wan_status choose_key(extension *e) {
  bool dashscope = e->p->method == WAN_EXTEND_DASHSCOPE;
  const char *variable = dashscope ? "DASH_API_KEY" : "WAN_EXTEND_KEY";
  const char *key = e->p->key ? e->p->key : getenv(variable);
  if (!key) key = "";
  size_t n = strlen(key);
  while (n > 0 && strchr(" \t\r\n", key[n - 1])) n--; /* as files and pasted lines end */
  for (size_t i = 0; i < n; i++)
    if (key[i] <= 0x20 || key[i] >= 0x7f)
      return core_fail(e->ctx, WAN_ERR_ARGUMENT,
                       "the key in %s has a character that no key has, at position %zu", variable, i);
  if (n == 0 && dashscope)
    return core_fail(e->ctx, WAN_ERR_ARGUMENT, "DashScope needs a key: set the environment variable %s",
                     variable);
  e->key = e->key_copy = core_asprintf(e->ctx, "%.*s", (int)n, key);
  return e->key ? WAN_OK : WAN_ERR_MEMORY;
}

/* ---- The picture ---- */

/* The size that each service's official client sends. */
static wan_status picture_size(extension *e, const picture *p, int *width, int *height) {
  if (e->q.protocol == PROTOCOL_OPENAI)
    return vision_smart_resize(e->ctx, p->width, p->height, 0, LOCAL_MIN_PIXELS, LOCAL_MAX_PIXELS, width,
                               height);
  double area = fmin((double)p->width * p->height, DASHSCOPE_AREA), aspect = (double)p->height / p->width;
  *height = (int)fmax(rint(sqrt(area * aspect)), 1);
  *width = (int)fmax(rint(sqrt(area / aspect)), 1);
  return WAN_OK;
}

static wan_status load_picture(extension *e, picture *out) {
  const wan_image *given = &e->p->pixels;
  wan_vision_params v = {.size = sizeof v, .allow_remote = e->p->allow_remote, .no_exif = e->p->no_exif};
  if (e->p->image) return vision_source(e->ctx, e->p->image, &v, out);
  if (given->width < 1 || given->height < 1 || given->width > 1 << 14 || given->height > 1 << 14)
    return core_fail(e->ctx, WAN_ERR_ARGUMENT,
                     "the given picture is %dx%d, 1 to %d pixels a side are possible", given->width,
                     given->height, 1 << 14);
  size_t bytes = (size_t)given->width * (size_t)given->height * 3;
  *out = (picture){given->width, given->height, core_alloc(e->ctx, bytes)};
  if (!out->rgb) return WAN_ERR_MEMORY;
  memcpy(out->rgb, given->rgb, bytes);
  return WAN_OK;
}

static wan_status encode_picture(extension *e) {
  static const char prefix[] = "data:image/png;base64,";
  picture whole = {0}, small = {0};
  uint8_t *png = NULL;
  size_t size = 0;
  int width, height;
  wan_status s = load_picture(e, &whole);
  if (s == WAN_OK) s = picture_size(e, &whole, &width, &height);
  if (s == WAN_OK) s = picture_resize(e->ctx, &whole, width, height, RESIZE_BICUBIC, &small);
  if (s == WAN_OK) s = picture_encode_png(e->ctx, small.width, small.height, small.rgb, &png, &size);
  if (s == WAN_OK && !(e->picture = core_alloc(e->ctx, sizeof prefix + base64_length(size))))
    s = WAN_ERR_MEMORY;
  if (s == WAN_OK) {
    memcpy(e->picture, prefix, sizeof prefix - 1);
    base64_encode(png, size, e->picture + sizeof prefix - 1);
    e->q.picture = e->picture;
  }
  core_free(e->ctx, png);
  picture_free(e->ctx, &small);
  picture_free(e->ctx, &whole);
  return s;
}

static wan_status prepare(extension *e) {
  const wan_extend_params *p = e->p;
  if (!*e->q.user && !has_picture(p))
    return core_fail(e->ctx, WAN_ERR_ARGUMENT, "there is nothing to extend: a prompt or a picture is needed");
  CORE_TRY(choose_service(e));
  CORE_TRY(choose_key(e));
  if (has_picture(p)) CORE_TRY(encode_picture(e));
  CORE_TRY(protocol_request(e->ctx, &e->q, &e->body));
  e->url = protocol_url(e->ctx, &e->q, e->base);
  return e->url ? WAN_OK : WAN_ERR_MEMORY;
}

/* ---- Asking ---- */

static void blot_out(char *body, size_t size, const char *key) {
  size_t n = strlen(key);
  if (n < KEY_MIN || size < n) return;
  for (size_t i = 0; i + n <= size; i++)
    if (memcmp(body + i, key, n) == 0) memset(body + i, '*', n);
}

static wan_status refused(extension *e, const http_response *r) {
  char reason[512], shown[HTTP_URL_TEXT];
  http_url_text(e->url, shown);
  protocol_reason(r->body, r->size, reason, sizeof reason);
  const char *hint = *reason                                ? ""
                     : r->status == 401 || r->status == 403 ? "the key is not accepted"
                     : r->status == 404     ? "there is no such service or model at this address"
                     : r->status / 100 == 3 ? "the address leads elsewhere, which is not followed with a key"
                                            : "no reason given";
  return core_fail(e->ctx, WAN_ERR_NETWORK, "%s: HTTP status %ld: %s%s", shown, r->status, reason, hint);
}

static wan_status pause_for(core_ctx *ctx, double seconds) {
  for (double end = core_now() + seconds; core_now() < end;) {
    CORE_TRY(core_check_cancel(ctx));
    double left = fmin(end - core_now(), 0.05);
    if (left > 0) nanosleep(&(struct timespec){0, (long)(left * 1e9)}, NULL);
  }
  return core_check_cancel(ctx);
}

/* One attempt. *again: another may succeed, after *wait seconds at least. */
static wan_status ask_once(extension *e, http_response *r, bool *again, double *wait) {
  http_request q = {.url = e->url,
                    .key = e->key,
                    .json = e->body,
                    .limit = ANSWER_MAX,
                    .timeout = fmax(e->deadline - core_now(), 0.001)};
  wan_status s = http_perform(e->ctx, &q, r);
  *again = s != WAN_OK && r->again;
  if (s != WAN_OK) return s;
  blot_out(r->body, r->size, e->key);
  if (r->status == 200) return WAN_OK;
  *again = r->status == 408 || r->status == 429 || r->status / 100 == 5;
  if (r->retry_after > *wait) *wait = r->retry_after;
  s = refused(e, r);
  http_response_free(e->ctx, r);
  return s;
}

static wan_status ask(extension *e, http_response *r) {
  int attempts = e->p->attempts > 0 ? e->p->attempts : ATTEMPTS;
  for (int i = 1;; i++) {
    bool again;
    double wait = BACKOFF_SECONDS * ldexp(1, i < 8 ? i - 1 : 7);
    wan_status s = ask_once(e, r, &again, &wait);
    if (s == WAN_OK || !again) return s;
    if (i >= attempts || core_now() + wait >= e->deadline)
      return core_prefix(e->ctx, s, i > 1 ? "after %d attempts" : "after %d attempt", i);
    core_log(e->ctx, WAN_LOG_INFO, "%s; trying again in %.1f s", e->ctx->message, wait);
    CORE_TRY(pause_for(e->ctx, wait));
  }
}

/* The official client shows line breaks in a picture's answer as the two characters \n; cleaning would make
 * blanks of real ones. */
static char *spell_breaks(core_ctx *ctx, const char *text) {
  size_t n = 0;
  for (const char *c = text; *c; c++) n += *c == '\n';
  char *out = core_alloc(ctx, strlen(text) + n + 1), *to = out;
  if (!out) return NULL;
  for (const char *c = text; *c; c++) {
    if (*c == '\n') *to++ = '\\';
    *to++ = *c == '\n' ? 'n' : *c;
  }
  *to = 0;
  return out;
}

static wan_status read_answer(extension *e, const http_response *r, wan_extend_result *out) {
  char *text = NULL, *spelled = NULL, shown[HTTP_URL_TEXT];
  wan_status s = protocol_answer(e->ctx, e->q.protocol, r->body, r->size, &text);
  if (s == WAN_OK) {
    protocol_tidy(text, EXTEND_PROMPT_MAX);
    if (!*text) s = core_fail(e->ctx, WAN_ERR_FORMAT, "the answer is empty");
  }
  if (s == WAN_ERR_FORMAT) core_prefix(e->ctx, s, "%s", http_url_text(e->url, shown));
  if (s == WAN_OK && e->q.protocol == PROTOCOL_DASHSCOPE && e->q.picture) {
    spelled = spell_breaks(e->ctx, text);
    if (!spelled) s = WAN_ERR_MEMORY;
  }
  if (s == WAN_OK) {
    char *prompt = core_strdup(NULL, spelled ? spelled : text);
    out->message = core_strdup(NULL, r->body);
    if (prompt) {
      core_free(NULL, out->prompt);
      out->prompt = prompt;
    }
    if (!prompt || !out->message) s = core_fail(e->ctx, WAN_ERR_MEMORY, "out of memory");
  }
  core_free(e->ctx, spelled);
  core_free(e->ctx, text);
  return s;
}

/* ---- The record ---- */

static wan_status begin_record(extension *e, wan_extend_result *out) {
  const wan_extend_params *p = e->p;
  e->q.user = p->prompt ? p->prompt : "";
  e->q.system = p->system_prompt ? p->system_prompt
                                 : extend_system_prompt(p->family, p->language, *e->q.user, has_picture(p));
  e->q.seed = p->seed >= 0 ? p->seed : (int64_t)rng_random_seed();
  out->seed = e->q.seed;
  out->prompt = core_strdup(NULL, e->q.user);
  out->system_prompt = core_strdup(NULL, e->q.system);
  return out->prompt && out->system_prompt ? WAN_OK : core_fail(e->ctx, WAN_ERR_MEMORY, "out of memory");
}

wan_status extend_prompt(core_ctx *ctx, const wan_extend_params *p, wan_extend_result *out) {
  extension e = {
      .ctx = ctx, .p = p, .deadline = core_now() + (p->timeout > 0 ? p->timeout : TIMEOUT_SECONDS)};
  http_response r = {0};
  wan_status s = begin_record(&e, out);
  if (s == WAN_OK) s = prepare(&e);
  if (e.q.model && !(out->model = core_strdup(NULL, e.q.model)) && s == WAN_OK)
    s = core_fail(ctx, WAN_ERR_MEMORY, "out of memory");
  if (s == WAN_OK) s = ask(&e, &r);
  if (s == WAN_OK) s = read_answer(&e, &r, out);
  out->status = s == WAN_OK;
  if (s != WAN_OK) {
    core_free(NULL, out->message);
    out->message = core_strdup(NULL, ctx->message); /* NULL only where nothing can be helped */
  }
  http_response_free(ctx, &r);
  core_free(ctx, e.url);
  core_free(ctx, e.body);
  core_free(ctx, e.picture);
  core_free(ctx, e.key_copy);
  return s;
}

void extend_result_free(wan_extend_result *r) {
  core_free(NULL, r->prompt);
  core_free(NULL, r->system_prompt);
  core_free(NULL, r->message);
  core_free(NULL, r->model);
  *r = (wan_extend_result){.size = r->size};
}

wan_status extend_result_json(core_ctx *ctx, const wan_extend_result *r, char **json) {
  json_t *o = json_pack("{s:b, s:s*, s:I, s:s*, s:s*, s:s*}", "status", r->status, "prompt", r->prompt,
                        "seed", (json_int_t)r->seed, "system_prompt", r->system_prompt, "message", r->message,
                        "model", r->model);
  char *text = o ? json_dumps(o, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
  *json = NULL;
  json_decref(o);
  if (!text)
    return core_fail(ctx, WAN_ERR_ARGUMENT,
                     "the record can't be written as JSON: the prompt is not valid UTF-8");
  *json = core_strdup(ctx, text);
  free(text);
  return *json ? WAN_OK : WAN_ERR_MEMORY;
}
