/* ref_pixels.c: latents, pixels and reductions. */
#include "backend/ref/ref.h"

#include <math.h>

wan_status ref_lincomb(backend *be, tensor out, int n, const tensor *x, const float *coef) {
  (void)be;
  int64_t count = tensor_count(&out);
  for (int64_t i = 0; i < count; i++) {
    double sum = 0;
    for (int k = 0; k < n; k++) sum += (double)coef[k] * ref_get(DT_F32, x[k].data, i);
    ref_set(out, i, sum);
  }
  return WAN_OK;
}

wan_status ref_channel_affine(backend *be, tensor x, tensor mul, tensor add, tensor out) {
  (void)be;
  int64_t count = tensor_count(&x), c = tensor_cols(&x);
  for (int64_t i = 0; i < count; i++)
    ref_set(out, i,
            ref_get(x.type, x.data, i) * ref_get(DT_F32, mul.data, i % c) + ref_get(DT_F32, add.data, i % c));
  return WAN_OK;
}

wan_status ref_concat_channels(backend *be, tensor a, tensor b, tensor out) {
  (void)be;
  int64_t rows = tensor_rows(&out), na = tensor_cols(&a), nb = tensor_cols(&b);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t i = 0; i < na; i++) ref_set(out, r * (na + nb) + i, ref_get(a.type, a.data, r * na + i));
    for (int64_t i = 0; i < nb; i++)
      ref_set(out, r * (na + nb) + na + i, ref_get(b.type, b.data, r * nb + i));
  }
  return WAN_OK;
}

/* In f32 step by step, as torchvision normalises a video before it is written: where the result is
 * truncated, the rounding of each step decides. NaN becomes 0. */
wan_status ref_to_u8(backend *be, tensor x, tensor out) {
  (void)be;
  int64_t count = tensor_count(&x);
  for (int64_t i = 0; i < count; i++) {
    float v = (float)ref_get(x.type, x.data, i);
    v = v > -1 ? v < 1 ? v : 1 : -1;
    v = (v + 1) / 2;
    ((uint8_t *)out.data)[i] = (uint8_t)(v * 255);
  }
  return WAN_OK;
}

wan_status ref_all_finite(backend *be, tensor x, bool *finite) {
  (void)be;
  int64_t count = tensor_count(&x);
  *finite = true;
  for (int64_t i = 0; i < count && *finite; i++) *finite = isfinite(ref_get(x.type, x.data, i));
  return WAN_OK;
}

wan_status ref_dot_product(backend *be, tensor a, tensor b, double *sum) {
  (void)be;
  int64_t count = tensor_count(&a);
  *sum = 0;
  for (int64_t i = 0; i < count; i++) *sum += ref_get(DT_F32, a.data, i) * ref_get(DT_F32, b.data, i);
  return WAN_OK;
}
