/* The operations of the VAEs, and those on latents and pixels, against ref. */
#include "ops/ops_check.h"

#include <math.h>
#include <stdlib.h>

enum { CASES = 40 };

static void test_channel_norm(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "channel_norm");
    int64_t T = rig_int(r, 1, 5), h = rig_int(r, 1, 6), w = rig_int(r, 1, 6), c = rig_size(r, 1, 400);
    int64_t before = rig_int(r, 0, 2), after = rig_int(r, 0, 2); /* frames around the result */
    twin x = TWIN(r, rig_type(r), rig_fill(r), T, h, w, c);
    twin whole = TWIN(r, r->act, FILL_NORMAL, before + T + after, h, w, c);
    const twin_weight *gamma = rig_chance(r, 0.5) ? TWIN_WEIGHT(r, WEIGHT_VECTOR, 1, 0.3, c, 1, 1, 1)
                                                  : TWIN_WEIGHT(r, WEIGHT_VECTOR, 1, 0.3, c);
    op_act act = rig_chance(r, 0.5) ? ACT_SILU : ACT_NONE;
    twin out = twin_slice(whole, before, T);
    rig_may_change(r, whole);
    op_channel_norm(r->ref, x.ref, ref_of(gamma), act, out.ref);
    op_channel_norm(r->be, x.sub, sub_of(gamma), act, out.sub);
    limit l = limit_squares(r->act, (double)c);
    l.scale = 1;
    rig_compare(r, out.ref, out.sub, l);
    twin head = twin_slice(whole, 0, before), tail = twin_slice(whole, before + T, after);
    rig_compare(r, head.ref, head.sub, limit_exact());
    rig_compare(r, tail.ref, tail.sub, limit_exact());
    rig_end(r);
  }
}

/* ---- Convolution ---- */

/* The kernels that the VAEs have, and any other. */
static void random_kernel(rig *r, int64_t kernel[3], conv_spec *s) {
  static const struct {
    int64_t kernel[3];
    conv_spec spec;
  } used[] = {
      {{3, 3, 3}, {1, 1, 1, 1, 1, 1, 1, NULL}}, /* residual blocks */
      {{1, 1, 1}, {1, 1, 1, 0, 0, 0, 0, NULL}}, /* shortcuts */
      {{1, 3, 3}, {1, 2, 2, 0, 1, 0, 1, NULL}}, /* downsample2d */
      {{3, 1, 1}, {1, 1, 1, 0, 0, 0, 0, NULL}}, /* time_conv of the decoder */
      {{3, 1, 1}, {2, 1, 1, 0, 0, 0, 0, NULL}}, /* time_conv of the encoder */
      {{1, 3, 3}, {1, 1, 1, 1, 1, 1, 1, NULL}},
  };
  int64_t pick = rig_int(r, 0, 8);
  if (pick < 6) {
    for (int i = 0; i < 3; i++) kernel[i] = used[pick].kernel[i];
    *s = used[pick].spec;
    return;
  }
  for (int i = 0; i < 3; i++) kernel[i] = rig_int(r, 1, 3);
  *s = (conv_spec){.stride_t = (int)rig_int(r, 1, 2),
                   .stride_h = (int)rig_int(r, 1, 2),
                   .stride_w = (int)rig_int(r, 1, 2),
                   .pad_top = (int)rig_int(r, 0, kernel[1] - 1),
                   .pad_bottom = (int)rig_int(r, 0, kernel[1] - 1),
                   .pad_left = (int)rig_int(r, 0, kernel[2] - 1),
                   .pad_right = (int)rig_int(r, 0, kernel[2] - 1)};
}

/* The frames of x in another order, and the first few of them missing, as frames of zeros. */
typedef struct scattered {
  const void *ref[CONV_FRAMES_MAX], *sub[CONV_FRAMES_MAX];
  int missing;
} scattered;

static scattered scatter(rig *r, twin x) {
  scattered f = {.missing = rig_chance(r, 0.5) ? (int)rig_int(r, 1, x.ref.dim[0]) : 0};
  int64_t turn = rig_int(r, 0, x.ref.dim[0] - 1);
  for (int64_t t = f.missing; t < x.ref.dim[0]; t++) {
    twin one = twin_slice(x, (t + turn) % x.ref.dim[0], 1);
    f.ref[t] = one.ref.data;
    f.sub[t] = one.sub.data;
  }
  return f;
}

/* Shapes whose products stay small enough for ref: at most about 4 million multiplications. */
static void test_conv(void **state) {
  rig *r = *state;
  for (int i = 0; i < 2 * CASES; i++) {
    rig_begin(r, "conv");
    int64_t k[3];
    conv_spec s;
    random_kernel(r, k, &s);
    int64_t ci = rig_size(r, 1, 130), co = rig_size(r, 1, 130), T = rig_int(r, k[0], k[0] + 4);
    int64_t taps = ci * k[0] * k[1] * k[2], h = rig_int(r, k[1], 14), w = rig_int(r, k[2], 14);
    while (T > k[0] && T * h * w * taps * co > 4000000) T--;
    while (h > k[1] && T * h * w * taps * co > 4000000) h--;
    while (w > k[2] && T * h * w * taps * co > 4000000) w--;
    twin x = TWIN(r, r->act, rig_fill(r), T, h, w, ci), residual = {0};
    double spread = 1 / sqrt((double)taps);
    const twin_weight *kernel = k[0] == 1 && rig_chance(r, 0.5)
                                    ? TWIN_WEIGHT(r, WEIGHT_CONV, 0, spread, co, ci, k[1], k[2])
                                    : TWIN_WEIGHT(r, WEIGHT_CONV, 0, spread, co, ci, k[0], k[1], k[2]);
    const twin_weight *bias = rig_chance(r, 0.7) ? TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 1, co) : NULL;
    if (rig_chance(r, 0.5))
      residual = TWIN(r, r->act, FILL_NORMAL, (T - k[0]) / s.stride_t + 1,
                      (h + s.pad_top + s.pad_bottom - k[1]) / s.stride_h + 1,
                      (w + s.pad_left + s.pad_right - k[2]) / s.stride_w + 1, co);
    scattered f = {.missing = 0};
    const bool apart = rig_chance(r, 0.5);
    if (apart) f = scatter(r, x);
    rig_note(r, " stride %d %d %d pad %d %d %d %d apart %d missing %d", s.stride_t, s.stride_h, s.stride_w,
             s.pad_top, s.pad_bottom, s.pad_left, s.pad_right, apart, f.missing);
    limit l = limit_f32(r->act, (double)taps);
    l.scale = 3 + max_norm(x.ref, 1) * sqrt((double)(taps / ci)) * weight_rms(kernel);
    conv_spec of_ref = s, of_sub = s;
    if (apart) of_ref.frame = f.ref, of_sub.frame = f.sub;
    rig_compare(r, op_conv(r->ref, x.ref, ref_of(kernel), ref_of(bias), &of_ref, residual.ref),
                op_conv(r->be, x.sub, sub_of(kernel), sub_of(bias), &of_sub, residual.sub), l);
    rig_end(r);
  }
}

/* Into frames of a larger tensor, possibly adding to what is there. */
static void test_conv_into(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "conv_into");
    bool up = rig_chance(r, 0.3), add = !up && rig_chance(r, 0.5);
    int64_t ci = rig_size(r, 1, 70), co = rig_size(r, 1, 70), T = rig_int(r, 1, 3), h = rig_int(r, 1, 7);
    int64_t w = rig_int(r, 1, 7), before = rig_int(r, 0, 2), after = rig_int(r, 0, 2), zoom = up ? 2 : 1;
    double spread = 1 / sqrt(9 * (double)ci);
    conv_spec s = {1, 1, 1, 1, 1, 1, 1, NULL};
    twin x = TWIN(r, r->act, FILL_NORMAL, T, h, w, ci);
    dtype type = rig_type(r);
    twin whole = TWIN(r, type, FILL_NORMAL, before + T + after, h * zoom, w * zoom, co);
    const twin_weight *kernel = TWIN_WEIGHT(r, up ? WEIGHT_CONV_UP : WEIGHT_CONV, 0, spread, co, ci, 3, 3);
    const twin_weight *bias = TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 1, co);
    twin out = twin_slice(whole, before, T);
    rig_may_change(r, whole);
    rig_note(r, " up %d add %d", up, add);
    if (up) {
      op_upsample_conv_into(r->ref, x.ref, ref_of(kernel), ref_of(bias), out.ref);
      op_upsample_conv_into(r->be, x.sub, sub_of(kernel), sub_of(bias), out.sub);
    } else {
      tensor none = {0};
      op_conv_into(r->ref, x.ref, ref_of(kernel), ref_of(bias), &s, add ? out.ref : none, out.ref);
      op_conv_into(r->be, x.sub, sub_of(kernel), sub_of(bias), &s, add ? out.sub : none, out.sub);
    }
    limit l = up ? limit_act(r, type, 9 * (double)ci) : limit_f32(type, 9 * (double)ci);
    l.scale = 3 + max_norm(x.ref, 1) * 3 * weight_rms(kernel);
    rig_compare(r, out.ref, out.sub, l);
    twin head = twin_slice(whole, 0, before), tail = twin_slice(whole, before + T, after);
    rig_compare(r, head.ref, head.sub, limit_exact());
    rig_compare(r, tail.ref, tail.sub, limit_exact());
    rig_end(r);
  }
}

static void test_upsample_conv(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "upsample_conv");
    int64_t ci = rig_size(r, 1, 100), co = rig_size(r, 1, 100), T = rig_int(r, 1, 4);
    int64_t h = rig_int(r, 1, 9), w = rig_int(r, 1, 9);
    while (h > 1 && T * h * w * 36 * ci * co > 8000000) h--;
    while (T > 1 && T * h * w * 36 * ci * co > 8000000) T--;
    twin x = TWIN(r, r->act, rig_fill(r), T, h, w, ci);
    const twin_weight *kernel = TWIN_WEIGHT(r, WEIGHT_CONV_UP, 0, 1 / sqrt(9 * (double)ci), co, ci, 3, 3);
    const twin_weight *bias = rig_chance(r, 0.7) ? TWIN_WEIGHT(r, WEIGHT_VECTOR, 0, 1, co) : NULL;
    /* a backend may add up the taps that see one pixel and round their sum to the act dtype */
    limit l = limit_act(r, r->act, 9 * (double)ci);
    l.scale = 3 + max_norm(x.ref, 1) * 3 * weight_rms(kernel);
    twin out = TWIN(r, r->act, FILL_NORMAL, T, 2 * h, 2 * w, co);
    rig_may_change(r, out);
    op_upsample_conv_into(r->ref, x.ref, ref_of(kernel), ref_of(bias), out.ref);
    op_upsample_conv_into(r->be, x.sub, sub_of(kernel), sub_of(bias), out.sub);
    rig_compare(r, out.ref, out.sub, l);
    rig_end(r);
  }
}

/* ---- Rearrangements ---- */

static void test_shuffles(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "time_unshuffle");
    int64_t T = rig_int(r, 1, 5), h = rig_int(r, 1, 7), w = rig_int(r, 1, 7), c = rig_size(r, 1, 140);
    dtype type = rig_type(r);
    twin x = TWIN(r, type, rig_fill(r), T, h, w, 2 * c);
    rig_compare(r, op_time_unshuffle(r->ref, x.ref), op_time_unshuffle(r->be, x.sub), limit_exact());
    r->op = "space_to_depth";
    twin large = TWIN(r, type, rig_fill(r), T, 2 * h, 2 * w, c);
    rig_compare(r, op_space_to_depth(r->ref, large.ref), op_space_to_depth(r->be, large.sub), limit_exact());
    r->op = "depth_to_space";
    twin deep = TWIN(r, type, rig_fill(r), T, h, w, 4 * c);
    rig_compare(r, op_depth_to_space(r->ref, deep.ref), op_depth_to_space(r->be, deep.sub), limit_exact());
    rig_end(r);
  }
}

static void test_dup_up_add(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "dup_up_add");
    int ft = (int)rig_int(r, 1, 2), fs = (int)rig_int(r, 1, 2), skip = rig_chance(r, 0.5) ? 0 : ft - 1;
    int64_t T = rig_int(r, 1, 4), h = rig_int(r, 1, 7), w = rig_int(r, 1, 7);
    int64_t repeats = (int64_t)1 << rig_int(r, 0, 3), unit = rig_size(r, 1, 40), fold = (int64_t)ft * fs * fs;
    int64_t co = unit * repeats, ci = co * fold / repeats; /* Ci = Co ft fs fs / r */
    dtype type = rig_type(r);
    twin x = TWIN(r, rig_type(r), rig_fill(r), T, h, w, ci);
    int64_t n = rig_chance(r, 0.6) ? T * ft - skip : rig_int(r, 1, T * ft - skip); /* or only the first few */
    twin out = TWIN(r, type, rig_fill(r), n, h * fs, w * fs, co);
    rig_note(r, " ft %d fs %d skip %d", ft, fs, skip);
    limit l = limit_f32(type, 1);
    l.scale = max_abs(x.ref) + max_abs(out.ref);
    rig_may_change(r, out);
    op_dup_up_add(r->ref, out.ref, x.ref, ft, fs, skip);
    op_dup_up_add(r->be, out.sub, x.sub, ft, fs, skip);
    rig_compare(r, out.ref, out.sub, l);
    rig_end(r);
  }
}

static void test_avg_down_add(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "avg_down_add");
    int ft = (int)rig_int(r, 1, 2), fs = (int)rig_int(r, 1, 2);
    int64_t T = rig_int(r, 1, 5), h = rig_int(r, 1, 5), w = rig_int(r, 1, 5), fold = (int64_t)ft * fs * fs;
    int64_t group = (int64_t)1 << rig_int(r, 0, 3), unit = rig_size(r, 1, 40);
    int64_t ci = unit * group, co = ci * fold / group; /* Co = Ci ft fs fs / g */
    dtype type = rig_type(r);
    twin x = TWIN(r, rig_type(r), rig_fill(r), T, h * fs, w * fs, ci);
    twin out = TWIN(r, type, rig_fill(r), (T + ft - 1) / ft, h, w, co);
    rig_note(r, " ft %d fs %d", ft, fs);
    limit l = limit_f32(type, (double)group);
    l.scale = max_abs(x.ref) + max_abs(out.ref);
    rig_may_change(r, out);
    op_avg_down_add(r->ref, out.ref, x.ref, ft, fs);
    op_avg_down_add(r->be, out.sub, x.sub, ft, fs);
    rig_compare(r, out.ref, out.sub, l);
    rig_end(r);
  }
}

/* ---- Latents and pixels ---- */

static void test_lincomb(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "lincomb");
    int64_t n = rig_size(r, 1, 50), c = rig_size(r, 1, 300);
    int terms = (int)rig_int(r, 1, 8), in_place = (int)rig_int(r, -1, terms - 1);
    tensor ref[8], sub[8];
    float coef[8];
    twin out = TWIN(r, DT_F32, FILL_NORMAL, n, c);
    limit l = limit_f32(DT_F32, terms);
    for (int k = 0; k < terms; k++) {
      twin x = k == in_place ? out : TWIN(r, DT_F32, rig_fill(r), n, c);
      ref[k] = x.ref;
      sub[k] = x.sub;
      coef[k] = rig_chance(r, 0.2) ? 0 : (float)rig_normal(r);
      l.scale += fabs((double)coef[k]) * max_abs(x.ref);
    }
    rig_may_change(r, out);
    op_lincomb(r->ref, out.ref, terms, ref, coef);
    op_lincomb(r->be, out.sub, terms, sub, coef);
    rig_compare(r, out.ref, out.sub, l);
    rig_end(r);
  }
}

static void test_channel_affine(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "channel_affine");
    int64_t n = rig_size(r, 1, 80), c = rig_size(r, 1, 100);
    twin x = TWIN(r, rig_type(r), rig_fill(r), n, c);
    twin mul = TWIN(r, DT_F32, FILL_NORMAL, c), add = TWIN(r, DT_F32, FILL_NORMAL, c);
    dtype out = rig_type(r);
    limit l = limit_f32(out, 1);
    l.scale = max_abs(x.ref) * max_abs(mul.ref) + max_abs(add.ref);
    rig_compare(r, op_channel_affine(r->ref, x.ref, mul.ref, add.ref, out),
                op_channel_affine(r->be, x.sub, mul.sub, add.sub, out), l);
    rig_end(r);
  }
}

static void test_concat(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "concat_channels");
    int64_t T = rig_int(r, 1, 4), n = rig_size(r, 1, 30), a = rig_size(r, 1, 40), b = rig_size(r, 1, 40);
    dtype type = rig_type(r);
    twin x = TWIN(r, type, rig_fill(r), T, n, a), y = TWIN(r, type, rig_fill(r), T, n, b);
    rig_compare(r, op_concat_channels(r->ref, x.ref, y.ref), op_concat_channels(r->be, x.sub, y.sub),
                limit_exact());
    rig_end(r);
  }
}

/* Every step of the definition is one f32 operation or exact, so the bytes must agree. */
static void test_to_u8(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "to_u8");
    twin x = TWIN(r, rig_type(r), rig_fill(r), rig_int(r, 1, 3), rig_size(r, 1, 40), rig_size(r, 1, 40), 3);
    rig_compare(r, op_to_u8(r->ref, x.ref), op_to_u8(r->be, x.sub), limit_exact());
    rig_end(r);
  }
}

/* ---- Reductions ---- */

static void test_all_finite(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "all_finite");
    int64_t n = rig_size(r, 1, 5000);
    dtype type = rig_type(r);
    float bad[] = {INFINITY, -INFINITY, NAN}, *f = malloc((size_t)n * sizeof *f);
    void *host = malloc((size_t)n * sizeof *f);
    assert_non_null(f);
    assert_non_null(host);
    for (int64_t k = 0; k < n; k++) f[k] = rig_chance(r, 0.5) ? 3.38e38f : -1e-40f; /* near the ends */
    bool finite = rig_chance(r, 0.4);
    if (!finite) f[rig_chance(r, 0.3) ? n - 1 : rig_int(r, 0, n - 1)] = bad[rig_int(r, 0, 2)];
    convert_from_f32(type, f, host, (size_t)n);
    twin x = TWIN_FROM(r, type, host, n);
    free(f);
    free(host);
    if (op_all_finite(r->ref, x.ref) != finite) rig_fail(r, "ref is wrong, all_finite should be %d", finite);
    if (op_all_finite(r->be, x.sub) != finite) rig_fail(r, "all_finite should be %d", finite);
    rig_end(r);
  }
}

static void test_dot(void **state) {
  rig *r = *state;
  for (int i = 0; i < CASES; i++) {
    rig_begin(r, "dot");
    int64_t n = rig_size(r, 1, 5000);
    twin a = TWIN(r, DT_F32, rig_fill(r), n), b = TWIN(r, DT_F32, rig_fill(r), n);
    double expected = op_dot(r->ref, a.ref, b.ref), found = op_dot(r->be, a.sub, b.sub);
    /* n sums in f64, in any order: at most n 2^-53 of the sum of magnitudes */
    double magnitude = max_norm(a.ref, 1) * max_norm(b.ref, 1);
    if (!(fabs(found - expected) <= (double)n * 0x1p-53 * magnitude))
      rig_fail(r, "expected %.17g, found %.17g", expected, found);
    rig_end(r);
  }
}

int main(void) {
  static const ops_test tests[] = {
      {"channel_norm", test_channel_norm},
      {"conv", test_conv},
      {"conv and upsample_conv into a slice", test_conv_into},
      {"upsample_conv", test_upsample_conv},
      {"time_unshuffle, space_to_depth, depth_to_space", test_shuffles},
      {"dup_up_add", test_dup_up_add},
      {"avg_down_add", test_avg_down_add},
      {"lincomb", test_lincomb},
      {"channel_affine", test_channel_affine},
      {"concat_channels", test_concat},
      {"to_u8", test_to_u8},
      {"all_finite", test_all_finite},
      {"dot", test_dot},
  };
  return ops_run("vae and pixels", tests, sizeof tests / sizeof tests[0]);
}
