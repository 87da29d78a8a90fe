/* added_tokens.c: the three files in which a Hugging Face tokenizer folder may list such tokens. Of
 * tokenizer.json, 17 MB because of its vocabulary, only the list itself is parsed. */
#define _GNU_SOURCE /* memmem */
#include "text/added_tokens.h"

#include "core/file.h"
#include "text/unicode.h"

#include <jansson.h>
#include <string.h>
#include <utf8proc.h>

/* Sizes that no file of this kind reaches; larger ones are refused. */
enum { JSON_BYTES_MAX = 16 << 20, TOKENS_MAX = 65536, TOKEN_BYTES_MAX = 1024 };

void added_tokens_free(core_ctx *ctx, added_tokens *list) {
  for (int i = 0; i < list->count; i++) core_free(ctx, list->item[i].text);
  core_free(ctx, list->item);
  *list = (added_tokens){0};
}

static bool is_known(const added_tokens *list, const char *text) {
  for (int i = 0; i < list->count; i++)
    if (strcmp(list->item[i].text, text) == 0) return true;
  return false;
}

wan_status added_tokens_put(core_ctx *ctx, added_tokens *list, added_token token) {
  token.size = strlen(token.text);
  if (is_known(list, token.text)) return WAN_OK;
  if (!token.size || token.size > TOKEN_BYTES_MAX || token.id < 0 || list->count >= TOKENS_MAX)
    return core_fail(ctx, WAN_ERR_FORMAT, "added token '%.60s' with id %d is not usable", token.text,
                     (int)token.id);
  if ((list->count & (list->count - 1)) == 0) { /* room is the next power of two */
    size_t room = list->count ? 2 * (size_t)list->count : 1;
    added_token *more = core_realloc(ctx, list->item, room * sizeof *more);
    if (!more) return WAN_ERR_MEMORY;
    list->item = more;
  }
  if (!(token.text = core_strdup(ctx, token.text))) return WAN_ERR_MEMORY;
  list->item[list->count++] = token;
  return WAN_OK;
}

/* entry: {"content": .., "lstrip": ..} or just the text. id < 0: ask id_of; unknown there: no token. */
static wan_status put_json(core_ctx *ctx, added_tokens *list, const json_t *entry, json_int_t id,
                           added_token_id id_of, void *user) {
  const json_t *content = json_is_object(entry) ? json_object_get(entry, "content") : entry;
  const char *text = json_string_value(content);
  if (!text || strlen(text) != json_string_length(content))
    return core_fail(ctx, WAN_ERR_FORMAT, "an added token without text");
  if (is_known(list, text)) return WAN_OK;
  added_token token = {.text = (char *)(uintptr_t)text,
                       .eats_left = json_is_true(json_object_get(entry, "lstrip")),
                       .eats_right = json_is_true(json_object_get(entry, "rstrip")),
                       .single_word = json_is_true(json_object_get(entry, "single_word"))};
  if (id > INT32_MAX) return core_fail(ctx, WAN_ERR_FORMAT, "added token '%.60s' with a huge id", text);
  token.id = id < 0 ? id_of(user, text) : (int32_t)id;
  return token.id < 0 ? WAN_OK : added_tokens_put(ctx, list, token);
}

/* [{"id": 0, "content": "<pad>", ..}, ..] */
static wan_status from_tokenizer_json(core_ctx *ctx, added_tokens *list, const char *path) {
  static const char key[] = "\"added_tokens\"";
  core_map map;
  CORE_TRY(core_map_open(ctx, path, &map));
  const char *at = map.size ? memmem(map.data, map.size, key, sizeof key - 1) : NULL;
  wan_status s = WAN_OK;
  json_t *array = NULL;
  if (!at) goto done; /* a tokenizer without added tokens */
  const char *end = (const char *)map.data + map.size;
  for (at += sizeof key - 1; at < end && strchr(" \t\r\n:", *at); at++) {
  }
  json_error_t error;
  array = json_loadb(at, (size_t)(end - at), JSON_DISABLE_EOF_CHECK, &error);
  if (!json_is_array(array)) {
    s = core_fail(ctx, WAN_ERR_FORMAT, "%s: its \"added_tokens\" can't be read: %s", path,
                  array ? "not a list" : error.text);
    goto done;
  }
  size_t i;
  json_t *entry;
  json_array_foreach(array, i, entry) {
    const json_t *id = json_object_get(entry, "id");
    s = json_is_integer(id) ? put_json(ctx, list, entry, json_integer_value(id), NULL, NULL)
                            : core_fail(ctx, WAN_ERR_FORMAT, "added token %zu without an id", i);
    if (s == WAN_OK) continue;
    core_prefix(ctx, s, "%s", path);
    break;
  }
done:
  json_decref(array);
  core_map_close(&map);
  return s;
}

static wan_status load_object(core_ctx *ctx, const char *path, json_t **out) {
  char *text;
  size_t size;
  json_error_t error;
  CORE_TRY(core_read_text(ctx, path, JSON_BYTES_MAX, &text, &size));
  *out = json_loadb(text, size, 0, &error);
  core_free(ctx, text);
  if (json_is_object(*out)) return WAN_OK;
  wan_status s = core_fail(ctx, WAN_ERR_FORMAT, "%s: not a JSON object: %s", path,
                           *out ? "another kind of value" : error.text);
  json_decref(*out);
  return s;
}

/* {"added_tokens_decoder": {"0": {"content": "<pad>", ..}, ..}} */
static wan_status from_config(core_ctx *ctx, added_tokens *list, const char *path) {
  json_t *root, *entry;
  const char *key;
  CORE_TRY(load_object(ctx, path, &root));
  wan_status s = WAN_OK;
  json_object_foreach(json_object_get(root, "added_tokens_decoder"), key, entry) {
    char *rest;
    long id = strtol(key, &rest, 10);
    if (!*key || *rest || id < 0)
      s = core_fail(ctx, WAN_ERR_FORMAT, "added token with the id '%.40s'", key);
    else
      s = put_json(ctx, list, entry, id, NULL, NULL);
    if (s != WAN_OK) {
      core_prefix(ctx, s, "%s", path);
      break;
    }
  }
  json_decref(root);
  return s;
}

/* {"eos_token": "</s>", "additional_special_tokens": ["<extra_id_0>", ..], ..}: no ids here */
static wan_status from_special_map(core_ctx *ctx, added_tokens *list, const char *path, added_token_id id_of,
                                   void *user) {
  json_t *root, *value, *entry;
  const char *key;
  CORE_TRY(load_object(ctx, path, &root));
  wan_status s = WAN_OK;
  json_object_foreach(root, key, value) {
    size_t i;
    if (!json_is_array(value)) s = put_json(ctx, list, value, -1, id_of, user);
    json_array_foreach(value, i, entry) {
      if (s == WAN_OK) s = put_json(ctx, list, entry, -1, id_of, user);
    }
    if (s != WAN_OK) {
      core_prefix(ctx, s, "%s: %s", path, key);
      break;
    }
  }
  json_decref(root);
  return s;
}

wan_status added_tokens_read(core_ctx *ctx, const char *dir, added_token_id id_of, void *user,
                             added_tokens *out) {
  static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"};
  wan_status s = WAN_OK;
  for (int i = 0; i < 3 && s == WAN_OK; i++) {
    char *path = core_path_join(ctx, dir, names[i]);
    if (!path) return WAN_ERR_MEMORY;
    if (core_path_exists(path))
      s = i == 0   ? from_tokenizer_json(ctx, out, path)
          : i == 1 ? from_config(ctx, out, path)
                   : from_special_map(ctx, out, path, id_of, user);
    core_free(ctx, path);
  }
  return s;
}

/* The character that ends before (step -1) or starts at (step +1) `at`; 0 at the text's ends. */
static int32_t beside(const char *text, size_t n, size_t at, int step, size_t *bytes) {
  utf8proc_int32_t c = 0;
  size_t from = at;
  *bytes = 0;
  if (step < 0) {
    if (at == 0) return 0;
    for (from--; from > 0 && ((unsigned char)text[from] & 0xc0) == 0x80;) from--;
    *bytes = at - from;
  }
  if (from >= n) return 0;
  utf8proc_ssize_t k =
      utf8proc_iterate((const utf8proc_uint8_t *)text + from, (utf8proc_ssize_t)(n - from), &c);
  if (k <= 0) return 0;
  if (step > 0) *bytes = (size_t)k;
  return c;
}

static bool stands_alone(const char *text, size_t n, size_t begin, size_t end) {
  size_t k;
  int32_t before = beside(text, n, begin, -1, &k), after = beside(text, n, end, 1, &k);
  return !unicode_is_word(before) && !unicode_is_word(after);
}

static const added_token *longest_at(const added_tokens *list, const char *text, size_t n, size_t at) {
  const added_token *best = NULL;
  for (int i = 0; i < list->count; i++) {
    const added_token *t = &list->item[i];
    if (t->text[0] != text[at] || t->size > n - at || (best && t->size <= best->size)) continue;
    if (memcmp(t->text, text + at, t->size) == 0) best = t;
  }
  return best;
}

const added_token *added_tokens_next(const added_tokens *list, const char *text, size_t n, size_t from,
                                     size_t *begin, size_t *end) {
  for (size_t at = from; at < n; at++) {
    const added_token *t = longest_at(list, text, n, at);
    if (!t || (t->single_word && !stands_alone(text, n, at, at + t->size))) continue;
    *begin = at;
    *end = at + t->size;
    size_t k;
    while (t->eats_left && *begin > from && unicode_is_space(beside(text, n, *begin, -1, &k))) *begin -= k;
    while (t->eats_right && unicode_is_space(beside(text, n, *end, 1, &k))) *end += k;
    return t;
  }
  return NULL;
}
