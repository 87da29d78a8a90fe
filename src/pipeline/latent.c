/* latent.c: reading, writing and drawing latents. */
#include "pipeline/latent.h"

#include <math.h>
#include <string.h>

#include "core/rng.h"

void channels_last(const float *in, int64_t C, int64_t n, float *out) {
  for (int64_t c = 0; c < C; c++)
    for (int64_t i = 0; i < n; i++) out[i * C + c] = in[c * n + i];
}

void channels_first(const float *in, int64_t C, int64_t n, float *out) {
  for (int64_t c = 0; c < C; c++)
    for (int64_t i = 0; i < n; i++) out[c * n + i] = in[i * C + c];
}

/* The file may keep them unaligned. */
static void integers_to_f32(tensor t, float *out, size_t n) {
  for (size_t i = 0; i < n; i++) {
    int64_t wide;
    int32_t narrow;
    if (t.type == DT_I64) {
      memcpy(&wide, (const char *)t.data + i * sizeof wide, sizeof wide);
      out[i] = (float)wide;
    } else {
      memcpy(&narrow, (const char *)t.data + i * sizeof narrow, sizeof narrow);
      out[i] = (float)narrow;
    }
  }
}

wan_status latent_read(core_ctx *ctx, const safetensors *file, const char *path, const char *name, int ndim,
                       const int64_t *dim, tensor *out) {
  *out = (tensor){0};
  tensor t = safetensors_find(file, name);
  if (t.type == DT_NONE) return core_fail(ctx, WAN_ERR_FORMAT, "%s: has no tensor \"%s\"", path, name);
  bool whole = t.type == DT_I32 || t.type == DT_I64; /* timesteps are often stored as integers */
  bool fits = t.ndim == ndim && (dtype_is_float(t.type) || t.type == DT_F64 || whole);
  for (int i = 0; fits && i < ndim; i++) fits = dim[i] < 0 ? t.dim[i] >= 1 : t.dim[i] == dim[i];
  if (!fits) {
    char want[96], found[96];
    tensor w = tensor_of(DT_F32, NULL, ndim, dim);
    return core_fail(ctx, WAN_ERR_FORMAT, "%s: \"%s\" is %s %s, a float tensor of shape %s is needed%s", path,
                     name, dtype_name(t.type), tensor_shape_text(&t, found, sizeof found),
                     tensor_shape_text(&w, want, sizeof want), " (-1: any)");
  }
  size_t n = (size_t)tensor_count(&t);
  float *data = core_alloc(ctx, n * sizeof *data);
  if (!data) return WAN_ERR_MEMORY;
  if (whole)
    integers_to_f32(t, data, n);
  else
    convert_to_f32(t.type, t.data, data, n);
  for (size_t i = 0; i < n; i++) {
    if (isfinite(data[i])) continue;
    core_free(ctx, data);
    return core_fail(ctx, WAN_ERR_NUMERIC, "%s: value %zu of \"%s\" is not a finite number", path, i, name);
  }
  *out = tensor_of(DT_F32, data, t.ndim, t.dim);
  return WAN_OK;
}

wan_status noise_draw(core_ctx *ctx, wan_rng rng, int64_t seed, float *out, size_t count) {
  if (rng == WAN_RNG_TORCH_CPU) return rng_normal_torch_cpu(ctx, (uint64_t)seed, out, count);
  if (rng != WAN_RNG_PHILOX) return core_fail(ctx, WAN_ERR_ARGUMENT, "unknown noise generator %d", (int)rng);
  rng_normal_philox((uint64_t)seed, out, count);
  return WAN_OK;
}

wan_status noise_make(core_ctx *ctx, const run_settings *s, float **out) {
  int64_t n = s->T * s->h * s->w;
  size_t count = (size_t)(n * s->C);
  float *raw = NULL, *noise = NULL;
  wan_status st;
  *out = NULL;
  if (s->params->noise_path) {
    safetensors *file = NULL;
    tensor t = {0};
    CORE_TRY(safetensors_open(ctx, s->params->noise_path, &file));
    st = latent_read(ctx, file, s->params->noise_path, "noise", 4, (int64_t[]){s->C, s->T, s->h, s->w}, &t);
    raw = t.data;
    safetensors_close(file);
  } else {
    raw = core_alloc(ctx, count * sizeof *raw);
    st = raw ? noise_draw(ctx, s->params->rng, s->seed, raw, count) : WAN_ERR_MEMORY;
  }
  if (st == WAN_OK && !(noise = core_alloc(ctx, count * sizeof *noise))) st = WAN_ERR_MEMORY;
  if (st == WAN_OK) channels_last(raw, s->C, n, noise);
  core_free(ctx, raw);
  *out = noise;
  return st;
}

wan_status latent_save(backend *be, const char *path, tensor x, const char *const *metadata) {
  core_ctx *ctx = be->ctx;
  size_t bytes = tensor_bytes(&x);
  int64_t C = x.dim[3], n = tensor_count(&x) / C;
  float *inner = core_alloc(ctx, bytes), *outer = core_alloc(ctx, bytes);
  wan_status s = inner && outer ? WAN_OK : WAN_ERR_MEMORY;
  if (s == WAN_OK) {
    tensor_download(be, inner, x);
    s = backend_status(be);
  }
  if (s == WAN_OK) {
    channels_first(inner, C, n, outer);
    named_tensor t = {"latent", TENSOR_OF(DT_F32, outer, C, x.dim[0], x.dim[1], x.dim[2])};
    s = safetensors_write(ctx, path, 1, &t, metadata);
  }
  core_free(ctx, inner);
  core_free(ctx, outer);
  return s;
}

wan_status latent_load(backend *be, const char *path, int64_t channels, tensor *out) {
  core_ctx *ctx = be->ctx;
  safetensors *file = NULL;
  tensor t = {0};
  *out = (tensor){0};
  CORE_TRY(safetensors_open(ctx, path, &file));
  wan_status s = latent_read(ctx, file, path, "latent", 4, (int64_t[]){channels, -1, -1, -1}, &t);
  safetensors_close(file);
  CORE_TRY(s);
  float *last = core_alloc(ctx, tensor_bytes(&t));
  if (last) {
    channels_last(t.data, channels, tensor_count(&t) / channels, last);
    *out = TENSOR_ALLOC(be, DT_F32, t.dim[1], t.dim[2], t.dim[3], channels);
    tensor_upload(be, *out, last);
    s = backend_status(be);
  } else {
    s = WAN_ERR_MEMORY;
  }
  core_free(ctx, last);
  core_free(ctx, t.data);
  if (s != WAN_OK) tensor_free(be, out);
  return s;
}
