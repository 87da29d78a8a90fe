/* test_bench.c: random networks of the official shapes, and the table of `wan bench`. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/file.h"
#include "dit/dit.h"
#include "pipeline/bench_models.h"
#include "text/text.h"
#include "vae/vae.h"
#include "weights/random_tensors.h"

static core_ctx ctx;

static int setup(void **state) {
  (void)state;
  core_ctx_init(&ctx);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  return core_mem_current(&ctx) == 0 ? 0 : -1;
}

/* The models' own code accepts the sets: names and shapes are the official ones, no more and no fewer. The
 * number of parameters is that of the published checkpoints (tools/make_checkpoint.py says the same). */
static void test_official_shapes(void **state) {
  (void)state;
  backend *be;
  weight_set *set;
  dit *d;
  vae *v;
  umt5 *u;
  assert_int_equal(backend_open_dry(&ctx, &(backend_config){0}, &be), WAN_OK);
  assert_int_equal(bench_net_open(&ctx, NET_DIT_5B, 0, &set), WAN_OK);
  assert_int_equal(weight_set_parameters(set), 4999787712);
  assert_int_equal(dit_open_set(be, set, 0, &d), WAN_OK);
  assert_int_equal(dit_get_config(d)->heads, 24);
  assert_int_equal(dit_get_config(d)->type, DIT_TI2V);
  dit_close(d);
  assert_int_equal(bench_net_open(&ctx, NET_DIT_14B, 2, &set), WAN_OK);
  assert_int_equal(dit_open_set(be, set, 0, &d), WAN_OK);
  assert_int_equal(dit_get_config(d)->layers, 2);
  dit_close(d);
  const bench_net nets[] = {NET_VAE21, NET_VAE22};
  for (int i = 0; i < 2; i++) {
    assert_int_equal(bench_net_open(&ctx, nets[i], 0, &set), WAN_OK);
    assert_int_equal(vae_open_set(be, set, 0, &v), WAN_OK);
    assert_int_equal(vae_get_info(v).version, 21 + i);
    vae_close(v);
  }
  assert_int_equal(bench_net_open(&ctx, NET_TEXT, 3, &set), WAN_OK);
  assert_int_equal(umt5_open_set(be, set, 0, &u), WAN_OK);
  assert_int_equal(umt5_layers(u), 3);
  umt5_close(u);
  backend_close(be);
}

/* Mean and deviation of a tensor's first n values. */
static void moments(const tensor *t, int64_t n, double *mean, double *deviation) {
  const uint16_t *p = t->data;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < n; i++) {
    double x = bf16_to_f32(p[i]);
    sum += x;
    squares += x * x;
  }
  *mean = sum / (double)n;
  *deviation = sqrt(squares / (double)n - *mean * *mean);
}

/* Spreads are as asked for: 5% is over ten standard errors of 65,536 values. Values stay when their pages are
 * handed back, as those of a file do. */
static void test_values(void **state) {
  (void)state;
  enum { N = 65536 };
  random_tensors *r;
  double mean, deviation;
  assert_int_equal(random_tensors_create(&ctx, &r), WAN_OK);
  random_tensors_add(r, WEIGHT_DIMS(256, 1024), "a.weight");
  random_tensors_add(r, WEIGHT_DIMS(256, 1024), "b.weight");
  random_tensors_add(r, WEIGHT_DIMS(N), "a.bias");
  random_tensors_add(r, WEIGHT_DIMS(N, 1, 1), "x.gamma");
  assert_int_equal(random_tensors_fill(r), WAN_OK);
  const double want[4][2] = {{0, 1 / 32.0}, {0, 1 / 32.0}, {0, 0.1}, {1, 0.1}};
  for (int i = 0; i < 4; i++) {
    tensor t = random_tensors_tensor(r, i);
    moments(&t, N, &mean, &deviation);
    assert_true(fabs(mean - want[i][0]) < 0.05 * want[i][1]);
    assert_true(fabs(deviation - want[i][1]) < 0.05 * want[i][1]);
  }
  tensor a = random_tensors_tensor(r, 0), b = random_tensors_tensor(r, 1);
  assert_memory_not_equal(a.data, b.data, 1024);
  uint16_t before[1024];
  memcpy(before, a.data, sizeof before);
  core_map_drop(a.data, tensor_bytes(&a));
  assert_memory_equal(a.data, before, sizeof before);
  random_tensors_close(r);
}

/* Each allocation fails in turn: a message, no leak (teardown), no crash. */
static void test_out_of_memory(void **state) {
  (void)state;
  for (int n = 0;; n++) {
    weight_set *set = NULL;
    atomic_store(&ctx.mem_fail_in, n);
    wan_status s = bench_net_open(&ctx, NET_VAE21, 0, &set);
    bool hit = atomic_load(&ctx.mem_fail_in) < 0;
    atomic_store(&ctx.mem_fail_in, -1);
    if (s == WAN_OK && !hit) {
      weight_set_close(set);
      assert_true(n > 5);
      return;
    }
    assert_int_equal(s, WAN_ERR_MEMORY);
    assert_null(set);
    assert_int_equal(core_mem_current(&ctx), 0);
  }
}

/* ---- The table ---- */

typedef struct seen {
  int rows, skipped;
  char last[32];
} seen;

static void on_row(void *user, const wan_bench_row *r) {
  seen *s = user;
  s->rows++;
  s->skipped += r->skipped != NULL;
  snprintf(s->last, sizeof s->last, "%s", r->stage);
  assert_true(r->skipped ? r->runs == 0 : r->seconds > 0 && r->seconds_min <= r->seconds);
  assert_true(s->rows <= 2 ? r->seconds_floor == 0 : r->seconds_floor > 0 && r->flops > 0);
  assert_true(s->rows <= 2 || r->skipped || r->memory_peak > 0);
}

static wan_status table(const char *name, uint64_t limit, const wan_bench_params *p, seen *out,
                        char *message) {
  wan_context_params cp;
  wan_context *context;
  *out = (seen){0};
  wan_context_params_init(&cp);
  cp.backend = name;
  cp.memory_limit = limit;
  assert_int_equal(wan_context_create(&cp, &context), WAN_OK);
  wan_status s = wan_bench(context, p, on_row, out);
  snprintf(message, 256, "%s", wan_context_error(context));
  wan_context_destroy(context);
  return s;
}

static void test_table(void **state) {
  (void)state;
  char message[256];
  seen got;
  wan_bench_params p;
  wan_bench_params_init(&p);
  p.model = WAN_SOURCE_DIR "/tests/parity/data/ckpt/ti2v";
  p.width = 64, p.height = 32, p.frames = 5, p.repeat = 1, p.tokens = 3;
  assert_int_equal(table("ref", 0, &p, &got, message), WAN_OK);
  assert_int_equal(got.rows, 6);
  assert_string_equal(got.last, "vae-encode");
  p.stage = "vae-d";
  assert_int_equal(table("ref", 0, &p, &got, message), WAN_OK);
  assert_int_equal(got.rows, 3);
  p.width = 40;
  assert_int_equal(table("ref", 0, &p, &got, message), WAN_ERR_ARGUMENT);
  assert_non_null(strstr(message, "40x32"));
  p.stage = "vae22";
  assert_int_equal(table("ref", 0, &p, &got, message), WAN_ERR_ARGUMENT);
  assert_non_null(strstr(message, "vae22"));
  p.stage = NULL;
  p.layers = 2;
  assert_int_equal(table("ref", 0, &p, &got, message), WAN_ERR_ARGUMENT);
  assert_int_equal(got.rows, 0);
}

/* A stage that can't fit is a line of the table, and nothing of it is loaded. */
static void test_too_large(void **state) {
  (void)state;
  char message[256];
  seen got;
  wan_bench_params p;
  wan_bench_params_init(&p);
  p.stage = "dit-14b";
  p.layers = 1;
  assert_int_equal(table("ref", (uint64_t)700 << 20, &p, &got, message), WAN_OK);
  assert_int_equal(got.rows, 3);
  assert_int_equal(got.skipped, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_official_shapes, setup, teardown),
      cmocka_unit_test_setup_teardown(test_values, setup, teardown),
      cmocka_unit_test_setup_teardown(test_out_of_memory, setup, teardown),
      cmocka_unit_test(test_table),
      cmocka_unit_test(test_too_large),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
