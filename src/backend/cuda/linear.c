/* linear.c: matrix products through cuBLASLt.
 *
 * The library's choice for a shape is asked for once and kept with its descriptors: choosing costs as much
 * as a small product, and one choice for one shape makes two runs equal bit for bit. Sums are f32, and
 * nothing is TF32. Bias and GELU ride on the product where the library can add them; what it can't, one
 * elementwise pass over an f32 result does. Where the library has no kernel at all (odd row lengths on some
 * cards) gemm.cu has one.
 *
 * Everything here is row-major, the library column-major: it is given the transposed problem, so that "A"
 * below is the caller's b. */
#include "backend/cuda/cuda.h"

#include <string.h>

enum { PLANS_KEPT = CUDA_PLANS / 2 };

typedef struct plan_key {
  int64_t m, n, k, lda, ldb, ldo, batch, stride_a, stride_b, stride_o;
  int32_t type, out_type; /* k_type */
  int32_t bt, epilogue;
  int32_t align_a, align_b, align_o; /* bytes, at most 16 */
  int32_t reserved;                  /* no padding: keys are compared as bytes */
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
  return t == K_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static int32_t alignment(const void *p, int64_t ld, int64_t stride, k_type type) {
  uintptr_t bits = (uintptr_t)p | (uintptr_t)(ld * (type == K_BF16 ? 2 : 4)) |
                   (uintptr_t)(stride * (type == K_BF16 ? 2 : 4));
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

static bool describe(cuda_libraries *lib, linear_plan *p) {
  const plan_key *k = &p->key;
  cublasOperation_t turn = k->bt ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)k->epilogue;
  cudaDataType_t bias = data_type(k->out_type);
  if (lib->cublasLtMatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS ||
      lib->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &turn, sizeof turn) !=
          CUBLAS_STATUS_SUCCESS ||
      lib->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                          sizeof epilogue) != CUBLAS_STATUS_SUCCESS ||
      lib->cublasLtMatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias, sizeof bias) !=
          CUBLAS_STATUS_SUCCESS)
    return false;
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
static linear_plan *plan_for(backend *be, const plan_key *key) {
  cuda_state *c = cuda_of(be);
  if (c->linear_count >= PLANS_KEPT) cuda_linear_close(be); /* many shapes: start over */
  size_t i = slot_of(key);
  while (c->linear[i] && memcmp(&c->linear[i]->key, key, sizeof *key) != 0) i = (i + 1) % CUDA_PLANS;
  if (c->linear[i]) return c->linear[i];
  linear_plan *p = core_calloc(be->ctx, 1, sizeof *p);
  if (!p) return NULL;
  p->key = *key;
  p->usable = describe(&c->lib, p) && choose(c, p);
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
                  .epilogue = (int32_t)epilogue,
                  .align_a = alignment(a.p, g->lda, g->stride_a, a.type),
                  .align_b = alignment(b.p, g->ldb, g->stride_b, b.type),
                  .align_o = alignment(out.p, g->ldo, g->stride_o, out.type)};
  linear_plan *p = plan_for(be, &key);
  if (!p) return WAN_ERR_MEMORY;
  *done = p->usable;
  if (!p->usable) return WAN_OK;
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

/* x in the weight's dtype: itself, or a copy the caller frees. */
static wan_status operand(backend *be, tensor x, dtype type, k_data *in, void **copy, size_t *bytes) {
  *copy = NULL;
  *bytes = 0;
  *in = cuda_data(x);
  if (x.type == type) return WAN_OK;
  *bytes = (size_t)tensor_count(&x) * dtype_size(type);
  if (!(*copy = cuda_mem_alloc(be, *bytes))) return WAN_ERR_MEMORY;
  *in = (k_data){*copy, cuda_type(type)};
  k_activate(cuda_of(be)->stream, cuda_data(x), K_NONE, *in, tensor_count(&x));
  return cuda_launched(be, "a cast");
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
  wan_status s = cuda_gemm(be, g, a, b, acc);
  if (s == WAN_OK) {
    k_bias_act(cuda_of(be)->stream, acc.p, cuda_floats(bias), cuda_act(act), out, g->m, (int)g->n);
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
  const k_gemm_spec g = spec_of(x, out);
  k_data a, b = {w->data, cuda_type(w->type)}, o = cuda_data(out);
  void *copy;
  size_t copy_bytes;
  CORE_TRY(operand(be, x, w->type, &a, &copy, &copy_bytes));
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

/* The library reads the sum as its third operand; where it can't, the product is made apart. */
wan_status cuda_linear_add(backend *be, tensor x, const weight *w, const weight *bias, tensor sum) {
  const k_gemm_spec g = spec_of(x, sum);
  const size_t bytes = tensor_bytes(&sum);
  k_data a, b = {w->data, cuda_type(w->type)}, o = cuda_data(sum);
  void *copy, *apart = NULL;
  size_t copy_bytes;
  CORE_TRY(operand(be, x, w->type, &a, &copy, &copy_bytes));
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
