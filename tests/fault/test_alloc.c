/* Whole calls of the public API with one allocation failing in each: out of memory is said, nothing leaks,
 * no file is left, and the context makes the same video afterwards, bit for bit. */
#define _GNU_SOURCE
#include "tiny.h"
#include "scratch_dir.h"

#include <stdatomic.h>

typedef struct call {
  wan_context *c;
  wan_model *m;
  const char *what, *model_dir, *picture, *stage;
  char in[600], out[600];
  const tiny_run *want;
  tiny_run run;
} call;

typedef wan_status (*call_fn)(call *k);

static void call_open(call *k, const char *name, const char *what) {
  *k = (call){.c = tiny_context(name), .what = what};
}

static void call_close(call *k) {
  wan_model_close(k->m);
  wan_context_destroy(k->c);
}

/* ---- Trying all allocations of a call ---- */

static void arm(call *k, int64_t in) {
  atomic_store(&k->c->core.mem_fail_in, in);
}

/* Allocations that a call makes; not the first one, after which a backend keeps its scratch memory. */
static int64_t count_allocations(call *k, call_fn fn) {
  if (fn(k) != WAN_OK) fail_msg("%s: %s", k->what, wan_context_error(k->c));
  arm(k, INT64_MAX);
  wan_status s = fn(k);
  int64_t n = INT64_MAX - atomic_load(&k->c->core.mem_fail_in);
  arm(k, -1);
  if (s != WAN_OK) fail_msg("%s: %s", k->what, wan_context_error(k->c));
  return n;
}

static void fail_one(call *k, call_fn fn, int64_t at) {
  uint64_t before = core_mem_current(&k->c->core);
  int files = tiny_entries(scratch_dir.dir);
  k->c->core.message[0] = 0;
  arm(k, at);
  wan_status s = fn(k);
  arm(k, -1);
  if (s != WAN_ERR_MEMORY || !strstr(wan_context_error(k->c), "memory"))
    fail_msg("%s: allocation %lld failed: status %d (%s), message \"%s\"", k->what, (long long)at, (int)s,
             wan_status_name(s), wan_context_error(k->c));
  if (core_mem_current(&k->c->core) != before)
    fail_msg("%s: allocation %lld failed: %lld bytes leaked", k->what, (long long)at,
             (long long)(core_mem_current(&k->c->core) - before));
  if (tiny_entries(scratch_dir.dir) != files)
    fail_msg("%s: allocation %lld failed: a file was left behind", k->what, (long long)at);
}

/* Every allocation once, in an order that spreads over the whole call, until the time is over. */
static void fail_each(call *k, call_fn fn, double seconds, uint64_t *chance) {
  int64_t n = count_allocations(k, fn), done = 0;
  int64_t step = (int64_t)((double)n * 0.618), at = (int64_t)(tiny_next(chance) % (uint64_t)n);
  for (int64_t a = step ? step : 1, b = n; b;) { /* the next step that has no divisor with n */
    int64_t r = a % b;
    a = b;
    b = r;
    if (!b && a != 1) a = ++step, b = n;
  }
  if (!step) step = 1;
  for (double end = tiny_seconds() + tiny_budget(seconds); done < n && tiny_seconds() < end; done++) {
    fail_one(k, fn, at);
    at = (at + step) % n;
  }
  print_message("%s, %s: %lld of %lld allocations\n", wan_context_backend(k->c), k->what, (long long)done,
                (long long)n);
  assert_true(done > 0);
  if (fn(k) != WAN_OK) fail_msg("%s, after all: %s", k->what, wan_context_error(k->c));
}

/* ---- The calls ---- */

static wan_status generate(call *k) {
  wan_generate_params p;
  tiny_reset(&k->run, k->c);
  tiny_params(&k->run, k->picture, &p);
  p.output_path = k->out;
  wan_status s = wan_generate(k->m, &p, NULL);
  if (s != WAN_OK) return s;
  unlink(k->out);
  if (k->want) tiny_same(&k->run, k->want, k->what);
  return s;
}

static wan_status generate_with_files(call *k) {
  wan_generate_params p;
  tiny_reset(&k->run, k->c);
  tiny_params(&k->run, k->picture, &p);
  p.checkpoint_path = k->in; /* saved twice, removed at the end */
  p.save_latent_path = k->out;
  p.apg = true;
  p.skip_layers = (const int[]){0};
  p.skip_layer_count = 1;
  p.skip_layer_scale = 1;
  p.skip_layer_end = 1;
  wan_status s = wan_generate(k->m, &p, NULL);
  unlink(k->in);  /* a checkpoint survives a failure, and the next run must not resume */
  unlink(k->out); /* and so does a latent, once finished */
  return s;
}

static wan_status open_model(call *k) {
  wan_model *m;
  wan_model_info info;
  wan_model_info_init(&info);
  wan_status s = wan_model_open(k->c, k->model_dir, &m);
  if (s != WAN_OK) return s;
  s = wan_model_get_info(m, &info);
  wan_model_close(m);
  return s;
}

static wan_status describe(call *k) {
  char *text;
  wan_status s = wan_model_describe(k->c, k->model_dir, true, &text);
  wan_free(text);
  return s;
}

static wan_status run_stage(call *k) {
  wan_stage_params p;
  char *text = NULL;
  wan_stage_params_init(&p);
  p.stage = k->stage;
  p.model_dir = k->model_dir;
  p.in_path = *k->in ? k->in : NULL;
  p.out_path = k->out;
  p.text = *k->in ? NULL : "caf\xc3\xa9 &amp; <extra_id_1> two";
  p.image_path = TINY_PICTURE;
  p.area_width = p.area_height = 32;
  memcpy(p.shape, (int64_t[4]){48, 2, 4, 4}, sizeof p.shape);
  p.generate.seed = 1;
  p.generate.steps = 2;
  p.generate.shift = 5;
  wan_status s = wan_stage_run(k->c, &p, &text);
  wan_free(text);
  unlink(k->out);
  return s;
}

/* ---- Tests ---- */

static void each_backend(void (*body)(const char *name, uint64_t *chance)) {
  uint64_t chance = tiny_seed();
  for (int i = 0; backend_name(i); i++)
    if (strcmp(backend_name(i), "cuda") != 0) body(backend_name(i), &chance);
}

static void generate_all(const char *name, uint64_t *chance) {
  for (int t = 0; t < TINY_TASKS; t++) {
    static tiny_run want;
    static call k;
    char model[512];
    call_open(&k, name, tiny_tasks[t].name);
    k.picture = tiny_tasks[t].picture;
    snprintf(model, sizeof model, TINY_DATA "ckpt/%s", tiny_tasks[t].ckpt);
    snprintf(k.out, sizeof k.out, "%s/out.mp4", scratch_dir.dir);
    snprintf(k.in, sizeof k.in, "%s/state", scratch_dir.dir);
    k.m = tiny_open(k.c, model);
    tiny_must_run(k.c, k.m, k.picture, &want);
    k.want = &want;
    fail_each(&k, generate, 2, chance);
    if (t == TINY_TASKS - 1) {
      k.what = "every extra";
      fail_each(&k, generate_with_files, 1.2, chance);
      generate(&k); /* still the same video */
    }
    call_close(&k);
  }
}

static void test_generate(void **state) {
  (void)state;
  each_backend(generate_all);
}

static void open_all(const char *name, uint64_t *chance) {
  static call k;
  call_open(&k, name, "opening a model");
  k.model_dir = TINY_DATA "ckpt/i2v";
  fail_each(&k, open_model, 0.5, chance);
  k.what = "describing a model";
  fail_each(&k, describe, 0.5, chance);
  call_close(&k);
}

static void test_open(void **state) {
  (void)state;
  each_backend(open_all);
}

static void stages(const char *name, uint64_t *chance) {
  static const struct {
    const char *stage, *model, *in;
  } list[] = {{"tokenize", "ti2v", NULL},
              {"clean", NULL, NULL},
              {"text", "ti2v", NULL},
              {"dit", "ti2v", "dit_ti2v_T2_4x6_n7_t500"},
              {"vae-encode", "t2v", "vae21_encode_F5_16x24"},
              {"vae-decode", "t2v", "vae21_decode_F5_16x24"},
              {"vae-decode", "ti2v", "vae22_decode_F1_32x48"},
              {"schedule", NULL, NULL},
              {"noise", NULL, NULL},
              {"image", "i2v", NULL}};
  for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
    static call k;
    char model[512];
    call_open(&k, name, list[i].stage);
    k.stage = list[i].stage;
    snprintf(model, sizeof model, TINY_DATA "ckpt/%s", list[i].model ? list[i].model : "");
    k.model_dir = list[i].model ? model : NULL;
    if (list[i].in) snprintf(k.in, sizeof k.in, TINY_DATA "%s.safetensors", list[i].in);
    snprintf(k.out, sizeof k.out, "%s/out.safetensors", scratch_dir.dir);
    fail_each(&k, run_stage, 0.4, chance);
    call_close(&k);
  }
}

static void test_stages(void **state) {
  (void)state;
  each_backend(stages);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_open), cmocka_unit_test(test_stages),
                                     cmocka_unit_test(test_generate)};
  return cmocka_run_group_tests_name("one allocation fails", tests, scratch_setup, scratch_teardown);
}
