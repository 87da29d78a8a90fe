/* kernels.h: the C face of the device code. Every function checks nothing, launches on `stream` and
 * returns; a bad launch is found by the caller through cudaGetLastError(). Pointers are device memory.
 * Numbers are F32 or BF16 as the k_type beside them says; tensors are contiguous, channels last.
 * All kernels are deterministic: sums have a fixed order and nothing is added atomically. */
#ifndef WAN_BACKEND_CUDA_KERNELS_H
#define WAN_BACKEND_CUDA_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *k_stream;

typedef enum k_type { K_F32, K_BF16, K_F16, K_F8E4M3, K_F8E5M2, K_F64 } k_type; /* the last four: k_convert */
typedef enum k_act { K_NONE, K_SILU, K_GELU } k_act;

/* A tensor's data and type. */
typedef struct k_data {
  void *p;
  k_type type;
} k_data;

/* Entry `which` of row row[(offset + i) / per] of mod F32 [n, R, C], for token i. mod NULL: none. */
typedef struct k_mod {
  const float *mod;
  const int32_t *row;
  int64_t per, offset;
  int R;
} k_mod;

/* ---- rows.cu: norms over rows of c channels ---- */
void k_ada_norm(k_stream s, const float *x, k_mod m, int shift, int scale, float eps, k_data out,
                int64_t rows, int c);
void k_layer_norm(k_stream s, const float *x, const float *gamma, const float *beta, float eps, k_data out,
                  int64_t rows, int c);
/* With x += gate * y in front; *watch (device, or NULL) becomes 1 when a sum is not finite. out may be y. */
typedef struct k_residual {
  k_data y;
  k_mod m; /* mod NULL: no gate */
  int gate;
  int *watch;
} k_residual;
void k_add_ada_norm(k_stream s, float *x, const k_residual *r, k_mod m, int shift, int scale, float eps,
                    k_data out, int64_t rows, int c);
void k_add_layer_norm(k_stream s, float *x, const k_residual *r, const float *gamma, const float *beta,
                      float eps, k_data out, int64_t rows, int c);
void k_rms_norm(k_stream s, k_data x, const float *gamma, float eps, k_data out, int64_t rows, int c);
/* in place; rope F32 [rows, pairs, 2] or NULL */
void k_qk_norm_rope(k_stream s, k_data x, const float *gamma, float eps, const float *rope, int pairs,
                    int64_t rows, int c);
void k_channel_norm(k_stream s, k_data x, const float *gamma, k_act act, k_data out, int64_t rows, int c);
/* scores F32 [heads, rows, lk] -> p [heads, rows, lk]: softmax(score + biases); query rows start at
 * row0 of lq. key_bias F32 [lk] or NULL, rel_bias F32 [heads, lq+lk-1] or NULL. */
void k_softmax(k_stream s, const float *score, const float *key_bias, const float *rel_bias, k_data p,
               int heads, int64_t rows, int64_t row0, int64_t lq, int64_t lk);

/* ---- elementwise.cu ---- */
void k_gate_add(k_stream s, k_data x, k_data y, k_mod m, int gate, int64_t rows, int c);
void k_mul(k_stream s, k_data a, k_data b, int64_t n);
void k_activate(k_stream s, k_data x, k_act act, k_data out, int64_t n); /* K_NONE: a cast */
void k_modulation(k_stream s, const float *base, const float *e, bool per_row, float *out, int64_t n, int R,
                  int c);
/* out F32 [heads, n]: table[bucket[i]][h], rounded to bf16 or not */
void k_position_bias(k_stream s, const float *table, const int32_t *bucket, float *out, int heads, int n,
                     bool round);
void k_convert(k_stream s, k_data in, k_data out, int64_t n); /* from any k_type */
void k_lincomb(k_stream s, float *out, int terms, const float *const *x, const float *coef, int64_t n);
void k_channel_affine(k_stream s, k_data x, const float *mul, const float *add, k_data out, int64_t n, int c);
void k_to_u8(k_stream s, k_data x, uint8_t *out, int64_t n);
/* *flag (device) becomes 1 when any element is not finite; it must be 0 before. */
void k_not_finite(k_stream s, k_data x, int64_t n, int *flag);
enum { K_DOT_PARTS = 256 };
/* part: K_DOT_PARTS + 1 doubles on the device; the sum is left in part[K_DOT_PARTS]. */
void k_dot(k_stream s, const float *a, const float *b, int64_t n, double *part);
/* x + (act(out + bias)): what a matrix product without epilogue still needs. bias may be NULL. */
void k_bias_act(k_stream s, const float *acc, const float *bias, k_act act, k_data out, int64_t rows, int c);

/* ---- quantise.cu: DT_E4M3_ROWS ---- */
void k_quantise(k_stream s, k_data x, void *out, float *scales, int64_t rows, int c); /* x F32 or BF16 */
void k_dequantise(k_stream s, const void *x, const float *scales, float *out, int64_t rows, int c);
/* act(acc * row's scale * column's scale + bias): acc F32 [rows, c]; bias may be NULL. */
void k_scale_bias_act(k_stream s, const float *acc, const float *row_scales, const float *column_scales,
                      const float *bias, k_act act, k_data out, int64_t rows, int c);

/* ---- shuffle.cu: elements that move ---- */
void k_patchify(k_stream s, k_data x, k_data out, int T, int h, int w, int c);
void k_unpatchify(k_stream s, const float *y, float *out, int T, int h, int w, int c);
void k_time_unshuffle(k_stream s, k_data x, k_data out, int T, int64_t hw, int c);
void k_dup_up_add(k_stream s, k_data out, k_data x, int ft, int fs, int skip, int T, int H, int W, int co,
                  int ci);
void k_avg_down_add(k_stream s, k_data out, k_data x, int ft, int fs, int Tx, int T, int H, int W, int co,
                    int ci);
/* small [T, h, w, 4c], large [T, 2h, 2w, c] */
void k_swap_depth(k_stream s, k_data small, k_data large, bool to_small, int T, int h, int w, int c);
void k_concat(k_stream s, k_data a, k_data b, k_data out, int64_t rows, int ca, int cb);
/* [n, c] -> [n, wide], the new channels zero */
void k_pad_channels(k_stream s, k_data x, k_data out, int64_t n, int c, int wide);
/* PyTorch's [co, ci, taps] -> [co, taps, wide], channels ci.. zero */
void k_pack_conv(k_stream s, k_data w, k_data out, int co, int ci, int taps, int wide);
/* [co, ci, 3, 3] -> [co, 16, wide]: entry phase*4 + tap of phase (py, px) and tap (dy, dx) is the sum of
 * the weights that meet the same source pixel once pixels are replicated 2x2. */
void k_pack_up(k_stream s, k_data w, k_data out, int co, int ci, int wide);

/* ---- gemm.cu: for shapes and dtypes the library has no kernel for ---- */
/* out[b] (m x n) = alpha * a[b] (m x k) * op(b[b]); bt: b is n x k, else k x n. ld and strides in elements.
 */
typedef struct k_gemm_spec {
  int64_t m, n, k, lda, ldb, ldo;
  int64_t batch, stride_a, stride_b, stride_o;
  bool bt;
  float alpha;
  const float *scale_a, *scale_b; /* of the rows of e4m3 operands, for the library; NULL: none */
} k_gemm_spec;
void k_gemm(k_stream s, const k_gemm_spec *g, k_data a, k_data b, k_data out, const float *bias, k_act act);

/* ---- conv*.cu ---- */
/* x [T, H, W, ci], w [co, phases*taps, ci] packed, of whose taps kt*kh*kw from tap0 on are used, out
 * [To, Ho*up, Wo*up, co]; up 1 or 2. With up 2 there
 * are four phases, and output (2i + py, 2j + px) is phase 2*py + px at (i, j), whose window starts at
 * (i + py - 1, j + px - 1). bias F32 and residual (as out) may be NULL. */
enum { K_CONV_FRAMES = 8 };
typedef struct k_conv_spec {
  int T, H, W, ci, To, Ho, Wo, co;
  int kt, kh, kw, tap0, taps;
  int stride_t, stride_h, stride_w, pad_top, pad_left;
  int up;
  k_type out_type; /* of out and residual */
  bool apart;      /* the frames lie at frame[t] instead of one after another at x */
  const void *frame[K_CONV_FRAMES];
  const void *x, *w, *residual;
  const float *bias;
  void *out;
} k_conv_spec;
void k_conv_simple(k_stream s, const k_conv_spec *c, k_type type); /* type: of x and w */
/* bf16 on any card. False: not this case. */
bool k_conv_mma(k_stream s, const k_conv_spec *c);
/* bf16 on compute capability 9.0; encoder is the driver's cuTensorMapEncodeTiled. False: not this case. */
bool k_conv_sm90(k_stream s, void *encoder, const k_conv_spec *c);

/* The same for 3x3 pixels and few outputs. */
bool k_conv_halo_sm90(k_stream s, void *encoder, const k_conv_spec *c);

/* ---- flash.cu ---- */
typedef struct k_flash_spec {
  const void *q, *k, *v; /* bf16 [lq, heads*d], [lk, heads*d] */
  void *out;
  const float *key_bias, *rel_bias; /* or NULL, as in k_softmax */
  int64_t lq, lk;
  int heads, d; /* d % 8 == 0, d <= 128 */
  float scale;
} k_flash_spec;
void k_flash(k_stream s, const k_flash_spec *f);
/* Compute capability 9.0, heads of 128 channels, no biases; encoder as for k_conv_sm90. False: not this case.
 */
bool k_flash_sm90(k_stream s, void *encoder, const k_flash_spec *f);

/* ---- flash8_sm90.cu: compute capability 9.0; encoder as for k_conv_sm90 ---- */
/* False: not this case (biases, heads of other than 128 channels). */
bool k_flash8(k_stream s, void *encoder, const k_flash_spec *f, void *scratch, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
