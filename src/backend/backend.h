/* backend.h: the operation table. Model code calls op_*(); those wrappers (ops*.c) check shapes and
 * dtypes once, take the result's memory from the current scope, count time and work, and call the
 * backend's own function (struct backend_ops). A backend is a folder beside this file that fills the
 * table; only registry.c names them. `ref` is the specification: plain scalar C.
 *
 * Failure is sticky: the first failing operation records its message in the core_ctx and puts the
 * backend into the failed state; every later op returns the null tensor at once and computes nothing.
 * So a forward pass reads as a list of operations and asks backend_status() where it matters.
 *
 * Memory: op results live in the scope that is open when the op is called and vanish at the
 * matching scope_end(). State that must survive is made with tensor_alloc(). Operations on one
 * backend execute in the order issued (an accelerator may run behind the host; backend_sync() waits).
 *
 * Shapes: L tokens, C channels, T,H,W frames x rows x columns, channels last. "act" is the dtype of
 * activations (backend.act): DT_BF16, or DT_F32 with WAN_PRECISION_F32. All statistics,
 * accumulations and exponentials are at least f32.
 */
#ifndef WAN_BACKEND_BACKEND_H
#define WAN_BACKEND_BACKEND_H

#include "core/ctx.h"
#include "core/tensor.h"

/* ---- Weights as operations see them ---- */

typedef enum weight_role {
  WEIGHT_VECTOR,     /* f32 in backend memory: bias, norm weight, gamma, modulation */
  WEIGHT_LINEAR,     /* [out, in] for op_linear in the act dtype */
  WEIGHT_PRODUCT,    /* the same in the backend's product dtype, for the largest products */
  WEIGHT_LINEAR_F32, /* [out, in] for op_linear in f32 whatever the precision (time embedding, head) */
  WEIGHT_CONV,       /* [Cout, Cin, kt, kh, kw] or [Cout, Cin, kh, kw] (kt = 1), PyTorch order in src */
  WEIGHT_CONV_UP,    /* [Cout, Cin, 3, 3] for op_upsample_conv_into */
  WEIGHT_TABLE       /* [rows, C] looked up by op_embed; stays mapped, only the rows used are read */
} weight_role;

/* One named parameter. `src` describes host memory (usually a file mapping) in the file's dtype and
 * PyTorch order. Between backend_weight_load() and backend_weight_unload(), `data` is what the
 * backend made of it (it may equal src.data when the file's form can be used in place). */
typedef struct weight {
  const char *name; /* canonical name, for messages; owned by the weight set */
  weight_role role;
  tensor src;
  dtype type;         /* of data while loaded, DT_NONE otherwise */
  void *data;         /* backend's form; NULL while not loaded */
  size_t data_bytes;  /* bytes the backend holds for it: 0 when used in place */
  size_t place_bytes; /* bytes of the mapping in use while used in place; counted like held memory */
  void *impl;         /* backend's own extra (a packed descriptor), freed by unload */
  int loads;          /* how often a backend that copies has loaded it */
} weight;

/* ---- A backend instance ---- */

typedef struct backend backend;

typedef struct backend_config {
  const char *name;        /* NULL: best available */
  wan_precision precision; /* DEFAULT means BF16 */
  int threads;             /* 0: all cores */
  bool profile;
} backend_config;

typedef enum op_act { ACT_NONE, ACT_SILU, ACT_GELU_TANH } op_act;

/* Which row of a modulation tensor each token uses: token i (counted from `offset`) uses row
 * row[(offset + i) / per]. `row` is an I32 tensor in backend memory (token_rows_create()). */
typedef struct token_rows {
  tensor row;     /* I32 [units] */
  int64_t per;    /* tokens a unit: tokens of one latent frame, or 1 */
  int64_t offset; /* first token's position: nonzero when a slice of the tokens is processed */
} token_rows;

typedef struct conv_spec {
  int stride_t, stride_h, stride_w;
  int pad_top, pad_bottom, pad_left, pad_right; /* zero padding in pixels; time is never padded here */
  /* NULL, or where the T <= CONV_FRAMES_MAX frames of x are if they don't follow each other in memory (x.data
   * is then not used). The first of them may be NULL: frames of zeros, before the beginning of a clip. */
  const void *const *frame;
} conv_spec;
enum { CONV_FRAMES_MAX = 8 };

typedef struct attention_spec {
  int heads;
  float scale;     /* multiplies q.k */
  tensor key_bias; /* null, or F32 [Lk]: added to every score of that key (log multiplicity) */
  tensor rel_bias; /* null, or F32 [heads, Lq+Lk-1]: entry (h, j-i+Lq-1) added to score (i,j) */
  bool coarse;     /* 8 bits will do where the backend has such an attention */
} attention_spec;

/* What a norm adds to the residual stream x before it reads it: x += mod[row][gate] * y, or x += y with a
 * null mod. One pass over memory instead of two where the backend can. */
typedef struct residual_add {
  tensor y;     /* act or F32 [L, C]; null: nothing is added */
  tensor mod;   /* F32 [n, R, C] or null */
  int gate;     /* entry of mod */
  tensor watch; /* I32 [1] or null: becomes 1 when a sum is not finite */
} residual_add;

/* A buffer for results that the host reads while later operations run, see backend_fetch_open(). */
typedef struct backend_fetch {
  void *host; /* what was fetched, once backend_fetch_end() has returned */
  size_t bytes;
  void *impl; /* the backend's own */
} backend_fetch;

/* The table. Every function gets checked arguments: shapes agree, dtypes are allowed, outputs are
 * allocated and do not overlap inputs unless said. Returns WAN_OK or a status with its message. */
typedef struct backend_ops {
  const char *name;
  void (*close)(backend *be);
  /* Memory of this backend; alloc returns NULL with a message on failure. */
  void *(*mem_alloc)(backend *be, size_t bytes);
  void (*mem_free)(backend *be, void *p, size_t bytes);
  /* Of a backend with memory of its own (a device), NULL where it is the host's: the bytes that mem_alloc
   * could still give, ignoring the context's limit; ... */
  uint64_t (*mem_available)(backend *be);
  /* ... take all that a run will need at its peak (as the device account counts), so that nobody else can, or
   * with 0 give back what is not in use, and say how many bytes of host memory may be pinned for streaming;
   * ... */
  wan_status (*mem_reserve)(backend *be, uint64_t bytes, uint64_t host);
  /* ... and between stages let go of what was kept for more of the same. */
  void (*mem_trim)(backend *be);
  wan_status (*upload)(backend *be, void *dst, const void *host, size_t bytes);
  wan_status (*download)(backend *be, void *host, const void *src, size_t bytes);
  /* Downloads behind the host's back: all four, or NULL where a download is as good. open fills host and impl
   * for f->bytes; begin may return before the copy is made, and src may change after it by later operations.
   */
  wan_status (*fetch_open)(backend *be, backend_fetch *f);
  void (*fetch_close)(backend *be, backend_fetch *f);
  wan_status (*fetch_begin)(backend *be, backend_fetch *f, const void *src, size_t bytes);
  wan_status (*fetch_end)(backend *be, backend_fetch *f);
  wan_status (*copy)(backend *be, void *dst, const void *src, size_t bytes);
  wan_status (*zero)(backend *be, void *dst, size_t bytes);
  wan_status (*sync)(backend *be);
  wan_status (*pace)(backend *be); /* see backend_pace(); NULL where the host does the work */
  /* Make w->data, w->type, w->data_bytes, w->impl from w->src. unload releases all of it. */
  wan_status (*weight_load)(backend *be, weight *w);
  void (*weight_unload)(backend *be, weight *w);
  /* May be NULL. Starts weight_load() beside the operations issued before; those issued later see the weight.
   * A failure is no failure of the backend: the load is tried again when the weight is needed. */
  void (*weight_prefetch)(backend *be, weight *w);
  /* Bytes that the loaded form takes (data_bytes). May be NULL: f32 or the act dtype, as the role says. */
  size_t (*weight_bytes)(backend *be, const weight *w);
  /* May be NULL. The weight's source goes away: let go of whatever refers to it. */
  void (*weight_forget)(backend *be, weight *w);

  wan_status (*linear)(backend *be, tensor x, const weight *w, const weight *bias, op_act act, tensor out);
  wan_status (*linear_add)(backend *be, tensor x, const weight *w, const weight *bias, tensor sum);
  wan_status (*ada_norm)(backend *be, tensor x, tensor mod, const token_rows *rows, int shift, int scale,
                         float eps, tensor out);
  wan_status (*layer_norm)(backend *be, tensor x, const weight *gamma, const weight *beta, float eps,
                           tensor out);
  /* Both may be NULL: then gate_add and the norm do it. add->y is there; out may be add->y. */
  wan_status (*add_ada_norm)(backend *be, tensor x, const residual_add *add, tensor mod,
                             const token_rows *rows, int shift, int scale, float eps, tensor out);
  wan_status (*add_layer_norm)(backend *be, tensor x, const residual_add *add, const token_rows *rows,
                               const weight *gamma, const weight *beta, float eps, tensor out);
  wan_status (*rms_norm)(backend *be, tensor x, const weight *gamma, float eps, tensor out);
  wan_status (*qk_norm_rope)(backend *be, tensor x, const weight *gamma, float eps, tensor rope, int heads);
  wan_status (*attention)(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec, tensor out);
  wan_status (*gate_add)(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows, int gate);
  wan_status (*mul)(backend *be, tensor a, tensor b);
  wan_status (*activate)(backend *be, tensor x, op_act act, tensor out);
  wan_status (*modulation)(backend *be, const weight *base, tensor e, tensor out);
  wan_status (*position_bias)(backend *be, const weight *table, tensor bucket, tensor out);
  wan_status (*embed)(backend *be, const weight *table, const int32_t *ids, tensor out);
  wan_status (*cast)(backend *be, tensor x, tensor out);
  wan_status (*patchify)(backend *be, tensor x, tensor out);
  wan_status (*unpatchify)(backend *be, tensor y, tensor out);

  wan_status (*channel_norm)(backend *be, tensor x, const weight *gamma, op_act act, tensor out);
  wan_status (*conv)(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
                     tensor residual, tensor out);
  wan_status (*upsample_conv)(backend *be, tensor x, const weight *w, const weight *bias, tensor out);
  wan_status (*time_unshuffle)(backend *be, tensor x, tensor out);
  wan_status (*dup_up_add)(backend *be, tensor out, tensor x, int ft, int fs, int skip);
  wan_status (*avg_down_add)(backend *be, tensor out, tensor x, int ft, int fs);
  wan_status (*space_to_depth)(backend *be, tensor x, tensor out);
  wan_status (*depth_to_space)(backend *be, tensor x, tensor out);

  wan_status (*lincomb)(backend *be, tensor out, int n, const tensor *x, const float *coef);
  wan_status (*channel_affine)(backend *be, tensor x, tensor mul, tensor add, tensor out);
  wan_status (*concat_channels)(backend *be, tensor a, tensor b, tensor out);
  wan_status (*to_u8)(backend *be, tensor x, tensor out);
  wan_status (*all_finite)(backend *be, tensor x, bool *finite);
  wan_status (*dot)(backend *be, tensor a, tensor b, double *sum);
} backend_ops;

typedef struct backend_scope_chunk backend_scope_chunk;
typedef struct backend_profile backend_profile;

struct backend {
  const backend_ops *ops;
  core_ctx *ctx;
  dtype act;               /* dtype of activations */
  dtype product;           /* of the operands of products by a WEIGHT_PRODUCT: act, or DT_E4M3_ROWS with
                              WAN_PRECISION_FP8 */
  wan_precision precision; /* never DEFAULT */
  int threads;             /* CPU threads in use */
  bool host_memory;        /* tensors of this backend can be read and written by the host directly */
  bool dry;                /* counts, computes nothing */
  wan_status failed;       /* sticky status */
  void *impl;              /* the backend's own state */
  backend_scope_chunk *chunks, *top; /* arena, see arena.c */
  size_t scope_peak;                 /* most bytes in scopes, if dry */
  backend_profile *profile;          /* NULL: off */
};

/* Open the named backend, or with name NULL the first of cuda, cpu, ref that works on this machine.
 * An unknown or unavailable name is WAN_ERR_ARGUMENT / WAN_ERR_BACKEND and the message says why. */
wan_status backend_open(core_ctx *ctx, const backend_config *config, backend **out);
void backend_close(backend *be);
/* A backend that computes nothing but counts memory and work (be->profile), for planning, by the rules of the
 * backend config->name: "cuda" has a device's memory, others use the host's. Its tensors have no content:
 * nothing may be read from them. It needs no device and is not among backend_name(). */
wan_status backend_open_dry(core_ctx *ctx, const backend_config *config, backend **out);
/* The i-th backend compiled in, NULL past the last. */
const char *backend_name(int i);
/* Status of everything issued so far; does not wait. */
wan_status backend_status(const backend *be);
/* Forget a failure (after a cancelled or failed run, once its scopes are closed). */
void backend_clear(backend *be);
wan_status backend_sync(backend *be);
/* Wait for what was issued before the last call of this: the host stays at most one such step ahead of an
 * accelerator, which is never idle for it, and notices cancellation in time. */
wan_status backend_pace(backend *be);
/* Put the backend into the failed state from model code; returns status. */
wan_status backend_fail(backend *be, wan_status status, const char *fmt, ...) CORE_PRINTF(3, 4);

/* ---- Memory ---- */

/* Scopes nest like brackets. scope_end(mark) releases everything made since its scope_begin(). */
typedef struct scope_mark {
  backend_scope_chunk *chunk;
  size_t used;
} scope_mark;
scope_mark scope_begin(backend *be);
void scope_end(backend *be, scope_mark mark);
/* Give cached arena memory back to the system; call between stages, with no scope open. */
void scope_trim(backend *be);
/* With no scope open and nothing cached: one piece of memory for all that scopes will hold. Where it is too
 * small they grow as ever; where it is right, no memory lies idle between larger and smaller pieces. */
wan_status scope_reserve(backend *be, size_t bytes);
/* Uninitialised tensor in the current scope. */
tensor tensor_new(backend *be, dtype type, int ndim, const int64_t *dim);
#define TENSOR_NEW(be, type, ...)                                                     \
  tensor_new((be), (type), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
             (const int64_t[]){__VA_ARGS__})
/* Uninitialised tensor outside of scopes; the caller frees it with tensor_free(). */
tensor tensor_alloc(backend *be, dtype type, int ndim, const int64_t *dim);
#define TENSOR_ALLOC(be, type, ...)                                                     \
  tensor_alloc((be), (type), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
               (const int64_t[]){__VA_ARGS__})
void tensor_free(backend *be, tensor *t); /* t becomes the null tensor; null tensor: no-op */

void tensor_upload(backend *be, tensor dst, const void *host); /* host data in dst's dtype and layout */
void tensor_download(backend *be, void *host, tensor src);     /* waits until the data is there */
void tensor_copy(backend *be, tensor dst, tensor src);         /* same dtype and count */

/* Read results without waiting for them: begin issues the copy in order with the operations, end waits until
 * it is made. In between the host may issue what comes next. */
wan_status backend_fetch_open(backend *be, size_t bytes, backend_fetch *f);
void backend_fetch_close(backend *be, backend_fetch *f); /* also of a zeroed one */
wan_status backend_fetch_begin(backend *be, backend_fetch *f, tensor src);
wan_status backend_fetch_end(backend *be, backend_fetch *f);
bool backend_fetches_behind(const backend *be); /* false: begin waits already */

void tensor_zero(backend *be, tensor dst);

/* The dtype that a weight's role asks for. */
dtype backend_weight_type(const backend *be, const weight *w);
/* Load / unload one weight (see struct weight). Loading a loaded weight is a no-op. */
wan_status backend_weight_load(backend *be, weight *w);
void backend_weight_unload(backend *be, weight *w);
/* Unload, and forget the source, which may then go away. */
void backend_weight_forget(backend *be, weight *w);
/* What a loaded weight takes of the backend's memory. */
size_t backend_weight_bytes(backend *be, const weight *w);
/* Take a run's whole memory at its start, and allow `host` bytes of host memory to be pinned for streamed
 * weights; give all back with 0; a no-op where the host's memory is used. */
wan_status backend_reserve(backend *be, uint64_t bytes, uint64_t host);
/* Start to load a weight that will be needed soon, where the backend works behind the host. */
void backend_weight_prefetch(backend *be, weight *w);

/* ---- Operations. "out" dtypes: DT_NONE stands for the act dtype. ---- */

/* act(x . w^T + bias): x [.., K] (act, F32, or with a WEIGHT_PRODUCT the product dtype), w [N, K], bias [N]
 * or NULL
 * -> [.., N] of type out. x is converted to the weight's dtype if need be: op_cast() it where it is used
 * twice. */
tensor op_linear(backend *be, tensor x, const weight *w, const weight *bias, op_act act, dtype out);
/* The same into a tensor that exists already (its dtype decides). */
void op_linear_into(backend *be, tensor x, const weight *w, const weight *bias, op_act act, tensor out);
/* sum F32 [.., N] += x . w^T + bias; the product may be rounded to the act dtype before. */
void op_linear_add(backend *be, tensor x, const weight *w, const weight *bias, tensor sum);
/* Layer norm without affine part, then (1 + mod[row][scale]) * y + mod[row][shift].
 * x F32 [L, C]; mod F32 [n, R, C] -> [L, C]. Wan paper/model.py: eps 1e-6, biased variance. */
tensor op_ada_norm(backend *be, tensor x, tensor mod, const token_rows *rows, int shift, int scale, float eps,
                   dtype out);
/* Layer norm with weight and bias. x F32 [L, C]. */
tensor op_layer_norm(backend *be, tensor x, const weight *gamma, const weight *beta, float eps, dtype out);
/* The residual x F32 [L, C] is updated in place (see struct residual; `rows` serves both modulations), then
 * normalised as by the two operations above, into out (act or F32 [L, C]), which may be add->y. */
void op_add_ada_norm(backend *be, tensor x, const residual_add *add, tensor mod, const token_rows *rows,
                     int shift, int scale, float eps, tensor out);
void op_add_layer_norm(backend *be, tensor x, const residual_add *add, const token_rows *rows,
                       const weight *gamma, const weight *beta, float eps, tensor out);
/* x * rsqrt(mean(x^2) + eps) * gamma over the last dimension. x F32 or act [L, C]. */
tensor op_rms_norm(backend *be, tensor x, const weight *gamma, float eps, dtype out);
/* In place on x [L, C] (act): RMS norm over the whole row times gamma, then, per head of C/heads
 * channels, rotation of the interleaved pairs (2j, 2j+1) by rope F32 [L, C/heads/2, 2] = (cos, sin);
 * rope may be the null tensor (cross attention: norm only). */
void op_qk_norm_rope(backend *be, tensor x, const weight *gamma, float eps, tensor rope, int heads);
/* softmax(scale * q k^T + biases) v per head; q [Lq, C], k and v [Lk, C] (act) -> [Lq, C] (act).
 * Head h owns columns h*C/heads .. (h+1)*C/heads-1. Memory linear in Lq and Lk. */
tensor op_attention(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec);
void op_attention_into(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec, tensor out);
/* x += mod[row][gate] * y, in place on x F32 [L, C]; y act or F32 [L, C]. With a null mod: x += y. */
void op_gate_add(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows, int gate);
#define op_add(be, x, y) op_gate_add((be), (x), (y), (tensor){0}, NULL, 0)
/* a *= b elementwise, in place on a. Same dtype and shape. */
void op_mul(backend *be, tensor a, tensor b);
tensor op_activate(backend *be, tensor x, op_act act, dtype out);
/* base F32 [1, R, C] (or [R, C]) + e F32 [n, R, C]; or + e [n, C] broadcast over R. -> F32 [n, R, C]. */
tensor op_modulation(backend *be, const weight *base, tensor e);
/* attention_spec.rel_bias from a table F32 [buckets, heads]: entry (h, i) is table[bucket[i]][h], rounded to
 * the act dtype, in which T5 forms it. bucket I32 [n], every entry below buckets -> F32 [heads, n]. */
tensor op_position_bias(backend *be, const weight *table, tensor bucket);
/* Rows ids[0..n-1] (host memory) of table [V, C] -> [n, C] of type out. Out-of-range ids fail. */
tensor op_embed(backend *be, const weight *table, const int32_t *ids, int64_t n, dtype out);
/* x itself when it already has that dtype; otherwise to F32, act or the product dtype. */
tensor op_cast(backend *be, tensor x, dtype out);
/* Into a tensor that exists already, of any dtype that op_cast gives; a copy where the dtypes agree. */
void op_cast_into(backend *be, tensor x, tensor out);
/* [T, h, w, C] F32 -> [T*(h/2)*(w/2), C*4] act; token order frame, row, column; columns (c, ph, pw). */
tensor op_patchify(backend *be, tensor x);
/* [T*(h/2)*(w/2), 4*C] F32 with columns (ph, pw, c) -> [T, h, w, C] F32. */
tensor op_unpatchify(backend *be, tensor y, int64_t T, int64_t h, int64_t w);
/* VAE norm: x / max(||x||_2, 1e-12) * sqrt(C) * gamma over channels, then act; into out (may be a
 * slice of a larger tensor, must not overlap x). x act or F32, out act [.., C]; gamma has C elements. */
void op_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out);
/* Convolution, channels last: x [T, H, W, Cin] act, w [Cout, Cin, kt, kh, kw] -> [To, Ho, Wo, Cout] act,
 * To = (T - kt)/stride_t + 1 (callers put the causal history in front), plus residual (act, same
 * shape as the result, or null) added in f32 before rounding. bias may be NULL. */
tensor op_conv(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
               tensor residual);
/* The same into a tensor that exists already, act or F32 (the residual is then of out's dtype); out must not
 * overlap x, it may be the residual itself. */
void op_conv_into(backend *be, tensor x, const weight *w, const weight *bias, const conv_spec *spec,
                  tensor residual, tensor out);
/* Each frame: pixels replicated 2x2, then 3x3 convolution with padding 1: x [T,H,W,Ci] act into out
 * [T,2H,2W,Co] act or F32. */
void op_upsample_conv_into(backend *be, tensor x, const weight *w, const weight *bias, tensor out);
/* The shuffles below take act or F32 and keep the dtype; in the shortcuts x may have another dtype than out.
 */
/* [T, H, W, 2C] -> [2T, H, W, C]: channels [0,C) become frame 2t, [C,2C) frame 2t+1. */
tensor op_time_unshuffle(backend *be, tensor x);
void op_time_unshuffle_into(backend *be, tensor x, tensor out);
/* out += DupUp3D(x) (spec of the Wan2.2 VAE): x [T,H,W,Ci], out [n, H*fs, W*fs, Co], n <= T*ft-skip; repeats
 * r = Co*ft*fs*fs/Ci; out(o, t*ft+a, i*fs+b, j*fs+c) gets x channel (o*ft*fs*fs + a*fs*fs + b*fs + c)/r
 * at (t,i,j); the first `skip` frames of the expansion are dropped, and those beyond out. The sum is rounded
 * once. */
void op_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip);
/* out += AvgDown3D(x): x [T,H,W,Ci], zero frames put in front until T divides by ft; out
 * [ceil(T/ft), H/fs, W/fs, Co]; channel o is the mean of its g = Ci*ft*fs*fs/Co consecutive
 * sub-samples in the order (channel, t-offset, row-offset, column-offset). */
void op_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs);
/* [T, 2H, 2W, C] -> [T, H, W, 4C], channel c*4 + r*2 + q from row 2i+q, column 2j+r; and its inverse. */
tensor op_space_to_depth(backend *be, tensor x);
tensor op_depth_to_space(backend *be, tensor x);
/* out = sum of coef[i] * x[i]; F32, same count; out may be one of x. 1 <= n <= 8. */
void op_lincomb(backend *be, tensor out, int n, const tensor *x, const float *coef);
/* x * mul[c] + add[c] over the last dimension; mul, add F32 [C]; x F32 or act. */
tensor op_channel_affine(backend *be, tensor x, tensor mul, tensor add, dtype out);
/* [.., A] and [.., B] of one dtype -> [.., A+B]. */
tensor op_concat_channels(backend *be, tensor a, tensor b);
/* clamp(x,-1,1), (x+1)/2*255 truncated to U8. x F32 or act. */
tensor op_to_u8(backend *be, tensor x);
/* True when every element of x is finite. Waits for x. False (and the failed state) on error. */
bool op_all_finite(backend *be, tensor x);
/* Sum of a[i]*b[i] in f64 over F32 tensors of one count; 0 on failure. Waits. */
double op_dot(backend *be, tensor a, tensor b);

/* Map host row numbers to a token_rows; the tensor lives in the current scope. */
token_rows token_rows_create(backend *be, const int32_t *row, int64_t units, int64_t per);
/* The same mapping seen from token `begin` on. */
token_rows token_rows_at(token_rows rows, int64_t begin);

/* Profile as a text table (caller frees with core_free), NULL when off or memory is short. */
char *backend_profile_text(backend *be);

#endif
