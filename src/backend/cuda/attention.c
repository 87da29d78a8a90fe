/* attention.c: which way an attention goes. Self-attention in bf16 has a kernel of its own on Hopper
 * (flash_sm90.cu); large attention with biases of keys, and on other cards, is the library's where it has
 * one; other heads of up to 128 channels have a kernel for all cards (flash.cu); everything else (f32, the
 * VAE's one head as wide as its channels) is made of matrix products with the scores of a block of queries in
 * between, of bounded size. */
#include "backend/cuda/cuda.h"

static wan_status by_products(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec,
                              tensor out) {
  const int64_t heads = spec->heads, lq = q.dim[0], lk = k.dim[0], c = q.dim[1], d = c / heads;
  const int64_t rows = device_attention_rows(q, k, spec->heads);
  const size_t scores = (size_t)(heads * rows * lk), bytes = device_attention_bytes(q, k, spec->heads);
  char *scratch = cuda_mem_alloc(be, bytes);
  if (!scratch) return WAN_ERR_MEMORY;
  const size_t weights_at = (scores * sizeof(float) + 255) / 256 * 256;
  k_data score = {scratch, K_F32}, p = {scratch + weights_at, cuda_type(q.type)};
  wan_status s = WAN_OK;
  for (int64_t i = 0; s == WAN_OK && i < lq; i += rows) {
    int64_t n = lq - i < rows ? lq - i : rows;
    tensor qi = tensor_slice(q, i, n), oi = tensor_slice(out, i, n);
    k_gemm_spec qk = {.m = n,
                      .n = lk,
                      .k = d,
                      .lda = c,
                      .ldb = c,
                      .ldo = lk,
                      .batch = heads,
                      .stride_a = d,
                      .stride_b = d,
                      .stride_o = n * lk,
                      .bt = true,
                      .alpha = spec->scale};
    k_gemm_spec pv = {.m = n,
                      .n = d,
                      .k = lk,
                      .lda = lk,
                      .ldb = c,
                      .ldo = c,
                      .batch = heads,
                      .stride_a = n * lk,
                      .stride_b = d,
                      .stride_o = d,
                      .bt = false,
                      .alpha = 1};
    s = cuda_gemm(be, &qk, cuda_data(qi), cuda_data(k), score);
    if (s != WAN_OK) break;
    k_softmax(cuda_of(be)->stream, score.p, spec->key_bias.data, spec->rel_bias.data, p, spec->heads, n, i,
              lq, lk);
    s = cuda_launched(be, "attention");
    if (s == WAN_OK) s = cuda_gemm(be, &pv, p, cuda_data(v), cuda_data(oi));
  }
  cuda_mem_free(be, scratch, bytes);
  return s;
}

static bool aligned16(const void *p) {
  return (uintptr_t)p % 16 == 0;
}

static bool all_aligned(tensor q, tensor k, tensor v, tensor out) {
  return aligned16(q.data) && aligned16(k.data) && aligned16(v.data) && aligned16(out.data);
}

static k_flash_spec flash_spec(tensor q, tensor k, tensor v, const attention_spec *spec, tensor out) {
  return (k_flash_spec){.q = q.data,
                        .k = k.data,
                        .v = v.data,
                        .out = out.data,
                        .key_bias = spec->key_bias.data,
                        .rel_bias = spec->rel_bias.data,
                        .lq = q.dim[0],
                        .lk = k.dim[0],
                        .heads = spec->heads,
                        .d = (int)(q.dim[1] / spec->heads),
                        .scale = spec->scale};
}

wan_status cuda_attention_coarse(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec,
                                 tensor out, bool *done) {
  cuda_state *c = cuda_of(be);
  *done = false;
  if (!c->tensor_map_encode || !device_attention_coarse(q, k, spec) || !all_aligned(q, k, v, out))
    return WAN_OK;
  const size_t bytes = device_coarse_bytes(k, spec->heads);
  void *scratch = cuda_mem_alloc(be, bytes);
  if (!scratch) return WAN_ERR_MEMORY;
  k_flash_spec f = flash_spec(q, k, v, spec, out);
  *done = k_flash8(c->stream, c->tensor_map_encode, &f, scratch, bytes);
  wan_status s = cuda_launched(be, "attention");
  cuda_mem_free(be, scratch, bytes);
  return s;
}

wan_status cuda_attention(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec, tensor out) {
  if (!tensor_count(&q)) return WAN_OK;
  if (spec->coarse) {
    bool done = false;
    CORE_TRY(cuda_attention_coarse(be, q, k, v, spec, out, &done));
    if (done) return WAN_OK;
  }
  bool regular = device_attention_fused(q, spec->heads) && all_aligned(q, k, v, out);
  if (!regular) return by_products(be, q, k, v, spec, out);
  k_flash_spec f = flash_spec(q, k, v, spec, out);
  if (k_flash_sm90(cuda_of(be)->stream, cuda_of(be)->tensor_map_encode, &f))
    return cuda_launched(be, "attention");
  if (spec->rel_bias.type == DT_NONE && aligned16(spec->key_bias.data)) {
    bool done = false;
    CORE_TRY(cuda_attention_dnn(be, q, k, v, spec, out, &done));
    if (done) return WAN_OK;
  }
  k_flash(cuda_of(be)->stream, &f);
  return cuda_launched(be, "attention");
}
