/* spiece.c: a reader of the protobuf wire format, as much of it as a spiece.model needs. The library
 * that later segments text trusts its model file, so everything it would trust is checked here: the
 * nesting and lengths of all fields, piece texts, scores and types, and the model's kind. */
#include "text/spiece.h"

#include <math.h>
#include <string.h>

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
/* Field numbers of sentencepiece_model.proto. */
enum { MODEL_PIECES = 1, MODEL_TRAINER = 2, MODEL_NORMALIZER = 3 };
enum { PIECE_TEXT = 1, PIECE_SCORE = 2, PIECE_TYPE = 3 };
enum { TRAINER_MODEL_TYPE = 3, TRAINER_UNIGRAM = 1 };
enum { NORMALIZER_CHARSMAP = 2 };
enum { PIECES_MAX = 1 << 24, PIECE_BYTES_MAX = 4096 }; /* the largest known vocabularies have 2^18 */

typedef struct field {
  uint64_t number;
  int wire;
  uint64_t value;                /* varint, 32 or 64 bits */
  const unsigned char *at, *end; /* of the value */
} field;

static bool read_varint(const unsigned char **p, const unsigned char *end, uint64_t *out) {
  *out = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (*p == end) return false;
    unsigned char b = *(*p)++;
    *out |= (uint64_t)(b & 0x7f) << shift;
    if (!(b & 0x80)) return true;
  }
  return false;
}

/* The field at *p; false when it is malformed or runs past end. */
static bool read_field(const unsigned char **p, const unsigned char *end, field *f) {
  uint64_t key;
  if (!read_varint(p, end, &key)) return false;
  f->number = key >> 3;
  f->wire = (int)(key & 7);
  f->value = 0;
  f->at = *p;
  uint64_t length = 0;
  switch (f->wire) {
  case WIRE_VARINT:
    if (!read_varint(p, end, &f->value)) return false;
    f->end = *p;
    return f->number != 0;
  case WIRE_64:
    length = 8;
    break;
  case WIRE_32:
    length = 4;
    break;
  case WIRE_BYTES:
    if (!read_varint(p, end, &length)) return false;
    f->at = *p;
    break;
  default:
    return false; /* groups are obsolete and not part of this format */
  }
  if (length > (uint64_t)(end - *p)) return false;
  if (f->wire != WIRE_BYTES)
    for (uint64_t i = 0; i < length; i++) f->value |= (uint64_t)f->at[i] << (8 * i);
  *p += length;
  f->end = *p;
  return f->number != 0;
}

typedef struct piece {
  spiece_slice text;
  float score;
  uint64_t type;
  const unsigned char *type_at; /* the byte that holds the type, NULL when absent */
} piece;

static bool read_piece(field f, piece *out) {
  *out = (piece){.type = SPIECE_NORMAL};
  if (f.wire != WIRE_BYTES) return false;
  const unsigned char *p = f.at;
  field g;
  while (p < f.end) {
    if (!read_field(&p, f.end, &g)) return false;
    if (g.number == PIECE_TEXT && g.wire == WIRE_BYTES) {
      out->text = (spiece_slice){g.at, (size_t)(g.end - g.at)};
    } else if (g.number == PIECE_SCORE && g.wire == WIRE_32) {
      uint32_t bits = (uint32_t)g.value;
      memcpy(&out->score, &bits, sizeof bits);
    } else if (g.number == PIECE_TYPE && g.wire == WIRE_VARINT) {
      out->type = g.value;
      out->type_at = g.end - g.at == 1 ? g.at : NULL;
    } else if (g.number <= PIECE_TYPE) {
      return false; /* a known field with another wire type */
    }
  }
  return out->text.size > 0 && out->text.size <= PIECE_BYTES_MAX &&
         !memchr(out->text.data, 0, out->text.size) && isfinite(out->score) && out->type >= SPIECE_NORMAL &&
         out->type <= SPIECE_BYTE;
}

static bool text_is(spiece_slice s, const char *text) {
  return s.size == strlen(text) && memcmp(s.data, text, s.size) == 0;
}

static void note_piece(spiece *m, const piece *p) {
  if (p->type == SPIECE_UNKNOWN) {
    m->unk = m->pieces;
    m->unk_piece = p->text;
  } else if (text_is(p->text, "</s>")) {
    m->eos = m->pieces;
  } else if (text_is(p->text, "<pad>")) {
    m->pad = m->pieces;
  }
  m->pieces++;
}

/* The one value the engine wants from a sub-message; every field of it is walked. */
static bool read_message(field f, uint64_t number, int wire, field *out) {
  if (f.wire != WIRE_BYTES) return false;
  const unsigned char *p = f.at;
  field g;
  while (p < f.end) {
    if (!read_field(&p, f.end, &g)) return false;
    if (g.number != number) continue;
    if (g.wire != wire) return false;
    *out = g;
  }
  return true;
}

wan_status spiece_parse(core_ctx *ctx, const char *path, const unsigned char *data, size_t size,
                        spiece *out) {
  *out = (spiece){.unk = -1, .eos = -1, .pad = -1};
  const unsigned char *p = data, *end = data + size;
  field f, kind = {.value = TRAINER_UNIGRAM}, map = {0};
  int unknowns = 0;
  bool trainer = false, normalizer = false;
  while (p < end) {
    long long offset = (long long)(p - data);
    bool ok = read_field(&p, end, &f);
    piece one;
    if (ok && f.number == MODEL_PIECES) {
      ok = out->pieces < PIECES_MAX && read_piece(f, &one);
      if (ok) {
        unknowns += one.type == SPIECE_UNKNOWN;
        note_piece(out, &one);
      }
    } else if (ok && f.number == MODEL_TRAINER) {
      ok = trainer = read_message(f, TRAINER_MODEL_TYPE, WIRE_VARINT, &kind);
    } else if (ok && f.number == MODEL_NORMALIZER) {
      ok = normalizer = read_message(f, NORMALIZER_CHARSMAP, WIRE_BYTES, &map);
    }
    if (!ok)
      return core_fail(ctx, WAN_ERR_FORMAT,
                       "%s: not a SentencePiece model, or damaged: the field at byte %lld is malformed", path,
                       offset);
  }
  if (!out->pieces) return core_fail(ctx, WAN_ERR_FORMAT, "%s: a SentencePiece model without pieces", path);
  /* They follow the pieces. Without them a file that was cut between two pieces would be a valid message. */
  if (!trainer || !normalizer)
    return core_fail(ctx, WAN_ERR_FORMAT,
                     "%s: no %s settings behind the %d pieces: the file is cut off, or not complete", path,
                     trainer ? "normalizer" : "trainer", out->pieces);
  if (unknowns != 1 || out->eos < 0)
    return core_fail(ctx, WAN_ERR_FORMAT,
                     "%s: expected one unknown piece and a piece </s>, found %d unknown pieces and %s </s>",
                     path, unknowns, out->eos < 0 ? "no" : "a");
  if (kind.value != TRAINER_UNIGRAM)
    return core_fail(ctx, WAN_ERR_UNSUPPORTED,
                     "%s: SentencePiece model type %llu, only Unigram (1) is supported", path,
                     (unsigned long long)kind.value);
  if (map.at) out->normalizer = (spiece_slice){map.at, (size_t)(map.end - map.at)};
  return WAN_OK;
}

int spiece_find(const unsigned char *data, size_t size, const char *text) {
  const unsigned char *p = data, *end = data + size;
  field f;
  piece one;
  for (int id = 0; p < end && read_field(&p, end, &f);) {
    if (f.number != MODEL_PIECES) continue;
    if (read_piece(f, &one) && text_is(one.text, text)) return id;
    id++;
  }
  return -1;
}

wan_status spiece_plain_copy(core_ctx *ctx, const unsigned char *data, size_t size, unsigned char **out,
                             size_t *out_size) {
  /* Protobuf merges a second occurrence of a sub-message into the first, its fields win:
   * normalizer_spec { precompiled_charsmap: ""; add_dummy_prefix, remove_extra_whitespaces,
   * escape_whitespaces: false; normalization_rule_tsv: "" } */
  static const unsigned char override[] = {
      MODEL_NORMALIZER << 3 | 2, 10, 2 << 3 | 2, 0, 3 << 3, 0, 4 << 3, 0, 5 << 3, 0, 6 << 3 | 2, 0};
  unsigned char *copy = core_alloc(ctx, size + sizeof override);
  if (!copy) return WAN_ERR_MEMORY;
  const unsigned char *p = data, *end = data + size, *start = p;
  size_t used = 0;
  field f;
  piece one;
  for (; p < end && read_field(&p, end, &f); start = p) {
    /* left out: samples of a self-test, which the plain model would fail, and what only decoding uses */
    if (f.number > MODEL_NORMALIZER) continue;
    memcpy(copy + used, start, (size_t)(p - start));
    if (f.number == MODEL_PIECES && read_piece(f, &one) && one.type == SPIECE_CONTROL && one.type_at)
      copy[used + (size_t)(one.type_at - start)] = SPIECE_NORMAL;
    used += (size_t)(p - start);
  }
  memcpy(copy + used, override, sizeof override);
  *out = copy;
  *out_size = used + sizeof override;
  return WAN_OK;
}
