/* attention_dnn.c: attention as a cuDNN graph.
 *
 * The graph is the definition of attention, operation by operation: scores = Q K^T, times the scale, softmax
 * as maximum, difference, exponential, sum and quotient, times V. The library recognises it and runs one
 * kernel; everything between Q, K, V and O is virtual, never in memory. A plan belongs to one shape. */
#include "backend/cuda/cuda.h"

enum {
  UID_Q = 1,
  UID_K,
  UID_V,
  UID_O,
  UID_SCALE,
  UID_BIAS,
  UID_INNER /* and the following: virtual tensors */
};
enum { PLANS_MAX = 32, DESCRIPTORS = 56, CONFIGS = 8, ALIGNMENT = 16 };
/* Below this many scores a head, our own kernel starts sooner than a plan is made. */
enum { SCORES_MIN = 1 << 18 };

struct attention_plan {
  attention_plan *next;
  int64_t lq, lk, heads, d;
  bool biased; /* by key */
  bool usable;
  cudnnBackendDescriptor_t plan;
  int64_t workspace;
};

/* Descriptors are collected and destroyed together; the first failure makes all later calls do nothing. */
typedef struct builder {
  cuda_libraries *lib;
  cudnnBackendDescriptor_t made[DESCRIPTORS];
  int count;
  int64_t uid;
  bool ok;
} builder;

static cudnnBackendDescriptor_t create(builder *b, cudnnBackendDescriptorType_t type) {
  cudnnBackendDescriptor_t d = NULL;
  if (b->count == DESCRIPTORS) b->ok = false;
  b->ok = b->ok && b->lib->cudnnBackendCreateDescriptor(type, &d) == CUDNN_STATUS_SUCCESS;
  if (b->ok) b->made[b->count++] = d;
  return d;
}

static void set(builder *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *value) {
  b->ok = b->ok && b->lib->cudnnBackendSetAttribute(d, name, type, count, value) == CUDNN_STATUS_SUCCESS;
}

static void set_descriptor(builder *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                           cudnnBackendDescriptor_t value) {
  set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finalize(builder *b, cudnnBackendDescriptor_t d) {
  b->ok = b->ok && b->lib->cudnnBackendFinalize(d) == CUDNN_STATUS_SUCCESS;
}

typedef struct shape {
  int64_t dim[4], stride[4];
} shape;

static cudnnBackendDescriptor_t tensor_descriptor(builder *b, int64_t uid, cudnnDataType_t type, shape s,
                                                  bool inner, bool by_value) {
  cudnnBackendDescriptor_t d = create(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  int64_t alignment = ALIGNMENT;
  set(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
  set(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, s.dim);
  set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, s.stride);
  set(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
  if (inner) set(b, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &inner);
  if (by_value) set(b, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
  finalize(b, d);
  return d;
}

/* A virtual tensor [1, heads, rows, cols]. */
static cudnnBackendDescriptor_t inner(builder *b, cudnnDataType_t type, int64_t heads, int64_t rows,
                                      int64_t cols) {
  shape s = {{1, heads, rows, cols}, {heads * rows * cols, rows * cols, cols, 1}};
  return tensor_descriptor(b, b->uid++, type, s, true, false);
}

static cudnnBackendDescriptor_t matmul(builder *b, cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t y,
                                       cudnnBackendDescriptor_t out) {
  const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
  cudnnBackendDescriptor_t how = create(b, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  set(b, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32);
  finalize(b, how);
  cudnnBackendDescriptor_t op = create(b, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, x);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, y);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, out);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
  finalize(b, op);
  return op;
}

/* y may be NULL: a function of one argument. */
static cudnnBackendDescriptor_t pointwise(builder *b, cudnnPointwiseMode_t mode, cudnnBackendDescriptor_t x,
                                          cudnnBackendDescriptor_t y, cudnnBackendDescriptor_t out) {
  const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
  cudnnBackendDescriptor_t how = create(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  set(b, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  set(b, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &f32);
  finalize(b, how);
  cudnnBackendDescriptor_t op = create(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
  if (y) set_descriptor(b, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, y);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
  finalize(b, op);
  return op;
}

static cudnnBackendDescriptor_t reduction(builder *b, cudnnReduceTensorOp_t how_many,
                                          cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t out) {
  const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
  cudnnBackendDescriptor_t how = create(b, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  set(b, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how_many);
  set(b, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32);
  finalize(b, how);
  cudnnBackendDescriptor_t op = create(b, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, out);
  finalize(b, op);
  return op;
}

/* Q, K (transposed or not), V, O and the scale, for both forms of the graph. */
typedef struct operands {
  cudnnBackendDescriptor_t q, k, v, o, scale;
} operands;

static operands make_operands(builder *b, const attention_plan *p, bool transpose_k) {
  const int64_t h = p->heads, lq = p->lq, lk = p->lk, d = p->d, c = h * d;
  const cudnnDataType_t half = CUDNN_DATA_BFLOAT16;
  const shape queries = {{1, h, lq, d}, {lq * c, d, c, 1}}, keys = {{1, h, lk, d}, {lk * c, d, c, 1}};
  const shape turned = {{1, h, d, lk}, {lk * c, d, 1, c}}, one = {{1, 1, 1, 1}, {1, 1, 1, 1}};
  operands t;
  t.q = tensor_descriptor(b, UID_Q, half, queries, false, false);
  t.k = tensor_descriptor(b, UID_K, half, transpose_k ? turned : keys, false, false);
  t.v = tensor_descriptor(b, UID_V, half, keys, false, false);
  t.o = tensor_descriptor(b, UID_O, half, queries, false, false);
  t.scale = tensor_descriptor(b, UID_SCALE, CUDNN_DATA_FLOAT, one, false, true);
  return t;
}

static cudnnBackendDescriptor_t graph_of(builder *b, cudnnHandle_t handle, int64_t count,
                                         const cudnnBackendDescriptor_t *op) {
  cudnnBackendDescriptor_t graph = create(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
  set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count, op);
  finalize(b, graph);
  return graph;
}

static cudnnBackendDescriptor_t graph_of_parts(builder *b, cudnnHandle_t handle, const attention_plan *p) {
  const int64_t h = p->heads, lq = p->lq, lk = p->lk;
  const cudnnDataType_t f32 = CUDNN_DATA_FLOAT, half = CUDNN_DATA_BFLOAT16;
  operands t = make_operands(b, p, true);
  cudnnBackendDescriptor_t score = inner(b, f32, h, lq, lk), scaled = inner(b, f32, h, lq, lk);
  cudnnBackendDescriptor_t largest = inner(b, f32, h, lq, 1), below = inner(b, f32, h, lq, lk);
  cudnnBackendDescriptor_t power = inner(b, f32, h, lq, lk), sum = inner(b, f32, h, lq, 1);
  cudnnBackendDescriptor_t share = inner(b, half, h, lq, lk);
  /* nobody reads the rows' statistic, but the library knows attention by it */
  cudnnBackendDescriptor_t logarithm = inner(b, f32, h, lq, 1), statistic = inner(b, f32, h, lq, 1);
  cudnnBackendDescriptor_t biased = p->biased ? inner(b, f32, h, lq, lk) : scaled;
  cudnnBackendDescriptor_t op[11];
  int64_t n = 0;
  op[n++] = matmul(b, t.q, t.k, score);
  op[n++] = pointwise(b, CUDNN_POINTWISE_MUL, score, t.scale, scaled);
  if (p->biased) {
    const shape row = {{1, 1, 1, lk}, {lk, lk, lk, 1}};
    cudnnBackendDescriptor_t bias = tensor_descriptor(b, UID_BIAS, f32, row, false, false);
    op[n++] = pointwise(b, CUDNN_POINTWISE_ADD, scaled, bias, biased);
  }
  op[n++] = reduction(b, CUDNN_REDUCE_TENSOR_MAX, biased, largest);
  op[n++] = pointwise(b, CUDNN_POINTWISE_SUB, biased, largest, below);
  op[n++] = pointwise(b, CUDNN_POINTWISE_EXP, below, NULL, power);
  op[n++] = reduction(b, CUDNN_REDUCE_TENSOR_ADD, power, sum);
  op[n++] = pointwise(b, CUDNN_POINTWISE_LOG, sum, NULL, logarithm);
  op[n++] = pointwise(b, CUDNN_POINTWISE_ADD, largest, logarithm, statistic);
  op[n++] = pointwise(b, CUDNN_POINTWISE_DIV, power, sum, share);
  op[n++] = matmul(b, share, t.v, t.o);
  return graph_of(b, handle, n, op);
}

/* The same as one operation, which cuDNN has since 9.13.1. */
static cudnnBackendDescriptor_t graph_of_one(builder *b, cudnnHandle_t handle, const attention_plan *p) {
#if CUDNN_VERSION >= 91301
  if (p->biased) b->ok = false;
  operands t = make_operands(b, p, false);
  cudnnBackendDescriptor_t op = create(b, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, t.q);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, t.k);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, t.v);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, t.o);
  set_descriptor(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, t.scale);
  finalize(b, op);
  return graph_of(b, handle, 1, &op);
#else
  (void)handle;
  (void)p;
  b->ok = false;
  return NULL;
#endif
}

/* The first of the library's suggestions that becomes a plan. */
static bool plan_from(builder *b, cudnnHandle_t handle, cudnnBackendDescriptor_t graph, attention_plan *p) {
  const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
  cudnnBackendDescriptor_t heuristic = create(b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR), config[CONFIGS];
  set_descriptor(b, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  set(b, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  finalize(b, heuristic);
  int made = 0;
  while (b->ok && made < CONFIGS && b->count < DESCRIPTORS)
    config[made++] = create(b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  int64_t found = 0;
  if (!b->ok || b->lib->cudnnBackendGetAttribute(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                 CUDNN_TYPE_BACKEND_DESCRIPTOR, made, &found,
                                                 config) != CUDNN_STATUS_SUCCESS)
    return false;
  for (int64_t i = 0; i < found && i < made; i++) {
    builder attempt = {.lib = b->lib, .ok = true};
    cudnnBackendDescriptor_t plan = create(&attempt, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set(&attempt, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    set_descriptor(&attempt, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config[i]);
    finalize(&attempt, plan);
    if (attempt.ok)
      attempt.ok =
          b->lib->cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                                           1, NULL, &p->workspace) == CUDNN_STATUS_SUCCESS;
    if (attempt.ok) {
      p->plan = plan;
      return true;
    }
    if (plan) b->lib->cudnnBackendDestroyDescriptor(plan);
  }
  return false;
}

static void destroy(builder *b) {
  for (int i = b->count; i-- > 0;) b->lib->cudnnBackendDestroyDescriptor(b->made[i]);
}

void cuda_attention_close(backend *be) {
  cuda_state *c = cuda_of(be);
  while (c->attention) {
    attention_plan *p = c->attention;
    c->attention = p->next;
    if (p->plan) c->lib.cudnnBackendDestroyDescriptor(p->plan);
    core_free(be->ctx, p);
  }
}

static attention_plan *plan_for(backend *be, int64_t lq, int64_t lk, int64_t heads, int64_t d, bool biased) {
  cuda_state *c = cuda_of(be);
  int count = 0;
  for (attention_plan *p = c->attention; p; p = p->next, count++)
    if (p->lq == lq && p->lk == lk && p->heads == heads && p->d == d && p->biased == biased) return p;
  if (count >= PLANS_MAX) cuda_attention_close(be);
  attention_plan *p = core_calloc(be->ctx, 1, sizeof *p);
  if (!p) return NULL;
  *p = (attention_plan){.next = c->attention, .lq = lq, .lk = lk, .heads = heads, .d = d, .biased = biased};
  c->attention = p;
  for (int form = 0; form < 2 && !p->usable; form++) {
    builder b = {.lib = &c->lib, .uid = UID_INNER, .ok = true};
    cudnnBackendDescriptor_t graph = form == 0 ? graph_of_parts(&b, c->dnn, p) : graph_of_one(&b, c->dnn, p);
    p->usable = b.ok && plan_from(&b, c->dnn, graph, p);
    destroy(&b);
  }
  if (!p->usable) {
    char why[256] = "";
    c->lib.cudnnGetLastErrorString(why, sizeof why);
    core_log(be->ctx, WAN_LOG_INFO,
             "cuDNN has no attention for %lld queries, %lld keys%s, %lld heads of %lld: %s", (long long)lq,
             (long long)lk, biased ? " with biases" : "", (long long)heads, (long long)d, why);
  }
  return p;
}

wan_status cuda_attention_dnn(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec,
                              tensor out, bool *done) {
  cuda_state *c = cuda_of(be);
  const int64_t lq = q.dim[0], lk = k.dim[0], d = q.dim[1] / spec->heads;
  *done = false;
  if (!c->dnn || lq * lk < SCORES_MIN) return WAN_OK;
  const bool biased = spec->key_bias.type != DT_NONE;
  attention_plan *p = plan_for(be, lq, lk, spec->heads, d, biased);
  if (!p) return WAN_ERR_MEMORY;
  if (!p->usable) return WAN_OK;
  void *workspace = NULL;
  if (p->workspace > 0 && !(workspace = cuda_mem_alloc(be, (size_t)p->workspace))) return WAN_ERR_MEMORY;
  float scale = spec->scale;
  const int64_t uid[] = {UID_Q, UID_K, UID_V, UID_O, UID_SCALE, UID_BIAS};
  void *const data[] = {q.data, k.data, v.data, out.data, &scale, spec->key_bias.data};
  const int64_t count = biased ? 6 : 5;
  builder b = {.lib = &c->lib, .ok = true};
  cudnnBackendDescriptor_t pack = create(&b, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  set(&b, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, data);
  set(&b, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, uid);
  set(&b, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  finalize(&b, pack);
  cudnnStatus_t s = b.ok ? c->lib.cudnnBackendExecute(c->dnn, p->plan, pack) : CUDNN_STATUS_INTERNAL_ERROR;
  destroy(&b);
  cuda_mem_free(be, workspace, (size_t)p->workspace);
  if (s != CUDNN_STATUS_SUCCESS)
    return core_fail(be->ctx, WAN_ERR_BACKEND,
                     "CUDA: cuDNN's attention failed: %s; check that cuDNN matches the driver",
                     c->lib.cudnnGetErrorString(s));
  *done = true;
  return WAN_OK;
}
