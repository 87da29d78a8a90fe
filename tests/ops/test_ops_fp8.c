/* The operations that --precision fp8 adds, against ref: rounding to e4m3, products of rows in e4m3, and
 * attention in 8 bits. */
#include "ops/ops_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CASES = 40 };

/* Bit for bit: values and scales are made of the same f32 operations everywhere. */
static void compare_rows(rig *r, tensor expected, tensor found) {
  if (backend_status(r->be)) rig_fail(r, "failed: %s", r->ctx.message);
  const int64_t rows = tensor_rows(&expected), cols = tensor_cols(&expected);
  tensor host = found;
  host.data = malloc(tensor_bytes(&found));
  assert_non_null(host.data);
  tensor_download(r->be, host.data, found);
  char text[160] = "";
  for (int64_t i = 0; i < rows && !text[0]; i++) {
    const float e = tensor_scales(&expected)[i], g = tensor_scales(&host)[i];
    if (!(e == g || (isnan(e) && isnan(g))))
      snprintf(text, sizeof text, "scale of row %lld: expected %.9g, found %.9g", (long long)i, (double)e,
               (double)g);
    for (int64_t j = i * cols; j < (i + 1) * cols && !text[0]; j++) {
      const uint8_t a = ((const uint8_t *)expected.data)[j], b = ((const uint8_t *)host.data)[j];
      bool nan = (a & 0x7f) == 0x7f && (b & 0x7f) == 0x7f; /* of either sign */
      if (a != b && !nan)
        snprintf(text, sizeof text, "row %lld, column %lld: expected %g, found %g", (long long)i,
                 (long long)(j - i * cols), (double)f8e4m3_to_f32(a), (double)f8e4m3_to_f32(b));
    }
  }
  free(host.data);
  if (text[0]) rig_fail(r, "%s", text);
}

static void test_quantise(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "cast to e4m3 rows");
    int64_t rows = rig_size(r, 1, 60),
            c = rig_chance(r, 0.2) ? rig_size(r, 5000, 16000) : rig_size(r, 1, 3100);
    twin x = TWIN(r, rig_type(r), rig_fill(r), rows, c);
    compare_rows(r, op_cast(r->ref, x.ref, DT_E4M3_ROWS), op_cast(r->be, x.sub, DT_E4M3_ROWS));
    rig_end(r);
  }
}

/* A value that is not finite must not become an ordinary one. */
static void test_quantise_not_finite(void **state) {
  static const float bad[] = {INFINITY, -INFINITY, NAN};
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "cast to e4m3 rows");
    int64_t c = rig_size(r, 1, 3100);
    float *host = calloc((size_t)c, sizeof *host);
    assert_non_null(host);
    for (int64_t j = 0; j < c; j++) host[j] = (float)rig_normal(r);
    host[rig_int(r, 0, c - 1)] = bad[i % 3];
    twin x = TWIN_FROM(r, DT_F32, host, 1, c);
    free(host);
    tensor e = op_cast(r->ref, x.ref, DT_E4M3_ROWS);
    assert_true(isinf(tensor_scales(&e)[0]));
    compare_rows(r, e, op_cast(r->be, x.sub, DT_E4M3_ROWS));
    rig_end(r);
  }
}

/* From the same operands in e4m3. Hopper adds products of e4m3 with some 14 bits: each partial sum is cut off
 * by up to 2^-13 of its size; measured 2.0e-3 and 3.3e-3 at 3,072 and 14,336 terms (bf16's own rounding
 * is 1.7e-3 of each). The growth with sqrt(terms) of what is left gives 2^-13 (2 + sqrt(k) / 5). */
static limit limit_fp8(dtype out, double depth) {
  limit l = limit_f32(out, depth);
  const double cut = 0x1p-13 * (2 + sqrt(depth) / 5);
  l.l2 += cut;
  l.slack += 8 * cut;
  return l;
}

/* Shapes that the library takes, and others; x as the caller's rows in e4m3, or to be quantised by the
 * product. */
static void test_linear(void **state) {
  rig *r = *state;
  for (int i = 0; i < 2 * CASES; i++) {
    rig_begin(r, "linear");
    const bool regular = rig_chance(r, 0.6);
    int64_t k = rig_size(r, 1, 700), n = rig_size(r, 1, 700), rows = rig_size(r, 1, 400);
    if (regular) k = (k + 15) / 16 * 16, n = (n + 15) / 16 * 16;
    while (rows > 1 && rows * k * n > 8000000) rows = (rows + 1) / 2;
    twin x = TWIN(r, rig_type(r), FILL_NORMAL, rows, k);
    const twin_weight *w = TWIN_WEIGHT(r, WEIGHT_PRODUCT, 0, 1 / sqrt((double)k), n, k);
    const twin_weight *bias = rig_chance(r, 0.7) ? TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 1, n) : NULL;
    op_act act = (op_act)rig_int(r, ACT_NONE, ACT_GELU_TANH);
    dtype out = rig_type(r);
    rig_note(r, " act %d out %s", (int)act, dtype_name(out));
    limit l = limit_fp8(out, (double)k);
    l.scale = max_norm(x.ref, 1) * weight_rms(w) + 1;
    if (out == DT_BF16) { /* the bias may be added in bf16, as in limit_act() */
      l.l2 += 0x1p-8;
      l.slack += 8 * 0.4 * 0x1p-8;
    }
    twin a = x;
    if (rig_chance(r, 0.5))
      a = (twin){op_cast(r->ref, x.ref, DT_E4M3_ROWS), op_cast(r->be, x.sub, DT_E4M3_ROWS)};
    rig_compare(r, op_linear(r->ref, a.ref, ref_of(w), ref_of(bias), act, out),
                op_linear(r->be, a.sub, sub_of(w), sub_of(bias), act, out), l);
    rig_end(r);
  }
}

/* The roundings of an attention in 8 bits, relative to its result where keys are random: scores of int8
 * operands err by 0.9% of their spread (a tile's 4.5 sigma / 254 / sqrt(3), twice), which weights do too;
 * weights and values in e4m3 by 2.6% each (a step of 2^-3 of the binade, uniform, averaged over a binade).
 * All are independent from key to key: together below 5% of a result that has no mean, which is what limits
 * l2. */
static void test_attention(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES / 4; i++) {
    rig_begin(r, "coarse attention");
    const int64_t heads = rig_int(r, 1, 3), lq = rig_size(r, 1, 400), lk = rig_size(r, 1024, 1500),
                  c = heads * 128;
    const float scale = (float)(1 / sqrt(128.0));
    fill how = rig_chance(r, 0.6) ? FILL_NORMAL : rig_chance(r, 0.5) ? FILL_EQUAL_ROWS : FILL_ZEROS;
    twin q = TWIN(r, r->act, FILL_NORMAL, lq, c), k = TWIN(r, r->act, how, lk, c);
    twin v = TWIN(r, r->act, rig_chance(r, 0.5) ? FILL_NORMAL : FILL_OFFSET, lk, c);
    attention_spec spec = {.heads = (int)heads, .scale = scale, .coarse = true};
    /* equal keys have scores as different as their values: sums over few of them */
    limit l = {.l2 = 0.05, .slack = 0.3, .scale = 0.05};
    rig_compare(r, op_attention(r->ref, q.ref, k.ref, v.ref, &spec),
                op_attention(r->be, q.sub, k.sub, v.sub, &spec), l);
    rig_end(r);
  }
}

/* Values of one key come out when it outweighs all others, wherever it lies. */
static void test_attention_one_key(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES / 2; i++) {
    rig_begin(r, "coarse attention to one key");
    const int64_t lq = 64, lk = rig_size(r, 1024, 1500), chosen = rig_int(r, 0, lk - 1);
    float *host = calloc((size_t)(lk * 128), sizeof *host);
    assert_non_null(host);
    for (int64_t j = 0; j < lk * 128; j++) host[j] = (float)rig_normal(r);
    twin v = TWIN(r, r->act, FILL_NORMAL, lk, 128), q, k;
    uint16_t *half = calloc((size_t)(lk * 128), sizeof *half);
    assert_non_null(half);
    for (int64_t j = 0; j < lq * 128; j++) half[j] = f32_to_bf16(host[chosen * 128 + j % 128]);
    q = TWIN_FROM(r, DT_BF16, half, lq, 128);
    convert_from_f32(DT_BF16, host, half, (size_t)(lk * 128));
    k = TWIN_FROM(r, DT_BF16, half, lk, 128);
    free(half);
    free(host);
    rig_note(r, " key %lld", (long long)chosen);
    attention_spec spec = {
        .heads = 1, .scale = 1, .coarse = true}; /* the key's score is 128, others' 11 in the rms */
    limit l = {.rel = 0.07, .slack = 0, .abs = 0.02, .l2 = 0.05};
    rig_compare(r, op_attention(r->ref, q.ref, k.ref, v.ref, &spec),
                op_attention(r->be, q.sub, k.sub, v.sub, &spec), l);
    rig_end(r);
  }
}

int main(void) {
  static const ops_test tests[] = {
      {"rows in e4m3", test_quantise},
      {"rows that are not finite", test_quantise_not_finite},
      {"linear", test_linear},
      {"attention", test_attention},
      {"attention to one key", test_attention_one_key},
  };
  return ops_run_fp8("fp8", tests, sizeof tests / sizeof tests[0]);
}
