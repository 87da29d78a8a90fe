/* test_names.c: the name maps, both ways, over every tensor of the official checkpoints. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "weights/names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const name_family *family(weight_kind kind, const char *name) {
  const name_family *f;
  for (int i = 0; (f = name_family_at(kind, i)); i++)
    if (strcmp(name_family_name(f), name) == 0) return f;
  fail_msg("no family %s", name);
  return NULL;
}

static int compare(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* official -> foreign -> official gives the same name, foreign names are distinct, and `renamed` of them
 * differ from the official ones. Only this family's sign is to be seen among the foreign names. */
static void round_trip(const char *list, weight_kind kind, const char *name, int tensors, int renamed) {
  const name_family *f = family(kind, name), *other;
  char path[512], line[512], *foreign[2000];
  int n = 0, changed = 0, signs = 0;
  snprintf(path, sizeof path, "%s/models/names/%s.txt", WAN_SOURCE_DIR, list);
  FILE *in = fopen(path, "r");
  assert_non_null(in);
  while (fgets(line, sizeof line, in)) {
    char there[NAMES_MAX], back[NAMES_MAX];
    line[strcspn(line, " \n")] = 0;
    assert_true(n < 2000);
    assert_true(name_from_official(f, line, there) && name_to_official(f, there, back));
    assert_string_equal(back, line);
    for (int i = 0; (other = name_family_at(kind, i)); i++) {
      bool signs_other = other != f && name_family_signed(other, there);
      if (signs_other) fail_msg("%s also shows family %s", there, name_family_name(other));
    }
    signs += name_family_signed(f, there);
    changed += strcmp(there, line) != 0;
    foreign[n++] = strdup(there);
  }
  fclose(in);
  assert_int_equal(n, tensors);
  assert_int_equal(changed, renamed);
  assert_true(changed == 0 || signs > 0);
  qsort(foreign, (size_t)n, sizeof *foreign, compare);
  for (int i = 1; i < n; i++) assert_string_not_equal(foreign[i], foreign[i - 1]);
  for (int i = 0; i < n; i++) free(foreign[i]);
}

static void test_round_trips(void **state) {
  (void)state;
  /* renamed: all but patch_embedding (2); in mlx 4 a block and the head's 3 */
  round_trip("wan2.2-ti2v-5B", WEIGHTS_DIT, "diffusers", 825, 823);
  round_trip("wan2.2-t2v-A14B", WEIGHTS_DIT, "diffusers", 1095, 1093);
  round_trip("wan2.2-i2v-A14B", WEIGHTS_DIT, "diffusers", 1095, 1093);
  round_trip("wan2.1-t2v-1.3B", WEIGHTS_DIT, "diffusers", 825, 823);
  round_trip("wan2.2-ti2v-5B", WEIGHTS_DIT, "mlx", 825, 4 * 30 + 3);
  round_trip("wan2.2-t2v-A14B", WEIGHTS_DIT, "official", 1095, 0);
  round_trip("umt5-xxl-encoder", WEIGHTS_TEXT, "transformers", 242, 242);
  round_trip("umt5-xxl-encoder", WEIGHTS_TEXT, "official", 242, 0);
  round_trip("wan2.1-vae", WEIGHTS_VAE, "diffusers 2.1", 194, 194);
  round_trip("wan2.2-vae", WEIGHTS_VAE, "diffusers 2.2", 196, 196);
  round_trip("wan2.1-vae", WEIGHTS_VAE, "official", 194, 0);
}

/* Names as they stand in published files. */
static void test_examples(void **state) {
  (void)state;
  static const struct {
    weight_kind kind;
    const char *family, *foreign, *official;
  } cases[] = {
      {WEIGHTS_DIT, "diffusers", "condition_embedder.time_proj.bias", "time_projection.1.bias"},
      {WEIGHTS_DIT, "diffusers", "blocks.12.attn2.to_out.0.weight", "blocks.12.cross_attn.o.weight"},
      {WEIGHTS_DIT, "diffusers", "blocks.0.norm2.bias", "blocks.0.norm3.bias"},
      {WEIGHTS_DIT, "diffusers", "blocks.39.ffn.net.0.proj.weight", "blocks.39.ffn.0.weight"},
      {WEIGHTS_DIT, "diffusers", "blocks.3.scale_shift_table", "blocks.3.modulation"},
      {WEIGHTS_DIT, "diffusers", "scale_shift_table", "head.modulation"},
      {WEIGHTS_DIT, "diffusers", "blocks.1.attn2.add_k_proj.weight", "blocks.1.cross_attn.k_img.weight"},
      {WEIGHTS_DIT, "mlx", "head_modulation", "head.modulation"},
      {WEIGHTS_DIT, "mlx", "head.1.weight", "head.head.weight"},
      {WEIGHTS_TEXT, "transformers", "encoder.block.7.layer.1.DenseReluDense.wi_0.weight",
       "blocks.7.ffn.gate.0.weight"},
      {WEIGHTS_TEXT, "transformers", "encoder.embed_tokens.weight", "token_embedding.weight"},
      {WEIGHTS_VAE, "diffusers 2.1", "encoder.down_blocks.3.conv_shortcut.bias",
       "encoder.downsamples.3.shortcut.bias"},
      {WEIGHTS_VAE, "diffusers 2.1", "encoder.down_blocks.5.resample.1.weight",
       "encoder.downsamples.5.resample.1.weight"},
      {WEIGHTS_VAE, "diffusers 2.1", "decoder.up_blocks.3.resnets.2.norm2.gamma",
       "decoder.upsamples.14.residual.3.gamma"},
      {WEIGHTS_VAE, "diffusers 2.1", "decoder.up_blocks.1.upsamplers.0.time_conv.bias",
       "decoder.upsamples.7.time_conv.bias"},
      {WEIGHTS_VAE, "diffusers 2.1", "decoder.mid_block.attentions.0.to_qkv.weight",
       "decoder.middle.1.to_qkv.weight"},
      {WEIGHTS_VAE, "diffusers 2.2", "encoder.down_blocks.1.downsampler.time_conv.weight",
       "encoder.downsamples.1.downsamples.2.time_conv.weight"},
      {WEIGHTS_VAE, "diffusers 2.2", "decoder.up_blocks.0.upsampler.resample.1.bias",
       "decoder.upsamples.0.upsamples.3.resample.1.bias"},
      {WEIGHTS_VAE, "diffusers 2.2", "post_quant_conv.weight", "conv2.weight"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char out[NAMES_MAX];
    assert_true(name_to_official(family(cases[i].kind, cases[i].family), cases[i].foreign, out));
    assert_string_equal(out, cases[i].official);
  }
}

static void test_others(void **state) {
  (void)state;
  char out[NAMES_MAX], longest[NAMES_MAX + 1];
  const name_family *d = family(WEIGHTS_DIT, "diffusers");
  static const char *const kept[] = {
      "blocks..attn1.to_q.weight", "blocks.x.attn1.to_q.weight", "proj_out", "", "#", "*"};
  for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
    assert_true(name_to_official(d, kept[i], out));
    assert_string_equal(out, kept[i]);
  }
  memset(longest, 'a', NAMES_MAX);
  longest[NAMES_MAX] = 0;
  assert_false(name_to_official(d, longest, out));
  longest[NAMES_MAX - 1] = 0;
  assert_true(name_to_official(d, longest, out));
  memcpy(longest, "condition_embedder.time_proj.", 29); /* grows by nothing it may not: shorter is fine */
  assert_true(name_to_official(d, longest, out));
  memcpy(longest, "proj_out.", 9);
  assert_false(name_to_official(d, longest, out) && strlen(out) >= NAMES_MAX);

  assert_string_equal(name_without_prefix(WEIGHTS_DIT, "model.diffusion_model.head.modulation"),
                      "head.modulation");
  assert_string_equal(name_without_prefix(WEIGHTS_VAE, "model.diffusion_model.x"), "model.diffusion_model.x");
  assert_int_equal(name_use_of(WEIGHTS_TEXT, "spiece_model"), NAME_IGNORED);
  assert_int_equal(name_use_of(WEIGHTS_DIT, "spiece_model"), NAME_WEIGHT);
  assert_int_equal(name_use_of(WEIGHTS_DIT, "blocks.0.self_attn.q.scale_weight"), NAME_SCALED);
  assert_int_equal(name_use_of(WEIGHTS_DIT, "scaled_fp8"), NAME_SCALED);
  assert_int_equal(name_use_of(WEIGHTS_TEXT, "encoder.embed_tokens.weight"), NAME_TIED);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trips),
      cmocka_unit_test(test_examples),
      cmocka_unit_test(test_others),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
