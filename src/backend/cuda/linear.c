/* linear.c: matrix products through cuBLASLt.
 *
 * The library's choice for a shape is asked for once and kept with its descriptors: choosing costs as much
 * as a small product, and one choice for one shape makes two runs equal bit for bit. Sums are f32, and
 * nothing is TF32. Bias and GELU ride on the product where the library can add them; what it can't, one
 * elementwise pass over an f32 result does. Where the library has no kernel at all (odd row lengths on some
 * cards) gemm.cu has one.
 *
 * Operands in e4m3 have a scale for each row of x and of the weight, which the library applies on Hopper;
 * elsewhere it makes plain products, and the pass over the f32 result applies them.
 *
 * Everything here is row-major, the library column-major: it is given the transposed problem, so that "A"
 * below is the caller's b. */
#include "backend/cuda/cuda.h"

#include <string.h>

enum { PLANS_KEPT = CUDA_PLANS / 2 };
/* Hopper's sums of e4m3 products keep some 14 bits; 0 makes the library carry them over into f32 now and
 * then. */
enum { FAST_FP8 = 1 };

typedef struct plan_key {
  int64_t m, n, k, lda, ldb, ldo, batch, stride_a, stride_b, stride_o;
  int32_t type, out_type; /* k_type */
  int32_t bt, epilogue;
  int32_t align_a, align_b, align_o; /* bytes, at most 16 */
  int32_t scaled;                    /* by rows; and no padding: keys are compared as bytes */
} plan_key;

struct linear_plan {
  plan_key key;
  bool usable;
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t a, b, o;
  cublasLtMatmulAlgo_t algo;
};

static void plan_free(core_ctx *ctx, cuda_libraries *lib, linear_plan *p) {
  if (!p) return;
  if (p->desc) lib->cublasLtMatmulDescDestroy(p->desc);
  if (p->a) lib->cublasLtMatrixLayoutDestroy(p->a);
  if (p->b) lib->cublasLtMatrixLayoutDestroy(p->b);
  if (p->o) lib->cublasLtMatrixLayoutDestroy(p->o);
  core_free(ctx, p);
}

void cuda_linear_close(backend *be) {
  cuda_state *c = cuda_of(be);
  for (int i = 0; i < CUDA_PLANS; i++) {
    plan_free(be->ctx, &c->lib, c->linear[i]);
    c->linear[i] = NULL;
  }
  c->linear_count = 0;
}

static cudaDataType_t data_type(int32_t t) {
  return t == K_BF16 ? CUDA_R_16BF : t == K_F8E4M3 ? CUDA_R_8F_E4M3 : CUDA_R_32F;
}

static int64_t bytes_of(k_type t) {
  return t == K_BF16 ? 2 : t == K_F8E4M3 ? 1 : 4;
}

static int32_t alignment(const void *p, int64_t ld, int64_t stride, k_type type) {
  uintptr_t bits = (uintptr_t)p | (uintptr_t)(ld * bytes_of(type)) | (uintptr_t)(stride * bytes_of(type));
  int32_t a = 16;
  while (bits & (uintptr_t)(a - 1)) a /= 2;
  return a;
}

/* A layout of `batch` matrices; false when the library refuses. */
static bool layout(cuda_libraries *lib, cublasLtMatrixLayout_t *l, int32_t type, int64_t rows, int64_t cols,
                   int64_t ld, int64_t batch, int64_t stride) {
  int32_t count = (int32_t)batch;
  return lib->cublasLtMatrixLayoutCreate(l, data_type(type), (uint64_t)rows, (uint64_t)cols, ld) ==
             CUBLAS_STATUS_SUCCESS &&
         lib->cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                               sizeof count) == CUBLAS_STATUS_SUCCESS &&
         lib->cublasLtMatrixLayoutSetAttribute(*l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                               sizeof stride) == CUBLAS_STATUS_SUCCESS;
}

static bool set(cuda_libraries *lib, cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t name,
                const void *value, size_t size) {
  return lib->cublasLtMatmulDescSetAttribute(d, name, value, size) == CUBLAS_STATUS_SUCCESS;
}

/* The library's A is b. */
static bool set_scales(cuda_libraries *lib, linear_plan *p, const k_gemm_spec *g) {
  return set(lib, p->desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &g->scale_b, sizeof g->scale_b) &&
         set(lib, p->desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &g->scale_a, sizeof g->scale_a);
}

static bool describe_scales(cuda_libraries *lib, linear_plan *p, const k_gemm_spec *g) {
  const int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
  return set(lib, p->desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode, sizeof mode) &&
         set(lib, p->desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode, sizeof mode) && set_scales(lib, p, g);
}

static bool describe(cuda_libraries *lib, linear_plan *p, const k_gemm_spec *g) {
  const plan_key *k = &p->key;
  cublasOperation_t turn = k->bt ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)k->epilogue;
  cudaDataType_t bias = data_type(k->out_type);
  const int8_t fast = FAST_FP8; /* ignored by products of other dtypes */
  if (lib->cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS ||
      !set(lib, p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &turn, sizeof turn) ||
      !set(lib, p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) ||
      !set(lib, p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias, sizeof bias))
    return false;
  if (k->type == K_F8E4M3 && !set(lib, p->desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast))
    return false;
  if (k->scaled && !describe_scales(lib, p, g)) return false;
  return layout(lib, &p->a, k->type, k->bt ? k->k : k->n, k->bt ? k->n : k->k, k->ldb, k->batch,
                k->stride_b) &&
         layout(lib, &p->b, k->type, k->k, k->m, k->lda, k->batch, k->stride_a) &&
         layout(lib, &p->o, k->out_type, k->n, k->m, k->ldo, k->batch, k->stride_o);
}

/* Ask the library for its best algorithm. No reduction through atomics, so that results repeat. */
static bool choose(cuda_state *c, linear_plan *p) {
  cuda_libraries *lib = &c->lib;
  cublasLtMatmulPreference_t want = NULL;
  cublasLtMatmulHeuristicResult_t found;
  int count = 0;
  if (lib->cublasLtMatmulPreferenceCreate(&want) != CUBLAS_STATUS_SUCCESS) return false;
  uint64_t workspace = c->workspace_bytes;
  uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  const struct {
    cublasLtMatmulPreferenceAttributes_t name;
    const void *value;
    size_t size;
  } set[] = {
      {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
      {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &p->key.align_b, sizeof p->key.align_b},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &p->key.align_a, sizeof p->key.align_a},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &p->key.align_o, sizeof p->key.align_o},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &p->key.align_o, sizeof p->key.align_o},
  };
  bool ok = true;
  for (size_t i = 0; i < sizeof set / sizeof set[0]; i++)
    ok = ok && lib->cublasLtMatmulPreferenceSetAttribute(want, set[i].name, set[i].value, set[i].size) ==
                   CUBLAS_STATUS_SUCCESS;
  ok = ok && lib->cublasLtMatmulAlgoGetHeuristic(c->lt, p->desc, p->a, p->b, p->o, p->o, want, 1, &found,
                                                 &count) == CUBLAS_STATUS_SUCCESS;
  lib->cublasLtMatmulPreferenceDestroy(want);
  ok = ok && count > 0 && found.state == CUBLAS_STATUS_SUCCESS;
  if (ok) p->algo = found.algo;
  return ok;
}

static size_t slot_of(const plan_key *k) {
  const unsigned char *b = (const unsigned char *)k;
  uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
  for (size_t i = 0; i < sizeof *k; i++) h = (h ^ b[i]) * 0x100000001b3u;
  return (size_t)(h % CUDA_PLANS);
}

/* The plan for a key, made if need be; NULL when memory is short. */
static linear_plan *plan_for(backend *be, const plan_key *key, const k_gemm_spec *g) {
  cuda_state *c = cuda_of(be);
  if (c->linear_count >= PLANS_KEPT) cuda_linear_close(be); /* many shapes: start over */
  size_t i = slot_of(key);
  while (c->linear[i] && memcmp(&c->linear[i]->key, key, sizeof *key) != 0) i = (i + 1) % CUDA_PLANS;
  if (c->linear[i]) return c->linear[i];
  linear_plan *p = core_calloc(be->ctx, 1, sizeof *p);
  if (!p) return NULL;
  p->key = *key;
  p->usable = describe(&c->lib, p, g) && choose(c, p);
  c->linear[i] = p;
  c->linear_count++;
  return p;
}

/* The product with an epilogue, added to beta times what out holds. *done is false when the library can't do
 * it. */
static wan_status product(backend *be, const k_gemm_spec *g, k_data a, k_data b, k_data out, float beta,
                          cublasLtEpilogue_t epilogue, const void *bias, bool *done) {
  cuda_state *c = cuda_of(be);
  plan_key key = {.m = g->m,
                  .n = g->n,
                  .k = g->k,
                  .lda = g->lda,
                  .ldb = g->ldb,
                  .ldo = g->ldo,
                  .batch = g->batch,
                  .stride_a = g->stride_a,
                  .stride_b = g->stride_b,
                  .stride_o = g->stride_o,
                  .type = (int32_t)a.type,
                  .out_type = (int32_t)out.type,
                  .bt = g->bt,
                  .scaled = g->scale_a != NULL,
                  .epilogue = (int32_t)epilogue,
                  .align_a = alignment(a.p, g->lda, g->stride_a, a.type),
                  .align_b = alignment(b.p, g->ldb, g->stride_b, b.type),
                  .align_o = alignment(out.p, g->ldo, g->stride_o, out.type)};
  linear_plan *p = plan_for(be, &key, g);
  if (!p) return WAN_ERR_MEMORY;
  *done = p->usable;
  if (!p->usable) return WAN_OK;
  if (g->scale_a) set_scales(&c->lib, p, g);
  if (bias)
    c->lib.cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
  cublasStatus_t s =
      c->lib.cublasLtMatmul(c->lt, p->desc, &g->alpha, b.p, p->a, a.p, p->b, &beta, out.p, p->o, out.p, p->o,
                            &p->algo, c->workspace, c->workspace_bytes, c->stream);
  if (s == CUBLAS_STATUS_SUCCESS) return WAN_OK;
  return core_fail(
      be->ctx, WAN_ERR_BACKEND,
      "CUDA: cuBLAS failed on a product of %lld x %lld x %lld: %s; check that its version matches "
      "the driver",
      (long long)g->m, (long long)g->n, (long long)g->k, c->lib.cublasLtGetStatusString(s));
}

wan_status cuda_gemm(backend *be, const k_gemm_spec *g, k_data a, k_data b, k_data out) {
  bool done = false;
  CORE_TRY(product(be, g, a, b, out, 0, CUBLASLT_EPILOGUE_DEFAULT, NULL, &done));
  if (done) return WAN_OK;
  k_gemm(cuda_of(be)->stream, g, a, b, out, NULL, K_NONE);
  return cuda_launched(be, "a matrix product");
}

wan_status cuda_quantise(backend *be, tensor x, tensor out) {
  k_quantise(cuda_of(be)->stream, cuda_data(x), out.data, tensor_scales(&out), tensor_rows(&x),
             (int)tensor_cols(&x));
  return cuda_launched(be, "quantising");
}

/* x in the weight's dtype: itself, or a copy whose data the caller frees. */
static wan_status operand(backend *be, tensor *x, dtype type, void **copy, size_t *bytes) {
  tensor in = *x;
  *copy = NULL;
  *bytes = 0;
  if (x->type == type) return WAN_OK;
  in.type = type;
  *bytes = tensor_bytes(&in);
  if (!(in.data = *copy = cuda_mem_alloc(be, *bytes))) return WAN_ERR_MEMORY;
  wan_status s = cuda_cast(be, *x, in);
  *x = in;
  return s;
}

/* acc = a b^T without the scales of e4m3 operands: by the library, or for shapes it has no kernel for as an
 * f32 product of copies that have been given their scales (*scaled). */
static wan_status accumulate(backend *be, const k_gemm_spec *g, k_data a, k_data b, k_data acc,
                             bool *scaled) {
  cuda_state *c = cuda_of(be);
  k_gemm_spec plain = *g;
  bool done = false;
  plain.scale_a = plain.scale_b = NULL;
  *scaled = a.type != K_F8E4M3;
  if (*scaled) return cuda_gemm(be, &plain, a, b, acc);
  CORE_TRY(product(be, &plain, a, b, acc, 0, CUBLASLT_EPILOGUE_DEFAULT, NULL, &done));
  if (done) return WAN_OK;
  *scaled = true;
  const size_t bytes_a = (size_t)(g->m * g->k) * sizeof(float),
               bytes_b = (size_t)(g->n * g->k) * sizeof(float);
  void *wide_a = cuda_mem_alloc(be, bytes_a), *wide_b = wide_a ? cuda_mem_alloc(be, bytes_b) : NULL;
  wan_status s = wide_b ? WAN_OK : WAN_ERR_MEMORY;
  if (s == WAN_OK) {
    k_dequantise(c->stream, a.p, g->scale_a, wide_a, g->m, (int)g->k);
    k_dequantise(c->stream, b.p, g->scale_b, wide_b, g->n, (int)g->k);
    s = cuda_gemm(be, &plain, (k_data){wide_a, K_F32}, (k_data){wide_b, K_F32}, acc);
  }
  cuda_mem_free(be, wide_b, bytes_b);
  cuda_mem_free(be, wide_a, bytes_a);
  return s;
}

/* Through an f32 result and one pass over it: activations and mixtures of dtypes the library has not. */
static wan_status in_two_steps(backend *be, const k_gemm_spec *g, k_data a, k_data b, const weight *bias,
                               op_act act, k_data out) {
  k_data acc = {out.p, K_F32};
  size_t bytes = (size_t)(g->m * g->n) * sizeof(float);
  void *scratch = NULL;
  if (out.type != K_F32) {
    if (!(scratch = cuda_mem_alloc(be, bytes))) return WAN_ERR_MEMORY;
    acc.p = scratch;
  }
  bool scaled = true;
  wan_status s = accumulate(be, g, a, b, acc, &scaled);
  if (s == WAN_OK) {
    if (scaled)
      k_bias_act(cuda_of(be)->stream, acc.p, cuda_floats(bias), cuda_act(act), out, g->m, (int)g->n);
    else
      k_scale_bias_act(cuda_of(be)->stream, acc.p, g->scale_a, g->scale_b, cuda_floats(bias), cuda_act(act),
                       out, g->m, (int)g->n);
    s = cuda_launched(be, "a bias");
  }
  cuda_mem_free(be, scratch, bytes);
  return s;
}

static k_gemm_spec spec_of(tensor x, tensor out) {
  const int64_t k = tensor_cols(&x), n = tensor_cols(&out);
  return (k_gemm_spec){
      .m = tensor_rows(&x), .n = n, .k = k, .lda = k, .ldb = k, .ldo = n, .batch = 1, .bt = true, .alpha = 1};
}

wan_status cuda_linear(backend *be, tensor x, const weight *w, const weight *bias, op_act act, tensor out) {
  k_gemm_spec g = spec_of(x, out);
  k_data b = {w->data, cuda_type(w->type)}, o = cuda_data(out);
  void *copy;
  size_t copy_bytes;
  CORE_TRY(operand(be, &x, w->type, &copy, &copy_bytes));
  k_data a = cuda_data(x);
  if (w->type == DT_E4M3_ROWS) {
    tensor rows = cuda_quantised(w);
    g.scale_a = tensor_scales(&x);
    g.scale_b = tensor_scales(&rows);
  }
  bool done = false;
  wan_status s = WAN_OK;
  if (device_linear_direct(w->type, act, out.type)) {
    cublasLtEpilogue_t e = bias ? act == ACT_GELU_TANH ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_BIAS
                           : act == ACT_GELU_TANH ? CUBLASLT_EPILOGUE_GELU
                                                  : CUBLASLT_EPILOGUE_DEFAULT;
    const void *added = !bias ? NULL : out.type == DT_BF16 ? cuda_vector_bf16(bias) : bias->data;
    s = product(be, &g, a, b, o, 0, e, added, &done);
  }
  if (s == WAN_OK && !done) s = in_two_steps(be, &g, a, b, bias, act, o);
  cuda_mem_free(be, copy, copy_bytes);
  return s;
}

/* The product of e4m3 operands is made in bf16, apart. */
static wan_status linear_add_quantised(backend *be, tensor x, const weight *w, const weight *bias,
                                       tensor sum) {
  tensor y = sum;
  y.type = DT_BF16;
  const size_t bytes = tensor_bytes(&y);
  if (!(y.data = cuda_mem_alloc(be, bytes))) return WAN_ERR_MEMORY;
  wan_status s = cuda_linear(be, x, w, bias, ACT_NONE, y);
  if (s == WAN_OK) s = cuda_gate_add(be, sum, y, (tensor){0}, NULL, 0);
  cuda_mem_free(be, y.data, bytes);
  return s;
}

/* The library reads the sum as its third operand; where it can't, the product is made apart. */
wan_status cuda_linear_add(backend *be, tensor x, const weight *w, const weight *bias, tensor sum) {
  if (w->type == DT_E4M3_ROWS) return linear_add_quantised(be, x, w, bias, sum);
  const k_gemm_spec g = spec_of(x, sum);
  const size_t bytes = tensor_bytes(&sum);
  k_data b = {w->data, cuda_type(w->type)}, o = cuda_data(sum);
  void *copy, *apart = NULL;
  size_t copy_bytes;
  CORE_TRY(operand(be, &x, w->type, &copy, &copy_bytes));
  k_data a = cuda_data(x);
  bool done = false;
  wan_status s = product(be, &g, a, b, o, 1, bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT,
                         bias ? bias->data : NULL, &done);
  if (s == WAN_OK && !done && !(apart = cuda_mem_alloc(be, bytes))) s = WAN_ERR_MEMORY;
  if (s == WAN_OK && !done) {
    k_data y = {apart, K_F32};
    k_gemm(cuda_of(be)->stream, &g, a, b, y, cuda_floats(bias), K_NONE);
    k_gate_add(cuda_of(be)->stream, o, y, (k_mod){0}, 0, g.m, (int)g.n);
    s = cuda_launched(be, "a matrix product");
  }
  cuda_mem_free(be, apart, bytes);
  cuda_mem_free(be, copy, copy_bytes);
  return s;
}
