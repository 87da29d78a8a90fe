/* protocol.c: DashScope's own protocol and the OpenAI chat-completions protocol. They say the same with other
 * names; answers are read leniently (a string, or a list of parts with text), because the many servers that
 * speak the second one differ there. */
#include "prompt/protocol.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

char *protocol_url(core_ctx *ctx, const question *q, const char *base) {
  const char *path = q->protocol == PROTOCOL_OPENAI ? "/chat/completions"
                     : q->picture                   ? "/services/aigc/multimodal-generation/generation"
                                                    : "/services/aigc/text-generation/generation";
  size_t n = strcspn(base, "?"), tail = strlen(path);
  const char *query = base + n; /* some services want a version there */
  while (n > 0 && base[n - 1] == '/') n--;
  if (n >= tail && memcmp(base + n - tail, path, tail) == 0) path = ""; /* the full address was given */
  return core_asprintf(ctx, "%.*s%s%s", (int)n, base, path, query);
}

/* ---- Requests ---- */

static json_t *openai_messages(const question *q) {
  if (!q->picture)
    return json_pack("[{s:s,s:s},{s:s,s:s}]", "role", "system", "content", q->system, "role", "user",
                     "content", q->user);
  /* Picture, then text: the order of the official local model. */
  return json_pack("[{s:s,s:s},{s:s,s:[{s:s,s:{s:s}},{s:s,s:s}]}]", "role", "system", "content", q->system,
                   "role", "user", "content", "type", "image_url", "image_url", "url", q->picture, "type",
                   "text", "text", q->user);
}

static json_t *openai_request(const question *q) {
  /* llama.cpp keeps 32 bits of a seed, OpenAI takes any integer. */
  json_t *o = json_pack("{s:s,s:o,s:I,s:b}", "model", q->model, "messages", openai_messages(q), "seed",
                        (json_int_t)(q->seed & 0x7fffffff), "stream", 0);
  if (o && q->max_tokens && json_object_set_new(o, "max_tokens", json_integer(q->max_tokens)) != 0) {
    json_decref(o);
    return NULL;
  }
  return o;
}

static json_t *dashscope_request(const question *q) {
  json_t *messages =
      q->picture ? json_pack("[{s:s,s:[{s:s}]},{s:s,s:[{s:s},{s:s}]}]", "role", "system", "content", "text",
                             q->system, "role", "user", "content", "text", q->user, "image", q->picture)
                 : json_pack("[{s:s,s:s},{s:s,s:s}]", "role", "system", "content", q->system, "role", "user",
                             "content", q->user);
  return json_pack("{s:s,s:{s:o},s:{s:I,s:s}}", "model", q->model, "input", "messages", messages,
                   "parameters", "seed", (json_int_t)q->seed, "result_format", "message");
}

wan_status protocol_request(core_ctx *ctx, const question *q, char **json) {
  json_t *o = q->protocol == PROTOCOL_OPENAI ? openai_request(q) : dashscope_request(q);
  char *text = o ? json_dumps(o, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
  *json = NULL;
  json_decref(o);
  if (!text)
    return core_fail(
        ctx, WAN_ERR_ARGUMENT,
        "the request can't be written as JSON: the prompt, the system prompt or the model's name is not "
        "valid UTF-8, or memory is short");
  *json = core_strdup(ctx, text);
  free(text);
  return *json ? WAN_OK : WAN_ERR_MEMORY;
}

/* ---- Answers ---- */

/* A string, or the texts of a list of parts, joined. NULL where there is none; *status tells of failure. */
static char *content_text(core_ctx *ctx, const json_t *content, wan_status *status) {
  if (json_is_string(content)) {
    char *copy = core_strdup(ctx, json_string_value(content));
    if (!copy) *status = WAN_ERR_MEMORY;
    return copy;
  }
  char *joined = NULL;
  size_t i;
  json_t *part;
  json_array_foreach(content, i, part) {
    const char *text = json_string_value(json_object_get(part, "text"));
    if (!text) continue;
    char *longer = core_asprintf(ctx, "%s%s", joined ? joined : "", text);
    core_free(ctx, joined);
    joined = longer;
    if (!joined) {
      *status = WAN_ERR_MEMORY;
      return NULL;
    }
  }
  return joined;
}

wan_status protocol_answer(core_ctx *ctx, protocol p, const char *body, size_t size, char **text) {
  json_error_t error;
  wan_status s = WAN_OK;
  *text = NULL;
  json_t *o = json_loadb(body, size, 0, &error);
  if (!o)
    return core_fail(ctx, WAN_ERR_FORMAT, "the answer is not JSON: %s at byte %d of %zu", error.text,
                     error.position, size);
  const char *where =
      p == PROTOCOL_OPENAI ? "choices[0].message.content" : "output.choices[0].message.content";
  json_t *holder = p == PROTOCOL_OPENAI ? o : json_object_get(o, "output");
  json_t *message = json_object_get(json_array_get(json_object_get(holder, "choices"), 0), "message");
  *text = content_text(ctx, json_object_get(message, "content"), &s);
  json_decref(o);
  if (s == WAN_OK && !*text) s = core_fail(ctx, WAN_ERR_FORMAT, "the answer has no text at %s", where);
  return s;
}

/* Copies n bytes of UTF-8 with a blank for each control character (C0, DEL, C1); to may be from or before it.
 * Returns the new length. */
static size_t copy_printable(const char *from, size_t n, char *to, const char *kept) {
  size_t used = 0;
  for (size_t i = 0; i < n; i++) {
    unsigned char c = (unsigned char)from[i], next = i + 1 < n ? (unsigned char)from[i + 1] : 0;
    bool c1 = c == 0xc2 && next >= 0x80 && next < 0xa0;
    bool control = c1 || ((c < 0x20 || c == 0x7f) && !(c && strchr(kept, c)));
    to[used++] = control ? ' ' : from[i];
    i += c1;
  }
  return used;
}

/* Length of `text` cut to at most `limit` bytes between two characters. */
static size_t cut_length(const char *text, size_t limit) {
  size_t n = strlen(text);
  if (n <= limit) return n;
  while (limit > 0 && ((unsigned char)text[limit] & 0xc0) == 0x80) limit--;
  return limit;
}

void protocol_reason(const char *body, size_t size, char *out, size_t out_size) {
  json_t *o = json_loadb(body, size, 0, NULL);
  json_t *error = json_object_get(o, "error");
  const json_t *candidates[] = {json_object_get(error, "message"), error, json_object_get(o, "message"),
                                json_object_get(o, "detail")};
  const char *text = NULL;
  for (int i = 0; i < 4 && !text; i++) text = json_string_value(candidates[i]);
  size_t n = text ? cut_length(text, out_size - 1) : 0;
  if (n) n = copy_printable(text, n, out, "");
  out[n] = 0;
  json_decref(o);
}

void protocol_tidy(char *text, size_t limit) {
  const char *from = text + strspn(text, " \t\r\n");
  if (strncmp(from, "<think>", 7) == 0) {
    const char *end = strstr(from, "</think>");
    from = end ? end + 8 : from + strlen(from); /* cut off while it was still thinking */
  }
  from += strspn(from, " \t\r\n");
  text[copy_printable(from, strlen(from), text, "\n\t")] = 0;
  size_t n = cut_length(text, limit);
  while (n > 0 && strchr(" \t\r\n", text[n - 1])) n--;
  text[n] = 0;
}
