/* cpu.h: what the files of this backend share. */
#ifndef WAN_CPU_CPU_H
#define WAN_CPU_CPU_H

#include "backend/backend.h"
#include "backend/cpu/attn.h"
#include "backend/cpu/prims.h"
#include "backend/cpu/rows.h"
#include "backend/cpu/tiles.h"

#include <omp.h>

/* Kernels chosen for this machine. */
typedef struct cpu_isa {
  const cpu_rows *rows;
  const cpu_rows_bf16 *rows_bf16; /* NULL without AVX512-BF16 */
  const cpu_attn *attn_f32;
  const cpu_attn *attn_bf16; /* for bf16 activations; may be the f32 kernels, fed with widened values */
  const cpu_tiles *tiles;    /* products and convolutions in bf16 on tile registers; NULL without: oneDNN */
  char text[96];             /* for the log: "avx2, avx512, ..." */
} cpu_isa;
void cpu_isa_detect(cpu_isa *isa);

/* Buffers that grow on demand and live as long as the backend. */
typedef enum cpu_scratch {
  SCRATCH_ROWS,  /* a few float rows for each thread */
  SCRATCH_X,     /* converted activations */
  SCRATCH_W,     /* converted weights */
  SCRATCH_OUT,   /* results before conversion */
  SCRATCH_PHASE, /* upsample_conv: one of the four interleaved pictures */
  SCRATCH_PACK,  /* attention: packed keys and values */
  SCRATCH_BIAS,  /* attention: biases in kernel form */
  SCRATCH_TILES, /* tiles.h: blocks of A and sums */
  SCRATCH_COUNT
} cpu_scratch;

typedef struct cpu_state {
  cpu_isa isa;
  prims *prims;
  bool native_bf16; /* oneDNN has bf16 instructions here; otherwise products run in f32 */
  void *scratch[SCRATCH_COUNT];
  size_t scratch_bytes[SCRATCH_COUNT];
} cpu_state;

static inline cpu_state *cpu_of(const backend *be) {
  return be->impl;
}
static inline int64_t cpu_thread(void) {
  return omp_get_thread_num();
}

/* At least `bytes`, contents undefined; NULL with a message when memory is short. */
void *cpu_scratch_get(backend *be, cpu_scratch which, size_t bytes);

/* rowwise.c: rows as floats. begin gives x itself when it is F32, else a widened copy in buf. */
const float *cpu_row_begin(const cpu_rows *r, tensor x, int64_t row, int64_t cols, float *buf);
/* Where to compute a result row, and storing it where that was the buffer. */
float *cpu_row_target(tensor out, int64_t row, int64_t cols, float *buf);
void cpu_row_end(const cpu_rows *r, tensor out, int64_t row, int64_t cols, const float *buf);
/* Whole-tensor conversion between F32 and BF16, in parallel; may be a plain copy. */
void cpu_convert(backend *be, dtype from, const void *src, dtype to, void *dst, int64_t n);

/* weights.c: n values of any float dtype, aligned or not, as floats. */
void cpu_widen(dtype from, const void *src, float *dst, int64_t n);
wan_status cpu_weight_load(backend *be, weight *w);
void cpu_weight_unload(backend *be, weight *w);
/* What w->impl is for weights that are packed; NULL for those used in the file's order. With isa.tiles
 * weights computed with in bf16 are `tiled`, all others are oneDNN's. */
typedef struct cpu_packed {
  dtype type;  /* computed in */
  bool matrix; /* for cpu_product(): entry 0 is [N, K] */
  /* WEIGHT_CONV_UP: kernels of output pixels (row & 1) * 2 + (column & 1); otherwise one */
  packed *part[4];
  tiled *tiled[4];
} cpu_packed;

/* The operations, by file. */
/* out = act(x . w^T + bias) + residual; w is a matrix [N, K], or a kernel of one tap; residual NULL or of
 * out's dtype and shape, perhaps out itself (then act is none). */
wan_status cpu_product(backend *be, tensor x, const weight *w, const weight *bias, op_act act,
                       const void *residual, tensor out);
wan_status cpu_linear(backend *be, tensor x, const weight *w, const weight *bias, op_act act, tensor out);

wan_status cpu_linear_add(backend *be, tensor x, const weight *w, const weight *bias, tensor sum);
wan_status cpu_ada_norm(backend *be, tensor x, tensor mod, const token_rows *rows, int shift, int scale,
                        float eps, tensor out);
wan_status cpu_layer_norm(backend *be, tensor x, const weight *gamma, const weight *beta, float eps,
                          tensor out);
wan_status cpu_rms_norm(backend *be, tensor x, const weight *gamma, float eps, tensor out);
wan_status cpu_qk_norm_rope(backend *be, tensor x, const weight *gamma, float eps, tensor rope, int heads);
wan_status cpu_gate_add(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows, int gate);
wan_status cpu_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out);
wan_status cpu_channel_affine(backend *be, tensor x, tensor mul, tensor add, tensor out);

wan_status cpu_mul(backend *be, tensor a, tensor b);
wan_status cpu_activate(backend *be, tensor x, op_act act, tensor out);
wan_status cpu_modulation(backend *be, const weight *base, tensor e, tensor out);
wan_status cpu_position_bias(backend *be, const weight *table, tensor bucket, tensor out);
wan_status cpu_embed(backend *be, const weight *table, const int32_t *ids, tensor out);
wan_status cpu_cast(backend *be, tensor x, tensor out);
wan_status cpu_lincomb(backend *be, tensor out, int n, const tensor *x, const float *coef);
wan_status cpu_to_u8(backend *be, tensor x, tensor out);
wan_status cpu_all_finite(backend *be, tensor x, bool *finite);
wan_status cpu_dot(backend *be, tensor a, tensor b, double *sum);

wan_status cpu_patchify(backend *be, tensor x, tensor out);
wan_status cpu_unpatchify(backend *be, tensor y, tensor out);
wan_status cpu_time_unshuffle(backend *be, tensor x, tensor out);
wan_status cpu_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip);
wan_status cpu_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs);
wan_status cpu_space_to_depth(backend *be, tensor x, tensor out);
wan_status cpu_depth_to_space(backend *be, tensor x, tensor out);
wan_status cpu_concat_channels(backend *be, tensor a, tensor b, tensor out);

wan_status cpu_attention(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec, tensor out);
wan_status cpu_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
                    tensor residual, tensor out);
wan_status cpu_upsample_conv(backend *be, tensor x, const weight *w, const weight *bias, tensor out);

#endif
