/* The same weights in other files make the same video, bit for bit: tensors at odd addresses, which
 * safetensors allows, and the MLX layout, whose config.json lies beside a file. Under the sanitizers this
 * also shows that nothing reads a value through a pointer that is not aligned for it. */
#define _GNU_SOURCE
#include "tiny.h"
#include "scratch_dir.h"

/* One blank more behind the header: every tensor moves by a byte. */
static void make_odd(const char *path) {
  size_t size, header = 0;
  unsigned char *data = tiny_read(path, &size);
  for (int i = 7; i >= 0; i--) header = header << 8 | data[i];
  unsigned char *odd = malloc(size + 1);
  memcpy(odd, data, 8 + header);
  odd[8 + header] = ' ';
  memcpy(odd + 9 + header, data + 8 + header, size - 8 - header);
  for (int i = 0; i < 8; i++) odd[i] = (unsigned char)((header + 1) >> 8 * i);
  tiny_write(path, odd, size + 1);
  free(odd);
  free(data);
}

static void compare(const char *model, const char *ckpt) {
  static tiny_run want, got;
  char original[512];
  snprintf(original, sizeof original, TINY_DATA "ckpt/%s", ckpt);
  for (int i = 0; backend_name(i); i++) {
    if (strcmp(backend_name(i), "cuda") == 0) continue;
    wan_context *c = tiny_context(backend_name(i));
    wan_model *a = tiny_open(c, original), *b = tiny_open(c, model);
    tiny_must_run(c, a, TINY_PICTURE, &want);
    tiny_must_run(c, b, TINY_PICTURE, &got);
    tiny_same(&got, &want, backend_name(i));
    wan_model_close(a);
    wan_model_close(b);
    wan_context_destroy(c);
  }
}

static void test_odd_offsets(void **state) {
  (void)state;
  static const char *const shards[] = {"00001", "00002", "00003"};
  char path[700], to[700];
  const char *model = tiny_copy(&scratch_dir, "ti2v", "odd");
  for (int i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/diffusion_pytorch_model-%s-of-00003.safetensors", model, shards[i]);
    make_odd(path);
  }
  static const struct {
    const char *stem;
    weight_kind kind;
  } parts[] = {{"Wan2.2_VAE", WEIGHTS_VAE}, {"models_t5_umt5-xxl-enc-bf16", WEIGHTS_TEXT}};
  for (int i = 0; i < 2; i++) {
    snprintf(path, sizeof path, "%s/%s.pth", model, parts[i].stem);
    snprintf(to, sizeof to, "%s/%s.safetensors", model, parts[i].stem);
    tiny_rewrite(path, parts[i].kind, to, NULL, NULL);
    make_odd(to);
    unlink(path);
  }
  compare(model, "ti2v");
}

static void test_mlx(void **state) {
  (void)state;
  char from[700], to[700];
  const char *model = scratch_path(&scratch_dir, "mlx"), *source = tiny_copy(&scratch_dir, "ti2v", "mlx");
  snprintf(to, sizeof to, "%s/wan_model_mlx.safetensors", model);
  tiny_rewrite(source, WEIGHTS_DIT, to, NULL, NULL);
  snprintf(from, sizeof from, "%s/Wan2.2_VAE.pth", source);
  snprintf(to, sizeof to, "%s/vae_mlx.safetensors", model);
  tiny_rewrite(from, WEIGHTS_VAE, to, NULL, NULL);
  snprintf(from, sizeof from, "%s/models_t5_umt5-xxl-enc-bf16.pth", source);
  snprintf(to, sizeof to, "%s/t5_encoder_mlx.safetensors", model);
  tiny_rewrite(from, WEIGHTS_TEXT, to, NULL, NULL);
  compare(model, "ti2v");
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_odd_offsets), cmocka_unit_test(test_mlx)};
  return cmocka_run_group_tests_name("other files, same weights", tests, scratch_setup, scratch_teardown);
}
