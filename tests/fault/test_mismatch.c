/* Parts that do not belong together, weights that are no numbers, requests that make no sense: each is
 * refused with one message that says what and where, before anything is written; then the same context works.
 */
#define _GNU_SOURCE
#include "tiny.h"

#include <jansson.h>
#include <math.h>

static scratch dir;
static const char *model; /* a copy of the ti2v checkpoint, with its weights as three safetensors files */
static char part[3][700]; /* the files, by weight_kind */

static const char *original(weight_kind kind) {
  static const char *const names[] = {[WEIGHTS_DIT] = TINY_DATA "ckpt/ti2v",
                                      [WEIGHTS_TEXT] = TINY_DATA "ckpt/ti2v/models_t5_umt5-xxl-enc-bf16.pth",
                                      [WEIGHTS_VAE] = TINY_DATA "ckpt/ti2v/Wan2.2_VAE.pth"};
  return names[kind];
}

static int make_model(void **state) {
  (void)state;
  static const char *const gone[] = {"diffusion_pytorch_model.safetensors.index.json",
                                     "diffusion_pytorch_model-00001-of-00003.safetensors",
                                     "diffusion_pytorch_model-00002-of-00003.safetensors",
                                     "diffusion_pytorch_model-00003-of-00003.safetensors",
                                     "Wan2.2_VAE.pth",
                                     "models_t5_umt5-xxl-enc-bf16.pth"};
  static const char *const names[] = {[WEIGHTS_DIT] = "diffusion_pytorch_model.safetensors",
                                      [WEIGHTS_TEXT] = "models_t5_umt5-xxl-enc-bf16.safetensors",
                                      [WEIGHTS_VAE] = "Wan2.2_VAE.safetensors"};
  char path[700];
  scratch_open(&dir);
  model = tiny_copy(&dir, "ti2v", "model");
  for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) {
    snprintf(path, sizeof path, "%s/%s", model, gone[i]);
    unlink(path);
  }
  for (int k = 0; k < 3; k++) {
    snprintf(part[k], sizeof part[k], "%s/%s", model, names[k]);
    tiny_rewrite(original((weight_kind)k), (weight_kind)k, part[k], NULL, NULL);
  }
  return 0;
}

static int remove_all(void **state) {
  (void)state;
  scratch_close(&dir);
  return 0;
}

/* A context that has made a video: from then on the backend keeps its scratch memory. */
static wan_context *warm_context(void) {
  static tiny_run run;
  wan_context *c = tiny_context(NULL);
  wan_model *m = tiny_open(c, model);
  tiny_must_run(c, m, TINY_PICTURE, &run);
  wan_model_close(m);
  return c;
}

/* Opens and runs; both texts have to be in the message ("": any). */
static void expect(wan_context *c, const char *path, const char *picture, wan_status want, const char *a,
                   const char *b, const char *what) {
  static tiny_run run;
  wan_generate_params p;
  wan_model *m = NULL;
  uint64_t held = wan_context_memory(c);
  int files = tiny_entries(dir.dir);
  tiny_reset(&run, c);
  tiny_params(&run, picture, &p);
  c->core.message[0] = 0;
  wan_status s = wan_model_open(c, path, &m);
  if (s == WAN_OK) s = wan_generate(m, &p, NULL);
  wan_model_close(m);
  if (s != want || !strstr(wan_context_error(c), a) || !strstr(wan_context_error(c), b))
    fail_msg("%s: status %d (expected %d), message \"%s\" (expected \"%s\", \"%s\")", what, (int)s, (int)want,
             wan_context_error(c), a, b);
  if (wan_context_memory(c) != held) fail_msg("%s: leaked", what);
  assert_int_equal(tiny_entries(dir.dir), files);
}

/* ---- Tensors ---- */

typedef enum edit_kind { NOT_A_NUMBER, INFINITE, DROP, SHORTEN, RENAME } edit_kind;

typedef struct tensor_case {
  weight_kind kind;
  const char *name;
  edit_kind edit;
  wan_status status;
  const char *says[2];
} tensor_case;

static const tensor_case tensor_cases[] = {
    {WEIGHTS_DIT, "blocks.1.self_attn.q.weight", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"block 1", "step 1 of 2"}},
    {WEIGHTS_DIT, "blocks.1.modulation", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"block 1", "step 1 of 2"}},
    {WEIGHTS_DIT, "blocks.0.ffn.2.bias", INFINITE, WAN_ERR_NUMERIC, {"block 0", "step 1 of 2"}},
    {WEIGHTS_DIT, "blocks.1.cross_attn.v.bias", INFINITE, WAN_ERR_NUMERIC, {"block 1", "step 1 of 2"}},
    {WEIGHTS_DIT, "patch_embedding.weight", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"block 0", "step 1 of 2"}},
    {WEIGHTS_DIT, "time_embedding.2.bias", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"block 0", "step 1 of 2"}},
    {WEIGHTS_DIT, "text_embedding.2.weight", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"block 0", "step 1 of 2"}},
    {WEIGHTS_DIT, "head.head.weight", INFINITE, WAN_ERR_NUMERIC, {"velocity", "step 1 of 2"}},
    {WEIGHTS_TEXT, "blocks.0.attn.q.weight", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"models_t5", "text encoder"}},
    {WEIGHTS_TEXT, "blocks.1.ffn.fc2.weight", INFINITE, WAN_ERR_NUMERIC, {"models_t5", "text encoder"}},
    {WEIGHTS_TEXT, "norm.weight", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"models_t5", "text encoder"}},
    {WEIGHTS_TEXT, "token_embedding.weight", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"models_t5", "text encoder"}},
    {WEIGHTS_VAE, "encoder.conv1.weight", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"Wan2.2_VAE", "encoder"}},
    {WEIGHTS_VAE, "decoder.conv1.bias", INFINITE, WAN_ERR_NUMERIC, {"Wan2.2_VAE", "decoder"}},
    {WEIGHTS_VAE, "decoder.head.2.bias", NOT_A_NUMBER, WAN_ERR_NUMERIC, {"Wan2.2_VAE", "decoder"}},
    {WEIGHTS_DIT, "blocks.1.cross_attn.k.weight", DROP, WAN_ERR_FORMAT, {"blocks.1.cross_attn.k", "missing"}},
    {WEIGHTS_DIT, "blocks.0.modulation", DROP, WAN_ERR_FORMAT, {"blocks.0.modulation", "missing"}},
    {WEIGHTS_DIT, "patch_embedding.weight", DROP, WAN_ERR_FORMAT, {"patch_embedding.weight", "missing"}},
    {WEIGHTS_DIT, "blocks.1.ffn.0.bias", SHORTEN, WAN_ERR_FORMAT, {"blocks.1.ffn.0.bias", "shape"}},
    {WEIGHTS_DIT, "blocks.1.modulation", DROP, WAN_ERR_FORMAT, {"blocks.1.modulation", "missing"}},
    {WEIGHTS_DIT, "blocks.1.norm3.weight", RENAME, WAN_ERR_FORMAT, {"blocks.1.norm3", ""}},
    {WEIGHTS_TEXT, "blocks.1.attn.o.weight", DROP, WAN_ERR_FORMAT, {"blocks.1.attn.o", "missing"}},
    {WEIGHTS_TEXT, "blocks.0.ffn.gate.0.weight", SHORTEN, WAN_ERR_FORMAT, {"blocks.0.ffn", "shape"}},
    {WEIGHTS_TEXT, "token_embedding.weight", SHORTEN, WAN_ERR_FORMAT, {"tokenizer", "not of one model"}},
    {WEIGHTS_TEXT, "norm.weight", RENAME, WAN_ERR_FORMAT, {"norm.weight", "missing"}},
    {WEIGHTS_VAE,
     "decoder.middle.1.proj.bias",
     DROP,
     WAN_ERR_FORMAT,
     {"decoder.middle.1.proj.bias", "missing"}},
    {WEIGHTS_VAE, "encoder.head.2.weight", SHORTEN, WAN_ERR_FORMAT, {"encoder.head.2.weight", "shape"}},
    {WEIGHTS_VAE, "conv2.bias", RENAME, WAN_ERR_FORMAT, {"conv2.bias", "missing"}},
};

static void edit_tensor(void *user, named_tensor *t) {
  const tensor_case *k = user;
  static const unsigned char bits[2][2] = {{0xc0, 0x7f}, {0x80, 0x7f}}; /* upper halves: NaN, infinity */
  if (strcmp(t->name, k->name) != 0) return;
  size_t size = dtype_size(t->value.type), n = tensor_bytes(&t->value);
  if (k->edit == DROP) t->name = NULL;
  if (k->edit == RENAME) t->name = "another.weight";
  if (k->edit == SHORTEN) t->value.dim[0] /= 2; /* under a vocabulary by as much */
  if (k->edit > INFINITE) return;
  if (t->value.type == DT_F16) fail_msg("%s is F16, which has no room for these bits", t->name);
  /* every value of a table, of which a prompt uses a few rows; one value of the others */
  size_t end = strstr(t->name, "token_embedding") ? n : size;
  for (size_t at = 0; at < end; at += size) {
    memset((char *)t->value.data + at, 0, size);
    memcpy((char *)t->value.data + at + size - 2, bits[k->edit], 2);
  }
}

static void test_tensors(void **state) {
  (void)state;
  wan_context *c = warm_context();
  for (size_t i = 0; i < sizeof tensor_cases / sizeof *tensor_cases; i++) {
    const tensor_case *k = &tensor_cases[i];
    tiny_rewrite(original(k->kind), k->kind, part[k->kind], edit_tensor, (void *)(uintptr_t)k);
    expect(c, model, TINY_PICTURE, k->status, k->says[0], k->says[1], k->name);
    tiny_rewrite(original(k->kind), k->kind, part[k->kind], NULL, NULL);
  }
  expect(c, model, TINY_PICTURE, WAN_OK, "", "", "undamaged");
  wan_context_destroy(c);
}

/* ---- Config ---- */

static const struct {
  const char *key, *value, *says;
} configs[] = {{"dim", "50", "dim = 50"},
               {"ffn_dim", "7", "ffn_dim = 7"},
               {"freq_dim", "30", "freq_dim = 30"},
               {"text_dim", "31", "text_dim = 31"},
               {"in_dim", "16", "in_dim = 16"},
               {"out_dim", "16", "out_dim = 16"},
               {"num_layers", "3", "num_layers = 3"},
               {"num_heads", "5", "5 heads"},
               {"num_heads", "16777216", "heads"},
               {"num_heads", "0", "\"num_heads\""},
               {"num_heads", "-2", "\"num_heads\""},
               {"num_heads", "1e30", "\"num_heads\""},
               {"num_heads", "\"two\"", "\"num_heads\""},
               {"dim", "9223372036854775807", "\"dim\""},
               {"text_len", "16777216", "text_len"},
               {"eps", "-1", "\"eps\""},
               {"eps", "\"small\"", "\"eps\""},
               {"model_type", "\"s2v\"", "S2V"},
               {"model_type", "7", "\"model_type\""},
               {"patch_size", "[1, 4, 4]", "\"patch_size\""},
               {"qk_norm", "false", "\"qk_norm\""}};

static void test_configs(void **state) {
  (void)state;
  char path[700];
  snprintf(path, sizeof path, "%s/config.json", model);
  size_t size;
  unsigned char *good = tiny_read(path, &size);
  wan_context *c = warm_context();
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    json_error_t e;
    json_t *root = json_loadb((const char *)good, size, 0, &e);
    json_object_set_new(root, configs[i].key, json_loads(configs[i].value, JSON_DECODE_ANY, &e));
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
    static tiny_run run;
    wan_model *m;
    tiny_reset(&run, c);
    wan_status s = wan_model_open(c, model, &m);
    if (s != WAN_ERR_FORMAT && s != WAN_ERR_UNSUPPORTED)
      fail_msg("%s = %s: status %d", configs[i].key, configs[i].value, (int)s);
    if (!strstr(wan_context_error(c), configs[i].says))
      fail_msg("%s = %s: %s", configs[i].key, configs[i].value, wan_context_error(c));
  }
  tiny_write(path, good, size);
  expect(c, model, NULL, WAN_OK, "", "", "undamaged");
  free(good);
  wan_context_destroy(c);
}

/* ---- Parts of other models ---- */

static void replace(const char *to, const char *from) {
  size_t size;
  unsigned char *data = tiny_read(from, &size);
  tiny_write(to, data, size);
  free(data);
}

/* The transformer takes fewer text channels. */
static void narrow_text(void *user, named_tensor *t) {
  (void)user;
  if (strcmp(t->name, "text_embedding.0.weight") == 0) t->value.dim[1] /= 2;
}

static void test_parts(void **state) {
  (void)state;
  char path[700];
  wan_context *c = warm_context();
  const char *mixed = tiny_copy(&dir, "ti2v", "mixed");
  snprintf(path, sizeof path, "%s/Wan2.2_VAE.pth", mixed);
  replace(path, TINY_DATA "ckpt/t2v/Wan2.1_VAE.pth");
  expect(c, mixed, NULL, WAN_ERR_FORMAT, "48", "not of one model", "VAE of another z");
  mixed = tiny_copy(&dir, "ti2v", "mixed");
  snprintf(path, sizeof path, "%s/models_t5_umt5-xxl-enc-bf16.pth", mixed);
  replace(path, TINY_DATA "ckpt/ti2v/Wan2.2_VAE.pth");
  expect(c, mixed, NULL, WAN_ERR_FORMAT, "models_t5", "", "VAE in place of the text encoder");
  tiny_rewrite(original(WEIGHTS_DIT), WEIGHTS_DIT, part[WEIGHTS_DIT], narrow_text, NULL);
  snprintf(path, sizeof path, "%s/config.json", model);
  size_t size;
  unsigned char *config = tiny_read(path, &size);
  tiny_write(path, "{\"num_heads\": 2}", 16);
  expect(c, model, NULL, WAN_ERR_FORMAT, "text encoder", "not of one model", "text encoder of another width");
  tiny_write(path, config, size);
  free(config);
  tiny_rewrite(original(WEIGHTS_DIT), WEIGHTS_DIT, part[WEIGHTS_DIT], NULL, NULL);
  mixed = tiny_copy(&dir, "t2v", "experts");
  snprintf(path, sizeof path, "%s/low_noise_model/diffusion_pytorch_model.safetensors", mixed);
  tiny_rewrite(TINY_DATA "ckpt/i2v/low_noise_model", WEIGHTS_DIT, path, NULL, NULL);
  snprintf(path, sizeof path, "%s/low_noise_model/config.json", mixed);
  replace(path, TINY_DATA "ckpt/i2v/low_noise_model/config.json");
  expect(c, mixed, NULL, WAN_ERR_FORMAT, "high-noise expert", "not of one model", "experts of two models");
  expect(c, "/nowhere/at/all", NULL, WAN_ERR_IO, "/nowhere/at/all", "", "no folder");
  wan_context_destroy(c);
}

/* ---- Requests ---- */

typedef void (*change_fn)(wan_generate_params *p);
static const wan_frame_image far_frame = {99, TINY_PICTURE};
static const float bad_sigmas[2] = {NAN, 0.5f};
static const int no_block[1] = {64};

#define CHANGE(name, ...)                    \
  static void name(wan_generate_params *p) { \
    (void)p;                                 \
    __VA_ARGS__;                             \
  }
CHANGE(frames_negative, p->frames = -4)
CHANGE(frames_huge, p->frames = INT32_MAX)
CHANGE(frames_many, p->frames = 1 << 20; p->width = p->height = 4096)
CHANGE(width_alone, p->height = 0)
CHANGE(width_negative, p->width = -32)
CHANGE(side_huge, p->width = INT32_MAX; p->height = INT32_MAX)
CHANGE(side_largest, p->width = p->height = 16384; p->frames = 121)
CHANGE(steps_negative, p->steps = -1)
CHANGE(steps_huge, p->steps = INT32_MAX)
CHANGE(split_one, p->steps_high = p->steps_low = 1)
CHANGE(split_overflow, p->steps_high = p->steps_low = INT32_MAX)
CHANGE(shift_nan, p->shift = NAN)
CHANGE(shift_infinite, p->shift = INFINITY)
CHANGE(guidance_infinite, p->guidance_low = INFINITY)
CHANGE(guidance_nan, p->guidance_low = NAN)
CHANGE(interval_nan, p->guidance_start = NAN)
CHANGE(fps_nan, p->fps = NAN)
CHANGE(fps_huge, p->fps = 1e9)
CHANGE(boundary_two, p->boundary = 2)
CHANGE(sampler_unknown, p->sampler = (wan_sampler)17)
CHANGE(rng_unknown, p->rng = (wan_rng)17)
CHANGE(sigmas_nan, p->sigmas = bad_sigmas)
CHANGE(block_unknown, p->skip_layers = no_block; p->skip_layer_count = 1)
CHANGE(frame_far, p->frame_images = &far_frame; p->frame_image_count = 1)
CHANGE(zero_init_all, p->zero_init_steps = 2)
CHANGE(apg_nan, p->apg = true; p->apg_norm = NAN)
CHANGE(image_missing, p->image_path = "/nowhere.png")
CHANGE(image_text, p->image_path = TINY_DATA "README.md")
CHANGE(image_folder, p->image_path = TINY_DATA)
CHANGE(image_device, p->image_path = "/dev/zero")
CHANGE(clip_text, p->video_path = TINY_DATA "README.md"; p->video_frames = 1)
CHANGE(clip_whole, p->video_path = TINY_DATA "README.md")
CHANGE(noise_text, p->noise_path = TINY_DATA "README.md")
CHANGE(noise_shape, p->noise_path = TINY_DATA "noise_small.safetensors")
CHANGE(latent_shape, p->from_latent_path = TINY_DATA "noise_small.safetensors")
CHANGE(checkpoint_other, p->checkpoint_path = TINY_DATA "noise_small.safetensors")
CHANGE(output_unknown, p->output_path = "/tmp/wan-test.avi")
CHANGE(output_nowhere, p->output_path = "/nowhere/a.mp4")
CHANGE(output_empty, p->output_path = "")
CHANGE(latent_nowhere, p->save_latent_path = "/nowhere/a.safetensors")
CHANGE(state_nowhere, p->checkpoint_path = "/nowhere/a.safetensors")
CHANGE(state_folder, p->checkpoint_path = "/tmp")
CHANGE(prompt_100k, static char text[100 << 10]; memset(text, 'b', sizeof text - 1); p->prompt = text)
CHANGE(prompt_broken, p->prompt = "red \xff\xfe")
CHANGE(prompt_cut, p->prompt = "red \xe2\x82")
CHANGE(negative_surrogate, p->negative = "\xed\xa0\x80")
CHANGE(prompt_long, static char text[3 << 20]; memset(text, 'a', sizeof text - 1); p->prompt = text)

#define REQUEST(fn, status, text) \
  { #fn, fn, status, text }
static const struct {
  const char *name;
  change_fn change;
  wan_status status;
  const char *says;
} requests[] = {
    REQUEST(frames_negative, WAN_ERR_ARGUMENT, "-4 frames"),
    REQUEST(frames_huge, WAN_ERR_ARGUMENT, "frames"),
    REQUEST(frames_many, WAN_ERR_ARGUMENT, "too large"),
    REQUEST(width_alone, WAN_ERR_ARGUMENT, "together"),
    REQUEST(width_negative, WAN_ERR_ARGUMENT, "-32"),
    REQUEST(side_huge, WAN_ERR_ARGUMENT, "16384"),
    REQUEST(side_largest, WAN_ERR_MEMORY, "limit"),
    REQUEST(steps_negative, WAN_ERR_ARGUMENT, "steps"),
    REQUEST(steps_huge, WAN_ERR_ARGUMENT, "steps"),
    REQUEST(split_one, WAN_ERR_ARGUMENT, "one expert"),
    REQUEST(split_overflow, WAN_ERR_ARGUMENT, ""),
    REQUEST(shift_nan, WAN_ERR_ARGUMENT, "shift"),
    REQUEST(shift_infinite, WAN_ERR_ARGUMENT, "shift"),
    REQUEST(guidance_infinite, WAN_ERR_ARGUMENT, "guidance"),
    REQUEST(guidance_nan, WAN_ERR_ARGUMENT, "guidance"),
    REQUEST(interval_nan, WAN_ERR_ARGUMENT, "interval"),
    REQUEST(fps_nan, WAN_ERR_ARGUMENT, "frames a second"),
    REQUEST(fps_huge, WAN_ERR_ARGUMENT, "frames a second"),
    REQUEST(boundary_two, WAN_ERR_ARGUMENT, "boundary"),
    REQUEST(sampler_unknown, WAN_ERR_ARGUMENT, "sampler"),
    REQUEST(rng_unknown, WAN_ERR_ARGUMENT, "generator"),
    REQUEST(sigmas_nan, WAN_ERR_ARGUMENT, "sigma"),
    REQUEST(block_unknown, WAN_ERR_ARGUMENT, "block 64"),
    REQUEST(frame_far, WAN_ERR_ARGUMENT, "frame 99"),
    REQUEST(zero_init_all, WAN_ERR_ARGUMENT, "zero-init"),
    REQUEST(apg_nan, WAN_ERR_ARGUMENT, "projected"),
    REQUEST(image_missing, WAN_ERR_IO, "/nowhere.png"),
    REQUEST(image_text, WAN_ERR_FORMAT, "README.md"),
    REQUEST(image_folder, WAN_ERR_IO, "not a regular file"),
    REQUEST(image_device, WAN_ERR_IO, "not a regular file"),
    REQUEST(clip_whole, WAN_ERR_ARGUMENT, "fewer than the 5 frames"),
    REQUEST(clip_text, WAN_ERR_FORMAT, "README.md"),
    REQUEST(noise_text, WAN_ERR_FORMAT, "README.md"),
    REQUEST(noise_shape, WAN_ERR_FORMAT, "noise_small"),
    REQUEST(latent_shape, WAN_ERR_FORMAT, "noise_small"),
    REQUEST(checkpoint_other, WAN_ERR_FORMAT, "noise_small"),
    REQUEST(output_unknown, WAN_ERR_ARGUMENT, "kind of output"),
    REQUEST(output_nowhere, WAN_ERR_IO, "/nowhere"),
    REQUEST(output_empty, WAN_ERR_ARGUMENT, ""),
    REQUEST(latent_nowhere, WAN_ERR_IO, "/nowhere"),
    REQUEST(state_nowhere, WAN_ERR_IO, "/nowhere"),
    REQUEST(state_folder, WAN_ERR_IO, "/tmp"),
    REQUEST(prompt_100k, WAN_ERR_ARGUMENT, "more than 65536"),
    REQUEST(prompt_broken, WAN_ERR_ARGUMENT, "prompt is not valid UTF-8 at byte 4"),
    REQUEST(prompt_cut, WAN_ERR_ARGUMENT, "prompt is not valid UTF-8 at byte 4"),
    REQUEST(negative_surrogate, WAN_ERR_ARGUMENT, "negative prompt is not valid UTF-8 at byte 0"),
    REQUEST(prompt_long, WAN_ERR_ARGUMENT, "prompt"),
};

static void test_requests(void **state) {
  (void)state;
  static tiny_run run;
  wan_context *c;
  wan_context_params cp;
  wan_context_params_init(&cp);
  cp.backend = tiny_backend();
  cp.threads = 1;
  cp.memory_limit = 256 << 20;
  assert_int_equal(wan_context_create(&cp, &c), WAN_OK);
  wan_model *m = tiny_open(c, TINY_DATA "ckpt/ti2v");
  tiny_must_run(c, m, NULL, &run); /* from here on the backend keeps its scratch memory */
  for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
    wan_generate_params p;
    tiny_reset(&run, c);
    tiny_params(&run, NULL, &p);
    requests[i].change(&p);
    uint64_t held = wan_context_memory(c);
    wan_status s = wan_generate(m, &p, NULL);
    if (s != requests[i].status || !strstr(wan_context_error(c), requests[i].says))
      fail_msg("%s: status %d (expected %d), message \"%s\" (expected \"%s\")", requests[i].name, (int)s,
               (int)requests[i].status, wan_context_error(c), requests[i].says);
    if (wan_context_memory(c) != held) fail_msg("%s: leaked", requests[i].name);
    if (s == WAN_ERR_MEMORY) assert_int_equal(run.events, 0); /* planned, not tried */
    if (run.used) fail_msg("%s: frames were made", requests[i].name);
  }
  tiny_must_run(c, m, NULL, &run);
  wan_model_close(m);
  wan_context_destroy(c);
}

/* Prompts that are odd but fine. */
static void test_prompts(void **state) {
  (void)state;
  static char long_text[60 << 10];
  memset(long_text, 'x', sizeof long_text - 1);
  for (size_t i = 7; i < sizeof long_text - 1; i += 8) long_text[i] = ' ';
  static const char *const prompts[] = {"",
                                        "   \n\t ",
                                        long_text,
                                        "<pad></s><extra_id_0><unk>",
                                        "&#0;&#x110000;&amp;&amp;amp;",
                                        "\xf4\x8f\xbf\xbf\xef\xbf\xbe"};
  wan_context *c = tiny_context(NULL);
  wan_model *m = tiny_open(c, TINY_DATA "ckpt/t2v");
  for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
    static tiny_run run;
    wan_generate_params p;
    tiny_reset(&run, c);
    tiny_params(&run, NULL, &p);
    p.prompt = p.negative = prompts[i];
    p.frames = 1;
    if (wan_generate(m, &p, NULL) != WAN_OK) fail_msg("prompt %zu: %s", i, wan_context_error(c));
    assert_true(run.used > 0);
  }
  wan_model_close(m);
  wan_context_destroy(c);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_tensors), cmocka_unit_test(test_configs),
                                     cmocka_unit_test(test_parts), cmocka_unit_test(test_requests),
                                     cmocka_unit_test(test_prompts)};
  return cmocka_run_group_tests_name("what does not belong together", tests, make_model, remove_all);
}
