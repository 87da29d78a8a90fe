/* rowwise.c: operations over independent rows, spread over threads. Rows that are not F32 pass
 * through a float buffer in the first cache. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <string.h>

static void *element(tensor t, int64_t index) {
  return (char *)t.data + (size_t)index * dtype_size(t.type);
}

const float *cpu_row_begin(const cpu_rows *r, tensor x, int64_t row, int64_t cols, float *buf) {
  const void *p = element(x, row * cols);
  if (x.type == DT_F32) return p;
  r->from_bf16(p, buf, cols);
  return buf;
}

float *cpu_row_target(tensor out, int64_t row, int64_t cols, float *buf) {
  return out.type == DT_F32 ? element(out, row * cols) : buf;
}

void cpu_row_end(const cpu_rows *r, tensor out, int64_t row, int64_t cols, const float *buf) {
  if (out.type != DT_F32) r->to_bf16(buf, element(out, row * cols), cols);
}

/* Work too small to pay for waking the other threads (a few microseconds), in elements. */
enum { PARALLEL_MIN = 1 << 14 };

/* What a row function may need; each operation fills in its own part. */
typedef struct row_job {
  const cpu_rows *k;
  const cpu_rows_bf16 *k16; /* NULL unless rows are bf16 on both sides and the machine has it */
  int64_t n, cols;
  tensor x, y, mod, out;
  const token_rows *rows;
  int shift, scale, heads; /* shift doubles as the gate */
  const float *gamma, *beta, *rope;
  float eps, root;
  op_act act;
  const weight *table;
  const int32_t *ids;
} row_job;

/* `in` and `res` are float rows of the calling thread. */
typedef void row_fn(const row_job *j, int64_t r, float *in, float *res);

static wan_status run_rows(backend *be, row_fn *fn, const row_job *j) {
  int64_t stride = (j->cols + 15) / 16 * 16 + 16, n = j->n; /* a cache line between the threads' rows */
  float *buffers = cpu_scratch_get(be, SCRATCH_ROWS, (size_t)(be->threads * 2 * stride) * sizeof(float));
  if (!buffers) return WAN_ERR_MEMORY;
#pragma omp parallel for num_threads(be->threads) if (n * j->cols >= PARALLEL_MIN)
  for (int64_t r = 0; r < n; r++) {
    float *in = buffers + cpu_thread() * 2 * stride;
    fn(j, r, in, in + stride);
  }
  return WAN_OK;
}

static row_job job_for(backend *be, tensor x, tensor out) {
  bool both = x.type == DT_BF16 && out.type == DT_BF16;
  return (row_job){.k = cpu_of(be)->isa.rows,
                   .k16 = both ? cpu_of(be)->isa.rows_bf16 : NULL,
                   .n = tensor_rows(&out),
                   .cols = tensor_cols(&out),
                   .x = x,
                   .out = out};
}

/* Entry `which` of the modulation (F32 [n, R, C]) that token i uses. */
static const float *mod_row(const row_job *j, int64_t i, int which) {
  int64_t row = ((const int32_t *)j->rows->row.data)[(j->rows->offset + i) / j->rows->per];
  return (const float *)j->mod.data + (row * j->mod.dim[1] + which) * j->mod.dim[2];
}

static void ada_norm_row(const row_job *j, int64_t r, float *in, float *res) {
  float *y = cpu_row_target(j->out, r, j->cols, res);
  j->k->ada_norm(cpu_row_begin(j->k, j->x, r, j->cols, in), mod_row(j, r, j->shift), mod_row(j, r, j->scale),
                 j->eps, y, j->cols);
  cpu_row_end(j->k, j->out, r, j->cols, y);
}

wan_status cpu_ada_norm(backend *be, tensor x, tensor mod, const token_rows *rows, int shift, int scale,
                        float eps, tensor out) {
  row_job j = job_for(be, x, out);
  j.mod = mod;
  j.rows = rows;
  j.shift = shift;
  j.scale = scale;
  j.eps = eps;
  return run_rows(be, ada_norm_row, &j);
}

static void layer_norm_row(const row_job *j, int64_t r, float *in, float *res) {
  float *y = cpu_row_target(j->out, r, j->cols, res);
  j->k->layer_norm(cpu_row_begin(j->k, j->x, r, j->cols, in), j->gamma, j->beta, j->eps, y, j->cols);
  cpu_row_end(j->k, j->out, r, j->cols, y);
}

wan_status cpu_layer_norm(backend *be, tensor x, const weight *gamma, const weight *beta, float eps,
                          tensor out) {
  row_job j = job_for(be, x, out);
  j.gamma = gamma->data;
  j.beta = beta->data;
  j.eps = eps;
  return run_rows(be, layer_norm_row, &j);
}

/* With rope, x and out are one tensor: a row is read completely before it is written. */
static void rms_norm_row(const row_job *j, int64_t r, float *in, float *res) {
  float *y = cpu_row_target(j->out, r, j->cols, res);
  j->k->rms_norm(cpu_row_begin(j->k, j->x, r, j->cols, in), j->gamma, j->eps, y, j->cols);
  if (j->rope) {
    int64_t half = j->cols / j->heads / 2;
    j->k->rope(y, j->rope + r * half * 2, j->heads, half);
  }
  cpu_row_end(j->k, j->out, r, j->cols, y);
}

wan_status cpu_rms_norm(backend *be, tensor x, const weight *gamma, float eps, tensor out) {
  row_job j = job_for(be, x, out);
  j.gamma = gamma->data;
  j.eps = eps;
  return run_rows(be, rms_norm_row, &j);
}

static void norm_rope_row(const row_job *j, int64_t r, float *in, float *res) {
  if (!j->k16) {
    rms_norm_row(j, r, in, res);
    return;
  }
  const float *rope = j->rope ? j->rope + r * (j->cols / j->heads) : NULL;
  j->k16->norm_rope(element(j->x, r * j->cols), j->gamma, j->eps, rope, j->cols / j->heads, j->cols);
}

wan_status cpu_qk_norm_rope(backend *be, tensor x, const weight *gamma, float eps, tensor rope, int heads) {
  row_job j = job_for(be, x, x);
  j.gamma = gamma->data;
  j.eps = eps;
  j.rope = rope.type == DT_NONE ? NULL : rope.data;
  j.heads = heads;
  return run_rows(be, norm_rope_row, &j);
}

static void gate_add_row(const row_job *j, int64_t r, float *in, float *res) {
  float *sum = cpu_row_target(j->out, r, j->cols, res);
  if (j->out.type != DT_F32) j->k->from_bf16(element(j->out, r * j->cols), sum, j->cols);
  const float *gate = j->mod.type == DT_NONE ? NULL : mod_row(j, r, j->shift);
  j->k->gate_add(sum, cpu_row_begin(j->k, j->y, r, j->cols, in), gate, j->cols);
  cpu_row_end(j->k, j->out, r, j->cols, sum);
}

wan_status cpu_gate_add(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows, int gate) {
  row_job j = job_for(be, x, x);
  j.y = y;
  j.mod = mod;
  j.rows = rows;
  j.shift = gate;
  return run_rows(be, gate_add_row, &j);
}

static void channel_norm_row(const row_job *j, int64_t r, float *in, float *res) {
  if (j->k16) {
    j->k16->channel_norm(element(j->x, r * j->cols), j->gamma, j->root, j->act == ACT_SILU,
                         element(j->out, r * j->cols), j->cols);
    return;
  }
  float *y = cpu_row_target(j->out, r, j->cols, res);
  j->k->channel_norm(cpu_row_begin(j->k, j->x, r, j->cols, in), j->gamma, j->root, j->act, y, j->cols);
  cpu_row_end(j->k, j->out, r, j->cols, y);
}

wan_status cpu_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out) {
  row_job j = job_for(be, x, out);
  j.gamma = gamma->data;
  j.root = sqrtf((float)j.cols);
  j.act = act;
  if (act == ACT_GELU_TANH) j.k16 = NULL;
  return run_rows(be, channel_norm_row, &j);
}

static void affine_row(const row_job *j, int64_t r, float *in, float *res) {
  float *y = cpu_row_target(j->out, r, j->cols, res);
  j->k->affine(cpu_row_begin(j->k, j->x, r, j->cols, in), j->gamma, j->beta, y, j->cols);
  cpu_row_end(j->k, j->out, r, j->cols, y);
}

wan_status cpu_channel_affine(backend *be, tensor x, tensor mul, tensor add, tensor out) {
  row_job j = job_for(be, x, out);
  j.gamma = mul.data;
  j.beta = add.data;
  return run_rows(be, affine_row, &j);
}

/* out row (i, k) = base row k + e row (i, k), or e row i when e has no k */
static void modulation_row(const row_job *j, int64_t r, float *in, float *res) {
  (void)in;
  (void)res;
  int64_t k = r % j->out.dim[1], from = j->x.ndim == 3 ? r : r / j->out.dim[1];
  float *y = element(j->out, r * j->cols);
  memcpy(y, element(j->x, from * j->cols), (size_t)j->cols * sizeof *y);
  j->k->gate_add(y, j->gamma + k * j->cols, NULL, j->cols);
}

wan_status cpu_modulation(backend *be, const weight *base, tensor e, tensor out) {
  row_job j = job_for(be, e, out);
  j.gamma = base->data;
  return run_rows(be, modulation_row, &j);
}

wan_status cpu_position_bias(backend *be, const weight *table, tensor bucket, tensor out) {
  const int64_t heads = out.dim[0], n = out.dim[1];
  const float *entry = table->data;
  const int32_t *row = bucket.data;
  float *y = out.data;
  for (int64_t h = 0; h < heads; h++)
    for (int64_t i = 0; i < n; i++) {
      float v = entry[row[i] * heads + h];
      y[h * n + i] = be->act == DT_BF16 ? bf16_to_f32(f32_to_bf16(v)) : v;
    }
  return WAN_OK;
}

static void embed_row(const row_job *j, int64_t r, float *in, float *res) {
  (void)in;
  float *y = cpu_row_target(j->out, r, j->cols, res);
  const char *row = (const char *)j->table->data + (size_t)(j->ids[r] * j->cols) * dtype_size(j->table->type);
  cpu_widen(j->table->type, row, y, j->cols);
  cpu_row_end(j->k, j->out, r, j->cols, y);
}

wan_status cpu_embed(backend *be, const weight *table, const int32_t *ids, tensor out) {
  row_job j = job_for(be, out, out);
  j.table = table;
  j.ids = ids;
  return run_rows(be, embed_row, &j);
}
