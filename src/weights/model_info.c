/* model_info.c: one description of a model folder, as JSON for programs and as text for people. The text
 * is written from the JSON, so the two can't disagree.
 */
#define _POSIX_C_SOURCE 200809L /* open_memstream */
#include "weights/model_dir.h"
#include "weights/weights.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const part_keys[MODEL_PARTS] = {"transformer", "transformer_low_noise", "vae",
                                                   "text_encoder", "tokenizer"};

/* Every setter takes over `value` and reports failure; NULL values (no memory) fail too. */
static bool set(json_t *object, const char *key, json_t *value) {
  return json_object_set_new(object, key, value) == 0;
}

static bool set_int(json_t *object, const char *key, int64_t n) {
  return set(object, key, json_integer(n));
}

/* ---- Gathering ---- */

/* Number of consecutive N from 0 with a tensor of this name. */
static int64_t count_layers(const weight_set *w, const char *format_head, const char *format_tail) {
  for (int64_t n = 0;; n++) {
    char name[128];
    snprintf(name, sizeof name, "%s%lld%s", format_head, (long long)n, format_tail);
    if (weight_set_find(w, name).type == DT_NONE) return n;
  }
}

static bool describe_dit(json_t *o, const model_dir *m, const weight_set *w) {
  tensor patch = weight_set_find(w, "patch_embedding.weight"), head = weight_set_find(w, "head.head.weight");
  tensor text = weight_set_find(w, "text_embedding.0.weight"),
         ffn = weight_set_find(w, "blocks.0.ffn.0.weight");
  int64_t heads =
      m->config.heads ? m->config.heads : patch.dim[0] / 128; /* every published Wan: 128 a head */
  return set_int(o, "dim", patch.dim[0]) && set_int(o, "ffn_dim", ffn.dim[0]) && set_int(o, "heads", heads) &&
         set_int(o, "layers", count_layers(w, "blocks.", ".self_attn.q.weight")) &&
         set_int(o, "in_channels", patch.dim[1]) && set_int(o, "out_channels", head.dim[0] / 4) &&
         set_int(o, "text_dim", text.dim[1]);
}

static bool describe_vae(json_t *o, const weight_set *w) {
  bool v22 = weight_set_find(w, "decoder.upsamples.0.upsamples.0.residual.0.gamma").type != DT_NONE;
  return set(o, "version", json_string(v22 ? "2.2" : "2.1")) &&
         set_int(o, "latent_channels", weight_set_find(w, "conv2.weight").dim[0]) &&
         set_int(o, "encoder_width", weight_set_find(w, "encoder.conv1.weight").dim[0]) &&
         set_int(o, "decoder_width", weight_set_find(w, "decoder.head.0.gamma").dim[0]);
}

static bool describe_text(json_t *o, const weight_set *w) {
  tensor table = weight_set_find(w, "token_embedding.weight");
  tensor bias = weight_set_find(w, "blocks.0.pos_embedding.embedding.weight");
  tensor ffn = weight_set_find(w, "blocks.0.ffn.fc1.weight");
  return set_int(o, "vocabulary", table.dim[0]) && set_int(o, "dim", table.dim[1]) &&
         set_int(o, "ffn_dim", ffn.dim[0]) && set_int(o, "heads", bias.dim[1]) &&
         set_int(o, "layers", count_layers(w, "blocks.", ".attn.q.weight"));
}

static bool describe_weights(json_t *o, const weight_set *w) {
  int64_t tensors[DT_COUNT] = {0};
  uint64_t bytes = 0;
  for (int64_t i = 0; i < weight_set_count(w); i++) {
    tensor t = weight_set_tensor(w, i);
    tensors[t.type]++;
    bytes += tensor_bytes(&t);
  }
  json_t *types = json_object();
  bool ok = set(o, "names", json_string(weight_set_family(w))) &&
            set_int(o, "tensors", weight_set_count(w)) &&
            set_int(o, "parameters", weight_set_parameters(w)) && set_int(o, "bytes", (int64_t)bytes);
  ok = set(o, "dtypes", types) && ok;
  for (int t = 0; ok && t < DT_COUNT; t++)
    if (tensors[t]) ok = set_int(types, dtype_name((dtype)t), tensors[t]);
  return ok;
}

static wan_status no_memory(core_ctx *ctx, const model_dir *m) {
  return core_fail(ctx, WAN_ERR_MEMORY, "%s: out of memory describing the model (or its path is not UTF-8)",
                   m->root);
}

/* One part into `parts`. */
static wan_status describe_part(core_ctx *ctx, const model_dir *m, model_part part, json_t *parts) {
  static const weight_kind kinds[] = {WEIGHTS_DIT, WEIGHTS_DIT, WEIGHTS_VAE, WEIGHTS_TEXT};
  json_t *o = json_object();
  bool ok = set(parts, part_keys[part], o) && set(o, "path", json_string(m->part[part]));
  if (part == MODEL_TOKENIZER) return ok ? WAN_OK : no_memory(ctx, m);
  weight_set *w = NULL;
  CORE_TRY(weight_set_open(ctx, m->part[part], kinds[part], &w));
  ok = ok && describe_weights(o, w);
  if (part == MODEL_VAE)
    ok = ok && describe_vae(o, w);
  else if (part == MODEL_TEXT)
    ok = ok && describe_text(o, w);
  else
    ok = ok && describe_dit(o, m, w);
  weight_set_close(w);
  return ok ? WAN_OK : no_memory(ctx, m);
}

static wan_status describe(core_ctx *ctx, const model_dir *m, json_t **out) {
  json_t *root = json_object(), *parts = json_object(), *missing = json_array();
  wan_status status = WAN_OK;
  bool ok = set(root, "path", json_string(m->root)) && set(root, "family", json_string(m->family)) &&
            set(root, "layout", json_string(m->layout)) && set_int(root, "experts", m->experts);
  ok = set(root, "parts", parts) && ok;
  ok = set(root, "missing", missing) && ok;
  if (!ok) status = no_memory(ctx, m);
  for (int i = 0; status == WAN_OK && i < MODEL_PARTS; i++) {
    if (m->part[i])
      status = describe_part(ctx, m, (model_part)i, parts);
    else if (m->expected[i] && json_array_append_new(missing, json_string(m->expected[i])) != 0)
      status = no_memory(ctx, m);
  }
  if (status == WAN_OK)
    *out = root;
  else
    json_decref(root);
  return status;
}

wan_status model_info_json(core_ctx *ctx, const model_dir *m, char **out) {
  json_t *root = NULL;
  *out = NULL;
  CORE_TRY(describe(ctx, m, &root));
  char *text = json_dumps(root, JSON_INDENT(2));
  json_decref(root);
  if (!text) return no_memory(ctx, m);
  *out = core_strdup(ctx, text);
  free(text);
  return *out ? WAN_OK : WAN_ERR_MEMORY;
}

/* ---- As text ---- */

/* 4999787712 -> "4,999,787,712" */
static const char *grouped(json_int_t n, char buf[32]) {
  char digits[24];
  int length = snprintf(digits, sizeof digits, "%lld", (long long)n), used = 0;
  for (int i = 0; i < length; i++) {
    if (i && (length - i) % 3 == 0) buf[used++] = ',';
    buf[used++] = digits[i];
  }
  buf[used] = 0;
  return buf;
}

/* 19999150848 -> "20.00 GB" */
static const char *sized(json_int_t bytes, char buf[32]) {
  double n = (double)bytes;
  snprintf(buf, 32, "%.2f %s", n >= 1e9 ? n * 1e-9 : n * 1e-6, n >= 1e9 ? "GB" : "MB");
  return buf;
}

static json_int_t int_of(const json_t *o, const char *key) {
  return json_integer_value(json_object_get(o, key));
}

static void print_part(FILE *f, const char *title, const json_t *o) {
  static const char *const general[] = {"path", "names", "tensors", "parameters", "bytes", "dtypes"};
  char a[32], b[32];
  const char *key;
  json_t *value;
  fprintf(f, "  %-22s %s\n", title, json_string_value(json_object_get(o, "path")));
  if (!json_object_get(o, "tensors")) return;
  fprintf(f, "  %-22s %lld tensors, %s parameters, %s,", "", (long long)int_of(o, "tensors"),
          grouped(int_of(o, "parameters"), a), sized(int_of(o, "bytes"), b));
  json_object_foreach(json_object_get(o, "dtypes"), key, value) {
    fprintf(f, " %s", key);
  }
  fprintf(f, ", %s names\n  %-22s", json_string_value(json_object_get(o, "names")), "");
  const char *separator = " ";
  json_object_foreach((json_t *)(uintptr_t)o, key, value) {
    bool shown = false;
    for (size_t i = 0; i < sizeof general / sizeof general[0]; i++)
      shown = shown || strcmp(key, general[i]) == 0;
    if (shown) continue;
    if (json_is_string(value))
      fprintf(f, "%s%s %s", separator, key, json_string_value(value));
    else
      fprintf(f, "%s%s %lld", separator, key, (long long)json_integer_value(value));
    separator = ", ";
  }
  fputc('\n', f);
}

static void print_all(FILE *f, const model_dir *m, const json_t *root) {
  json_t *value;
  size_t i;
  fprintf(f, "%s: %s, %s layout, %d transformer%s\n", m->root, *m->family ? m->family : "unknown kind",
          m->layout, m->experts, m->experts == 1 ? "" : "s (high and low noise)");
  for (int p = 0; p < MODEL_PARTS; p++)
    if (m->part[p])
      print_part(f, model_part_name((model_part)p),
                 json_object_get(json_object_get(root, "parts"), part_keys[p]));
  json_array_foreach(json_object_get(root, "missing"), i, value) {
    fprintf(f, "  missing: %s\n", json_string_value(value));
  }
}

wan_status model_info_text(core_ctx *ctx, const model_dir *m, char **out) {
  json_t *root = NULL;
  char *text = NULL;
  size_t size = 0;
  *out = NULL;
  CORE_TRY(describe(ctx, m, &root));
  FILE *f = open_memstream(&text, &size);
  if (f) print_all(f, m, root);
  json_decref(root);
  bool ok = f && fclose(f) == 0;
  if (ok) *out = core_strdup(ctx, text);
  free(text);
  return *out ? WAN_OK : ok ? WAN_ERR_MEMORY : no_memory(ctx, m);
}
