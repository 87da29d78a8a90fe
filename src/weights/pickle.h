/* pickle.h: a pickle that can only describe data. */
#ifndef WAN_WEIGHTS_PICKLE_H
#define WAN_WEIGHTS_PICKLE_H

#include "core/ctx.h"
#include "core/tensor.h"

typedef enum pickle_type {
  PICKLE_NONE,
  PICKLE_BOOL,    /* number */
  PICKLE_INT,     /* number */
  PICKLE_FLOAT,   /* only the fact; no one needs its value */
  PICKLE_STRING,  /* text, size: valid UTF-8 in the input, not NUL-terminated */
  PICKLE_TUPLE,   /* child */
  PICKLE_LIST,    /* child */
  PICKLE_DICT,    /* child: key, value, key, value, ... */
  PICKLE_GLOBAL,  /* a name the machine knows; kind and dtype */
  PICKLE_STORAGE, /* text, size: key; number: elements (bytes when dtype is DT_NONE) */
  PICKLE_TENSOR   /* dtype; number: offset in elements; child: storage, size tuple, stride tuple */
} pickle_type;

typedef struct pickle_value pickle_value;
struct pickle_value {
  pickle_type type;
  int kind;
  dtype dtype;
  int64_t number;
  const char *text;
  size_t size;
  pickle_value **child; /* may refer to itself: the graph need not be a tree */
  int64_t count, room;
};

typedef struct pickle {
  pickle_value *root;
  struct pickle_block *blocks;
} pickle;

/* Protocols 2 to 5. The strings of the result point into data. path is for messages. */
wan_status pickle_read(core_ctx *ctx, const char *path, const unsigned char *data, size_t size, pickle *out);
void pickle_free(core_ctx *ctx, pickle *p);

#endif
