/* names.h: the names that other projects give to the same parameters. */
#ifndef WAN_WEIGHTS_NAMES_H
#define WAN_WEIGHTS_NAMES_H

#include "weights/weights.h"

enum { NAMES_MAX = 256 }; /* bytes of a translated name with its NUL */

typedef struct name_family name_family;

const char *name_family_name(const name_family *family); /* "official", "diffusers", ... */
/* The i-th family known for this kind of network, NULL past the last. The first is the official one. */
const name_family *name_family_at(weight_kind kind, int i);

/* Does a tensor of this name show that its file uses this family? Never true of the official one. */
bool name_family_signed(const name_family *family, const char *name);

/* Translate a stored name to the official one, or back. Names that no rule covers stay as they are.
 * False when the result would not fit into out[NAMES_MAX]. */
bool name_to_official(const name_family *family, const char *name, char *out);
bool name_from_official(const name_family *family, const char *name, char *out);

/* Tensors that some files carry beside the weights. */
typedef enum name_use {
  NAME_WEIGHT,  /* nothing special */
  NAME_IGNORED, /* known and not needed: a tokenizer or a precomputed table kept in the file */
  NAME_TIED,    /* a second copy of a weight: dropped when the first is there */
  NAME_SCALED   /* the file holds quantised weights with separate scales */
} name_use;
name_use name_use_of(weight_kind kind, const char *name);

/* The name without the prefix that ComfyUI puts in front of a whole checkpoint. */
const char *name_without_prefix(weight_kind kind, const char *name);

#endif
