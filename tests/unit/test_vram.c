/* The limit of device memory: what is planned keeps to it, what can't is refused with changes that work; and
 * with a device here, runs keep to it and take what was planned. The plan's rules are those of the backend
 * (backend/device.h), so what may differ is how chunks of the arena are rounded: 10% and 8 MiB. */
#define _GNU_SOURCE /* mkdtemp, nftw, truncate */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include <wan/wan.h>

#include "backend/device.h"
#include "core/file.h"
#include "core/rng.h"
#include "pipeline/model.h"
#include "scratch.h"
#include "sparse.h"
#include "weights/safetensors.h"

#define GIB ((uint64_t)1 << 30)

static const char model_dir_path[] = WAN_SOURCE_DIR "/models/shapes";
static scratch dir;
static bool official; /* TI2V-5B at full size is in the folder */

static int setup(void **state) {
  (void)state;
  scratch_open(&dir);
  scratch_text(&dir, "5B/config.json",
               "{\"model_type\":\"ti2v\",\"dim\":3072,\"ffn_dim\":14336,\"freq_dim\":256,\"num_heads\":24,"
               "\"num_layers\":30,\"in_dim\":48,\"out_dim\":48,\"text_len\":512,\"eps\":1e-6}");
  scratch_text(&dir, "5B/google/umt5-xxl/spiece.model", "never read");
  official =
      sparse_checkpoint(&dir, "wan2.2-ti2v-5B", "BF16", 2, "5B/diffusion_pytorch_model.safetensors") &&
      sparse_checkpoint(&dir, "wan2.2-vae", "F32", 4, "5B/Wan2.2_VAE.safetensors") &&
      sparse_checkpoint(&dir, "umt5-xxl-encoder", "BF16", 2, "5B/models_t5_umt5-xxl-enc-bf16.safetensors");
  return 0;
}

static int teardown(void **state) {
  (void)state;
  scratch_close(&dir);
  return 0;
}

typedef struct session {
  wan_context *context;
  wan_model *model;
} session;

/* With the device itself, or a context that only plans for it. False: there is no device. */
static bool open_session(session *s, uint64_t limit, bool plan_only, const char *model) {
  wan_context_params p;
  wan_context_params_init(&p);
  p.backend = "cuda";
  p.device_limit = limit;
  p.memory_limit = GIB; /* of the host: no more is pinned */
  p.plan_only = plan_only;
  *s = (session){0};
  if (wan_context_create(&p, &s->context) != WAN_OK) {
    assert_false(plan_only);
    return false;
  }
  if (wan_model_open(s->context, model, &s->model) != WAN_OK) fail_msg("%s", wan_context_error(s->context));
  return true;
}

static void close_session(session *s) {
  wan_model_close(s->model);
  wan_context_destroy(s->context);
}

static wan_generate_params request(void) {
  wan_generate_params p;
  wan_generate_params_init(&p);
  p.prompt = "a green star on black";
  return p;
}

static wan_plan plan_of(session *s, const wan_generate_params *p) {
  wan_plan plan;
  wan_plan_init(&plan);
  if (wan_plan_generate(s->model, p, &plan) != WAN_OK) fail_msg("%s", wan_context_error(s->context));
  return plan;
}

static uint64_t highest(const uint64_t peak[WAN_STAGE_COUNT]) {
  uint64_t most = 0;
  for (int i = 0; i < WAN_STAGE_COUNT; i++)
    if (peak[i] > most) most = peak[i];
  return most;
}

/* TI2V-5B at its own size on the usual cards. */
static void test_planned_peaks(void **state) {
  (void)state;
  static const unsigned cards[] = {8, 12, 16, 24, 48, 80};
  if (!official) skip();
  int resident = 0;
  for (size_t i = 0; i < sizeof cards / sizeof *cards; i++) {
    session s;
    open_session(&s, cards[i] * GIB, true, scratch_path(&dir, "5B"));
    wan_generate_params p = request();
    wan_plan plan = plan_of(&s, &p);
    assert_true(plan.fits);
    assert_false(plan.timed);
    assert_int_equal(plan.blocks, 30);
    assert_true(highest(plan.device_memory_peak) <= cards[i] * GIB);
    /* What the limit leaves is used: another block, its text keys and the four outer groups don't fit. */
    if (plan.blocks_resident < 30)
      assert_true(plan.device_memory_peak[WAN_STAGE_DENOISE] > cards[i] * GIB - GIB);
    assert_true(plan.blocks_resident >= resident);
    resident = plan.blocks_resident;
    assert_true(highest(plan.memory_peak) <= GIB); /* device memory is not counted as the host's */
    close_session(&s);
  }
  assert_int_equal(resident, 30);
}

/* Text behind a flag in a message, or NULL. */
static const char *after(const char *text, const char *flag) {
  const char *at = strstr(text, flag);
  return at ? at + strlen(flag) : NULL;
}

static bool fits_with(uint64_t limit, const wan_generate_params *p) {
  session s;
  open_session(&s, limit, true, scratch_path(&dir, "5B"));
  bool fits = plan_of(&s, p).fits;
  close_session(&s);
  return fits;
}

static void test_refused(void **state) {
  (void)state;
  if (!official) skip();
  const uint64_t limit = 2 * GIB + GIB / 2;
  session s;
  open_session(&s, limit, true, scratch_path(&dir, "5B"));
  wan_generate_params p = request(), changed = p;
  wan_plan plan = plan_of(&s, &p);
  assert_false(plan.fits);
  print_message("%s\n", plan.refusal);
  assert_non_null(strstr(plan.refusal, "the limit is 2.50 GiB"));
  double gib = 0;
  const char *vram = after(plan.refusal, "--vram "), *size = after(plan.refusal, "--size ");
  assert_true(vram && sscanf(vram, "%lfG", &gib) == 1);
  assert_true(fits_with((uint64_t)(gib * (double)GIB), &p));
  assert_false(fits_with((uint64_t)((gib - 0.11) * (double)GIB), &p));
  assert_true(size && sscanf(size, "%dx%d", &changed.width, &changed.height) == 2);
  assert_true(fits_with(limit, &changed));
  changed.height += 32; /* the next larger size of that aspect */
  changed.width = (int)((double)changed.height * 1280 / 704 / 32 + 0.5) * 32;
  assert_false(fits_with(limit, &changed));
  assert_int_equal(wan_generate(s.model, &p, NULL), WAN_ERR_ARGUMENT); /* plan_only */
  close_session(&s);
}

/* Where bf16 would do, it is among the suggestions. */
static void test_other_precision(void **state) {
  (void)state;
  if (!official) skip();
  wan_context_params c;
  wan_context_params_init(&c);
  c.backend = "cuda";
  c.plan_only = true;
  wan_generate_params p = request();
  uint64_t need[2];
  for (int i = 0; i < 3; i++) { /* the need in bf16 and in f32, then f32 with a limit between the two */
    session s = {0};
    c.precision = i ? WAN_PRECISION_F32 : WAN_PRECISION_BF16;
    c.device_limit = i < 2 ? GIB : (need[0] + need[1]) / 2;
    assert_int_equal(wan_context_create(&c, &s.context), WAN_OK);
    assert_int_equal(wan_model_open(s.context, scratch_path(&dir, "5B"), &s.model), WAN_OK);
    wan_plan plan = plan_of(&s, &p);
    assert_false(plan.fits);
    if (i < 2) need[i] = highest(plan.device_memory_peak);
    assert_int_equal(strstr(plan.refusal, "--precision bf16") != NULL, i == 2);
    close_session(&s);
  }
  assert_true(need[0] < need[1]);
}

static void check_stage(const char *name, uint64_t planned, uint64_t used) {
  const double fixed = (double)DEVICE_LEAST_BYTES; /* the same on both sides */
  print_message("%s: planned %.1f MiB, used %.1f MiB\n", name, (double)planned / (1 << 20),
                (double)used / (1 << 20));
  double p = (double)planned - fixed, u = (double)used - fixed;
  assert_true(p >= 0.9 * u - (8 << 20) && p <= 1.1 * u + (8 << 20));
}

/* Random normal numbers of this shape, as `name` beside what `more` holds, in a file of that name. */
static const char *random_file(const char *name, const int64_t dim[4], const named_tensor *more) {
  int64_t count;
  char file[64];
  assert_true(tensor_dims_count(4, dim, &count));
  float *values = core_alloc(NULL, (size_t)count * sizeof *values);
  assert_non_null(values);
  rng_normal_philox(1, values, (size_t)count);
  snprintf(file, sizeof file, "%s.safetensors", name);
  const char *path = scratch_path(&dir, file);
  named_tensor t[2] = {{name, tensor_of(DT_F32, values, 4, dim)}};
  if (more) t[1] = *more;
  assert_int_equal(safetensors_write(NULL, path, more ? 2 : 1, t, NULL), WAN_OK);
  core_free(NULL, values);
  return path;
}

/* Inputs of the denoising stage: the latent's noise and 5 rows of text. */
static const char *denoise_inputs(const wan_model *m, const wan_generate_params *p) {
  enum { ROWS = 5 };
  static float context[ROWS * 4096];
  const int64_t text = m->config[0].text_dim;
  assert_true(text <= 4096);
  rng_normal_philox(2, context, (size_t)(ROWS * text));
  const named_tensor t = {"context", TENSOR_OF(DT_F32, context, ROWS, text)};
  return random_file(
      "noise",
      (int64_t[]){m->vae_z, (p->frames - 1) / 4 + 1, p->height / m->vae_stride, p->width / m->vae_stride},
      &t);
}

/* Four steps: from the third on, streamed weights are read from pinned pages. The latent goes to `out`. */
static void check_denoise(session *s, const wan_generate_params *p, uint64_t limit, const char *out) {
  wan_plan plan = plan_of(s, p);
  wan_stage_params stage;
  wan_stage_params_init(&stage);
  stage.stage = "denoise";
  stage.model_dir = model_dir_path;
  stage.in_path = denoise_inputs(s->model, p);
  stage.out_path = out;
  stage.generate = *p;
  if (wan_stage_run(s->context, &stage, NULL) != WAN_OK) fail_msg("%s", wan_context_error(s->context));
  const uint64_t used = wan_context_device_memory_peak(s->context);
  print_message("%d of %d blocks resident\n", plan.blocks_resident, plan.blocks);
  check_stage("denoise", plan.device_memory_peak[WAN_STAGE_DENOISE], used);
  assert_true(!limit || used <= limit);
  assert_int_equal(plan.blocks_resident < plan.blocks, limit != 0);
}

static void assert_same_file(const char *a, const char *b) {
  size_t na = 0, nb = 0;
  char *x = NULL, *y = NULL;
  assert_int_equal(core_read_text(NULL, a, 1 << 28, &x, &na), WAN_OK);
  assert_int_equal(core_read_text(NULL, b, 1 << 28, &y, &nb), WAN_OK);
  assert_int_equal(na, nb);
  assert_memory_equal(x, y, na);
  core_free(NULL, x);
  core_free(NULL, y);
}

static bool ignore_frame(void *user, int index, int width, int height, const uint8_t *rgb) {
  (void)user, (void)index, (void)width, (void)height, (void)rgb;
  return true;
}

static void check_decode(session *s, wan_generate_params p, uint64_t limit) {
  wan_generate_result r;
  wan_generate_result_init(&r);
  const int stride = s->model->vae_stride;
  p.width = p.height = 256;
  p.frames = 9;
  p.from_latent_path =
      random_file("latent", (int64_t[]){s->model->vae_z, 3, 256 / stride, 256 / stride}, NULL);
  p.frame = ignore_frame;
  wan_plan plan = plan_of(s, &p);
  if (wan_generate(s->model, &p, &r) != WAN_OK) fail_msg("%s", wan_context_error(s->context));
  check_stage("decode", plan.device_memory_peak[WAN_STAGE_DECODE], r.device_memory_peak[WAN_STAGE_DECODE]);
  assert_true(!limit || r.device_memory_peak[WAN_STAGE_DECODE] <= limit);
}

static void test_device(void **state) {
  (void)state;
  char kept[512], streamed[512];
  session s;
  wan_generate_params p = request();
  p.width = 832;
  p.height = 480;
  p.frames = 81;
  p.steps = 4;
  p.guidance_low = p.guidance_high = 1;
  if (!open_session(&s, 0, false, model_dir_path)) {
    print_message("SKIPPED: no CUDA device\n");
    skip();
  }
  snprintf(kept, sizeof kept, "%s", scratch_path(&dir, "kept.safetensors"));
  snprintf(streamed, sizeof streamed, "%s", scratch_path(&dir, "streamed.safetensors"));
  check_denoise(&s, &p, 0, kept);
  check_decode(&s, p, 0);
  wan_plan plan = plan_of(&s, &p);
  /* A little less than everything: some blocks are streamed, which changes nothing in the result. */
  const uint64_t limit = plan.device_memory_peak[WAN_STAGE_DENOISE] - plan.weights[WAN_STAGE_DENOISE] / 4;
  close_session(&s);
  assert_true(open_session(&s, limit, false, model_dir_path));
  check_denoise(&s, &p, limit, streamed);
  assert_same_file(kept, streamed);
  close_session(&s);
  assert_true(open_session(&s, limit, false, model_dir_path));
  check_decode(&s, p, limit);
  close_session(&s);
}

/* An allocation beyond the limit is refused with the limit, what is held and what was asked. */
static void test_allocation(void **state) {
  (void)state;
  core_ctx ctx;
  backend *be;
  core_ctx_init(&ctx);
  ctx.device_limit = GIB;
  if (backend_open(&ctx, &(backend_config){.name = "cuda"}, &be) != WAN_OK) {
    print_message("SKIPPED: %s\n", ctx.message);
    skip();
  }
  tensor small = TENSOR_ALLOC(be, DT_F32, 1 << 20), large = TENSOR_ALLOC(be, DT_F32, 1 << 28);
  assert_non_null(small.data);
  assert_null(large.data);
  assert_int_equal(backend_status(be), WAN_ERR_MEMORY);
  print_message("%s\n", ctx.message);
  assert_non_null(strstr(ctx.message, "1024.0 MiB more do not fit into the limit of 1.00 GiB"));
  assert_true(core_device_peak(&ctx) <= GIB);
  backend_clear(be);
  tensor_free(be, &small);
  backend_close(be);
  assert_int_equal(core_device_current(&ctx), 0);
  ctx.device_limit = GIB / 8;
  assert_int_equal(backend_open(&ctx, &(backend_config){.name = "cuda"}, &be), WAN_ERR_ARGUMENT);
  assert_non_null(strstr(ctx.message, "too low"));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_planned_peaks), cmocka_unit_test(test_refused),
                                     cmocka_unit_test(test_other_precision), cmocka_unit_test(test_device),
                                     cmocka_unit_test(test_allocation)};
  return cmocka_run_group_tests(tests, setup, teardown);
}
