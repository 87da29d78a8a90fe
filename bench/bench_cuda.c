/* bench_cuda.c: how close one device comes to its floor. Times the operations of the official models at
 * their official sizes on random data, straight through the operation table: a square matrix product as the
 * machine's practical ceiling and a copy as its bandwidth, every operation of a transformer block, the
 * convolutions of the autoencoder. A block's floor is the time that its products and its attention would
 * take at the ceiling. Usage: bench_cuda [backend]; build with -DWAN_BENCH=ON. */
#include "backend/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WEIGHTS_MAX = 32 };

typedef struct bench {
  core_ctx ctx;
  backend *be;
  double ceiling; /* FLOP/s of a large product */
  weight weights[WEIGHTS_MAX];
  int count;
} bench;

static void print_log(void *user, wan_log_level level, const char *message) {
  (void)user;
  (void)level;
  fprintf(stderr, "%s\n", message);
}

static void must(bench *b, bool ok) {
  if (ok) return;
  fprintf(stderr, "bench_cuda: %s\n", b->ctx.message);
  exit(1);
}

/* Small bf16 values of both signs; their bits are those of a simple generator (Knuth's MMIX constants). */
static void random_bf16(uint16_t *p, size_t n, float scale) {
  uint64_t state = 88172645463325252u;
  for (size_t i = 0; i < n; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    float u = (float)(int32_t)(state >> 32) * 0x1p-31f;
    p[i] = f32_to_bf16(u * scale);
  }
}

static const weight *make_weight(bench *b, weight_role role, float scale, int ndim, const int64_t *dim) {
  weight *w = &b->weights[b->count++];
  *w = (weight){.name = "bench", .role = role, .src = tensor_of(DT_BF16, NULL, ndim, dim)};
  size_t n = (size_t)tensor_count(&w->src);
  w->src.data = malloc(n * 2);
  must(b, w->src.data != NULL);
  random_bf16(w->src.data, n, scale);
  must(b, backend_weight_load(b->be, w) == WAN_OK);
  free(w->src.data);
  w->src.data = NULL;
  return w;
}
#define WEIGHT(b, role, scale, ...)                                                            \
  make_weight((b), (role), (scale), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
              (const int64_t[]){__VA_ARGS__})

static void drop_weights(bench *b) {
  for (int i = 0; i < b->count; i++) backend_weight_unload(b->be, &b->weights[i]);
  b->count = 0;
}

/* A random tensor in the current scope: a random megabyte, repeated. */
static tensor random_tensor(bench *b, dtype type, int ndim, const int64_t *dim) {
  tensor t = tensor_new(b->be, DT_BF16, ndim, dim);
  size_t bytes = tensor_bytes(&t), piece = bytes < (1 << 20) ? bytes : 1 << 20;
  uint16_t *host = malloc(bytes + 1);
  must(b, host != NULL);
  random_bf16(host, piece / 2, 1);
  for (size_t at = piece; at < bytes; at += piece)
    memcpy((char *)host + at, host, bytes - at < piece ? bytes - at : piece);
  tensor_upload(b->be, t, host);
  free(host);
  return op_cast(b->be, t, type);
}
#define RANDOM(b, type, ...)                                                            \
  random_tensor((b), (type), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
                (const int64_t[]){__VA_ARGS__})

static void report(const char *name, double seconds, double flops, double bytes) {
  printf("%-34s %9.3f ms", name, seconds * 1e3);
  if (flops > 0) printf(" %8.1f TFLOP/s", flops / seconds / 1e12);
  if (bytes > 0) printf(" %8.0f GB/s", bytes / seconds / 1e9);
  printf("\n");
  fflush(stdout);
}

static int compare(const void *x, const void *y) {
  double a = *(const double *)x, b = *(const double *)y;
  return a < b ? -1 : a > b;
}

/* Median time of one of RUNS batches; a batch hides the cost of waiting. */
#define TIME(b, seconds, batch, body)                            \
  do {                                                           \
    enum { RUNS_ = 5 };                                          \
    double t_[RUNS_];                                            \
    for (int run_ = -1; run_ < RUNS_; run_++) {                  \
      backend_sync((b)->be);                                     \
      double start_ = core_now();                                \
      for (int i_ = 0; i_ < (batch); i_++) {                     \
        scope_mark mark_ = scope_begin((b)->be);                 \
        body;                                                    \
        scope_end((b)->be, mark_);                               \
      }                                                          \
      must((b), backend_sync((b)->be) == WAN_OK);                \
      if (run_ >= 0) t_[run_] = (core_now() - start_) / (batch); \
    }                                                            \
    qsort(t_, RUNS_, sizeof t_[0], compare);                     \
    (seconds) = t_[RUNS_ / 2];                                   \
  } while (0)

static void ceilings(bench *b) {
  double s;
  scope_mark mark = scope_begin(b->be);
  const int64_t n = 8192;
  tensor x = RANDOM(b, DT_NONE, n, n), y = TENSOR_NEW(b->be, DT_NONE, n, n);
  const weight *w = WEIGHT(b, WEIGHT_LINEAR, 0.1f, n, n);
  TIME(b, s, 10, op_linear_into(b->be, x, w, NULL, ACT_NONE, y));
  b->ceiling = 2.0 * (double)n * (double)n * (double)n / s;
  report("product 8192^3", s, 2.0 * (double)n * (double)n * (double)n, 0);
  tensor big = TENSOR_NEW(b->be, DT_U8, (int64_t)1 << 30), to = TENSOR_NEW(b->be, DT_U8, (int64_t)1 << 30);
  TIME(b, s, 10, tensor_copy(b->be, to, big));
  report("copy of 1 GiB (read + write)", s, 0, 2.0 * (1 << 30));
  scope_end(b->be, mark);
  drop_weights(b);
}

static void block(bench *b, const char *name, int64_t L, int64_t C, int64_t F, int heads) {
  backend *be = b->be;
  double total = 0, flops = 0, s;
  scope_mark mark = scope_begin(be);
  printf("\n%s: %lld tokens, width %lld, feed-forward %lld, %d heads\n", name, (long long)L, (long long)C,
         (long long)F, heads);
  const weight *wc = WEIGHT(b, WEIGHT_LINEAR, 0.03f, C, C), *w0 = WEIGHT(b, WEIGHT_LINEAR, 0.03f, F, C),
               *w2 = WEIGHT(b, WEIGHT_LINEAR, 0.03f, C, F), *bc = WEIGHT(b, WEIGHT_VECTOR, 0.1f, C),
               *bf = WEIGHT(b, WEIGHT_VECTOR, 0.1f, F);
  tensor x = RANDOM(b, DT_F32, L, C), a = RANDOM(b, DT_NONE, L, C), k = RANDOM(b, DT_NONE, L, C),
         v = RANDOM(b, DT_NONE, L, C), tk = RANDOM(b, DT_NONE, 512, C), tv = RANDOM(b, DT_NONE, 512, C);
  tensor y = TENSOR_NEW(be, DT_NONE, L, C), mod = RANDOM(b, DT_F32, 1, 6, C),
         rope = RANDOM(b, DT_F32, L, C / heads / 2, 2);
  int32_t zero = 0;
  token_rows rows = token_rows_create(be, &zero, 1, L);
  tensor key_bias = RANDOM(b, DT_F32, 512);
  attention_spec self = {.heads = heads, .scale = 1 / sqrtf((float)(C / heads))}, cross = self;
  cross.key_bias = key_bias;
  const double l = (double)L, c = (double)C, f = (double)F;
#define PART(label, times, work, bytes, body) \
  do {                                        \
    TIME(b, s, 3, body);                      \
    report(label, s, work, bytes);            \
    total += (times)*s;                       \
    flops += (times) * (work);                \
  } while (0)
  PART("linear C x C, 5 of them", 5, 2 * l * c * c, 0, op_linear_into(be, a, wc, bc, ACT_NONE, y));
  PART("linear C x C added to F32", 1, 2 * l * c * c, 0, op_linear_add(be, a, wc, bc, x));
  PART("linear C x F with GELU", 1, 2 * l * c * f, 0, op_linear(be, a, w0, bf, ACT_GELU_TANH, DT_NONE));
  tensor h = RANDOM(b, DT_NONE, L, F);
  PART("linear F x C", 1, 2 * l * c * f, 0, op_linear_into(be, h, w2, bc, ACT_NONE, y));
  PART("attention, self", 1, 4 * l * l * c, 0, op_attention(be, a, k, v, &self));
  PART("attention, 512 text keys", 1, 4 * l * 512 * c, 0, op_attention(be, a, tk, tv, &cross));
  residual_add gated = {.y = a, .mod = mod, .gate = 2};
  PART("gate_add and ada_norm", 1, 0, l * c * 12, op_add_ada_norm(be, x, &gated, mod, &rows, 0, 1, 1e-6f, y));
  PART("gate_add and layer_norm", 1, 0, l * c * 12,
       op_add_layer_norm(be, x, &gated, &rows, bc, bc, 1e-6f, y));
  PART("ada_norm", 1, 0, l * c * 6, op_ada_norm(be, x, mod, &rows, 0, 1, 1e-6f, DT_NONE));
  PART("qk_norm_rope, 2 of them", 2, 0, l * c * 4 + l * 512, op_qk_norm_rope(be, y, bc, 1e-6f, rope, heads));
  PART("qk_norm of text queries", 1, 0, l * c * 4, op_qk_norm_rope(be, y, bc, 1e-6f, (tensor){0}, heads));
#undef PART
  printf("%-34s %9.3f ms; floor %.3f ms at the ceiling; %.2f of it\n", "block", total * 1e3,
         flops / b->ceiling * 1e3, flops / b->ceiling / total);
  scope_end(be, mark);
  drop_weights(b);
}

static void convolution(bench *b, const char *name, int64_t T, int64_t H, int64_t W, int64_t ci, int64_t co) {
  backend *be = b->be;
  double s;
  scope_mark mark = scope_begin(be);
  tensor x = RANDOM(b, DT_NONE, T + 2, H, W, ci);
  const weight *w = WEIGHT(b, WEIGHT_CONV, 0.02f, co, ci, 3, 3, 3),
               *bias = WEIGHT(b, WEIGHT_VECTOR, 0.1f, co);
  tensor y = TENSOR_NEW(be, DT_NONE, T, H, W, co);
  const conv_spec same = {1, 1, 1, 1, 1, 1, 1, NULL};
  TIME(b, s, 2, op_conv_into(be, x, w, bias, &same, (tensor){0}, y));
  report(name, s, 54.0 * (double)(T * H * W) * (double)(ci * co), 0);
  scope_end(be, mark);
  drop_weights(b);
}

static void upsampling(bench *b, const char *name, int64_t T, int64_t H, int64_t W, int64_t ci, int64_t co) {
  backend *be = b->be;
  double s;
  scope_mark mark = scope_begin(be);
  tensor x = RANDOM(b, DT_NONE, T, H, W, ci);
  const weight *w = WEIGHT(b, WEIGHT_CONV_UP, 0.02f, co, ci, 3, 3),
               *bias = WEIGHT(b, WEIGHT_VECTOR, 0.1f, co);
  tensor y = TENSOR_NEW(be, DT_NONE, T, 2 * H, 2 * W, co);
  TIME(b, s, 2, op_upsample_conv_into(be, x, w, bias, y));
  report(name, s, 18.0 * 4 * (double)(T * H * W) * (double)(ci * co), 0); /* of the plain 3x3 */
  scope_end(be, mark);
  drop_weights(b);
}

static void shortcuts(bench *b) {
  backend *be = b->be;
  double s;
  scope_mark mark = scope_begin(be);
  tensor x = RANDOM(b, DT_NONE, 4, 352, 640, 256), y = RANDOM(b, DT_NONE, 4, 352, 640, 256);
  tensor small = RANDOM(b, DT_NONE, 4, 176, 320, 512);
  const weight *gamma = WEIGHT(b, WEIGHT_VECTOR, 0.1f, 256);
  const double n = 4.0 * 352 * 640 * 256;
  TIME(b, s, 2, op_channel_norm(be, x, gamma, ACT_SILU, y));
  report("channel_norm + SiLU", s, 0, 4 * n);
  TIME(b, s, 2, op_dup_up_add(be, y, small, 1, 2, 0));
  report("dup_up_add", s, 0, 4 * n + n);
  TIME(b, s, 2, (void)op_time_unshuffle(be, x));
  report("time_unshuffle", s, 0, 4 * n);
  tensor q = RANDOM(b, DT_NONE, 44 * 80, 1024);
  attention_spec one = {.heads = 1, .scale = 1.0f / 32};
  TIME(b, s, 2, op_attention(be, q, q, q, &one));
  report("attention, one head of 1024", s, 4.0 * 3520 * 3520 * 1024, 0);
  scope_end(be, mark);
  drop_weights(b);
}

int main(int argc, char **argv) {
  static bench b;
  core_ctx_init(&b.ctx);
  b.ctx.log = print_log;
  backend_config config = {.name = argc > 1 ? argv[1] : "cuda"};
  must(&b, backend_open(&b.ctx, &config, &b.be) == WAN_OK);
  ceilings(&b);
  if (argc < 3) {
    block(&b, "TI2V-5B block, 1280x704x121", 27280, 3072, 14336, 24);
    block(&b, "A14B block, 832x480x81", 32760, 5120, 13824, 40);
  }
  printf("\nWan2.2 autoencoder, 3x3x3 convolutions, one latent frame at 1280x704\n");
  convolution(&b, "1x44x80, 1024 -> 1024", 1, 44, 80, 1024, 1024);
  convolution(&b, "2x88x160, 1024 -> 1024", 2, 88, 160, 1024, 1024);
  convolution(&b, "1x176x320, 512 -> 512", 1, 176, 320, 512, 512);
  convolution(&b, "4x176x320, 512 -> 512", 4, 176, 320, 512, 512);
  convolution(&b, "1x352x640, 256 -> 256", 1, 352, 640, 256, 256);
  convolution(&b, "4x352x640, 256 -> 256", 4, 352, 640, 256, 256);
  convolution(&b, "1x352x640, 256 -> 12", 1, 352, 640, 256, 12);
  convolution(&b, "encoder 1x352x640, 160 -> 160", 1, 352, 640, 160, 160);
  convolution(&b, "encoder 2x176x320, 320 -> 320", 2, 176, 320, 320, 320);
  convolution(&b, "encoder 2x88x160, 640 -> 640", 2, 88, 160, 640, 640);
  upsampling(&b, "upsample, 1x176x320, 512 -> 512", 1, 176, 320, 512, 512);
  upsampling(&b, "upsample, 1x88x160, 1024 -> 1024", 1, 88, 160, 1024, 1024);
  printf("\nWan2.1 autoencoder at 832x480\n");
  convolution(&b, "1x480x832, 96 -> 96", 1, 480, 832, 96, 96);
  convolution(&b, "1x480x832, 96 -> 3", 1, 480, 832, 96, 3);
  convolution(&b, "1x240x416, 192 -> 192", 1, 240, 416, 192, 192);
  convolution(&b, "2x120x208, 384 -> 384", 2, 120, 208, 384, 384);
  shortcuts(&b);
  must(&b, backend_status(b.be) == WAN_OK);
  backend_close(b.be);
  return 0;
}
