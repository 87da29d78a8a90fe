/* model_config.c: config.json is a claim, the tensors are the truth. So this file only extracts what is
 * written, keeps the numbers within sane bounds, and refuses by name what would need other code.
 */
#include "weights/model_config.h"

#include "core/file.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum {
  TEXT_LIMIT = 1 << 20,  /* bytes; real files are below 1 kB */
  VALUE_LIMIT = 1 << 24, /* any width, count or length of a network that fits into a machine */
};

typedef struct reader {
  core_ctx *ctx;
  const char *path;
  const json_t *root;
} reader;

/* The whole number at `key` into *out; absent or null leaves it alone. */
static wan_status read_int(const reader *r, const char *key, int64_t *out) {
  const json_t *v = json_object_get(r->root, key);
  if (!v || json_is_null(v)) return WAN_OK;
  int64_t n = json_integer_value(v); /* 0 for anything but an integer */
  if (n < 1 || n > VALUE_LIMIT)
    return core_fail(r->ctx, WAN_ERR_FORMAT, "%s: \"%s\" is not a whole number from 1 to %d", r->path, key,
                     VALUE_LIMIT);
  *out = n;
  return WAN_OK;
}

static wan_status read_ints(const reader *r, model_config *c) {
  const struct {
    const char *key;
    int64_t *out;
  } keys[] = {
      /* official names, then those of diffusers */
      {"dim", &c->dim},
      {"num_heads", &c->heads},
      {"in_dim", &c->in_dim},
      {"out_dim", &c->out_dim},
      {"ffn_dim", &c->ffn_dim},
      {"freq_dim", &c->freq_dim},
      {"text_dim", &c->text_dim},
      {"text_len", &c->text_len},
      {"num_layers", &c->layers},
      {"in_channels", &c->in_dim},
      {"out_channels", &c->out_dim},
      {"num_attention_heads", &c->heads},
  };
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) CORE_TRY(read_int(r, keys[i].key, keys[i].out));
  int64_t head_dim = 0;
  CORE_TRY(read_int(r, "attention_head_dim", &head_dim));
  if (head_dim && c->heads && !c->dim) c->dim = head_dim * c->heads;
  return WAN_OK;
}

static wan_status read_eps(const reader *r, double *eps) {
  const json_t *v = json_object_get(r->root, "eps");
  if (!v || json_is_null(v)) return WAN_OK;
  double x = json_number_value(v);
  if (!(x > 0 && x < 1))
    return core_fail(r->ctx, WAN_ERR_FORMAT, "%s: \"eps\" is not between 0 and 1", r->path);
  *eps = x;
  return WAN_OK;
}

/* Networks of the same family that need other code, by class or model type. */
static wan_status refuse_variants(const reader *r) {
  static const struct {
    const char *mark, *name;
  } variants[] = {
      {"s2v", "Wan2.2-S2V (speech to video)"},
      {"S2V", "Wan2.2-S2V (speech to video)"},
      {"Animate", "Wan2.2-Animate"},
      {"animate", "Wan2.2-Animate"},
      {"VACE", "Wan VACE"},
      {"Vace", "Wan VACE"},
      {"vace", "Wan VACE"},
      {"flf2v", "Wan2.1-FLF2V (first and last frame to video)"},
  };
  static const char *const keys[] = {"model_type", "_class_name"};
  for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
    const char *text = json_string_value(json_object_get(r->root, keys[k]));
    for (size_t i = 0; text && i < sizeof variants / sizeof variants[0]; i++)
      if (strstr(text, variants[i].mark))
        return core_fail(r->ctx, WAN_ERR_UNSUPPORTED,
                         "%s: this is %s, which is not supported; use a T2V, I2V or TI2V model of Wan2.2, or "
                         "a T2V model of Wan2.1",
                         r->path, variants[i].name);
  }
  const json_t *added = json_object_get(r->root, "added_kv_proj_dim"); /* diffusers: image keys and values */
  if (added && !json_is_null(added))
    return core_fail(r->ctx, WAN_ERR_UNSUPPORTED,
                     "%s: this is a Wan2.1 image-to-video model (\"added_kv_proj_dim\" is set), which is not "
                     "supported; use Wan2.2-I2V-A14B or Wan2.2-TI2V-5B",
                     r->path);
  return WAN_OK;
}

/* [a, b, ..] must equal want[0..n-1]; absent is fine. */
static wan_status require_list(const reader *r, const char *key, int n, const int *want, const char *text) {
  const json_t *v = json_object_get(r->root, key);
  if (!v || json_is_null(v)) return WAN_OK;
  bool same = json_array_size(v) == (size_t)n;
  for (int i = 0; same && i < n; i++) {
    const json_t *x = json_array_get(v, (size_t)i);
    same = json_is_integer(x) && json_integer_value(x) == want[i];
  }
  if (same) return WAN_OK;
  return core_fail(r->ctx, WAN_ERR_UNSUPPORTED, "%s: \"%s\" is not %s, no other value is supported", r->path,
                   key, text);
}

static wan_status require_fixed(const reader *r) {
  static const int patch[] = {1, 2, 2}, window[] = {-1, -1};
  static const char *const flags[] = {"qk_norm", "cross_attn_norm"};
  CORE_TRY(require_list(r, "patch_size", 3, patch, "[1, 2, 2]"));
  CORE_TRY(require_list(r, "window_size", 2, window, "[-1, -1]"));
  for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
    if (json_is_false(json_object_get(r->root, flags[i])))
      return core_fail(r->ctx, WAN_ERR_UNSUPPORTED, "%s: \"%s\" is false, which is not supported", r->path,
                       flags[i]);
  return WAN_OK;
}

static wan_status read_type(const reader *r, char *out, size_t size) {
  const json_t *v = json_object_get(r->root, "model_type");
  if (!v || json_is_null(v)) return WAN_OK;
  const char *text = json_string_value(v);
  if (text && (strcmp(text, "t2v") == 0 || strcmp(text, "i2v") == 0 || strcmp(text, "ti2v") == 0)) {
    snprintf(out, size, "%s", text);
    return WAN_OK;
  }
  return core_fail(r->ctx, WAN_ERR_UNSUPPORTED,
                   "%s: \"model_type\" is %s%s%s; t2v, i2v and ti2v are supported", r->path, text ? "\"" : "",
                   text ? text : "not a string", text ? "\"" : "");
}

wan_status model_config_read(core_ctx *ctx, const char *path, model_config *out) {
  *out = (model_config){0};
  char *text = NULL;
  size_t size = 0;
  CORE_TRY(core_read_text(ctx, path, TEXT_LIMIT, &text, &size));
  json_error_t e;
  json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &e);
  reader r = {ctx, path, root};
  wan_status status = WAN_OK;
  if (!root)
    status = core_fail(ctx, WAN_ERR_FORMAT, "%s: not valid JSON: %s (line %d)", path, e.text, e.line);
  else if (!json_is_object(root))
    status = core_fail(ctx, WAN_ERR_FORMAT, "%s: not a JSON object", path);
  if (status == WAN_OK) status = refuse_variants(&r);
  if (status == WAN_OK) status = require_fixed(&r);
  if (status == WAN_OK) status = read_type(&r, out->model_type, sizeof out->model_type);
  if (status == WAN_OK) status = read_ints(&r, out);
  if (status == WAN_OK) status = read_eps(&r, &out->eps);
  if (status != WAN_OK) *out = (model_config){0};
  json_decref(root);
  core_free(ctx, text);
  return status;
}
