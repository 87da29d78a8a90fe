/* ref.h: the reference backend, the specification of every operation in plain scalar C. Values are
 * read exactly as they are stored, everything is computed in double, and each result is rounded once,
 * when it is written. Nothing here is tuned: the loops follow the definitions.
 */
#ifndef WAN_BACKEND_REF_REF_H
#define WAN_BACKEND_REF_REF_H

#include "backend/backend.h"

/* Element i of an array of any float dtype; `data` need not be aligned. */
double ref_get(dtype type, const void *data, int64_t i);
/* Round to a tensor's element i: F32, or BF16 by way of f32. */
void ref_set(tensor t, int64_t i, double value);
/* One row (the last dimension) of a tensor as doubles, and back. */
void ref_read_row(tensor t, int64_t row, double *dst);
void ref_write_row(tensor t, int64_t row, const double *src);
/* n doubles of scratch memory, NULL with a message on failure. */
double *ref_scratch(backend *be, int64_t n);
double ref_activate(op_act act, double x);
/* x to out, a DT_E4M3_ROWS of its shape. */
wan_status ref_quantise(backend *be, tensor x, tensor out);
/* Sum of x[i] * w[i], w of type F32 or BF16. */
double ref_dot(const double *x, dtype type, const void *w, int64_t n);
/* A bias (or other vector) entry; 0 when there is no vector. */
double ref_vector(const weight *w, int64_t i);

/* ref_transformer.c */
wan_status ref_linear(backend *be, tensor x, const weight *w, const weight *bias, op_act act, tensor out);
wan_status ref_linear_add(backend *be, tensor x, const weight *w, const weight *bias, tensor sum);
wan_status ref_ada_norm(backend *be, tensor x, tensor mod, const token_rows *rows, int shift, int scale,
                        float eps, tensor out);
wan_status ref_layer_norm(backend *be, tensor x, const weight *gamma, const weight *beta, float eps,
                          tensor out);
wan_status ref_rms_norm(backend *be, tensor x, const weight *gamma, float eps, tensor out);
wan_status ref_qk_norm_rope(backend *be, tensor x, const weight *gamma, float eps, tensor rope, int heads);
wan_status ref_attention(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec, tensor out);
wan_status ref_gate_add(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows, int gate);
wan_status ref_mul(backend *be, tensor a, tensor b);
wan_status ref_apply(backend *be, tensor x, op_act act, tensor out);
wan_status ref_modulation(backend *be, const weight *base, tensor e, tensor out);
wan_status ref_position_bias(backend *be, const weight *table, tensor bucket, tensor out);
wan_status ref_embed(backend *be, const weight *table, const int32_t *ids, tensor out);
wan_status ref_cast(backend *be, tensor x, tensor out);
wan_status ref_patchify(backend *be, tensor x, tensor out);
wan_status ref_unpatchify(backend *be, tensor y, tensor out);

/* ref_vae.c */
wan_status ref_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out);
wan_status ref_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
                    tensor residual, tensor out);
wan_status ref_upsample_conv(backend *be, tensor x, const weight *w, const weight *bias, tensor out);
wan_status ref_time_unshuffle(backend *be, tensor x, tensor out);
wan_status ref_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip);
wan_status ref_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs);
wan_status ref_space_to_depth(backend *be, tensor x, tensor out);
wan_status ref_depth_to_space(backend *be, tensor x, tensor out);

/* ref_pixels.c */
wan_status ref_lincomb(backend *be, tensor out, int n, const tensor *x, const float *coef);
wan_status ref_channel_affine(backend *be, tensor x, tensor mul, tensor add, tensor out);
wan_status ref_concat_channels(backend *be, tensor a, tensor b, tensor out);
wan_status ref_to_u8(backend *be, tensor x, tensor out);
wan_status ref_all_finite(backend *be, tensor x, bool *finite);
wan_status ref_dot_product(backend *be, tensor a, tensor b, double *sum);

#endif
