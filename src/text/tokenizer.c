/* tokenizer.c: text to ids as Hugging Face's fast T5 tokenizer does it, step by step: added tokens are
 * cut out of the raw text; each stretch between them is normalised with the model's character map, its
 * runs of blanks become one, blanks become U+2581 and one more is put in front; libsentencepiece finds
 * the best Unigram segmentation; </s> closes the list. */
#include "text/text.h"

#include "core/file.h"
#include "text/added_tokens.h"
#include "text/charsmap.h"
#include "text/sentencepiece_shim.h"
#include "text/spiece.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tokenizer {
  core_ctx *ctx;
  core_map file;
  spiece model;
  charsmap normalizer;
  added_tokens added;
#ifdef WAN_HAVE_SENTENCEPIECE
  sentencepiece_model *unigram;
#endif
};

#ifdef WAN_HAVE_SENTENCEPIECE

enum { MODEL_BYTES_MAX = 64 << 20 }; /* the real file has 4.5 MB */

static const char MARK[] = "\xe2\x96\x81"; /* U+2581, what stands for a blank inside the model */

static int32_t id_of_piece(void *user, const char *text) {
  const tokenizer *t = user;
  return spiece_find(t->file.data, t->file.size, text);
}

static wan_status put_special(tokenizer *t, const char *text, int id) {
  added_token token = {.text = (char *)(uintptr_t)text, .id = id};
  return id < 0 ? WAN_OK : added_tokens_put(t->ctx, &t->added, token);
}

static wan_status read_added(tokenizer *t, const char *dir) {
  char unk[64];
  size_t n = t->model.unk_piece.size;
  CORE_TRY(dir ? added_tokens_read(t->ctx, dir, id_of_piece, t, &t->added) : WAN_OK);
  CORE_TRY(put_special(t, "<pad>", t->model.pad));
  CORE_TRY(put_special(t, "</s>", t->model.eos));
  if (n >= sizeof unk) return WAN_OK;
  memcpy(unk, t->model.unk_piece.data, n);
  unk[n] = 0;
  return put_special(t, unk, t->model.unk);
}

static wan_status open_unigram(tokenizer *t, const char *path) {
  char message[256] = "";
  unsigned char *copy;
  size_t size;
  CORE_TRY(spiece_plain_copy(t->ctx, t->file.data, t->file.size, &copy, &size));
  t->unigram = sentencepiece_open(copy, size, message, sizeof message);
  core_free(t->ctx, copy);
  if (t->unigram) return WAN_OK;
  return core_fail(t->ctx, WAN_ERR_FORMAT, "%s: libsentencepiece refuses the model: %s", path, message);
}

static wan_status open_model(tokenizer *t, const char *path) {
  CORE_TRY(core_map_open(t->ctx, path, &t->file));
  if (!t->file.size || t->file.size > MODEL_BYTES_MAX)
    return core_fail(t->ctx, WAN_ERR_FORMAT, "%s: %zu bytes, a SentencePiece model has 1 to %d", path,
                     t->file.size, (int)MODEL_BYTES_MAX);
  CORE_TRY(spiece_parse(t->ctx, path, t->file.data, t->file.size, &t->model));
  CORE_TRY(charsmap_open(t->ctx, path, t->model.normalizer.data, t->model.normalizer.size, &t->normalizer));
  return open_unigram(t, path);
}

wan_status tokenizer_open(core_ctx *ctx, const char *dir_or_file, tokenizer **out) {
  bool dir = core_path_is_dir(dir_or_file);
  *out = NULL;
  char *path = dir ? core_path_join(ctx, dir_or_file, "spiece.model") : core_strdup(ctx, dir_or_file);
  tokenizer *t = core_calloc(ctx, 1, sizeof *t);
  wan_status s = path && t ? WAN_OK : WAN_ERR_MEMORY;
  if (t) t->ctx = ctx;
  if (s == WAN_OK) s = open_model(t, path);
  if (s == WAN_OK) s = read_added(t, dir ? dir_or_file : NULL);
  core_free(ctx, path);
  if (s != WAN_OK) {
    tokenizer_close(t);
    return s;
  }
  *out = t;
  return WAN_OK;
}

void tokenizer_close(tokenizer *t) {
  if (!t) return;
  sentencepiece_close(t->unigram);
  added_tokens_free(t->ctx, &t->added);
  core_map_close(&t->file);
  core_free(t->ctx, t);
}

/* Blanks to marks: runs of U+0020 become one mark, and the text starts with one.
 * text has n bytes, out room for 3 * n + 3. */
static size_t mark_blanks(const char *text, size_t n, char *out) {
  size_t used = 0;
  bool marked = n >= 3 && memcmp(text, MARK, 3) == 0;
  if (n && text[0] != ' ' && !marked) {
    memcpy(out, MARK, 3);
    used = 3;
  }
  for (size_t i = 0; i < n; i++) {
    if (text[i] != ' ') {
      out[used++] = text[i];
    } else if (i == 0 || text[i - 1] != ' ') {
      memcpy(out + used, MARK, 3);
      used += 3;
    }
  }
  return used;
}

/* Append the ids of a stretch without added tokens; at most `room` of them. */
static wan_status encode_stretch(tokenizer *t, const char *text, size_t n, int32_t *ids, int room,
                                 int *count) {
  char *plain = NULL, *marked = NULL, message[256] = "";
  size_t size;
  *count = 0;
  if (!n || room <= 0) return WAN_OK;
  wan_status s = charsmap_apply(t->ctx, &t->normalizer, text, n, &plain, &size);
  if (s == WAN_OK && !(marked = core_alloc(t->ctx, 3 * size + 3))) s = WAN_ERR_MEMORY;
  if (s == WAN_OK) {
    size = mark_blanks(plain, size, marked);
    *count = sentencepiece_encode(t->unigram, marked, size, ids, room, message, sizeof message);
    if (*count < 0) s = core_fail(t->ctx, WAN_ERR_ARGUMENT, "the text can't be tokenized: %s", message);
  }
  core_free(t->ctx, marked);
  core_free(t->ctx, plain);
  return s;
}

wan_status tokenizer_encode(tokenizer *t, const char *text, int32_t ids[TEXT_MAX_TOKENS], int *n) {
  size_t size = strlen(text), at = 0, begin, end;
  const int room = TEXT_MAX_TOKENS - 1;
  int used = 0, count;
  *n = 0;
  if (size > TEXT_MAX_BYTES)
    return core_fail(t->ctx, WAN_ERR_ARGUMENT, "the prompt has %zu bytes, more than %d", size,
                     (int)TEXT_MAX_BYTES);
  while (at < size && used < room) {
    const added_token *token = added_tokens_next(&t->added, text, size, at, &begin, &end);
    if (!token) begin = end = size;
    CORE_TRY(encode_stretch(t, text + at, begin - at, ids + used, room - used, &count));
    used += count;
    if (token && used < room) ids[used++] = token->id;
    at = end;
  }
  ids[used++] = t->model.eos;
  *n = used;
  return WAN_OK;
}

#else

wan_status tokenizer_open(core_ctx *ctx, const char *dir_or_file, tokenizer **out) {
  *out = NULL;
  return core_fail(ctx, WAN_ERR_UNSUPPORTED,
                   "%s: this build can't tokenize: it was made without libsentencepiece", dir_or_file);
}

void tokenizer_close(tokenizer *t) {
  (void)t;
}

wan_status tokenizer_encode(tokenizer *t, const char *text, int32_t ids[TEXT_MAX_TOKENS], int *n) {
  (void)text, (void)ids;
  *n = 0;
  return core_fail(t ? t->ctx : NULL, WAN_ERR_UNSUPPORTED, "this build was made without libsentencepiece");
}

#endif

int tokenizer_vocab_size(const tokenizer *t) {
  int size = t->model.pieces;
  for (int i = 0; i < t->added.count; i++)
    if (t->added.item[i].id >= size) size = t->added.item[i].id + 1;
  return size;
}
