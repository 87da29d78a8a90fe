/* embeddings.c: positions and times as numbers. Both are computed in double on the host and rounded once
 * (wan/modules/model.py: rope_params and sinusoidal_embedding_1d work in float64). */
#include "dit/dit_internal.h"

#include <math.h>
#include <string.h>

/* cos/sin of position * 10000^(-2j/D) for each pair j of an axis of width D. Returns pairs written. */
static int64_t rope_axis(float *out, int64_t position, int64_t D) {
  for (int64_t j = 0; j < D / 2; j++) {
    double angle = (double)position * pow(10000.0, -2.0 * (double)j / (double)D);
    out[2 * j] = (float)cos(angle);
    out[2 * j + 1] = (float)sin(angle);
  }
  return D / 2;
}

/* One table an axis, [positions, D/2, 2]. */
static float *axis_table(core_ctx *ctx, int64_t positions, int64_t D) {
  float *t = core_calloc(ctx, (size_t)positions, (size_t)D * sizeof *t);
  for (int64_t p = 0; t && p < positions; p++) rope_axis(t + p * D, p, D);
  return t;
}

void dit_make_rope(dit *d, int64_t T, int64_t gh, int64_t gw) {
  backend *be = d->be;
  const int64_t grid[3] = {T, gh, gw};
  if (d->rope.type != DT_NONE && memcmp(grid, d->rope_grid, sizeof grid) == 0) return;
  tensor_free(be, &d->rope);
  /* Axis widths of a head of D channels: height and width get 2*(D/6) each, time the rest. */
  int64_t D = d->config.dim / d->config.heads, Ds = 2 * (D / 6), Dt = D - 2 * Ds, row = D;
  float *time = axis_table(be->ctx, T, Dt), *rows = axis_table(be->ctx, gh, Ds),
        *cols = axis_table(be->ctx, gw, Ds);
  float *all = core_calloc(be->ctx, (size_t)(T * gh * gw), (size_t)row * sizeof *all);
  if (!time || !rows || !cols || !all) {
    backend_fail(be, WAN_ERR_MEMORY, "%s", be->ctx->message);
    goto done;
  }
  float *p = all;
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < gh; i++)
      for (int64_t j = 0; j < gw; j++, p += row) {
        memcpy(p, time + t * Dt, (size_t)Dt * sizeof *p);
        memcpy(p + Dt, rows + i * Ds, (size_t)Ds * sizeof *p);
        memcpy(p + Dt + Ds, cols + j * Ds, (size_t)Ds * sizeof *p);
      }
  d->rope = TENSOR_ALLOC(be, DT_F32, T * gh * gw, D / 2, 2);
  tensor_upload(be, d->rope, all);
  memcpy(d->rope_grid, grid, sizeof grid);
done:
  core_free(be->ctx, all);
  core_free(be->ctx, cols);
  core_free(be->ctx, rows);
  core_free(be->ctx, time);
}

tensor dit_time_features(dit *d, const float *t, int64_t n) {
  backend *be = d->be;
  int64_t half = d->config.freq_dim / 2;
  float *host = core_calloc(be->ctx, (size_t)n, (size_t)d->config.freq_dim * sizeof *host);
  if (!host) {
    backend_fail(be, WAN_ERR_MEMORY, "%s", be->ctx->message);
    return (tensor){0};
  }
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < half; j++) {
      double angle = (double)t[i] * pow(10000.0, -(double)j / (double)half);
      host[i * 2 * half + j] = (float)cos(angle); /* cosines first */
      host[i * 2 * half + half + j] = (float)sin(angle);
    }
  tensor out = TENSOR_NEW(be, DT_F32, n, 2 * half);
  tensor_upload(be, out, host);
  core_free(be->ctx, host);
  return out;
}
