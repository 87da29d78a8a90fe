/* attention.c: softmax(scale q k^T + biases) v without the score matrix. For a few heads at a time, keys
 * and values are packed into the form the kernels read (attn.h); then each thread takes blocks of
 * queries and walks over the keys in blocks of ATTN_KEYS, keeping a running maximum and sum per query and
 * rescaling what it has accumulated when the maximum grows (the online softmax of FlashAttention,
 * Dao et al. 2022). Memory: packed keys and values of those heads, and some 100 KiB a thread. */
#include "backend/cpu/cpu.h"

#include <math.h>
#include <string.h>

enum {
  GROUPS_MAX = 8,          /* of ATTN_Q queries in a task: 256 queries share one walk over the keys */
  O_BYTES_MAX = 256 << 10, /* accumulators of a task: they and a block of keys stay in the second cache */
  TASKS_PER_THREAD = 4     /* so that the last tasks don't leave threads idle for long */
};

static const float log2e = 1.44269504f;

typedef struct attn_job {
  const cpu_attn *k;
  const cpu_rows *rows;
  tensor q, kk, v, out;
  const attention_spec *spec;
  int64_t lq, lk, C, d;  /* d: head_dim */
  int64_t dp, lkp;       /* padded to ATTN_ALIGN */
  int64_t elt;           /* bytes of a packed element */
  int64_t blocks;        /* of keys */
  int64_t groups;        /* of ATTN_Q queries in a task */
  int64_t tasks;         /* for each head */
  int64_t heads;         /* packed at a time */
  char *pack_k, *pack_v; /* heads * lkp * dp elements each */
  const float *key_bias; /* NULL or [lk], times log2(e) */
  float *rel;            /* NULL or [heads][rel_len]: entry lkp + i - j, times log2(e) */
  int64_t rel_len;
  char *local; /* a thread's buffers: local_bytes each */
  size_t local_bytes;
} attn_job;

static int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

static int64_t clamp(int64_t n, int64_t lo, int64_t hi) {
  return n < lo ? lo : n > hi ? hi : n;
}

/* ---- Packing ---- */

/* Row i of head h as floats or, when the kernels take bf16, as it is. */
static const void *head_row(tensor t, int64_t i, int64_t C, int64_t h, int64_t d) {
  return (const char *)t.data + (size_t)(i * C + h * d) * dtype_size(t.type);
}

static void copy_row(const attn_job *j, tensor t, int64_t i, int64_t h, char *to) {
  const void *p = head_row(t, i, j->C, h, j->d);
  if (t.type == DT_BF16 && !j->k->bf16)
    j->rows->from_bf16(p, (float *)(void *)to, j->d);
  else
    memcpy(to, p, (size_t)(j->d * j->elt));
  memset(to + j->d * j->elt, 0, (size_t)((j->dp - j->d) * j->elt));
}

/* Keys and values of one block: K row by row, V turned so that keys lie along its rows. */
static void pack_block(const attn_job *j, int64_t slot, int64_t h, int64_t block, float *row) {
  int64_t j0 = block * ATTN_KEYS, n = clamp(j->lk - j0, 0, ATTN_KEYS), padded = round_up(n, ATTN_ALIGN);
  char *k = j->pack_k + (slot * j->lkp + j0) * j->dp * j->elt;
  char *v = j->pack_v + (slot * j->lkp + j0) * j->dp * j->elt;
  for (int64_t i = 0; i < n; i++) copy_row(j, j->kk, j0 + i, h, k + i * j->dp * j->elt);
  memset(k + n * j->dp * j->elt, 0, (size_t)((padded - n) * j->dp * j->elt));
  if (j->k->bf16) {
    j->k->pack_values(head_row(j->v, j0, j->C, h, j->d), j->C, n, padded, j->d, j->dp, v);
    return;
  }
  for (int64_t i = 0; i < padded; i++) {
    if (i < n)
      copy_row(j, j->v, j0 + i, h, (char *)row);
    else
      memset(row, 0, (size_t)j->dp * sizeof *row);
    for (int64_t e = 0; e < j->dp; e++) ((float *)(void *)v)[e * padded + i] = row[e];
  }
}

/* ATTN_Q queries from i0 as the right operand: [dp, ATTN_Q] or [dp / 2, ATTN_Q, 2]. */
static void pack_queries(const attn_job *j, int64_t h, int64_t i0, char *to, float *row) {
  if (j->k->bf16) {
    j->k->pack_queries(head_row(j->q, i0, j->C, h, j->d), j->C, clamp(j->lq - i0, 0, ATTN_Q), j->d, j->dp,
                       to);
    return;
  }
  for (int64_t i = 0; i < ATTN_Q; i++) {
    if (i0 + i < j->lq)
      copy_row(j, j->q, i0 + i, h, (char *)row);
    else
      memset(row, 0, (size_t)j->dp * sizeof *row);
    for (int64_t e = 0; e < j->dp; e++) ((float *)(void *)to)[e * ATTN_Q + i] = row[e];
  }
}

/* The relative bias of head h runs over j - i; the kernels want it over i - j. */
static void pack_rel(const attn_job *j, int64_t slot, int64_t h) {
  float *to = j->rel + slot * j->rel_len;
  const float *from = (const float *)j->spec->rel_bias.data + h * (j->lq + j->lk - 1);
  memset(to, 0, (size_t)j->rel_len * sizeof *to);
  for (int64_t x = 1 - j->lk; x < j->lq; x++) to[j->lkp + x] = from[j->lq - 1 - x] * log2e;
}

/* ---- One task: up to `groups` times ATTN_Q queries of one head ---- */

typedef struct attn_local {
  char *q, *p;
  float *s, *o, *row;
  attn_state *state;
} attn_local;

static size_t local_layout(const attn_job *j, char *at, attn_local *l) {
  size_t used = 0;
#define PART(field, type, bytes)                      \
  l->field = (type *)(void *)(at ? at + used : NULL); \
  used += (size_t)round_up((int64_t)(bytes), 4096) + 256 /* not all parts on the same cache sets */
  PART(q, char, j->groups * j->dp * ATTN_Q * j->elt);
  PART(o, float, j->groups * j->dp * ATTN_Q * 4);
  PART(s, float, ATTN_KEYS *ATTN_Q * 4);
  PART(p, char, ATTN_KEYS *ATTN_Q * j->elt);
  PART(row, float, j->dp * 4);
  PART(state, attn_state, j->groups * (int64_t)sizeof(attn_state));
#undef PART
  return used;
}

static void state_reset(attn_state *s) {
  for (int i = 0; i < ATTN_Q; i++) {
    s->max[i] = -1e30f; /* finite, so that a key with bias -infinity gives 0 and not NaN */
    s->sum[i] = 0;
    s->alpha[i] = 0;
  }
}

static void attend_block(const attn_job *j, const attn_local *l, int64_t slot, int64_t block, int64_t i0,
                         int64_t groups) {
  int64_t j0 = block * ATTN_KEYS, keys = clamp(j->lk - j0, 0, ATTN_KEYS), padded = round_up(keys, ATTN_ALIGN);
  const char *k = j->pack_k + (slot * j->lkp + j0) * j->dp * j->elt;
  const char *v = j->pack_v + (slot * j->lkp + j0) * j->dp * j->elt;
  for (int64_t g = 0; g < groups; g++) {
    float *o = l->o + g * j->dp * ATTN_Q;
    attn_bias bias = {.scale = j->spec->scale * log2e,
                      .key = j->key_bias ? j->key_bias + j0 : NULL,
                      .rel = j->rel ? j->rel + slot * j->rel_len + j->lkp + i0 + g * ATTN_Q - j0 : NULL};
    j->k->gemm(k, j->dp, l->q + g * j->dp * ATTN_Q * j->elt, l->s, padded, j->dp, false);
    bool changed = j->k->softmax(l->s, &bias, keys, padded, &l->state[g], l->p);
    if (changed && block) j->k->rescale(o, l->state[g].alpha, j->dp);
    j->k->gemm(v, padded, l->p, o, j->dp, padded, block > 0);
  }
}

static void store_queries(const attn_job *j, const attn_local *l, int64_t h, int64_t i0, int64_t g) {
  const float *o = l->o + g * j->dp * ATTN_Q;
  int64_t first = i0 + g * ATTN_Q, n = clamp(j->lq - first, 0, ATTN_Q);
  char *to = (char *)j->out.data + (size_t)(first * j->C + h * j->d) * dtype_size(j->out.type);
  if (j->k->bf16) {
    j->k->store(o, l->state[g].sum, n, j->d, (uint16_t *)(void *)to, j->C);
    return;
  }
  for (int64_t i = 0; i < n; i++, to += (size_t)j->C * dtype_size(j->out.type)) {
    float inv = 1.0f / l->state[g].sum[i];
    for (int64_t e = 0; e < j->d; e++) l->row[e] = o[e * ATTN_Q + i] * inv;
    if (j->out.type == DT_BF16)
      j->rows->to_bf16(l->row, (uint16_t *)(void *)to, j->d);
    else
      memcpy(to, l->row, (size_t)j->d * sizeof *l->row);
  }
}

static void attend(const attn_job *j, int64_t slot, int64_t h, int64_t task) {
  attn_local l;
  local_layout(j, j->local + (size_t)cpu_thread() * j->local_bytes, &l);
  int64_t i0 = task * j->groups * ATTN_Q;
  int64_t groups = clamp(round_up(j->lq - i0, ATTN_Q) / ATTN_Q, 1, j->groups);
  for (int64_t g = 0; g < groups; g++) {
    pack_queries(j, h, i0 + g * ATTN_Q, l.q + g * j->dp * ATTN_Q * j->elt, l.row);
    state_reset(&l.state[g]);
  }
  for (int64_t b = 0; b < j->blocks; b++) attend_block(j, &l, slot, b, i0, groups);
  for (int64_t g = 0; g < groups; g++) store_queries(j, &l, h, i0, g);
}

/* ---- All of it ---- */

static void run_heads(backend *be, const attn_job *j, int64_t h0, int64_t heads) {
#pragma omp parallel num_threads(be->threads)
  {
    attn_local l;
    local_layout(j, j->local + (size_t)cpu_thread() * j->local_bytes, &l);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < heads * j->blocks; i++)
      pack_block(j, i / j->blocks, h0 + i / j->blocks, i % j->blocks, l.row);
    if (j->rel) {
#pragma omp for
      for (int64_t s = 0; s < heads; s++) pack_rel(j, s, h0 + s);
    }
    if (j->k->enter) j->k->enter();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < heads * j->tasks; i++) attend(j, i / j->tasks, h0 + i / j->tasks, i % j->tasks);
    if (j->k->leave) j->k->leave();
  }
}

/* How many queries a task has and how many heads are packed at once. */
static void plan(attn_job *j, int64_t heads, int threads) {
  int64_t all = round_up(j->lq, ATTN_Q) / ATTN_Q;
  j->groups = clamp(O_BYTES_MAX / (j->dp * ATTN_Q * 4), 1, GROUPS_MAX);
  j->groups = clamp(j->groups, 1, clamp(all * heads / (TASKS_PER_THREAD * threads), 1, all));
  j->tasks = (all + j->groups - 1) / j->groups;
  j->heads = clamp((TASKS_PER_THREAD * threads + j->tasks - 1) / j->tasks, 1, heads);
}

wan_status cpu_attention(backend *be, tensor q, tensor k, tensor v, const attention_spec *spec, tensor out) {
  const cpu_state *cpu = cpu_of(be);
  attn_job j = {.k = q.type == DT_BF16 ? cpu->isa.attn_bf16 : cpu->isa.attn_f32,
                .rows = cpu->isa.rows,
                .q = q,
                .kk = k,
                .v = v,
                .out = out,
                .spec = spec,
                .lq = q.dim[0],
                .lk = k.dim[0],
                .C = q.dim[1],
                .d = q.dim[1] / spec->heads};
  if (j.d > 1024)
    return core_fail(be->ctx, WAN_ERR_UNSUPPORTED,
                     "attention: heads of %lld channels, at most 1024 are supported", (long long)j.d);
  j.dp = round_up(j.d, ATTN_ALIGN);
  j.lkp = round_up(j.lk, ATTN_ALIGN);
  j.elt = j.k->bf16 ? 2 : 4;
  j.blocks = (j.lk + ATTN_KEYS - 1) / ATTN_KEYS;
  plan(&j, spec->heads, be->threads);
  attn_local unused;
  j.local_bytes = local_layout(&j, NULL, &unused);
  size_t half = (size_t)(j.heads * j.lkp * j.dp * j.elt);
  j.rel_len = spec->rel_bias.type == DT_NONE ? 0 : j.lkp + round_up(j.lq, ATTN_Q) + ATTN_Q;
  size_t key_bytes = spec->key_bias.type == DT_NONE ? 0 : (size_t)j.lk * sizeof(float);
  j.pack_k = cpu_scratch_get(be, SCRATCH_PACK, 2 * half + (size_t)be->threads * j.local_bytes);
  float *bias =
      cpu_scratch_get(be, SCRATCH_BIAS, key_bytes + (size_t)(j.heads * j.rel_len) * sizeof(float) + 64);
  if (!j.pack_k || !bias) return WAN_ERR_MEMORY;
  j.pack_v = j.pack_k + half;
  j.local = j.pack_v + half;
  if (key_bytes) {
    const float *b = spec->key_bias.data;
    for (int64_t i = 0; i < j.lk; i++) bias[i] = b[i] * log2e;
    j.key_bias = bias;
  }
  if (j.rel_len) j.rel = bias + (key_bytes ? j.lk : 0);
  for (int64_t h = 0; h < spec->heads; h += j.heads) {
    CORE_TRY(core_check_cancel(be->ctx)); /* a head of a long video takes about a second */
    run_heads(be, &j, h, clamp(spec->heads - h, 1, j.heads));
  }
  return WAN_OK;
}
