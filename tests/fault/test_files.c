/* Files cut where their structure allows it, and files with a changed byte: a cut file is refused with a
 * message that names it; a changed byte never crashes, hangs or leaks, and where the format protects its
 * content (PNG, our checkpoints) it is refused or makes no difference. */
#define _GNU_SOURCE
#include "tiny.h"
#include "scratch_dir.h"

#include <jansson.h>
#ifdef WAN_HAVE_IMAGES
#include <webp/encode.h>
#endif

#include "media/media.h"

/* ---- One damaged file at a time ---- */

typedef struct subject {
  wan_context *c;
  char path[700]; /* the file that is damaged */
  const char *name, *model;
  unsigned char *good, *bad; /* its bytes */
  size_t size;
  const char *noise, *latent, *checkpoint;
  tiny_run run, want;
} subject;

/* A run of two cheap steps that reads all the files of the model. */
static wan_status run(subject *s) {
  wan_model *m = NULL;
  wan_generate_params p;
  tiny_reset(&s->run, s->c);
  tiny_params(&s->run, NULL, &p);
  p.guidance_low = p.guidance_high = 1; /* one pass a step */
  p.noise_path = s->noise;
  p.from_latent_path = s->latent;
  p.checkpoint_path = s->checkpoint;
  s->c->core.message[0] = 0;
  wan_status status = wan_model_open(s->c, s->model, &m);
  if (status == WAN_OK) status = wan_generate(m, &p, NULL);
  wan_model_close(m);
  return status;
}

static void subject_open(subject *s, const char *model, const char *name) {
  *s = (subject){.c = tiny_context(NULL), .model = model, .name = name};
  snprintf(s->path, sizeof s->path, "%s/%s", model, name);
  s->good = tiny_read(s->path, &s->size);
  s->bad = malloc(s->size + 1);
}

/* The undamaged run; afterwards the file is as it was. */
static void subject_first_run(subject *s) {
  if (run(s) != WAN_OK) fail_msg("%s: %s", s->name, wan_context_error(s->c));
  s->want = s->run;
  tiny_write(s->path, s->good, s->size);
}

static void subject_close(subject *s) {
  tiny_write(s->path, s->good, s->size);
  if (run(s) != WAN_OK) fail_msg("%s, whole again: %s", s->name, wan_context_error(s->c));
  tiny_same(&s->run, &s->want, "whole again");
  free(s->good);
  free(s->bad);
  wan_context_destroy(s->c);
}

static wan_status try_bytes(subject *s, const unsigned char *data, size_t size, const char *what, size_t at) {
  tiny_write(s->path, data, size);
  uint64_t held = wan_context_memory(s->c);
  wan_status status = run(s);
  if (status != WAN_OK && !*wan_context_error(s->c)) fail_msg("%s, %s %zu: no message", s->name, what, at);
  if (wan_context_memory(s->c) != held) fail_msg("%s, %s %zu: leaked", s->name, what, at);
  return status;
}

static void cut_at(subject *s, size_t at) {
  if (at >= s->size) return;
  wan_status status = try_bytes(s, s->good, at, "cut at byte", at);
  const char *base = strrchr(s->name, '/') ? strrchr(s->name, '/') + 1 : s->name;
  if (status != WAN_ERR_FORMAT && status != WAN_ERR_IO && status != WAN_ERR_UNSUPPORTED)
    fail_msg("%s, cut at byte %zu of %zu: status %d, \"%s\"", s->name, at, s->size, (int)status,
             wan_context_error(s->c));
  if (!strstr(wan_context_error(s->c), base))
    fail_msg("%s, cut at byte %zu: the message names another file: %s", s->name, at, wan_context_error(s->c));
}

/* Single bits, and bytes replaced by the values that parsers stumble over. */
static void flips(subject *s, double seconds, bool guarded, uint64_t *chance) {
  static const unsigned char hard[] = {0, 0x7f, 0x80, 0xff};
  int refused = 0, done = 0;
  for (double end = tiny_seconds() + tiny_budget(seconds); tiny_seconds() < end; done++) {
    uint64_t r = tiny_next(chance);
    size_t at = (size_t)(tiny_next(chance) % s->size);
    if (done % 2 && s->size > 2048) at %= 1024; /* headers are small and matter most */
    memcpy(s->bad, s->good, s->size);
    unsigned value = r & 16 ? hard[r & 3] : s->bad[at] ^ 1u << (r & 7);
    s->bad[at] = (unsigned char)value;
    wan_status status = try_bytes(s, s->bad, s->size, "byte", at);
    refused += status != WAN_OK;
    if (guarded && status == WAN_OK) tiny_same(&s->run, &s->want, s->name);
  }
  print_message("%s: %d changed bytes, %d refused\n", s->name, done, refused);
}

/* ---- Where the formats can be cut ---- */

static void cut_json(subject *s, size_t step) {
  size_t end = s->size;
  while (end && (s->good[end - 1] == '\n' || s->good[end - 1] == ' ')) end--; /* nothing is missing there */
  for (size_t at = 0; at < end; at += step) cut_at(s, at);
  cut_at(s, end - 1);
}

static void cut_safetensors(subject *s) {
  size_t header = 0;
  for (int i = 7; i >= 0; i--) header = header << 8 | s->good[i];
  const size_t fixed[] = {0, 1, 7, 8, 9, 8 + header / 2, 7 + header, 8 + header, s->size - 1};
  for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) cut_at(s, fixed[i]);
  json_error_t e;
  json_t *root = json_loadb((const char *)s->good + 8, header, 0, &e), *entry;
  const char *name;
  json_object_foreach(root, name, entry) {
    json_t *begin = json_array_get(json_object_get(entry, "data_offsets"), 0);
    if (begin) cut_at(s, 8 + header + (size_t)json_integer_value(begin));
  }
  json_decref(root);
}

/* At the records of the zip file. */
static void cut_zip(subject *s, int every) {
  int seen = 0;
  cut_at(s, 0);
  cut_at(s, 3);
  cut_at(s, s->size - 1);
  for (size_t at = 0; at + 4 <= s->size; at++)
    if (memcmp(s->good + at, "PK", 2) == 0 && s->good[at + 2] < 8 && s->good[at + 3] == s->good[at + 2] + 1)
      if (seen++ % every == 0 || s->good[at + 2] > 2) cut_at(s, at);
  assert_true(seen > 10);
}

/* Between the fields of the outermost protobuf message: what is left is a well-formed message. */
static void cut_spiece(subject *s, int every) {
  int seen = 0;
  cut_at(s, 0);
  cut_at(s, 1);
  for (size_t at = 0; at < s->size;) {
    bool last_ones = s->good[at] >> 3 != 1; /* what comes after the pieces */
    if (at && (seen++ % every == 0 || last_ones)) cut_at(s, at);
    size_t length = 0, p = at + 1;
    for (int shift = 0; p < s->size; shift += 7) {
      length |= (size_t)(s->good[p] & 0x7f) << shift;
      if (!(s->good[p++] & 0x80)) break;
    }
    cut_at(s, p + length / 2 < s->size && seen % every == 0 ? p + length / 2 : s->size);
    at = p + length;
  }
  assert_true(seen > 10);
}

/* ---- Checkpoints of the models ---- */

static void test_models(void **state) {
  (void)state;
  uint64_t chance = tiny_seed();
  static const char *const files[] = {"config.json",
                                      "diffusion_pytorch_model.safetensors.index.json",
                                      "diffusion_pytorch_model-00002-of-00003.safetensors",
                                      "Wan2.2_VAE.pth",
                                      "models_t5_umt5-xxl-enc-bf16.pth",
                                      "google/umt5-xxl/spiece.model"};
  static subject s;
  char model[512];
  snprintf(model, sizeof model, "%s", tiny_copy(&scratch_dir, "ti2v", "model"));
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    subject_open(&s, model, files[i]);
    subject_first_run(&s);
    if (i < 2) cut_json(&s, i ? 61 : 3);
    if (i == 2) cut_safetensors(&s);
    if (i == 3 || i == 4) cut_zip(&s, i == 3 ? 29 : 7);
    if (i == 5) cut_spiece(&s, 100);
    flips(&s, 1.2, false, &chance);
    subject_close(&s);
  }
}

/* ---- Noise, latents, checkpoints of runs ---- */

static void stop_in_the_middle(subject *s) {
  wan_model *m = tiny_open(s->c, s->model);
  wan_generate_params p;
  tiny_reset(&s->run, s->c);
  tiny_params(&s->run, NULL, &p);
  p.guidance_low = p.guidance_high = 1;
  p.checkpoint_path = s->path;
  for (s->run.cancel_at = 0; wan_generate(m, &p, NULL) == WAN_ERR_CANCELLED; s->run.cancel_at++) {
    if (access(s->path, F_OK) == 0) break; /* one step is done */
    int next = s->run.cancel_at;
    tiny_reset(&s->run, s->c);
    s->run.cancel_at = next;
  }
  wan_model_close(m);
}

static void test_run_files(void **state) {
  (void)state;
  uint64_t chance = tiny_seed();
  static subject s;
  const char *model = TINY_DATA "ckpt/ti2v";
  char path[600];
  static float values[48 * 2 * 2 * 2];
  for (size_t i = 0; i < sizeof values / sizeof *values; i++) values[i] = (float)((int)(i % 17) - 8) / 8;
  static const char *const names[] = {"noise", "latent"};
  for (int i = 0; i < 2; i++) {
    core_ctx ctx;
    core_ctx_init(&ctx);
    snprintf(path, sizeof path, "%s/%s.safetensors", scratch_dir.dir, names[i]);
    named_tensor t = {names[i], TENSOR_OF(DT_F32, values, 48, 2, 2, 2)};
    assert_int_equal(safetensors_write(&ctx, path, 1, &t, NULL), WAN_OK);
    subject_open(&s, scratch_dir.dir, strrchr(path, '/') + 1);
    s.model = model;
    *(i ? &s.latent : &s.noise) = s.path;
    subject_first_run(&s);
    cut_safetensors(&s);
    flips(&s, 0.8, false, &chance);
    size_t at = s.size - 40; /* a value that is no number */
    memcpy(s.bad, s.good, s.size);
    memcpy(s.bad + at, (unsigned char[4]){0, 0, 0xc0, 0x7f}, 4);
    assert_int_equal(try_bytes(&s, s.bad, s.size, "byte", at), WAN_ERR_NUMERIC);
    assert_non_null(strstr(wan_context_error(s.c), names[i]));
    subject_close(&s);
  }
  /* A checkpoint: made by stopping a run after its first step. */
  s = (subject){.c = tiny_context(NULL), .model = model};
  snprintf(s.path, sizeof s.path, "%s/state.safetensors", scratch_dir.dir);
  stop_in_the_middle(&s);
  wan_context_destroy(s.c);
  subject_open(&s, scratch_dir.dir, "state.safetensors");
  s.model = model;
  s.checkpoint = s.path;
  subject_first_run(&s);
  cut_safetensors(&s);
  flips(&s, 2, true, &chance);
  subject_close(&s);
}

/* ---- Pictures ---- */

static void check_picture(core_ctx *ctx, const char *name, const unsigned char *data, size_t size,
                          const picture *want, bool guarded, const char *what, size_t at) {
  picture p = {0};
  ctx->message[0] = 0;
  wan_status s = picture_load_memory(ctx, data, size, name, NULL, &p);
  if (s != WAN_OK && (!strstr(ctx->message, name) || p.rgb))
    fail_msg("%s, %s %zu: status %d, message \"%s\"", name, what, at, (int)s, ctx->message);
  if (s == WAN_OK && guarded &&
      (p.width != want->width || p.height != want->height ||
       memcmp(p.rgb, want->rgb, (size_t)p.width * (size_t)p.height * 3) != 0))
    fail_msg("%s, %s %zu: another picture without an error", name, what, at);
  picture_free(ctx, &p);
}

static void damage_picture(const char *name, const unsigned char *good, size_t size, bool guarded,
                           uint64_t *chance) {
  core_ctx ctx;
  picture want;
  core_ctx_init(&ctx);
  if (picture_load_memory(&ctx, good, size, name, NULL, &want) != WAN_OK) fail_msg("%s", ctx.message);
  unsigned char *bad = malloc(size);
  for (size_t at = 0; at<size; at += size> 4096 ? 7 : 1) {
    /* a block of its own, so that reading on is seen by the sanitizers */
    unsigned char *cut = malloc(at ? at : 1);
    memcpy(cut, good, at);
    check_picture(&ctx, name, cut, at, &want, true, "cut at byte", at);
    free(cut);
  }
  for (int i = 0; i < 1500; i++) {
    uint64_t r = tiny_next(chance);
    size_t at = (size_t)((r >> 8) % size);
    memcpy(bad, good, size);
    bad[at] = (unsigned char)(bad[at] ^ 1u << (r & 7));
    check_picture(&ctx, name, bad, size, &want, guarded, "byte", at);
  }
  free(bad);
  picture_free(&ctx, &want);
  assert_int_equal(core_mem_current(&ctx), 0);
}

static void test_pictures(void **state) {
  (void)state;
  uint64_t chance = tiny_seed();
  static const char *const files[] = {"picture_rgb.png",        "picture_rgba.png", "picture_palette.png",
                                      "picture_palette256.png", "picture_exif.png", "picture_bilevel.png",
                                      "picture_gray_alpha.png", "picture_gray.jpg", "picture_exif.jpg"};
  for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
    char path[600];
    size_t size;
    snprintf(path, sizeof path, TINY_DATA "%s", files[i]);
    unsigned char *data = tiny_read(path, &size);
    damage_picture(files[i], data, size, strstr(files[i], ".png") != NULL, &chance);
    free(data);
  }
#ifdef WAN_HAVE_IMAGES
  uint8_t rgb[24 * 20 * 3], *webp = NULL;
  for (size_t i = 0; i < sizeof rgb; i++) rgb[i] = (uint8_t)(i * 7);
  size_t lossy = WebPEncodeRGB(rgb, 24, 20, 72, 80, &webp);
  damage_picture("lossy.webp", webp, lossy, false, &chance);
  WebPFree(webp);
  size_t lossless = WebPEncodeLosslessRGB(rgb, 24, 20, 72, &webp);
  damage_picture("lossless.webp", webp, lossless, false, &chance);
  WebPFree(webp);
#endif
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_pictures), cmocka_unit_test(test_run_files),
                                     cmocka_unit_test(test_models)};
  return cmocka_run_group_tests_name("damaged files", tests, scratch_setup, scratch_teardown);
}
