/* http.c: the one place that knows libcurl. An address is shown without what may be secret in it; the key
 * goes to libcurl as a bearer token, which it does not pass on to another host. */
#define _GNU_SOURCE /* pthread_sigmask, strncasecmp */
#include "prompt/http.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool http_is_url(const char *text) {
  return strncasecmp(text, "http://", 7) == 0 || strncasecmp(text, "https://", 8) == 0;
}

const char *http_url_text(const char *url, char text[HTTP_URL_TEXT]) {
  const char *host = strstr(url, "://");
  host = host ? host + 3 : url;
  size_t scheme = (size_t)(host - url), authority = strcspn(host, "/?#");
  for (size_t i = 0; i < authority; i++)
    if (host[i] == '@') { /* the last one: a password may hold others */
      host += i + 1;
      authority -= i + 1;
      i = (size_t)-1;
    }
  size_t rest = strcspn(host, "?#"), used = 0;
  for (size_t i = 0; i < scheme + rest && used + 1 < HTTP_URL_TEXT; i++) {
    char c = i < scheme ? url[i] : host[i - scheme];
    text[used++] = (unsigned char)c < 0x20 || c == 0x7f ? '?' : c;
  }
  text[used] = 0;
  return text;
}

void http_response_free(core_ctx *ctx, http_response *r) {
  core_free(ctx, r->body);
  *r = (http_response){0};
}

#ifdef WAN_HAVE_CURL
#include <curl/curl.h>

typedef struct transfer {
  core_ctx *ctx;
  const http_request *request;
  http_response *response;
  size_t room;       /* bytes of body */
  wan_status status; /* why a callback stopped the transfer */
  char shown[HTTP_URL_TEXT];
} transfer;

static size_t on_data(char *data, size_t one, size_t n, void *user) {
  transfer *t = user;
  http_response *r = t->response;
  (void)one; /* always 1 */
  if (n > t->request->limit - r->size) {
    t->status = core_fail(t->ctx, WAN_ERR_NETWORK, "%s: the answer is larger than %zu bytes", t->shown,
                          t->request->limit);
    return 0;
  }
  if (r->size + n + 1 > t->room) {
    size_t room = t->room ? t->room : 16 << 10;
    while (room < r->size + n + 1) room *= 2;
    char *grown = core_realloc(t->ctx, r->body, room);
    if (!grown) {
      t->status = WAN_ERR_MEMORY;
      return 0;
    }
    r->body = grown;
    t->room = room;
  }
  memcpy(r->body + r->size, data, n);
  r->size += n;
  r->body[r->size] = 0;
  return n;
}

static int on_progress(void *user, curl_off_t down, curl_off_t down_now, curl_off_t up, curl_off_t up_now) {
  transfer *t = user;
  (void)down, (void)down_now, (void)up, (void)up_now;
  wan_status s = core_check_cancel(t->ctx);
  if (s != WAN_OK) t->status = s;
  return s != WAN_OK;
}

static void start_curl(void) {
  curl_global_init(CURL_GLOBAL_DEFAULT);
}

static CURLcode set_protocols(CURL *c, const char *url) {
  /* A redirect may lead from http to https, not back. */
  bool safe = strncasecmp(url, "https://", 8) == 0;
#if LIBCURL_VERSION_NUM >= 0x075500
  CURLcode e = curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
  return e ? e : curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, safe ? "https" : "http,https");
#else
  CURLcode e = curl_easy_setopt(c, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
  long after = safe ? CURLPROTO_HTTPS : CURLPROTO_HTTP | CURLPROTO_HTTPS;
  return e ? e : curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS, after);
#endif
}

#define SET(option, value) \
  if (!e) e = curl_easy_setopt(c, option, value)

static CURLcode set_options(CURL *c, transfer *t, struct curl_slist *headers, char *error) {
  const http_request *q = t->request;
  const char *authorities = getenv("SSL_CERT_FILE"); /* as for other programs on OpenSSL */
  CURLcode e = set_protocols(c, q->url);
  SET(CURLOPT_URL, q->url);
  SET(CURLOPT_ERRORBUFFER, error);
  SET(CURLOPT_NOSIGNAL, 1L);
  SET(CURLOPT_USERAGENT, "wan.c/" WAN_VERSION);
  SET(CURLOPT_CONNECTTIMEOUT_MS, q->timeout < 10 ? (long)(q->timeout * 1000) + 1 : 10000L);
  SET(CURLOPT_TIMEOUT_MS, (long)(q->timeout * 1000) + 1);
  SET(CURLOPT_FOLLOWLOCATION, q->redirects > 0 ? 1L : 0L);
  SET(CURLOPT_MAXREDIRS, (long)q->redirects);
  SET(CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)q->limit);
  SET(CURLOPT_WRITEFUNCTION, on_data);
  SET(CURLOPT_WRITEDATA, t);
  SET(CURLOPT_NOPROGRESS, 0L);
  SET(CURLOPT_XFERINFOFUNCTION, on_progress);
  SET(CURLOPT_XFERINFODATA, t);
  if (authorities && *authorities) SET(CURLOPT_CAINFO, authorities);
  if (headers) SET(CURLOPT_HTTPHEADER, headers);
  if (q->json) {
    SET(CURLOPT_POSTFIELDS, q->json);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(q->json));
  }
  if (q->key && *q->key) {
    SET(CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
    SET(CURLOPT_XOAUTH2_BEARER, q->key);
  }
  return e;
}

/* Worth another attempt: what a moment can change. A wrong certificate, a refused connection or an unknown
 * host stays what it is. */
static bool passing(CURLcode e) {
  return e == CURLE_OPERATION_TIMEDOUT || e == CURLE_PARTIAL_FILE || e == CURLE_GOT_NOTHING ||
         e == CURLE_SEND_ERROR || e == CURLE_RECV_ERROR || e == CURLE_HTTP2 || e == CURLE_HTTP2_STREAM;
}

/* OpenSSL writes without MSG_NOSIGNAL: a peer that hangs up must not end the process. */
static CURLcode perform_quietly(CURL *c) {
  sigset_t pipe, before, pending;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  sigpending(&pending);
  bool was_pending = sigismember(&pending, SIGPIPE) == 1;
  pthread_sigmask(SIG_BLOCK, &pipe, &before);
  CURLcode e = curl_easy_perform(c);
  int taken;
  if (!was_pending && sigpending(&pending) == 0 && sigismember(&pending, SIGPIPE) == 1)
    sigwait(&pipe, &taken);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return e;
}

static wan_status finish(transfer *t, CURL *c, CURLcode e, const char *error) {
  http_response *r = t->response;
  curl_off_t wait = 0;
  if (t->status != WAN_OK) return t->status;
  if (e == CURLE_FILESIZE_EXCEEDED)
    return core_fail(t->ctx, WAN_ERR_NETWORK, "%s: the answer is larger than %zu bytes", t->shown,
                     t->request->limit);
  if (e == CURLE_OUT_OF_MEMORY) return core_fail(t->ctx, WAN_ERR_MEMORY, "out of memory in libcurl");
  if (e) {
    r->again = passing(e);
    return core_fail(t->ctx, WAN_ERR_NETWORK, "%s: %s", t->shown, *error ? error : curl_easy_strerror(e));
  }
  curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &r->status);
  if (curl_easy_getinfo(c, CURLINFO_RETRY_AFTER, &wait) == CURLE_OK && wait > 0)
    r->retry_after = (double)wait;
  if (r->body) return WAN_OK;
  return (r->body = core_strdup(t->ctx, "")) ? WAN_OK : WAN_ERR_MEMORY;
}

wan_status http_perform(core_ctx *ctx, const http_request *request, http_response *out) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  transfer t = {.ctx = ctx, .request = request, .response = out};
  char error[CURL_ERROR_SIZE] = "";
  struct curl_slist *headers = NULL;
  *out = (http_response){0};
  http_url_text(request->url, t.shown);
  if (!http_is_url(request->url))
    return core_fail(ctx, WAN_ERR_ARGUMENT, "%s: an address that starts with http:// or https:// is needed",
                     t.shown);
  CORE_TRY(core_check_cancel(ctx));
  pthread_once(&once, start_curl);
  CURL *c = curl_easy_init();
  if (request->json) headers = curl_slist_append(NULL, "Content-Type: application/json; charset=utf-8");
  CURLcode e = c && (headers || !request->json) ? set_options(c, &t, headers, error) : CURLE_OUT_OF_MEMORY;
  if (!e) e = perform_quietly(c);
  wan_status s = finish(&t, c, e, error);
  if (s != WAN_OK) {
    bool again = out->again;
    http_response_free(ctx, out);
    out->again = again;
  }
  curl_slist_free_all(headers);
  curl_easy_cleanup(c);
  return s;
}

#else

wan_status http_perform(core_ctx *ctx, const http_request *request, http_response *out) {
  char shown[HTTP_URL_TEXT];
  *out = (http_response){0};
  return core_fail(ctx, WAN_ERR_UNSUPPORTED, "%s: this build has no libcurl and can't reach the network",
                   http_url_text(request->url, shown));
}

#endif
