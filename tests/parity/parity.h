/* parity.h: what the parity tests share: the manifest of fixtures, and the distance of two tensors. */
#ifndef WAN_TESTS_PARITY_H
#define WAN_TESTS_PARITY_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "backend/backend.h"
#include "weights/safetensors.h"

#define PARITY_DATA WAN_SOURCE_DIR "/tests/parity/data/"

#define MUST(ctx, expr)                                                    \
  do {                                                                     \
    wan_status must_status_ = (expr);                                      \
    if (must_status_ != WAN_OK) fail_msg("%s: %s", #expr, (ctx)->message); \
  } while (0)

/* Calls run(ctx, case, user) for each case of the manifest whose "stage" is `stage`; returns how many. */
static inline int parity_cases(const char *stage, void (*run)(core_ctx *, json_t *, void *), void *user) {
  json_error_t error;
  json_t *manifest = json_load_file(PARITY_DATA "MANIFEST.json", 0, &error);
  if (!manifest) fail_msg("MANIFEST.json: %s", error.text);
  int n = 0;
  size_t i;
  json_t *c;
  json_array_foreach(json_object_get(manifest, "cases"), i, c) {
    if (strcmp(json_string_value(json_object_get(c, "stage")), stage) != 0) continue;
    core_ctx ctx;
    core_ctx_init(&ctx);
    run(&ctx, c, user);
    if (core_mem_current(&ctx) != 0)
      fail_msg("%s: %llu bytes leaked", json_string_value(json_object_get(c, "file")),
               (unsigned long long)core_mem_current(&ctx));
    n++;
  }
  json_decref(manifest);
  return n;
}

static inline const char *case_text(json_t *c, const char *key) {
  return json_string_value(json_object_get(c, key));
}

static inline safetensors *case_open(core_ctx *ctx, json_t *c) {
  char path[512];
  safetensors *st;
  snprintf(path, sizeof path, PARITY_DATA "%s", case_text(c, "file"));
  MUST(ctx, safetensors_open(ctx, path, &st));
  return st;
}

/* ||a - b|| / ||b||; NaN anywhere gives infinity */
static inline double relative_l2(const float *a, const float *b, size_t n) {
  double d = 0, s = 0;
  for (size_t i = 0; i < n; i++) {
    d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    s += (double)b[i] * b[i];
  }
  double r = sqrt(d / (s > 0 ? s : 1));
  return r == r ? r : INFINITY;
}

/* PyTorch's [C][T*h*w] to the engine's [T*h*w][C], and back. */
static inline void to_channels_last(const float *in, float *out, size_t C, size_t rest) {
  for (size_t c = 0; c < C; c++)
    for (size_t i = 0; i < rest; i++) out[i * C + c] = in[c * rest + i];
}

static inline void to_channels_first(const float *in, float *out, size_t C, size_t rest) {
  for (size_t c = 0; c < C; c++)
    for (size_t i = 0; i < rest; i++) out[c * rest + i] = in[i * C + c];
}

typedef struct parity_setting {
  const char *backend;
  wan_precision precision;
  double limit;
} parity_setting;

/* Runs body(setting) for every backend of this build in both precisions. A backend that this machine can't
 * open is named; only "cuda" may be (there is no card in most machines). */
static inline void parity_each_backend(double f32_limit, double bf16_limit,
                                       void (*body)(const parity_setting *)) {
  for (int i = 0; backend_name(i); i++)
    for (int p = 0; p < 2; p++) {
      parity_setting s = {backend_name(i), p ? WAN_PRECISION_BF16 : WAN_PRECISION_F32,
                          p ? bf16_limit : f32_limit};
      core_ctx ctx;
      core_ctx_init(&ctx);
      backend *be;
      backend_config config = {.name = s.backend, .precision = s.precision};
      if (backend_open(&ctx, &config, &be) != WAN_OK) {
        print_message("SKIPPED %s: %s\n", s.backend, ctx.message);
        assert_string_equal(s.backend, "cuda");
        continue;
      }
      backend_close(be);
      body(&s);
    }
}

static inline backend *parity_backend(core_ctx *ctx, const parity_setting *s) {
  backend *be;
  backend_config config = {.name = s->backend, .precision = s->precision};
  MUST(ctx, backend_open(ctx, &config, &be));
  return be;
}

#endif
