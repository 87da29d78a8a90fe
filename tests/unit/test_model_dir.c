/* test_model_dir.c: model folders in every layout, what is missing from them, and what is refused. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "scratch.h"
#include "sparse.h"
#include "weights/model_dir.h"
#include "weights/names.h"
#include "weights/safetensors.h"

#include <fcntl.h>
#include <jansson.h>

#define FIXTURES WAN_SOURCE_DIR "/tests/parity/data/ckpt/"

static core_ctx ctx;
static scratch dir;

static int setup(void **state) {
  (void)state;
  core_ctx_init(&ctx);
  scratch_open(&dir);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  scratch_close(&dir);
  return core_mem_current(&ctx) == 0 ? 0 : -1;
}

static void open_ok(const char *path, model_dir *m) {
  if (model_dir_open(&ctx, path, m) != WAN_OK) fail_msg("%s", ctx.message);
}

/* ---- config.json ---- */

static void test_config(void **state) {
  (void)state;
  model_config c;
  const char *official =
      "{\"_class_name\":\"WanModel\",\"model_type\":\"ti2v\",\"dim\":3072,\"ffn_dim\":14336,"
      "\"num_heads\":24,\"num_layers\":30,\"in_dim\":48,\"out_dim\":48,\"freq_dim\":256,"
      "\"text_len\":512,\"eps\":1e-06,\"patch_size\":[1,2,2]}";
  assert_int_equal(model_config_read(&ctx, scratch_text(&dir, "c.json", official), &c), WAN_OK);
  assert_string_equal(c.model_type, "ti2v");
  assert_true(c.dim == 3072 && c.ffn_dim == 14336 && c.heads == 24 && c.layers == 30 && c.in_dim == 48 &&
              c.out_dim == 48 && c.freq_dim == 256 && c.text_len == 512 && c.text_dim == 0 && c.eps == 1e-6);
  const char *diffusers =
      "{\"_class_name\":\"WanTransformer3DModel\",\"attention_head_dim\":128,\"num_layers\":40,"
      "\"num_attention_heads\":40,\"in_channels\":36,\"out_channels\":16,\"ffn_dim\":13824,"
      "\"added_kv_proj_dim\":null,\"qk_norm\":\"rms_norm_across_heads\",\"text_dim\":4096,"
      "\"cross_attn_norm\":true,\"eps\":1e-06,\"image_dim\":null}";
  assert_int_equal(model_config_read(&ctx, scratch_text(&dir, "c.json", diffusers), &c), WAN_OK);
  assert_string_equal(c.model_type, "");
  assert_true(c.dim == 5120 && c.heads == 40 && c.in_dim == 36 && c.out_dim == 16 && c.text_dim == 4096);

  static const struct {
    const char *text;
    wan_status want;
    const char *message;
  } bad[] = {
      {"", WAN_ERR_FORMAT, "JSON"},
      {"[1]", WAN_ERR_FORMAT, "object"},
      {"{\"dim\":1,\"dim\":2}", WAN_ERR_FORMAT, "duplicate"},
      {"{\"dim\":0}", WAN_ERR_FORMAT, "\"dim\""},
      {"{\"dim\":-5}", WAN_ERR_FORMAT, "\"dim\""},
      {"{\"num_layers\":2.5}", WAN_ERR_FORMAT, "\"num_layers\""},
      {"{\"ffn_dim\":\"8\"}", WAN_ERR_FORMAT, "\"ffn_dim\""},
      {"{\"ffn_dim\":99999999999}", WAN_ERR_FORMAT, "\"ffn_dim\""},
      {"{\"ffn_dim\":99999999999999999999}", WAN_ERR_FORMAT, "JSON"},
      {"{\"eps\":0}", WAN_ERR_FORMAT, "\"eps\""},
      {"{\"eps\":\"x\"}", WAN_ERR_FORMAT, "\"eps\""},
      {"{\"patch_size\":[1,4,4]}", WAN_ERR_UNSUPPORTED, "patch_size"},
      {"{\"patch_size\":2}", WAN_ERR_UNSUPPORTED, "patch_size"},
      {"{\"window_size\":[8,8]}", WAN_ERR_UNSUPPORTED, "window_size"},
      {"{\"qk_norm\":false}", WAN_ERR_UNSUPPORTED, "qk_norm"},
      {"{\"model_type\":\"s2v\"}", WAN_ERR_UNSUPPORTED, "Wan2.2-S2V"},
      {"{\"model_type\":\"flf2v\"}", WAN_ERR_UNSUPPORTED, "Wan2.1-FLF2V"},
      {"{\"_class_name\":\"WanAnimateModel\"}", WAN_ERR_UNSUPPORTED, "Wan2.2-Animate"},
      {"{\"_class_name\":\"WanVACETransformer3DModel\"}", WAN_ERR_UNSUPPORTED, "VACE"},
      {"{\"model_type\":\"x2v\"}", WAN_ERR_UNSUPPORTED, "\"x2v\""},
      {"{\"model_type\":7}", WAN_ERR_UNSUPPORTED, "not a string"},
      {"{\"added_kv_proj_dim\":5120}", WAN_ERR_UNSUPPORTED, "Wan2.1 image-to-video"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    wan_status got = model_config_read(&ctx, scratch_text(&dir, "c.json", bad[i].text), &c);
    if (got != bad[i].want || !strstr(ctx.message, bad[i].message))
      fail_msg("%s gave %d \"%s\"", bad[i].text, got, ctx.message);
  }
}

/* ---- Layouts ---- */

static void test_official(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int experts;
    const char *vae;
  } cases[] = {{"ti2v", 1, "Wan2.2_VAE.pth"}, {"t2v", 2, "Wan2.1_VAE.pth"}, {"i2v", 2, "Wan2.1_VAE.pth"}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    model_dir m;
    char path[512];
    snprintf(path, sizeof path, FIXTURES "%s/", cases[i].name);
    open_ok(path, &m);
    assert_string_equal(m.family, cases[i].name);
    assert_string_equal(m.layout, "official");
    assert_int_equal(m.experts, cases[i].experts);
    assert_int_equal(model_dir_require_all(&ctx, &m), WAN_OK);
    assert_true(m.config.dim == 48 && (m.part[MODEL_DIT_LOW] != NULL) == (cases[i].experts == 2));
    assert_non_null(strstr(m.part[MODEL_VAE], cases[i].vae));
    assert_non_null(strstr(m.part[MODEL_TOKENIZER], "google/umt5-xxl"));
    assert_null(strstr(m.part[MODEL_TOKENIZER], "spiece"));
    model_dir_close(&ctx, &m);
  }
}

/* Both autoencoders lie in the folder: the kind of model decides. */
static void test_vae_choice(void **state) {
  (void)state;
  static const char *const files[] = {"config.json", "diffusion_pytorch_model.safetensors.index.json",
                                      "diffusion_pytorch_model-00001-of-00003.safetensors",
                                      "diffusion_pytorch_model-00002-of-00003.safetensors",
                                      "diffusion_pytorch_model-00003-of-00003.safetensors"};
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    char from[512], to[64];
    snprintf(from, sizeof from, FIXTURES "ti2v/%s", files[i]);
    snprintf(to, sizeof to, "v/%s", files[i]);
    assert_int_equal(symlink(from, scratch_path(&dir, to)), 0);
  }
  scratch_text(&dir, "v/Wan2.1_VAE.pth", "");
  scratch_text(&dir, "v/Wan2.2_VAE.pth", "");
  model_dir m;
  open_ok(scratch_path(&dir, "v"), &m);
  assert_string_equal(m.family, "ti2v");
  assert_non_null(strstr(m.part[MODEL_VAE], "Wan2.2_VAE.pth"));
  model_dir_close(&ctx, &m);
  unlink(scratch_path(&dir, "v/config.json")); /* without it the shapes tell */
  open_ok(scratch_path(&dir, "v"), &m);
  assert_string_equal(m.family, "ti2v");
  model_dir_close(&ctx, &m);
  unlink(scratch_path(&dir, "v/diffusion_pytorch_model-00002-of-00003.safetensors"));
  assert_int_equal(model_dir_open(&ctx, scratch_path(&dir, "v"), &m), WAN_ERR_IO);
  assert_non_null(strstr(ctx.message, "00002-of-00003.safetensors: the shard is missing"));
}

/* Write the tensors of a fixture under another family's names. */
static void convert(const char *from, weight_kind kind, const char *family, const char *to) {
  static char names[600][NAMES_MAX];
  static named_tensor t[600];
  const name_family *f = NULL;
  for (int i = 0; (f = name_family_at(kind, i)) && strcmp(name_family_name(f), family) != 0; i++) {
  }
  assert_non_null(f);
  weight_set *set;
  char path[512];
  snprintf(path, sizeof path, FIXTURES "%s", from);
  if (weight_set_open(&ctx, path, kind, &set) != WAN_OK) fail_msg("%s", ctx.message);
  int n = (int)weight_set_count(set);
  for (int i = 0; i < n; i++) {
    assert_true(name_from_official(f, weight_set_name(set, i), names[i]));
    t[i] = (named_tensor){names[i], weight_set_tensor(set, i)};
  }
  assert_int_equal(safetensors_write(&ctx, scratch_path(&dir, to), n, t, NULL), WAN_OK);
  weight_set_close(set);
}

/* The converted file opens as the same set of canonical names and shapes. */
static void compare(const char *from, const char *to, weight_kind kind, const char *family) {
  weight_set *a, *b;
  char path[512];
  snprintf(path, sizeof path, FIXTURES "%s", from);
  assert_int_equal(weight_set_open(&ctx, path, kind, &a), WAN_OK);
  if (weight_set_open(&ctx, to, kind, &b) != WAN_OK) fail_msg("%s", ctx.message);
  assert_string_equal(weight_set_family(b), family);
  assert_int_equal(weight_set_count(a), weight_set_count(b));
  for (int64_t i = 0; i < weight_set_count(a); i++) {
    tensor x = weight_set_tensor(a, i), y = weight_set_find(b, weight_set_name(a, i));
    assert_true(y.type == x.type && tensor_same_shape(&x, &y));
    assert_memory_equal(x.data, y.data, tensor_bytes(&x));
  }
  weight_set_close(a);
  weight_set_close(b);
}

static void test_diffusers(void **state) {
  (void)state;
  convert("t2v/high_noise_model", WEIGHTS_DIT, "diffusers",
          "d/transformer/diffusion_pytorch_model.safetensors");
  convert("t2v/low_noise_model", WEIGHTS_DIT, "diffusers",
          "d/transformer_2/diffusion_pytorch_model.safetensors");
  convert("t2v/Wan2.1_VAE.pth", WEIGHTS_VAE, "diffusers 2.1", "d/vae/diffusion_pytorch_model.safetensors");
  convert("t2v/models_t5_umt5-xxl-enc-bf16.pth", WEIGHTS_TEXT, "transformers",
          "d/text_encoder/model.safetensors");
  scratch_text(&dir, "d/tokenizer/spiece.model", "");
  scratch_text(&dir, "d/model_index.json",
               "{\"_class_name\":\"WanPipeline\",\"boundary_ratio\":0.875,"
               "\"transformer_2\":[\"diffusers\",\"WanTransformer3DModel\"]}");
  model_dir m;
  open_ok(scratch_path(&dir, "d"), &m);
  assert_string_equal(m.family, "t2v"); /* from the shapes: there is no config.json */
  assert_string_equal(m.layout, "diffusers");
  assert_int_equal(m.experts, 2);
  assert_true(m.boundary == 0.875);
  assert_int_equal(model_dir_require_all(&ctx, &m), WAN_OK);
  compare("t2v/high_noise_model", m.part[MODEL_DIT], WEIGHTS_DIT, "diffusers");
  compare("t2v/low_noise_model", m.part[MODEL_DIT_LOW], WEIGHTS_DIT, "diffusers");
  compare("t2v/Wan2.1_VAE.pth", m.part[MODEL_VAE], WEIGHTS_VAE, "diffusers 2.1");
  compare("t2v/models_t5_umt5-xxl-enc-bf16.pth", m.part[MODEL_TEXT], WEIGHTS_TEXT, "transformers");
  model_dir_close(&ctx, &m);

  /* the second expert is announced, its folder is not there */
  assert_int_equal(remove(scratch_path(&dir, "d/transformer_2/diffusion_pytorch_model.safetensors")), 0);
  assert_int_equal(remove(scratch_path(&dir, "d/transformer_2")), 0);
  open_ok(scratch_path(&dir, "d"), &m);
  assert_int_equal(m.experts, 2);
  assert_int_equal(model_dir_require_all(&ctx, &m), WAN_ERR_IO);
  assert_non_null(strstr(ctx.message, "missing: transformer_2 (low-noise transformer)"));
  model_dir_close(&ctx, &m);

  convert("ti2v", WEIGHTS_DIT, "diffusers", "e/transformer/diffusion_pytorch_model.safetensors");
  convert("ti2v/Wan2.2_VAE.pth", WEIGHTS_VAE, "diffusers 2.2", "e/vae/diffusion_pytorch_model.safetensors");
  scratch_text(&dir, "e/model_index.json", "{\"expand_timesteps\":true,\"transformer_2\":[null,null]}");
  open_ok(scratch_path(&dir, "e"), &m);
  assert_string_equal(m.family, "ti2v");
  assert_int_equal(m.experts, 1);
  compare("ti2v/Wan2.2_VAE.pth", m.part[MODEL_VAE], WEIGHTS_VAE, "diffusers 2.2");
  assert_int_equal(model_dir_require_all(&ctx, &m), WAN_ERR_IO);
  assert_non_null(strstr(ctx.message, "text_encoder (text encoder), tokenizer/spiece.model (tokenizer)"));
  model_dir_close(&ctx, &m);
}

static void test_mlx(void **state) {
  (void)state;
  convert("ti2v", WEIGHTS_DIT, "mlx", "m/wan_model_mlx.safetensors");
  convert("ti2v/Wan2.2_VAE.pth", WEIGHTS_VAE, "official", "m/vae_mlx.safetensors");
  convert("ti2v/models_t5_umt5-xxl-enc-bf16.pth", WEIGHTS_TEXT, "official", "m/t5_encoder_mlx.safetensors");
  scratch_text(&dir, "m/google/umt5-xxl/spiece.model", "");
  scratch_text(&dir, "m/config.json", "{\"model_type\":\"ti2v\",\"num_heads\":2}");
  model_dir m;
  open_ok(scratch_path(&dir, "m"), &m);
  assert_string_equal(m.layout, "mlx");
  assert_string_equal(m.family, "ti2v");
  assert_int_equal(m.config.heads, 2);
  assert_int_equal(model_dir_require_all(&ctx, &m), WAN_OK);
  compare("ti2v", m.part[MODEL_DIT], WEIGHTS_DIT, "mlx");
  model_dir_close(&ctx, &m);
}

/* One tensor under `name`, in a folder that otherwise looks like an official one. */
static void with_tensor(const char *name) {
  static float x[4];
  named_tensor t = {name, TENSOR_OF(DT_F32, x, 4)};
  const char *path = scratch_path(&dir, "r/diffusion_pytorch_model.safetensors");
  assert_int_equal(safetensors_write(&ctx, path, 1, &t, NULL), WAN_OK);
}

static void test_refused(void **state) {
  (void)state;
  static const char *const cases[][2] = {
      {"img_emb.proj.0.weight", "Wan2.1-I2V"},
      {"condition_embedder.image_embedder.norm1.weight", "Wan2.1-I2V"},
      {"img_emb.emb_pos", "Wan2.1-FLF2V"},
      {"vace_blocks.0.after_proj.weight", "Wan VACE"},
      {"casual_audio_encoder.weights", "Wan2.2-S2V"},
      {"face_adapter.fuser_blocks.0.q.weight", "Wan2.2-Animate"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    model_dir m;
    with_tensor(cases[i][0]);
    assert_int_equal(model_dir_open(&ctx, scratch_path(&dir, "r"), &m), WAN_ERR_UNSUPPORTED);
    if (!strstr(ctx.message, cases[i][1])) fail_msg("%s: %s", cases[i][0], ctx.message);
  }
}

static void test_not_a_model(void **state) {
  (void)state;
  model_dir m;
  scratch_path(&dir, "n/x");
  assert_int_equal(model_dir_open(&ctx, scratch_path(&dir, "n"), &m), WAN_ERR_IO);
  assert_non_null(strstr(ctx.message, "no Wan model here"));
  assert_int_equal(model_dir_open(&ctx, scratch_path(&dir, "nowhere"), &m), WAN_ERR_IO);
  assert_int_equal(model_dir_open(&ctx, "", &m), WAN_ERR_IO);
  scratch_text(&dir, "n/config.json", "{}"); /* the beginning of a download */
  open_ok(scratch_path(&dir, "n"), &m);
  assert_string_equal(m.family, "");
  assert_int_equal(model_dir_require_all(&ctx, &m), WAN_ERR_IO);
  assert_non_null(
      strstr(ctx.message, "diffusion_pytorch_model*.safetensors (transformer), Wan2.1_VAE.pth (VAE)"));
  char *text;
  assert_int_equal(model_info_text(&ctx, &m, &text), WAN_OK);
  assert_non_null(strstr(text, "missing: models_t5_umt5-xxl-enc-bf16.pth"));
  core_free(&ctx, text);
  model_dir_close(&ctx, &m);
}

/* ---- The real sizes ---- */

static json_int_t number(const json_t *root, const char *part, const char *key) {
  return json_integer_value(json_object_get(json_object_get(json_object_get(root, "parts"), part), key));
}

static void test_official_sizes(void **state) {
  (void)state;
  if (!sparse_checkpoint(&dir, "wan2.2-ti2v-5B", "F32", 4, "big/diffusion_pytorch_model.safetensors") ||
      !sparse_checkpoint(&dir, "wan2.2-vae", "F32", 4, "big/Wan2.2_VAE.safetensors") ||
      !sparse_checkpoint(&dir, "umt5-xxl-encoder", "BF16", 2, "big/models_t5_umt5-xxl-enc-bf16.safetensors"))
    skip(); /* a file system without sparse files of 20 GB */
  model_dir m;
  char *text;
  open_ok(scratch_path(&dir, "big"), &m);
  assert_string_equal(m.family, "ti2v");
  assert_int_equal(model_info_json(&ctx, &m, &text), WAN_OK);
  json_t *root = json_loads(text, 0, NULL);
  assert_non_null(root);
  assert_true(number(root, "transformer", "parameters") == 4999787712);
  assert_true(number(root, "transformer", "bytes") == 19999150848);
  assert_int_equal(number(root, "transformer", "tensors"), 825);
  assert_int_equal(number(root, "transformer", "layers"), 30);
  assert_int_equal(number(root, "transformer", "heads"), 24);
  assert_int_equal(number(root, "transformer", "ffn_dim"), 14336);
  assert_int_equal(number(root, "vae", "parameters"), 704688668);
  assert_int_equal(number(root, "vae", "tensors"), 196);
  assert_int_equal(number(root, "vae", "latent_channels"), 48);
  assert_true(number(root, "text_encoder", "parameters") == 5680910336);
  assert_true(number(root, "text_encoder", "bytes") == 11361820672);
  assert_int_equal(number(root, "text_encoder", "layers"), 24);
  assert_int_equal(json_array_size(json_object_get(root, "missing")), 1);
  json_decref(root);
  core_free(&ctx, text);
  assert_int_equal(model_info_text(&ctx, &m, &text), WAN_OK);
  assert_non_null(strstr(text, "825 tensors, 4,999,787,712 parameters, 20.00 GB, F32"));
  assert_non_null(strstr(text, "missing: google/umt5-xxl/spiece.model"));
  core_free(&ctx, text);
  model_dir_close(&ctx, &m);
}

static void test_allocation_failures(void **state) {
  (void)state;
  wan_status status = WAN_ERR_MEMORY;
  int n = 0;
  for (; status != WAN_OK; n++) {
    model_dir m;
    char *text = NULL;
    atomic_store(&ctx.mem_fail_in, n);
    status = model_dir_open(&ctx, FIXTURES "t2v", &m);
    if (status == WAN_OK) status = model_info_text(&ctx, &m, &text);
    if (status != WAN_OK && status != WAN_ERR_MEMORY) fail_msg("%d: %s", n, ctx.message);
    core_free(&ctx, text);
    model_dir_close(&ctx, &m);
  }
  atomic_store(&ctx.mem_fail_in, -1);
  assert_true(n > 100);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_config),
      cmocka_unit_test(test_official),
      cmocka_unit_test(test_vae_choice),
      cmocka_unit_test(test_diffusers),
      cmocka_unit_test(test_mlx),
      cmocka_unit_test(test_refused),
      cmocka_unit_test(test_not_a_model),
      cmocka_unit_test(test_official_sizes),
      cmocka_unit_test(test_allocation_failures),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
