/* Products and convolutions at sizes that ref takes too long for: some elements of the result are computed
 * here, in f64. The sizes are those where a backend may cut the work in another way: rows longer than a
 * cache, more channels than are taken at a time, pictures of several boxes with remainders on every side. The
 * result must also be the same bits for every number of threads.
 *
 * Limit: operands are the bf16 values themselves, sums are f32 (2^-24 for each of at most 2^15 terms, as they
 * fall: 2^-16 of their rms; 2^-12 leaves room for a GELU by a short polynomial), the result is rounded once:
 * 2^-9 of it, twice that allowed. An upsampling may fold the taps that see one pixel and round their sums:
 * each is off by 2^-9 / sqrt(3) in the rms, independently; 8 sigma. */
#include "ops/ops_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 300 };

static uint64_t state = 1;

static float noise(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (float)(int32_t)(state >> 32) * 0x1p-31f;
}

static int64_t below(int64_t n) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (int64_t)((state >> 33) % (uint64_t)n);
}

static uint16_t *random_bf16(int64_t n, float scale) {
  uint16_t *p = malloc((size_t)n * sizeof *p);
  assert_non_null(p);
  for (int64_t i = 0; i < n; i++) p[i] = f32_to_bf16(scale * noise());
  return p;
}

/* A convolution; a product is one with a single tap and a single row of pixels. */
typedef struct shape {
  int64_t T, H, W, Ci, Co, kt, kh, kw;
  int stride;
  bool up, add;
  op_act act;
} shape;

static double expected(const shape *s, const uint16_t *x, const uint16_t *w, int64_t Ho, int64_t Wo,
                       int64_t pixel, int64_t o, double *squares) {
  int64_t t0 = pixel / Wo / Ho, y0 = pixel / Wo % Ho, x0 = pixel % Wo, zoom = s->up ? 2 : 1;
  int64_t pad_h = (s->kh - 1) / 2, pad_w = (s->kw - 1) / 2;
  double sum = 0;
  for (int64_t t = 0; t < s->kt; t++)
    for (int64_t i = 0; i < s->kh; i++)
      for (int64_t j = 0; j < s->kw; j++) {
        int64_t y = y0 * s->stride + i - pad_h, c = x0 * s->stride + j - pad_w;
        if (y < 0 || c < 0 || y >= s->H * zoom || c >= s->W * zoom) continue;
        const uint16_t *px = x + (((t0 + t) * s->H + y / zoom) * s->W + c / zoom) * s->Ci;
        for (int64_t k = 0; k < s->Ci; k++) {
          double v = (double)bf16_to_f32(px[k]) *
                     (double)bf16_to_f32(w[(((o * s->Ci + k) * s->kt + t) * s->kh + i) * s->kw + j]);
          sum += v;
          *squares += v * v;
        }
      }
  return sum;
}

static double activated(double u, op_act act) {
  if (act == ACT_SILU) return u / (1 + exp(-u));
  if (act == ACT_GELU_TANH) return 0.5 * u * (1 + tanh(0.7978845608028654 * (u + 0.044715 * u * u * u)));
  return u;
}

static uint16_t *run(const char *name, int threads, const shape *s, const uint16_t *x, weight w, weight bias,
                     const uint16_t *residual, const int64_t *dim) {
  core_ctx ctx;
  core_ctx_init(&ctx);
  backend_config config = {.name = name, .threads = threads};
  backend *be;
  if (backend_open(&ctx, &config, &be) != WAN_OK) {
    print_message("SKIPPED %s: %s\n", name, ctx.message);
    return NULL;
  }
  assert_int_equal(backend_weight_load(be, &w), WAN_OK);
  assert_int_equal(backend_weight_load(be, &bias), WAN_OK);
  scope_mark mark = scope_begin(be);
  tensor in = TENSOR_NEW(be, DT_BF16, s->T, s->H, s->W, s->Ci), out, add = {0};
  tensor_upload(be, in, x);
  int pad_h = (int)(s->kh - 1) / 2, pad_w = (int)(s->kw - 1) / 2;
  conv_spec spec = {1, s->stride, s->stride, pad_h, pad_h, pad_w, pad_w, NULL};
  if (residual) {
    add = TENSOR_NEW(be, DT_BF16, dim[0], dim[1], dim[2], s->Co);
    tensor_upload(be, add, residual);
  }
  if (w.role == WEIGHT_LINEAR) {
    out = op_linear(be, in, &w, &bias, s->act, DT_NONE);
  } else if (s->up) {
    out = TENSOR_NEW(be, DT_NONE, dim[0], dim[1], dim[2], s->Co);
    op_upsample_conv_into(be, in, &w, &bias, out);
  } else {
    out = op_conv(be, in, &w, &bias, &spec, add);
  }
  if (backend_status(be)) fail_msg("%s: %s", name, ctx.message);
  uint16_t *host = malloc(tensor_bytes(&out));
  assert_non_null(host);
  tensor_download(be, host, out);
  scope_end(be, mark);
  backend_weight_unload(be, &w);
  backend_weight_unload(be, &bias);
  backend_close(be);
  assert_int_equal(core_mem_current(&ctx), 0);
  return host;
}

static void check(const char *name, shape s) {
  bool linear = s.kt == 1 && s.kh == 1 && s.kw == 1;
  int64_t taps = s.kt * s.kh * s.kw, n = s.Co * s.Ci * taps, zoom = s.up ? 2 : 1;
  int64_t dim[4] = {s.T - s.kt + 1, (s.H * zoom - 1) / s.stride + 1, (s.W * zoom - 1) / s.stride + 1, s.Co};
  int64_t pixels = dim[0] * dim[1] * dim[2];
  uint16_t *x = random_bf16(s.T * s.H * s.W * s.Ci, 1), *k = random_bf16(n, 3 / sqrtf((float)(s.Ci * taps)));
  uint16_t *b = random_bf16(s.Co, 1), *residual = s.add ? random_bf16(pixels * s.Co, 1) : NULL;
  weight w = {.name = "w",
              .role = linear ? WEIGHT_LINEAR
                      : s.up ? WEIGHT_CONV_UP
                             : WEIGHT_CONV,
              .src = linear ? TENSOR_OF(DT_BF16, k, s.Co, s.Ci)
                     : s.up ? TENSOR_OF(DT_BF16, k, s.Co, s.Ci, 3, 3)
                            : TENSOR_OF(DT_BF16, k, s.Co, s.Ci, s.kt, s.kh, s.kw)};
  weight bias = {.name = "b", .role = WEIGHT_VECTOR, .src = TENSOR_OF(DT_BF16, b, s.Co)};
  uint16_t *one = run(name, 1, &s, x, w, bias, residual, dim);
  uint16_t *three = one && strcmp(name, "cpu") == 0 ? run(name, 3, &s, x, w, bias, residual, dim) : NULL;
  if (three && memcmp(one, three, (size_t)(pixels * s.Co) * 2) != 0)
    fail_msg("%lld x %lldx%lld, %lld -> %lld: three threads give other bits than one", (long long)s.T,
             (long long)s.H, (long long)s.W, (long long)s.Ci, (long long)s.Co);
  for (int i = 0; one && i < SAMPLES; i++) {
    /* the ends of everything among them */
    int64_t p = i == 0 ? 0 : i == 1 ? pixels - 1 : below(pixels), o = i % 3 == 1 ? s.Co - 1 : below(s.Co);
    double squares = 0, u = expected(&s, x, k, dim[1], dim[2], p, o, &squares);
    double want = activated(u + (double)bf16_to_f32(b[o]), s.act);
    if (residual) want += (double)bf16_to_f32(residual[p * s.Co + o]);
    double got = (double)bf16_to_f32(one[p * s.Co + o]);
    double rms = s.up ? 8 * 0x1p-9 / 1.732 : 0x1p-12;
    if (!(fabs(got - want) <= 0x1p-8 * fabs(want) + rms * sqrt(squares)))
      fail_msg("%s, %lld x %lldx%lld, %lld -> %lld, pixel %lld, channel %lld: %g, expected %g", name,
               (long long)s.T, (long long)s.H, (long long)s.W, (long long)s.Ci, (long long)s.Co, (long long)p,
               (long long)o, got, want);
  }
  free(x);
  free(k);
  free(b);
  free(residual);
  free(one);
  free(three);
}

static void test_sizes(void **unused) {
  (void)unused;
  for (int i = 0; backend_name(i); i++) {
    const char *name = backend_name(i);
    if (strcmp(name, "ref") == 0) continue;
    const shape all[] = {
        /* products: rows of several parts, one block of few rows, many blocks, remainders everywhere */
        {1, 1, 777, 3105, 81, 1, 1, 1, 1, false, false, ACT_NONE},
        {1, 1, 35, 14336, 1040, 1, 1, 1, 1, false, false, ACT_SILU},
        {1, 1, 2300, 320, 321, 1, 1, 1, 1, false, false, ACT_GELU_TANH},
        {1, 1, 1, 4096, 257, 1, 1, 1, 1, false, false, ACT_NONE},
        /* convolutions: more channels than are taken at a time (17 and 33 lines: parts of 6, 6, 5 and of 7,
           7, 7, 7, 5), boxes with remainders */
        {4, 9, 33, 544, 40, 3, 3, 3, 1, false, true, ACT_NONE},
        {3, 5, 17, 1042, 33, 3, 3, 3, 1, false, false, ACT_NONE},
        {3, 37, 341, 20, 12, 3, 3, 3, 1, false, true, ACT_NONE},
        {2, 41, 119, 64, 70, 1, 3, 3, 2, false, false, ACT_NONE},
        {7, 6, 50, 96, 192, 3, 1, 1, 1, false, false, ACT_NONE},
        {2, 23, 70, 600, 48, 1, 3, 3, 1, true, false, ACT_NONE},
        {1, 3, 9, 33, 100, 1, 3, 3, 1, true, false, ACT_NONE},
    };
    for (size_t c = 0; c < sizeof all / sizeof *all; c++) check(name, all[c]);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_sizes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
