/* The operations of the text encoder and the diffusion transformer against ref. */
#include "ops/ops_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CASES = 40 };

static op_act random_act(rig *r) {
  return (op_act)rig_int(r, ACT_NONE, ACT_GELU_TANH);
}

/* ---- Linear ---- */

/* x [.., K] with 1 to 4 leading dimensions whose product is `rows` */
static twin linear_input(rig *r, dtype type, int64_t rows, int64_t k) {
  fill how = rig_fill(r);
  if (rows % 2 == 0 && rig_chance(r, 0.3)) return TWIN(r, type, how, 2, rows / 2, k);
  if (rig_chance(r, 0.2)) return TWIN(r, type, how, 1, 1, rows, k);
  return TWIN(r, type, how, rows, k);
}

static void test_linear(void **state) {
  rig *r = *state;
  for (int i = 0; i < 2 * CASES; i++) {
    rig_begin(r, "linear");
    int64_t k = rig_size(r, 1, 700), n = rig_size(r, 1, 700), rows = rig_size(r, 1, 400);
    while (rows > 1 && rows * k * n > 8000000) rows = (rows + 1) / 2;
    bool f32 = rig_chance(r, 0.25);
    twin x = linear_input(r, rig_type(r), rows, k);
    const twin_weight *w =
        TWIN_WEIGHT(r, f32 ? WEIGHT_LINEAR_F32 : WEIGHT_LINEAR, 0, 1 / sqrt((double)k), n, k);
    const twin_weight *bias = rig_chance(r, 0.7) ? TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 1, n) : NULL;
    op_act act = random_act(r);
    dtype out = rig_type(r);
    rig_note(r, " act %d out %s", (int)act, dtype_name(out));
    limit l = f32 ? limit_f32(out, (double)k) : limit_act(r, out, (double)k);
    l.scale = max_norm(x.ref, 1) * weight_rms(w) + 1;
    rig_compare(r, op_linear(r->ref, x.ref, ref_of(w), ref_of(bias), act, out),
                op_linear(r->be, x.sub, sub_of(w), sub_of(bias), act, out), l);
    rig_end(r);
  }
}

/* Into the middle of a larger tensor, whose other rows must stay as they were. */
static void test_linear_into(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "linear_into");
    int64_t k = rig_size(r, 1, 300), n = rig_size(r, 1, 300), rows = rig_size(r, 1, 60);
    int64_t before = rig_int(r, 0, 3), after = rig_int(r, 0, 3);
    twin x = TWIN(r, rig_type(r), FILL_NORMAL, rows, k);
    twin whole = TWIN(r, rig_type(r), FILL_NORMAL, before + rows + after, n);
    const twin_weight *w = TWIN_WEIGHT(r, WEIGHT_LINEAR, 0, 1 / sqrt((double)k), n, k);
    twin out = twin_slice(whole, before, rows);
    rig_may_change(r, whole);
    op_linear_into(r->ref, x.ref, ref_of(w), NULL, ACT_NONE, out.ref);
    op_linear_into(r->be, x.sub, sub_of(w), NULL, ACT_NONE, out.sub);
    limit l = limit_act(r, whole.ref.type, (double)k);
    l.scale = max_norm(x.ref, 1) * weight_rms(w);
    rig_compare(r, out.ref, out.sub, l);
    twin head = twin_slice(whole, 0, before), tail = twin_slice(whole, before + rows, after);
    rig_compare(r, head.ref, head.sub, limit_exact());
    rig_compare(r, tail.ref, tail.sub, limit_exact());
    rig_end(r);
  }
}

static void test_linear_add(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "linear_add");
    int64_t k = rig_size(r, 1, 400), n = rig_size(r, 1, 400), rows = rig_size(r, 1, 100);
    twin x = linear_input(r, rig_type(r), rows, k);
    const twin_weight *w =
        TWIN_WEIGHT(r, rig_chance(r, 0.2) ? WEIGHT_LINEAR_F32 : WEIGHT_LINEAR, 0, 1 / sqrt((double)k), n, k);
    const twin_weight *bias = rig_chance(r, 0.7) ? TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 1, n) : NULL;
    int64_t dim[TENSOR_MAX_DIMS];
    memcpy(dim, x.ref.dim, sizeof dim);
    dim[x.ref.ndim - 1] = n;
    twin sum = rig_tensor(r, DT_F32, FILL_NORMAL, x.ref.ndim, dim);
    rig_may_change(r, sum);
    limit l = limit_act(r, DT_F32, (double)k);
    l.scale = max_norm(x.ref, 1) * weight_rms(w) + 1;
    op_linear_add(r->ref, x.ref, ref_of(w), ref_of(bias), sum.ref);
    op_linear_add(r->be, x.sub, sub_of(w), sub_of(bias), sum.sub);
    rig_compare(r, sum.ref, sum.sub, l);
    rig_end(r);
  }
}

/* ---- Norms ---- */

/* How much larger a row is than its spread: subtracting a mean that is known to u of the values loses
 * this factor. */
static double worst_condition(tensor x, double eps) {
  double worst = 1;
  int64_t n = tensor_rows(&x), c = tensor_cols(&x);
  const float *v = x.data;
  for (int64_t i = 0; i < n; i++, v += c) {
    double mean = 0, squares = 0, variance = 0;
    for (int64_t j = 0; j < c; j++) mean += (double)v[j] / (double)c;
    for (int64_t j = 0; j < c; j++) squares += (double)v[j] * v[j] / (double)c;
    for (int64_t j = 0; j < c; j++) variance += (v[j] - mean) * (v[j] - mean) / (double)c;
    worst = fmax(worst, sqrt(squares / (variance + eps)));
  }
  return worst;
}

/* The largest factor by which a row is stretched: 1 / sqrt(variance + eps). */
static double largest_scale(tensor x, double eps) {
  double largest = 0;
  int64_t n = tensor_rows(&x), c = tensor_cols(&x);
  const float *v = x.data;
  for (int64_t i = 0; i < n; i++, v += c) {
    double mean = 0, variance = 0;
    for (int64_t j = 0; j < c; j++) mean += (double)v[j] / (double)c;
    for (int64_t j = 0; j < c; j++) variance += (v[j] - mean) * (v[j] - mean) / (double)c;
    largest = fmax(largest, 1 / sqrt(variance + eps));
  }
  return largest;
}

static limit norm_limit(tensor x, dtype out, double eps, double largest_factor) {
  double c = (double)tensor_cols(&x);
  limit l = limit_squares(out, c);
  l.abs = l.slack * worst_condition(x, eps) * largest_factor;
  return l;
}

typedef struct mod_rows {
  twin mod; /* [n, R, C] */
  token_rows ref, sub;
} mod_rows;

/* A modulation of R entries and rows for `tokens` tokens, seen from some offset on. */
static mod_rows random_rows(rig *r, int64_t tokens, int64_t R, int64_t C) {
  int64_t n = rig_int(r, 1, 3), per = rig_chance(r, 0.5) ? 1 : rig_size(r, 1, 20), offset = rig_int(r, 0, 9);
  int64_t units = (offset + tokens + per - 1) / per;
  int32_t *row = malloc((size_t)units * sizeof *row);
  assert_non_null(row);
  for (int64_t i = 0; i < units; i++) row[i] = (int32_t)rig_int(r, 0, n - 1);
  mod_rows m = {.mod = TWIN(r, DT_F32, FILL_NORMAL, n, R, C)};
  m.ref = token_rows_at(token_rows_create(r->ref, row, units, per), offset);
  m.sub = token_rows_at(token_rows_create(r->be, row, units, per), offset);
  free(row);
  rig_note(r, " per %lld offset %lld", (long long)per, (long long)offset);
  return m;
}

static void test_ada_norm(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "ada_norm");
    int64_t n = rig_size(r, 1, 80), c = rig_size(r, 1, 900), R = rig_int(r, 2, 6);
    int shift = (int)rig_int(r, 0, R - 1), scale = (int)rig_int(r, 0, R - 1);
    twin x = TWIN(r, DT_F32, rig_fill(r), n, c);
    mod_rows m = random_rows(r, n, R, c);
    dtype out = rig_type(r);
    limit l = norm_limit(x.ref, out, 1e-6, 1 + max_abs(m.mod.ref));
    l.scale = 1 + max_abs(m.mod.ref);
    rig_compare(r, op_ada_norm(r->ref, x.ref, m.mod.ref, &m.ref, shift, scale, 1e-6f, out),
                op_ada_norm(r->be, x.sub, m.mod.sub, &m.sub, shift, scale, 1e-6f, out), l);
    rig_end(r);
  }
}

static void test_layer_norm(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "layer_norm");
    int64_t n = rig_size(r, 1, 80), c = rig_size(r, 1, 900);
    twin x = TWIN(r, DT_F32, rig_fill(r), n, c);
    const twin_weight *gamma = TWIN_WEIGHT(r, WEIGHT_VECTOR, 1, 0.3, c);
    const twin_weight *beta = TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 0.3, c);
    dtype out = rig_type(r);
    limit l = norm_limit(x.ref, out, 1e-6, 3);
    l.scale = 3;
    rig_compare(r, op_layer_norm(r->ref, x.ref, ref_of(gamma), ref_of(beta), 1e-6f, out),
                op_layer_norm(r->be, x.sub, sub_of(gamma), sub_of(beta), 1e-6f, out), l);
    rig_end(r);
  }
}

/* The residual stream updated and normalised in one: with and without gate, over the added rows or beside
 * them. */
static void test_add_norm(void **state) {
  rig *r = *state;
  for (int i = 0; i < 3 * CASES; i++) {
    bool ada = rig_chance(r, 0.5), gated = rig_chance(r, 0.6), adds = rig_chance(r, 0.9);
    rig_begin(r, ada ? "add_ada_norm" : "add_layer_norm");
    int64_t n = rig_size(r, 1, 40), R = rig_int(r, 2, 6);
    int64_t c = rig_chance(r, 0.3) ? 8 * rig_size(r, 1, 700) : rig_size(r, 1, 900);
    int shift = (int)rig_int(r, 0, R - 1), scale = (int)rig_int(r, 0, R - 1),
        gate = (int)rig_int(r, 0, R - 1);
    fill how = rig_chance(r, 0.5) ? FILL_NORMAL : rig_fill(r);
    twin x = TWIN(r, DT_F32, how, n, c), y = TWIN(r, rig_type(r), FILL_NORMAL, n, c);
    twin out = rig_chance(r, 0.4) ? y : TWIN(r, rig_type(r), FILL_NORMAL, n, c);
    twin watch = TWIN(r, DT_F32, FILL_ZEROS, 1);
    watch.ref.type = watch.sub.type = DT_I32;
    mod_rows m = random_rows(r, n, R, c);
    const twin_weight *gamma = TWIN_WEIGHT(r, WEIGHT_VECTOR, 1, 0.3, c);
    const twin_weight *beta = TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 0.3, c);
    rig_note(r, " gated %d adds %d out is y %d", gated, adds, out.ref.data == y.ref.data);
    rig_may_change(r, x);
    rig_may_change(r, y);
    rig_may_change(r, out);
    residual_add ref = {.gate = gate, .watch = watch.ref}, sub = {.gate = gate, .watch = watch.sub};
    if (adds) ref.y = y.ref, sub.y = y.sub;
    if (gated) ref.mod = m.mod.ref, sub.mod = m.mod.sub;
    limit sum = limit_f32(DT_F32, 1);
    sum.scale = (max_abs(x.ref) + max_abs(y.ref)) * (1 + max_abs(m.mod.ref));
    if (ada) {
      op_add_ada_norm(r->ref, x.ref, &ref, m.mod.ref, &m.ref, shift, scale, 1e-6f, out.ref);
      op_add_ada_norm(r->be, x.sub, &sub, m.mod.sub, &m.sub, shift, scale, 1e-6f, out.sub);
    } else {
      op_add_layer_norm(r->ref, x.ref, &ref, &m.ref, ref_of(gamma), ref_of(beta), 1e-6f, out.ref);
      op_add_layer_norm(r->be, x.sub, &sub, &m.sub, sub_of(gamma), sub_of(beta), 1e-6f, out.sub);
    }
    /* x now holds the sums; a rounding of one may be as large as one of its largest term */
    limit l = norm_limit(x.ref, out.ref.type, 1e-6, 3 + max_abs(m.mod.ref));
    l.scale = 3 + max_abs(m.mod.ref);
    if (adds) l.abs += sum.slack * sum.scale * largest_scale(x.ref, 1e-6) * l.scale;
    rig_compare(r, x.ref, x.sub, sum);
    rig_compare(r, out.ref, out.sub, l);
    rig_end(r);
  }
}

/* A sum that overflows or is not a number is noted, others are not. */
static void test_add_norm_watch(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "add_ada_norm watch");
    int64_t n = rig_size(r, 1, 40), c = rig_chance(r, 0.5) ? 8 * rig_size(r, 1, 700) : rig_size(r, 1, 300);
    bool bad = rig_chance(r, 0.5);
    float *host = calloc((size_t)(n * c), sizeof *host);
    assert_non_null(host);
    if (bad) host[rig_int(r, 0, n * c - 1)] = rig_chance(r, 0.5) ? INFINITY : NAN;
    twin y = TWIN_FROM(r, DT_F32, host, n, c), x = TWIN(r, DT_F32, FILL_NORMAL, n, c), watch;
    free(host);
    mod_rows m = random_rows(r, n, 2, c);
    watch.sub = TENSOR_NEW(r->be, DT_I32, 3);
    tensor_zero(r->be, watch.sub);
    rig_may_change(r, x);
    rig_may_change(r, y);
    residual_add add = {.y = y.sub, .watch = tensor_slice(watch.sub, 1, 1)};
    op_add_ada_norm(r->be, x.sub, &add, m.mod.sub, &m.sub, 0, 1, 1e-6f, y.sub);
    int32_t found[3];
    tensor_download(r->be, found, watch.sub);
    if (found[0] || found[1] != bad || found[2])
      rig_fail(r, "watch is %d %d %d, expected 0 %d 0", (int)found[0], (int)found[1], (int)found[2], bad);
    rig_end(r);
  }
}

static void test_rms_norm(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "rms_norm");
    int64_t n = rig_size(r, 1, 80), c = rig_size(r, 1, 900);
    twin x = TWIN(r, rig_type(r), rig_fill(r), n, c);
    const twin_weight *gamma = TWIN_WEIGHT(r, WEIGHT_VECTOR, 1, 0.3, c);
    dtype out = rig_type(r);
    rig_compare(r, op_rms_norm(r->ref, x.ref, ref_of(gamma), 1e-6f, out),
                op_rms_norm(r->be, x.sub, sub_of(gamma), 1e-6f, out), limit_squares(out, (double)c));
    rig_end(r);
  }
}

static twin random_rope(rig *r, int64_t n, int64_t pairs) {
  float *turn = malloc((size_t)(n * pairs) * 2 * sizeof *turn);
  assert_non_null(turn);
  for (int64_t i = 0; i < n * pairs; i++) {
    double angle = 100 * rig_normal(r);
    turn[2 * i] = (float)cos(angle);
    turn[2 * i + 1] = (float)sin(angle);
  }
  twin t = TWIN_FROM(r, DT_F32, turn, n, pairs, 2);
  free(turn);
  return t;
}

static void test_qk_norm_rope(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "qk_norm_rope");
    int64_t n = rig_size(r, 1, 80), pairs = rig_size(r, 1, 64), heads = rig_size(r, 1, 40);
    int64_t c = 2 * pairs * heads;
    twin x = TWIN(r, r->act, rig_fill(r), n, c), rope = {0};
    const twin_weight *gamma = TWIN_WEIGHT(r, WEIGHT_VECTOR, 1, 0.3, c);
    if (rig_chance(r, 0.7)) rope = random_rope(r, n, pairs);
    rig_note(r, " heads %lld rope %d", (long long)heads, rope.ref.type != DT_NONE);
    rig_may_change(r, x);
    limit l = limit_squares(r->act, (double)c);
    l.scale = 2;
    op_qk_norm_rope(r->ref, x.ref, ref_of(gamma), 1e-6f, rope.ref, (int)heads);
    op_qk_norm_rope(r->be, x.sub, sub_of(gamma), 1e-6f, rope.sub, (int)heads);
    rig_compare(r, x.ref, x.sub, l);
    rig_end(r);
  }
}

/* ---- Attention ---- */

static void check_attention(rig *r, int64_t lq, int64_t lk, int64_t d, int64_t heads) {
  static const fill fills[] = {FILL_NORMAL, FILL_EQUAL_ROWS, FILL_ZEROS, FILL_TINY, FILL_OFFSET};
  fill how = rig_chance(r, 0.7) ? FILL_NORMAL : fills[rig_int(r, 0, 4)];
  twin q = TWIN(r, r->act, how, lq, heads * d), k = TWIN(r, r->act, how, lk, heads * d);
  twin v = TWIN(r, r->act, FILL_NORMAL, lk, heads * d), key_bias = {0}, rel_bias = {0};
  if (rig_chance(r, 0.3)) key_bias = TWIN(r, DT_F32, FILL_NORMAL, lk);
  if (rig_chance(r, 0.3)) rel_bias = TWIN(r, DT_F32, FILL_NORMAL, heads, lq + lk - 1);
  float scale = rig_chance(r, 0.2) ? 1 : (float)(1 / sqrt((double)d));
  if (how == FILL_OFFSET) scale = (float)(1e-4 / (double)d); /* keeps the scores near one */
  attention_spec ref = {(int)heads, scale, key_bias.ref, rel_bias.ref, false};
  attention_spec sub = {(int)heads, scale, key_bias.sub, rel_bias.sub, false};
  rig_note(r, " heads %lld scale %g", (long long)heads, (double)scale);
  /* A score is a sum of d terms; its error, in units of 1, is the relative error of its weight. */
  double product = (double)scale * max_norm(q.ref, heads) * max_norm(k.ref, heads);
  if (how == FILL_NORMAL) product /= sqrt((double)d);
  limit l = limit_act(r, r->act, (double)lk);
  double score_error = product * limit_f32(DT_F32, (double)d).l2;
  l.l2 += 2 * score_error;
  l.slack += 8 * score_error;
  l.scale = max_abs(v.ref) / 3;
  rig_compare(r, op_attention(r->ref, q.ref, k.ref, v.ref, &ref),
              op_attention(r->be, q.sub, k.sub, v.sub, &sub), l);
}

static void test_attention(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "attention");
    int64_t lq = rig_size(r, 1, 600), lk = rig_chance(r, 0.5) ? lq : rig_size(r, 1, 600);
    int64_t heads = rig_size(r, 1, 40), d = rig_chance(r, 0.3) ? 128 : rig_size(r, 1, 128);
    while (heads > 1 && lq * lk * heads * d > 10000000) heads = (heads + 1) / 2;
    check_attention(r, lq, lk, d, heads);
    rig_end(r);
  }
}

/* The VAE's: one head as wide as the channels, as many queries as keys. */
static void test_attention_one_head(void **state) {
  static const int64_t widths[] = {16, 48, 96, 160, 384, 640, 1024};
  rig *r = *state;
  for (int i = 0; i < CASES / 4; i++) {
    rig_begin(r, "attention");
    int64_t n = rig_size(r, 1, 150);
    check_attention(r, n, n, widths[rig_int(r, 0, 6)], 1);
    rig_end(r);
  }
}

/* One key outweighs all others by far: exponentials must not overflow, and the result is its value. */
static void test_attention_extreme(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES / 4; i++) {
    rig_begin(r, "attention");
    int64_t lq = rig_size(r, 1, 70), lk = rig_size(r, 1, 300), d = rig_size(r, 8, 128);
    float *bias = calloc((size_t)lk, sizeof *bias);
    assert_non_null(bias);
    for (int64_t j = 0; j < lk; j++) bias[j] = rig_chance(r, 0.5) ? -1e5f : -3e5f;
    bias[rig_int(r, 0, lk - 1)] = 2e5f;
    twin q = TWIN(r, r->act, FILL_NORMAL, lq, d), k = TWIN(r, r->act, FILL_NORMAL, lk, d);
    twin v = TWIN(r, r->act, FILL_NORMAL, lk, d), key_bias = TWIN_FROM(r, DT_F32, bias, lk);
    free(bias);
    attention_spec ref = {1, 0.1f, key_bias.ref, {0}, false}, sub = {1, 0.1f, key_bias.sub, {0}, false};
    rig_compare(r, op_attention(r->ref, q.ref, k.ref, v.ref, &ref),
                op_attention(r->be, q.sub, k.sub, v.sub, &sub), limit_f32(r->act, 1));
    rig_end(r);
  }
}

/* ---- Elementwise ---- */

static void test_gate_add(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "gate_add");
    int64_t n = rig_size(r, 1, 80), c = rig_size(r, 1, 600), R = rig_int(r, 1, 6);
    bool gated = rig_chance(r, 0.7);
    twin x = TWIN(r, gated ? DT_F32 : rig_type(r), rig_fill(r), n, c),
         y = TWIN(r, rig_type(r), rig_fill(r), n, c);
    limit l = limit_f32(x.ref.type, 1);
    l.scale = max_abs(x.ref) + max_abs(y.ref);
    rig_may_change(r, x);
    if (gated) {
      mod_rows m = random_rows(r, n, R, c);
      int gate = (int)rig_int(r, 0, R - 1);
      l.scale *= 1 + max_abs(m.mod.ref);
      op_gate_add(r->ref, x.ref, y.ref, m.mod.ref, &m.ref, gate);
      op_gate_add(r->be, x.sub, y.sub, m.mod.sub, &m.sub, gate);
    } else {
      op_add(r->ref, x.ref, y.ref);
      op_add(r->be, x.sub, y.sub);
    }
    rig_compare(r, x.ref, x.sub, l);
    rig_end(r);
  }
}

static void test_mul(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "mul");
    int64_t n = rig_size(r, 1, 80), c = rig_size(r, 1, 600);
    dtype type = rig_type(r);
    twin a = TWIN(r, type, rig_fill(r), n, c), b = TWIN(r, type, rig_fill(r), n, c);
    rig_may_change(r, a);
    op_mul(r->ref, a.ref, b.ref);
    op_mul(r->be, a.sub, b.sub);
    rig_compare(r, a.ref, a.sub, limit_f32(type, 0));
    rig_end(r);
  }
}

static void test_activate(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "activate");
    int64_t n = rig_size(r, 1, 80), c = rig_size(r, 1, 600);
    twin x = TWIN(r, rig_type(r), rig_fill(r), n, c);
    dtype out = rig_type(r);
    op_act act = random_act(r);
    rig_note(r, " act %d", (int)act);
    limit l = limit_f32(out, 1);
    l.scale = 1; /* 1 + tanh cancels in f32 left of zero: an error of u |x| where the result is small */
    rig_compare(r, op_activate(r->ref, x.ref, act, out), op_activate(r->be, x.sub, act, out), l);
    rig_end(r);
  }
}

static void test_modulation(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "modulation");
    int64_t n = rig_int(r, 1, 3), R = rig_int(r, 1, 6), c = rig_size(r, 1, 600);
    const twin_weight *base = rig_chance(r, 0.5) ? TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 1, 1, R, c)
                                                 : TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 1, R, c);
    twin e = rig_chance(r, 0.5) ? TWIN(r, DT_F32, FILL_NORMAL, n, R, c) : TWIN(r, DT_F32, FILL_NORMAL, n, c);
    limit l = limit_f32(DT_F32, 1);
    l.scale = 3;
    rig_compare(r, op_modulation(r->ref, ref_of(base), e.ref), op_modulation(r->be, sub_of(base), e.sub), l);
    rig_end(r);
  }
}

static void test_position_bias(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "position_bias");
    int64_t buckets = rig_size(r, 1, 40), heads = rig_size(r, 1, 70), n = rig_size(r, 1, 600);
    const twin_weight *table = TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 1, buckets, heads);
    int32_t row[600];
    for (int64_t k = 0; k < n; k++) row[k] = (int32_t)rig_int(r, 0, buckets - 1);
    tensor ref = TENSOR_NEW(r->ref, DT_I32, n), sub = TENSOR_NEW(r->be, DT_I32, n);
    tensor_upload(r->ref, ref, row);
    tensor_upload(r->be, sub, row);
    limit l = table->ref.src.type == DT_F64 ? limit_f32(r->act, 0) : limit_exact();
    rig_compare(r, op_position_bias(r->ref, ref_of(table), ref), op_position_bias(r->be, sub_of(table), sub),
                l);
    rig_end(r);
  }
}

static void test_embed(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "embed");
    int64_t rows = rig_size(r, 1, 300), c = rig_size(r, 1, 600), n = rig_size(r, 1, 40);
    const twin_weight *table = TWIN_WEIGHT(r, WEIGHT_TABLE, 0, 1, rows, c);
    int32_t ids[40];
    for (int64_t k = 0; k < n; k++) ids[k] = (int32_t)rig_int(r, 0, rows - 1);
    dtype out = rig_type(r);
    limit l = table->ref.src.type == DT_F64 ? limit_f32(out, 0) : limit_exact();
    rig_compare(r, op_embed(r->ref, ref_of(table), ids, n, out), op_embed(r->be, sub_of(table), ids, n, out),
                l);
    rig_end(r);
  }
}

static void test_cast(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "cast");
    twin x = TWIN(r, rig_type(r), rig_fill(r), rig_size(r, 1, 80), rig_size(r, 1, 600));
    dtype out = rig_type(r);
    tensor expected = op_cast(r->ref, x.ref, out), found = op_cast(r->be, x.sub, out);
    if (x.ref.type == out) {
      assert_ptr_equal(expected.data, x.ref.data);
      assert_ptr_equal(found.data, x.sub.data);
    }
    rig_compare(r, expected, found, limit_exact());
    rig_end(r);
  }
}

static void test_patchify(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "patchify");
    int64_t T = rig_int(r, 1, 5), h = 2 * rig_int(r, 1, 9), w = 2 * rig_int(r, 1, 9), c = rig_size(r, 1, 60);
    twin x = TWIN(r, DT_F32, rig_fill(r), T, h, w, c);
    twin y = TWIN(r, DT_F32, rig_fill(r), T * h * w / 4, 4 * c);
    rig_compare(r, op_patchify(r->ref, x.ref), op_patchify(r->be, x.sub), limit_exact());
    rig_compare(r, op_unpatchify(r->ref, y.ref, T, h, w), op_unpatchify(r->be, y.sub, T, h, w),
                limit_exact());
    rig_end(r);
  }
}

int main(void) {
  static const ops_test tests[] = {
      {"linear", test_linear},
      {"linear into a slice", test_linear_into},
      {"linear added", test_linear_add},
      {"ada_norm", test_ada_norm},
      {"layer_norm", test_layer_norm},
      {"add and norm", test_add_norm},
      {"add and norm, not finite", test_add_norm_watch},
      {"rms_norm", test_rms_norm},
      {"qk_norm_rope", test_qk_norm_rope},
      {"attention", test_attention},
      {"attention with one wide head", test_attention_one_head},
      {"attention with one dominant key", test_attention_extreme},
      {"gate_add", test_gate_add},
      {"mul", test_mul},
      {"activate", test_activate},
      {"modulation", test_modulation},
      {"position_bias", test_position_bias},
      {"embed", test_embed},
      {"cast", test_cast},
      {"patchify and unpatchify", test_patchify},
  };
  return ops_run("transformer", tests, sizeof tests / sizeof tests[0]);
}
