/* prims.h: oneDNN behind a few calls: run a matrix product, run a convolution, pack the weights of either.
 * Primitives are compiled for one shape and kept in a bounded cache; their scratch memory is ours, so it is
 * counted and bounded. */
#ifndef WAN_CPU_PRIMS_H
#define WAN_CPU_PRIMS_H

#include "backend/backend.h"

typedef struct prims prims;
typedef struct packed packed; /* weights in the layout a primitive asked for */

wan_status prims_open(core_ctx *ctx, int threads, prims **out);
void prims_close(prims *p);
/* True when the library multiplies bf16 by machine instructions and not by emulation. */
bool prims_native_bf16(void);
/* True when it may use tile registers. ONEDNN_MAX_CPU_ISA can forbid it, and is obeyed by all of this
 * backend's products, so that a machine with tiles can be tested as one without. */
bool prims_native_amx(void);

/* dst [M, N] = act(src [M, K] . w^T + bias (+ dst)), w [N, K]; rows contiguous. src and w have one dtype,
 * F32 or BF16; dst is F32, or BF16 when src is. bias F32 [N] or NULL. */
typedef struct matmul_args {
  dtype type, dst_type;
  int64_t M, N, K;
  op_act act;
  bool add_dst; /* dst holds something to be added before rounding */
  const void *src;
  const void *w; /* plain [N, K], or NULL and */
  const packed *w_packed;
  const float *bias;
  void *dst;
} matmul_args;
wan_status prims_matmul(prims *p, const matmul_args *a);

/* A convolution's geometry; all zero bytes in the gaps, since it is compared as memory. src [T, H, W, Ci],
 * dst [To, Ho, Wo, Co], both of `type`. */
typedef struct conv_geometry {
  dtype type, dst_type;
  int64_t T, H, W, Ci, To, Ho, Wo, Co;
  int64_t kt, kh, kw;
  int64_t stride_t, stride_h, stride_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
} conv_geometry;
typedef struct conv_args {
  conv_geometry g;
  bool add_dst; /* dst holds the residual */
  const void *src;
  packed *w; /* brought into another layout when this shape asks for one */
  const float *bias;
  void *dst;
} conv_args;
wan_status prims_conv(prims *p, const conv_args *a);

/* Pack [Co, Ci, kt, kh, kw] weights given in dtype `from` (F32 or BF16), PyTorch order, for the geometry's
 * type. Shapes of g beyond the kernel's are a guess of what will come. */
wan_status prims_pack(prims *p, const conv_geometry *g, dtype from, const void *src, packed **out);
/* Pack [N, K] for products in `type`. *out is NULL when the library wants the matrix as it is. */
wan_status prims_pack_matrix(prims *p, int64_t N, int64_t K, dtype type, dtype from, const void *src,
                             packed **out);
size_t packed_bytes(const packed *w);
void packed_free(prims *p, packed *w);

#endif
