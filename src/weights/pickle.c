/* pickle.c: Python's pickle is a program for a stack machine, and the danger lies in two of its
 * instructions: one fetches any object of any module by name, the other calls it. This machine knows the
 * handful of names that torch.save() writes for tensors (table `globals`) and refuses every other by
 * name; "calling" one of them builds a description. Nothing recurses, and the number of objects is
 * bounded, so neither depth nor size of the input can hurt.
 */
#include "weights/pickle.h"

#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

enum {
  OBJECTS_MAX = 1 << 20, /* a 14-billion-parameter transformer has about 20,000 */
  BLOCK = 256,           /* values allocated at once */
};

enum { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, STORAGE, DTYPE };

static const struct {
  const char *module, *name;
  int kind;
  dtype type;
} globals[] = {
    {"collections", "OrderedDict", ORDERED_DICT, DT_NONE},
    {"torch._utils", "_rebuild_tensor_v2", REBUILD_TENSOR, DT_NONE},
    {"torch._utils", "_rebuild_tensor_v3", REBUILD_TENSOR, DT_NONE}, /* untyped storage, dtype apart */
    {"torch._utils", "_rebuild_parameter", REBUILD_PARAMETER, DT_NONE},
    {"torch", "FloatStorage", STORAGE, DT_F32},
    {"torch", "HalfStorage", STORAGE, DT_F16},
    {"torch", "BFloat16Storage", STORAGE, DT_BF16},
    {"torch", "DoubleStorage", STORAGE, DT_F64},
    {"torch", "CharStorage", STORAGE, DT_I8},
    {"torch", "ByteStorage", STORAGE, DT_U8},
    {"torch", "ShortStorage", STORAGE, DT_I16},
    {"torch", "IntStorage", STORAGE, DT_I32},
    {"torch", "LongStorage", STORAGE, DT_I64},
    {"torch", "BoolStorage", STORAGE, DT_BOOL},
    {"torch.storage", "UntypedStorage", STORAGE, DT_NONE},
    {"torch", "float8_e4m3fn", DTYPE, DT_F8E4M3},
    {"torch", "float8_e5m2", DTYPE, DT_F8E5M2},
};

typedef struct pickle_block {
  struct pickle_block *next;
  int used;
  pickle_value item[BLOCK];
} pickle_block;

typedef struct list { /* a growing array of references */
  pickle_value **item;
  int64_t count, room;
} list;

typedef struct machine {
  core_ctx *ctx;
  const char *path;
  const unsigned char *data;
  size_t size, at, op; /* at: next byte; op: where the current instruction began */
  pickle *out;
  list stack, memo, marks; /* a mark is a stack height, kept as an integer value */
  int64_t objects;
} machine;

/* ---- Errors ---- */

static wan_status bad(const machine *m, const char *what) {
  return core_fail(m->ctx, WAN_ERR_FORMAT, "%s: damaged pickle: %s at byte %zu", m->path, what, m->op);
}

/* Bytes of the file in a message: printable ones only. */
static void quote(char *out, size_t room, const char *text, size_t n) {
  size_t i = 0;
  for (; i < n && i + 1 < room; i++) out[i] = text[i] >= ' ' && text[i] < 127 ? text[i] : '?';
  out[i] = 0;
}

static wan_status refuse_global(const machine *m, const char *module, size_t m_size, const char *name,
                                size_t n_size) {
  char a[80], b[80];
  quote(a, sizeof a, module, m_size);
  quote(b, sizeof b, name, n_size);
  return core_fail(
      m->ctx, WAN_ERR_FORMAT,
      "%s: the pickle refers to %s.%s, which is refused: only tensors, dicts, lists, numbers and "
      "strings are read; save a plain state dict",
      m->path, a, b);
}

/* ---- Memory ---- */

static wan_status push_to(machine *m, list *l, pickle_value *v) {
  if (l->count == l->room) {
    int64_t room = l->room ? 2 * l->room : 16;
    void *grown = core_realloc(m->ctx, l->item, (size_t)room * sizeof *l->item);
    if (!grown) return WAN_ERR_MEMORY;
    l->item = grown;
    l->room = room;
  }
  l->item[l->count++] = v;
  return WAN_OK;
}

static wan_status push(machine *m, pickle_value *v) {
  return push_to(m, &m->stack, v);
}

static wan_status add_child(machine *m, pickle_value *parent, pickle_value *v) {
  list l = {parent->child, parent->count, parent->room};
  wan_status status = push_to(m, &l, v);
  parent->child = l.item;
  parent->count = l.count;
  parent->room = l.room;
  return status;
}

static wan_status make(machine *m, pickle_type type, pickle_value **out) {
  pickle_block *b = m->out->blocks;
  if (m->objects++ == OBJECTS_MAX)
    return core_fail(m->ctx, WAN_ERR_FORMAT, "%s: the pickle holds more than %d objects", m->path,
                     OBJECTS_MAX);
  if (!b || b->used == BLOCK) {
    b = core_calloc(m->ctx, 1, sizeof *b);
    if (!b) return WAN_ERR_MEMORY;
    b->next = m->out->blocks;
    m->out->blocks = b;
  }
  *out = &b->item[b->used++];
  (*out)->type = type;
  return WAN_OK;
}

/* ---- Reading operands ---- */

static bool take(machine *m, size_t n, const unsigned char **p) {
  if (n > m->size - m->at) return false;
  *p = m->data + m->at;
  m->at += n;
  return true;
}

static wan_status operand(machine *m, int bytes, uint64_t *v) {
  const unsigned char *p;
  if (!take(m, (size_t)bytes, &p)) return bad(m, "an instruction cut off");
  *v = 0;
  for (int i = bytes; i-- > 0;) *v = *v << 8 | p[i];
  return WAN_OK;
}

/* Sign-extend the lowest `bytes` bytes. */
static int64_t extend(uint64_t v, int bytes) {
  if (bytes <= 0) return 0;
  if (bytes < 8 && (v >> (8 * bytes - 1) & 1)) v |= ~(uint64_t)0 << (8 * bytes);
  return (int64_t)v;
}

static wan_status push_number(machine *m, pickle_type type, int64_t n) {
  pickle_value *v = NULL;
  CORE_TRY(make(m, type, &v));
  v->number = n;
  return push(m, v);
}

static wan_status push_int(machine *m, int bytes, bool is_signed) {
  uint64_t v = 0;
  CORE_TRY(operand(m, bytes, &v));
  return push_number(m, PICKLE_INT, is_signed ? extend(v, bytes) : (int64_t)v);
}

/* An integer with its length in front. */
static wan_status push_long(machine *m, int length_bytes) {
  uint64_t n = 0;
  CORE_TRY(operand(m, length_bytes, &n));
  if (n > 8) return bad(m, "an integer of more than 64 bits");
  return push_int(m, (int)n, true);
}

static wan_status push_string(machine *m, int length_bytes) {
  uint64_t n = 0;
  const unsigned char *p;
  pickle_value *v = NULL;
  CORE_TRY(operand(m, length_bytes, &n));
  if (n > m->size || !take(m, (size_t)n, &p)) return bad(m, "a string cut off");
  for (size_t i = 0; i < n;) {
    utf8proc_int32_t c;
    utf8proc_ssize_t used = utf8proc_iterate(p + i, (utf8proc_ssize_t)(n - i), &c);
    if (used <= 0) return bad(m, "a string that is not UTF-8");
    i += (size_t)used;
  }
  CORE_TRY(make(m, PICKLE_STRING, &v));
  v->text = (const char *)p;
  v->size = (size_t)n;
  return push(m, v);
}

/* ---- The stack ---- */

/* Values above the last mark belong to the construction that it opened. */
static int64_t floor_of(const machine *m) {
  return m->marks.count ? m->marks.item[m->marks.count - 1]->number : 0;
}

static wan_status pop(machine *m, pickle_value **v) {
  if (m->stack.count <= floor_of(m)) return bad(m, "an empty stack");
  *v = m->stack.item[--m->stack.count];
  return WAN_OK;
}

static wan_status top(machine *m, pickle_value **v) {
  CORE_TRY(pop(m, v));
  m->stack.count++;
  return WAN_OK;
}

static wan_status mark(machine *m) {
  pickle_value *v = NULL;
  CORE_TRY(make(m, PICKLE_INT, &v));
  v->number = m->stack.count;
  return push_to(m, &m->marks, v);
}

/* Height of the last mark, which is removed. */
static wan_status unmark(machine *m, int64_t *height) {
  if (!m->marks.count) return bad(m, "no mark");
  *height = m->marks.item[--m->marks.count]->number;
  return WAN_OK;
}

/* Replace the values from `from` on by one container. */
static wan_status collect(machine *m, pickle_type type, int64_t from) {
  pickle_value *v = NULL;
  if (from < floor_of(m) || from > m->stack.count) return bad(m, "an empty stack");
  if (type == PICKLE_DICT && (m->stack.count - from) % 2) return bad(m, "a key without a value");
  CORE_TRY(make(m, type, &v));
  for (int64_t i = from; i < m->stack.count; i++) CORE_TRY(add_child(m, v, m->stack.item[i]));
  m->stack.count = from;
  return push(m, v);
}

static wan_status collect_marked(machine *m, pickle_type type) {
  int64_t from = 0;
  CORE_TRY(unmark(m, &from));
  return collect(m, type, from);
}

/* Move the values from `from` on into the container below them. */
static wan_status extend_below(machine *m, pickle_type type, int64_t from) {
  if (from <= floor_of(m) || from > m->stack.count || m->stack.item[from - 1]->type != type)
    return bad(m, "items for something that takes none");
  if (type == PICKLE_DICT && (m->stack.count - from) % 2) return bad(m, "a key without a value");
  for (int64_t i = from; i < m->stack.count; i++)
    CORE_TRY(add_child(m, m->stack.item[from - 1], m->stack.item[i]));
  m->stack.count = from;
  return WAN_OK;
}

static wan_status extend_marked(machine *m, pickle_type type) {
  int64_t from = 0;
  CORE_TRY(unmark(m, &from));
  return extend_below(m, type, from);
}

static wan_status memo_put(machine *m, int bytes) {
  uint64_t i = (uint64_t)m->memo.count;
  pickle_value *v = NULL;
  if (bytes) CORE_TRY(operand(m, bytes, &i));
  CORE_TRY(top(m, &v));
  if (i >= OBJECTS_MAX) return bad(m, "a memo index out of range");
  while ((uint64_t)m->memo.count <= i) CORE_TRY(push_to(m, &m->memo, NULL));
  m->memo.item[i] = v;
  return WAN_OK;
}

static wan_status memo_get(machine *m, int bytes) {
  uint64_t i = 0;
  CORE_TRY(operand(m, bytes, &i));
  if (i >= (uint64_t)m->memo.count || !m->memo.item[i]) return bad(m, "a reference to nothing");
  return push(m, m->memo.item[i]);
}

/* ---- Names and calls ---- */

static bool equals(const char *want, const char *text, size_t n) {
  return strlen(want) == n && memcmp(want, text, n) == 0;
}

static wan_status push_global(machine *m, const char *module, size_t m_size, const char *name,
                              size_t n_size) {
  for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
    if (!equals(globals[i].module, module, m_size) || !equals(globals[i].name, name, n_size)) continue;
    pickle_value *v = NULL;
    CORE_TRY(make(m, PICKLE_GLOBAL, &v));
    v->kind = globals[i].kind;
    v->dtype = globals[i].type;
    return push(m, v);
  }
  return refuse_global(m, module, m_size, name, n_size);
}

/* GLOBAL: module and name, each ended by a newline. */
static wan_status global(machine *m) {
  const char *text[2];
  size_t n[2];
  for (int i = 0; i < 2; i++) {
    const unsigned char *p = m->data + m->at, *end = memchr(p, '\n', m->size - m->at);
    if (!end) return bad(m, "a name without an end");
    text[i] = (const char *)p;
    n[i] = (size_t)(end - p);
    m->at += n[i] + 1;
  }
  return push_global(m, text[0], n[0], text[1], n[1]);
}

static wan_status stack_global(machine *m) {
  pickle_value *module = NULL, *name = NULL;
  CORE_TRY(pop(m, &name));
  CORE_TRY(pop(m, &module));
  if (module->type != PICKLE_STRING || name->type != PICKLE_STRING)
    return bad(m, "a name that is not a string");
  return push_global(m, module->text, module->size, name->text, name->size);
}

/* The i-th child, if it has this type; NULL otherwise. */
static pickle_value *argument(const pickle_value *v, int64_t i, pickle_type type) {
  return i < v->count && v->child[i]->type == type ? v->child[i] : NULL;
}

/* (storage, offset, size, stride, requires_grad, hooks[, dtype, ...]) */
static wan_status rebuild_tensor(machine *m, const pickle_value *args) {
  pickle_value *storage = argument(args, 0, PICKLE_STORAGE), *offset = argument(args, 1, PICKLE_INT);
  pickle_value *size = argument(args, 2, PICKLE_TUPLE), *stride = argument(args, 3, PICKLE_TUPLE);
  pickle_value *type = argument(args, 6, PICKLE_GLOBAL), *v = NULL;
  if (!storage || !offset || !size || !stride) return bad(m, "a tensor with wrong arguments");
  CORE_TRY(make(m, PICKLE_TENSOR, &v));
  v->dtype = storage->dtype;
  if (v->dtype == DT_NONE && type && type->kind == DTYPE) v->dtype = type->dtype;
  if (v->dtype == DT_NONE) return bad(m, "a tensor without a dtype");
  v->number = offset->number;
  CORE_TRY(add_child(m, v, storage));
  CORE_TRY(add_child(m, v, size));
  CORE_TRY(add_child(m, v, stride));
  return push(m, v);
}

static wan_status reduce(machine *m) {
  pickle_value *args = NULL, *callee = NULL;
  CORE_TRY(pop(m, &args));
  CORE_TRY(pop(m, &callee));
  if (callee->type != PICKLE_GLOBAL || args->type != PICKLE_TUPLE) return bad(m, "a call of something else");
  if (callee->kind == ORDERED_DICT && !args->count) return collect(m, PICKLE_DICT, m->stack.count);
  if (callee->kind == REBUILD_TENSOR) return rebuild_tensor(m, args);
  if (callee->kind == REBUILD_PARAMETER && argument(args, 0, PICKLE_TENSOR)) return push(m, args->child[0]);
  return bad(m, "a call with wrong arguments");
}

/* BUILD sets attributes: a state dict carries its modules' versions in `_metadata`, of no use here. */
static wan_status build(machine *m) {
  pickle_value *attributes = NULL, *object = NULL;
  CORE_TRY(pop(m, &attributes));
  CORE_TRY(top(m, &object));
  if (object->type != PICKLE_DICT || attributes->type != PICKLE_DICT)
    return bad(m, "attributes of something else");
  return WAN_OK;
}

/* ("storage", type, key, location, elements) */
static wan_status persistent(machine *m) {
  pickle_value *id = NULL, *v = NULL;
  CORE_TRY(pop(m, &id));
  if (id->type != PICKLE_TUPLE) return bad(m, "a storage with wrong arguments");
  const pickle_value *tag = argument(id, 0, PICKLE_STRING), *type = argument(id, 1, PICKLE_GLOBAL);
  const pickle_value *key = argument(id, 2, PICKLE_STRING), *elements = argument(id, 4, PICKLE_INT);
  if (!tag || !equals("storage", tag->text, tag->size) || !type || type->kind != STORAGE || !key || !elements)
    return bad(m, "a storage with wrong arguments");
  CORE_TRY(make(m, PICKLE_STORAGE, &v));
  v->dtype = type->dtype;
  v->text = key->text;
  v->size = key->size;
  v->number = elements->number;
  return push(m, v);
}

/* ---- The loop ---- */

static wan_status unknown(const machine *m, int op) {
  return core_fail(
      m->ctx, WAN_ERR_FORMAT,
      "%s: pickle instruction 0x%02x at byte %zu is refused: only tensors, dicts, lists, numbers and "
      "strings are read",
      m->path, (unsigned)op, m->op);
}

static wan_status protocol(machine *m) {
  uint64_t version = 0;
  CORE_TRY(operand(m, 1, &version));
  if (version >= 2 && version <= 5) return WAN_OK;
  return core_fail(m->ctx, WAN_ERR_UNSUPPORTED, "%s: pickle protocol %d is not supported, 2 to 5 are",
                   m->path, (int)version);
}

static wan_status frame(machine *m) {
  uint64_t length = 0;
  CORE_TRY(operand(m, 8, &length));
  return length <= m->size - m->at ? WAN_OK : bad(m, "a frame cut off");
}

static wan_status push_float(machine *m) {
  uint64_t bits = 0;
  CORE_TRY(operand(m, 8, &bits));
  return push_number(m, PICKLE_FLOAT, 0);
}

static wan_status set_item(machine *m, pickle_type type, int values) {
  return extend_below(m, type, m->stack.count - values);
}

/* clang-format off */
static wan_status step(machine *m, int op) {
  switch (op) {
  case 0x80: return protocol(m);
  case 0x95: return frame(m);
  case 'N': return push_number(m, PICKLE_NONE, 0);
  case 0x88: return push_number(m, PICKLE_BOOL, 1);
  case 0x89: return push_number(m, PICKLE_BOOL, 0);
  case 'J': return push_int(m, 4, true);
  case 'K': return push_int(m, 1, false);
  case 'M': return push_int(m, 2, false);
  case 0x8a: return push_long(m, 1);
  case 0x8b: return push_long(m, 4);
  case 'G': return push_float(m);
  case 0x8c: return push_string(m, 1);
  case 'X': return push_string(m, 4);
  case 0x8d: return push_string(m, 8);
  case '(': return mark(m);
  case ')': return collect(m, PICKLE_TUPLE, m->stack.count);
  case 0x85: return collect(m, PICKLE_TUPLE, m->stack.count - 1);
  case 0x86: return collect(m, PICKLE_TUPLE, m->stack.count - 2);
  case 0x87: return collect(m, PICKLE_TUPLE, m->stack.count - 3);
  case 't': return collect_marked(m, PICKLE_TUPLE);
  case ']': return collect(m, PICKLE_LIST, m->stack.count);
  case 'l': return collect_marked(m, PICKLE_LIST);
  case 'a': return set_item(m, PICKLE_LIST, 1);
  case 'e': return extend_marked(m, PICKLE_LIST);
  case '}': return collect(m, PICKLE_DICT, m->stack.count);
  case 'd': return collect_marked(m, PICKLE_DICT);
  case 's': return set_item(m, PICKLE_DICT, 2);
  case 'u': return extend_marked(m, PICKLE_DICT);
  case 'q': return memo_put(m, 1);
  case 'r': return memo_put(m, 4);
  case 0x94: return memo_put(m, 0);
  case 'h': return memo_get(m, 1);
  case 'j': return memo_get(m, 4);
  case 'c': return global(m);
  case 0x93: return stack_global(m);
  case 'R': return reduce(m);
  case 'b': return build(m);
  case 'Q': return persistent(m);
  default: return unknown(m, op);
  }
}
/* clang-format on */

static wan_status run(machine *m) {
  for (;;) {
    m->op = m->at;
    if (m->at == m->size) return bad(m, "no end");
    int op = m->data[m->at++];
    if (op == '.') break;
    CORE_TRY(step(m, op));
  }
  if (m->marks.count || m->stack.count != 1) return bad(m, "an end in the middle");
  m->out->root = m->stack.item[0];
  return WAN_OK;
}

wan_status pickle_read(core_ctx *ctx, const char *path, const unsigned char *data, size_t size, pickle *out) {
  *out = (pickle){0};
  machine m = {.ctx = ctx, .path = path, .data = data, .size = size, .out = out};
  wan_status status = run(&m);
  core_free(ctx, m.stack.item);
  core_free(ctx, m.memo.item);
  core_free(ctx, m.marks.item);
  if (status != WAN_OK) pickle_free(ctx, out);
  return status;
}

void pickle_free(core_ctx *ctx, pickle *p) {
  for (pickle_block *b = p->blocks, *next; b; b = next) {
    next = b->next;
    for (int i = 0; i < b->used; i++) core_free(ctx, b->item[i].child);
    core_free(ctx, b);
  }
  *p = (pickle){0};
}
