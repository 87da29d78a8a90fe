/* http.h: one request over HTTP(S), through libcurl. Only http:// and https://, certificates checked, a proxy
 * from the environment (http_proxy, https_proxy, all_proxy, no_proxy), a limit on what is read, cancellable.
 */
#ifndef WAN_PROMPT_HTTP_H
#define WAN_PROMPT_HTTP_H

#include "core/ctx.h"

typedef struct http_request {
  const char *url;
  const char *key;  /* sent as a bearer token, never to another host; NULL or "": none */
  const char *json; /* body of a POST; NULL: a GET */
  size_t limit;     /* most bytes of an answer */
  int redirects;    /* how many are followed; 0: none */
  double timeout;   /* seconds */
} http_request;

typedef struct http_response {
  long status;
  char *body; /* NUL-terminated, core_free; any bytes */
  size_t size;
  double retry_after; /* seconds the server asks for; 0: it does not say */
  bool again;         /* after a failure: another attempt may succeed */
} http_response;

/* Any HTTP status is a success here. WAN_ERR_NETWORK otherwise, its message names the address. */
wan_status http_perform(core_ctx *ctx, const http_request *request, http_response *out);
void http_response_free(core_ctx *ctx, http_response *r);

/* http:// or https://? */
bool http_is_url(const char *text);
/* The address as it may be shown: without user, password and query. */
enum { HTTP_URL_TEXT = 256 };
const char *http_url_text(const char *url, char text[HTTP_URL_TEXT]);

#endif
