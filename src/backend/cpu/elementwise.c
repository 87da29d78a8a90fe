/* elementwise.c: operations on elements without regard to shape. A tensor is cut into chunks of floats
 * that stay in the first cache, and threads share the chunks. */
#include "backend/cpu/cpu.h"

#include <string.h>

enum {
  CHUNK = 4096,            /* 16 KiB of floats */
  PARALLEL_MIN = 4 * CHUNK /* less work does not pay for waking other threads */
};

static void *element(tensor t, int64_t index) {
  return (char *)t.data + (size_t)index * dtype_size(t.type);
}

typedef struct chunk_job {
  const cpu_rows *k;
  tensor a, b, out;
  op_act act;
  int terms;
  const tensor *term;
  const float *coef;
} chunk_job;

typedef void chunk_fn(const chunk_job *j, int64_t at, int64_t n);

static wan_status run_chunks(backend *be, chunk_fn *fn, const chunk_job *j) {
  int64_t count = tensor_count(&j->out);
#pragma omp parallel for num_threads(be->threads) if (count >= PARALLEL_MIN)
  for (int64_t at = 0; at < count; at += CHUNK) fn(j, at, count - at < CHUNK ? count - at : CHUNK);
  return WAN_OK;
}

/* n elements from `at` as floats, widened into buf where they are not floats already. */
static const float *chunk_begin(const cpu_rows *k, tensor x, int64_t at, int64_t n, float *buf) {
  if (x.type == DT_F32) return element(x, at);
  k->from_bf16(element(x, at), buf, n);
  return buf;
}

static float *chunk_target(tensor out, int64_t at, float *buf) {
  return out.type == DT_F32 ? element(out, at) : buf;
}

static void chunk_end(const cpu_rows *k, tensor out, int64_t at, int64_t n, const float *buf) {
  if (out.type != DT_F32) k->to_bf16(buf, element(out, at), n);
}

static void activate_chunk(const chunk_job *j, int64_t at, int64_t n) {
  float in[CHUNK], res[CHUNK];
  float *y = chunk_target(j->out, at, res);
  j->k->activate(chunk_begin(j->k, j->a, at, n, in), j->act, y, n);
  chunk_end(j->k, j->out, at, n, y);
}

wan_status cpu_activate(backend *be, tensor x, op_act act, tensor out) {
  chunk_job j = {.k = cpu_of(be)->isa.rows, .a = x, .out = out, .act = act};
  return run_chunks(be, activate_chunk, &j);
}

wan_status cpu_cast(backend *be, tensor x, tensor out) {
  return cpu_activate(be, x, ACT_NONE, out);
}

void cpu_convert(backend *be, dtype from, const void *src, dtype to, void *dst, int64_t n) {
  tensor x = TENSOR_OF(from, (void *)(uintptr_t)src, n), out = TENSOR_OF(to, dst, n);
  cpu_activate(be, x, ACT_NONE, out);
}

static void mul_chunk(const chunk_job *j, int64_t at, int64_t n) {
  float in[CHUNK], res[CHUNK];
  float *y = chunk_target(j->out, at, res);
  if (j->out.type != DT_F32) j->k->from_bf16(element(j->out, at), y, n);
  j->k->mul(y, chunk_begin(j->k, j->b, at, n, in), n);
  chunk_end(j->k, j->out, at, n, y);
}

wan_status cpu_mul(backend *be, tensor a, tensor b) {
  chunk_job j = {.k = cpu_of(be)->isa.rows, .b = b, .out = a};
  return run_chunks(be, mul_chunk, &j);
}

enum { MAX_TERMS = 8 }; /* op_lincomb's limit */

static void lincomb_chunk(const chunk_job *j, int64_t at, int64_t n) {
  const float *term[MAX_TERMS];
  for (int i = 0; i < j->terms && i < MAX_TERMS; i++) term[i] = element(j->term[i], at);
  j->k->lincomb(j->terms, term, j->coef, element(j->out, at), n);
}

wan_status cpu_lincomb(backend *be, tensor out, int terms, const tensor *x, const float *coef) {
  chunk_job j = {.k = cpu_of(be)->isa.rows, .out = out, .terms = terms, .term = x, .coef = coef};
  return run_chunks(be, lincomb_chunk, &j);
}

static void to_u8_chunk(const chunk_job *j, int64_t at, int64_t n) {
  float in[CHUNK];
  j->k->to_u8(chunk_begin(j->k, j->a, at, n, in), element(j->out, at), n);
}

wan_status cpu_to_u8(backend *be, tensor x, tensor out) {
  chunk_job j = {.k = cpu_of(be)->isa.rows, .a = x, .out = out};
  return run_chunks(be, to_u8_chunk, &j);
}

wan_status cpu_all_finite(backend *be, tensor x, bool *finite) {
  const cpu_rows *k = cpu_of(be)->isa.rows;
  int64_t count = tensor_count(&x);
  int bad = 0;
#pragma omp parallel for num_threads(be->threads) reduction(| : bad) if (count >= PARALLEL_MIN)
  for (int64_t at = 0; at < count; at += CHUNK) {
    int64_t n = count - at < CHUNK ? count - at : CHUNK;
    float in[CHUNK];
    bad |= !k->finite(chunk_begin(k, x, at, n, in), n);
  }
  *finite = !bad;
  return WAN_OK;
}

/* Chunks are summed in order within a thread, threads in any order: f64 leaves room for that. */
wan_status cpu_dot(backend *be, tensor a, tensor b, double *sum) {
  const cpu_rows *k = cpu_of(be)->isa.rows;
  int64_t count = tensor_count(&a);
  double total = 0;
#pragma omp parallel for num_threads(be->threads) reduction(+ : total) if (count >= PARALLEL_MIN)
  for (int64_t at = 0; at < count; at += CHUNK) {
    int64_t n = count - at < CHUNK ? count - at : CHUNK;
    total += k->dot((const float *)element(a, at), (const float *)element(b, at), n);
  }
  *sum = total;
  return WAN_OK;
}
