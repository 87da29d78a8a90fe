/* test_weight_set.c: shards and their index, binding, and who holds which weight for how long. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "scratch.h"
#include "weights/safetensors.h"
#include "weights/weights.h"

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

static float one[6] = {1, 2, 3, 4, 5, 6}, two[4] = {7, 8, 9, 10};
static int32_t whole[2] = {1, 2};

/* s/: two shards with an index, which is the caller's. */
static const char *shards(const char *index) {
  named_tensor a = {"norm.weight", TENSOR_OF(DT_F32, one, 3, 2)};
  named_tensor b[2] = {{"blocks.0.w", TENSOR_OF(DT_F32, two, 4)}, {"ids", TENSOR_OF(DT_I32, whole, 2)}};
  assert_int_equal(safetensors_write(&ctx, scratch_path(&dir, "s/model-1.safetensors"), 1, &a, NULL), WAN_OK);
  assert_int_equal(safetensors_write(&ctx, scratch_path(&dir, "s/model-2.safetensors"), 2, b, NULL), WAN_OK);
  const char *path = scratch_path(&dir, "s/model.safetensors.index.json");
  unlink(path);
  if (index) scratch_text(&dir, "s/model.safetensors.index.json", index);
  return scratch_path(&dir, "s");
}

static const char GOOD[] =
    "{\"metadata\":{\"total_size\":48},\"weight_map\":{\"blocks.0.w\":\"model-2.safetensors\","
    "\"ids\":\"model-2.safetensors\",\"norm.weight\":\"model-1.safetensors\"}}";

static void check_set(const char *path) {
  weight_set *set;
  assert_int_equal(weight_set_open(&ctx, path, WEIGHTS_DIT, &set), WAN_OK);
  assert_int_equal(weight_set_count(set), 3);
  assert_int_equal(weight_set_parameters(set), 12);
  tensor t = weight_set_find(set, "norm.weight");
  assert_int_equal(t.ndim, 2);
  assert_memory_equal(t.data, one, sizeof one);
  assert_int_equal(weight_set_find(set, "nothing").type, DT_NONE);
  weight_set_close(set);
}

static void test_shards(void **state) {
  (void)state;
  check_set(shards(GOOD));
  check_set(scratch_path(&dir, "s/model.safetensors.index.json"));
  check_set(shards(NULL)); /* no index: every model*.safetensors, by name */
}

static void reject_index(const char *index, wan_status want, const char *text) {
  weight_set *set = (weight_set *)&ctx;
  wan_status got = weight_set_open(&ctx, shards(index), WEIGHTS_DIT, &set);
  if (got != want || !strstr(ctx.message, text))
    fail_msg("%s\n gave %d \"%s\", expected %d \"%s\"", index, got, ctx.message, want, text);
  assert_null(set);
}

static void test_bad_index(void **state) {
  (void)state;
  wan_status F = WAN_ERR_FORMAT;
  reject_index("", F, "JSON");
  reject_index("{\"weight_map\":", F, "JSON");
  reject_index("{}", F, "weight_map");
  reject_index("{\"weight_map\":{}}", F, "weight_map");
  reject_index("{\"weight_map\":[\"model-1.safetensors\"]}", F, "weight_map");
  reject_index("{\"weight_map\":{\"ids\":7}}", F, "tensor ids is not a string");
  reject_index("{\"weight_map\":{\"ids\":\"../model-1.safetensors\"}}", F, "beside the index");
  reject_index("{\"weight_map\":{\"ids\":\"/etc/passwd\"}}", F, "beside the index");
  reject_index("{\"weight_map\":{\"ids\":\"sub/model-1.safetensors\"}}", F, "beside the index");
  reject_index("{\"weight_map\":{\"ids\":\"..\"}}", F, "beside the index");
  reject_index("{\"weight_map\":{\"ids\":\"\"}}", F, "beside the index");
  reject_index("{\"weight_map\":{\"ids\":\"model-2.safetensors\",\"x\":\"model-3.safetensors\",\"y\":\"model-"
               "3.safetensors\"}}",
               WAN_ERR_IO, "model-3.safetensors: the shard is missing");
  assert_non_null(strstr(ctx.message, "tensor x"));
  reject_index("{\"weight_map\":{\"ids\":\"model-1.safetensors\"}}", F,
               "promises tensor ids in model-1.safetensors");
  reject_index("{\"weight_map\":{\"absent\":\"model-1.safetensors\"}}", F, "promises tensor absent");
  reject_index("{\"weight_map\":{\"ids\":\"model-1.safetensors\",\"ids\":\"model-2.safetensors\"}}", F,
               "duplicate");
}

static void test_twice(void **state) {
  (void)state;
  named_tensor a = {"w", TENSOR_OF(DT_F32, two, 4)};
  assert_int_equal(safetensors_write(&ctx, scratch_path(&dir, "t/model-1.safetensors"), 1, &a, NULL), WAN_OK);
  assert_int_equal(safetensors_write(&ctx, scratch_path(&dir, "t/model-2.safetensors"), 1, &a, NULL), WAN_OK);
  weight_set *set;
  assert_int_equal(weight_set_open(&ctx, scratch_path(&dir, "t"), WEIGHTS_DIT, &set), WAN_ERR_FORMAT);
  assert_non_null(strstr(ctx.message, "tensor w is in"));
  assert_non_null(strstr(ctx.message, "model-1.safetensors"));
  assert_non_null(strstr(ctx.message, "model-2.safetensors"));
}

static void test_empty_directory(void **state) {
  (void)state;
  weight_set *set;
  scratch_path(&dir, "e [*?]/x");
  assert_int_equal(weight_set_open(&ctx, scratch_path(&dir, "e [*?]"), WEIGHTS_DIT, &set), WAN_ERR_IO);
  assert_non_null(strstr(ctx.message, "diffusion_pytorch_model*.safetensors"));
  named_tensor a = {"w", TENSOR_OF(DT_F32, two, 4)}; /* a folder whose name looks like a pattern */
  const char *path = scratch_path(&dir, "e [*?]/diffusion_pytorch_model.safetensors");
  assert_int_equal(safetensors_write(&ctx, path, 1, &a, NULL), WAN_OK);
  assert_int_equal(weight_set_open(&ctx, scratch_path(&dir, "e [*?]"), WEIGHTS_DIT, &set), WAN_OK);
  weight_set_close(set);
}

static void test_bind(void **state) {
  (void)state;
  weight_set *set;
  weight w, v, r;
  assert_int_equal(weight_set_open(&ctx, shards(GOOD), WEIGHTS_DIT, &set), WAN_OK);
  assert_int_equal(weight_set_bind(set, &w, WEIGHT_LINEAR, WEIGHT_DIMS(3, 2), "%s.weight", "norm"), WAN_OK);
  assert_string_equal(w.name, "norm.weight");
  assert_int_equal(w.role, WEIGHT_LINEAR);
  assert_memory_equal(w.src.data, one, sizeof one);
  assert_null(w.data);

  assert_int_equal(weight_set_bind(set, &v, WEIGHT_VECTOR, WEIGHT_DIMS(4), "blocks.%d.x", 0), WAN_ERR_FORMAT);
  assert_non_null(strstr(ctx.message, "tensor blocks.0.x is missing (expected shape [4])"));
  assert_int_equal(weight_set_bind(set, &v, WEIGHT_VECTOR, WEIGHT_DIMS(4, 1), "blocks.0.w"), WAN_ERR_FORMAT);
  assert_non_null(
      strstr(ctx.message, "model-2.safetensors: tensor blocks.0.w has the shape [4], expected [4, 1]"));
  assert_int_equal(weight_set_bind(set, &v, WEIGHT_VECTOR, WEIGHT_DIMS(5), "blocks.0.w"), WAN_ERR_FORMAT);
  assert_int_equal(weight_set_bind(set, &v, WEIGHT_VECTOR, WEIGHT_DIMS(2), "ids"), WAN_ERR_FORMAT);
  assert_non_null(strstr(ctx.message, "I32"));

  assert_int_equal(weight_set_finish(set), WAN_ERR_FORMAT); /* failed attempts bind nothing */
  assert_non_null(strstr(ctx.message, "2 tensors"));
  assert_non_null(strstr(ctx.message, "blocks.0.w, ids"));

  assert_int_equal(weight_set_bind_rows(set, &r, WEIGHT_LINEAR, WEIGHT_DIMS(2, 2), 1, 3, "norm.weight"),
                   WAN_OK);
  assert_int_equal(r.src.dim[0], 2);
  assert_memory_equal(r.src.data, one + 2, 4 * sizeof *one);
  assert_int_equal(weight_set_bind_rows(set, &r, WEIGHT_LINEAR, WEIGHT_DIMS(2, 2), 2, 3, "norm.weight"),
                   WAN_ERR_ARGUMENT);
  assert_int_equal(weight_set_bind_rows(set, &r, WEIGHT_LINEAR, WEIGHT_DIMS(2, 2), 0, 4, "norm.weight"),
                   WAN_ERR_FORMAT);
  weight_set_close(set);
}

static void test_finish(void **state) {
  (void)state;
  char names[8][16];
  named_tensor many[8];
  for (int i = 0; i < 8; i++) {
    snprintf(names[i], sizeof names[i], "t%d", i);
    many[i] = (named_tensor){names[i], TENSOR_OF(DT_F32, two, 4)};
  }
  const char *path = scratch_path(&dir, "many.safetensors");
  assert_int_equal(safetensors_write(&ctx, path, 8, many, NULL), WAN_OK);
  weight_set *set;
  weight w;
  assert_int_equal(weight_set_open(&ctx, path, WEIGHTS_VAE, &set), WAN_OK);
  assert_int_equal(weight_set_finish(set), WAN_ERR_FORMAT);
  assert_non_null(strstr(ctx.message, "8 tensors"));
  assert_non_null(strstr(ctx.message, "t4, ..."));
  for (int i = 0; i < 8; i++)
    assert_int_equal(weight_set_bind(set, &w, WEIGHT_VECTOR, WEIGHT_DIMS(4), "t%d", i), WAN_OK);
  assert_int_equal(weight_set_finish(set), WAN_OK);
  weight_set_close(set);
}

/* Write tensors of four floats under these names and open the file. */
static wan_status open_names(weight_kind kind, const char *const *names, int n, weight_set **set) {
  named_tensor t[8];
  for (int i = 0; i < n; i++) t[i] = (named_tensor){names[i], TENSOR_OF(DT_F32, two, 4)};
  const char *path = scratch_path(&dir, "names.safetensors");
  assert_int_equal(safetensors_write(&ctx, path, n, t, NULL), WAN_OK);
  return weight_set_open(&ctx, path, kind, set);
}

static void test_foreign_names(void **state) {
  (void)state;
  weight_set *set;
  weight w;
  static const char *const comfy[] = {"model.diffusion_model.head.modulation",
                                      "model.diffusion_model.head.head.bias"};
  assert_int_equal(open_names(WEIGHTS_DIT, comfy, 2, &set), WAN_OK);
  assert_string_equal(weight_set_family(set), "official");
  assert_string_equal(weight_set_name(set, 0), "head.modulation");
  weight_set_close(set);

  static const char *const diffusers[] = {"condition_embedder.time_proj.bias", "proj_out.bias",
                                          "rope.freqs_cos"};
  assert_int_equal(open_names(WEIGHTS_DIT, diffusers, 3, &set), WAN_OK);
  assert_string_equal(weight_set_family(set), "diffusers");
  assert_int_equal(weight_set_count(set), 2); /* without the rotary table */
  assert_int_equal(weight_set_bind(set, &w, WEIGHT_VECTOR, WEIGHT_DIMS(5), "head.head.bias"), WAN_ERR_FORMAT);
  assert_non_null(
      strstr(ctx.message, "head.head.bias (stored as proj_out.bias) has the shape [4], expected [5]"));
  weight_set_close(set);

  static const char *const text[] = {"encoder.block.0.layer.0.layer_norm.weight",
                                     "encoder.embed_tokens.weight", "shared.weight", "spiece_model"};
  assert_int_equal(open_names(WEIGHTS_TEXT, text, 4, &set), WAN_OK);
  assert_int_equal(weight_set_count(set), 2); /* one table of the two, no tokenizer */
  assert_int_equal(weight_set_find(set, "token_embedding.weight").type, DT_F32);
  weight_set_close(set);
  assert_int_equal(open_names(WEIGHTS_TEXT, text, 2, &set), WAN_OK); /* the second name alone will do */
  assert_int_equal(weight_set_find(set, "token_embedding.weight").type, DT_F32);
  weight_set_close(set);

  static const char *const clash[] = {"condition_embedder.time_proj.bias", "time_projection.1.bias"};
  assert_int_equal(open_names(WEIGHTS_DIT, clash, 2, &set), WAN_ERR_FORMAT);
  assert_non_null(strstr(ctx.message, "(as condition_embedder.time_proj.bias)"));
  static const char *const scaled[] = {"blocks.0.ffn.0.weight", "blocks.0.ffn.0.scale_weight"};
  assert_int_equal(open_names(WEIGHTS_DIT, scaled, 2, &set), WAN_ERR_UNSUPPORTED);
  assert_non_null(strstr(ctx.message, "blocks.0.ffn.0.scale_weight"));
  char longest[400];
  memset(longest, 'n', sizeof longest);
  longest[399] = 0;
  const char *const one_long[] = {longest};
  assert_int_equal(open_names(WEIGHTS_DIT, one_long, 1, &set), WAN_ERR_FORMAT);
}

/* A backend that copies (or, with copy off, uses in place) and counts. */
typedef struct counter {
  int loads, unloads, fail_at;
  bool copy;
} counter;

static wan_status fake_load(backend *be, weight *w) {
  counter *c = be->impl;
  if (c->loads == c->fail_at) return core_fail(be->ctx, WAN_ERR_BACKEND, "the fake backend fails");
  c->loads++;
  w->type = w->src.type;
  w->data = c->copy ? core_alloc(be->ctx, tensor_bytes(&w->src)) : w->src.data;
  w->data_bytes = c->copy ? tensor_bytes(&w->src) : 0;
  if (c->copy) memcpy(w->data, w->src.data, w->data_bytes);
  return WAN_OK;
}

static void fake_prefetch(backend *be, weight *w) {
  fake_load(be, w);
}

static void fake_unload(backend *be, weight *w) {
  counter *c = be->impl;
  c->unloads++;
  if (w->data_bytes) core_free(be->ctx, w->data);
}

/* Is the page in the middle of this range mapped into the process now? -1: the system does not say. */
static int is_mapped(const void *p, size_t bytes) {
  uint64_t entry = 0, page = ((uintptr_t)p + bytes / 2) / (uint64_t)sysconf(_SC_PAGESIZE);
  FILE *f = fopen("/proc/self/pagemap", "rb");
  bool ok = f && fseek(f, (long)(page * 8), SEEK_SET) == 0 && fread(&entry, 8, 1, f) == 1;
  if (f) fclose(f);
  return ok ? (int)(entry >> 63) : -1;
}

static void test_residency(void **state) {
  (void)state;
  static float large[8192];
  for (int i = 0; i < 8192; i++) large[i] = (float)i;
  named_tensor t[3] = {{"a", TENSOR_OF(DT_F32, large, 64, 128)},
                       {"b", TENSOR_OF(DT_F32, large, 128)},
                       {"c", TENSOR_OF(DT_F32, large, 8192)}};
  const char *path = scratch_path(&dir, "group.safetensors");
  assert_int_equal(safetensors_write(&ctx, path, 3, t, NULL), WAN_OK);
  weight_set *set;
  weight w[3];
  weight_group g = {0};
  assert_int_equal(weight_set_open(&ctx, path, WEIGHTS_DIT, &set), WAN_OK);
  weight_set_bind(set, &w[0], WEIGHT_LINEAR, WEIGHT_DIMS(64, 128), "a");
  weight_set_bind(set, &w[1], WEIGHT_VECTOR, WEIGHT_DIMS(128), "b");
  weight_set_bind(set, &w[2], WEIGHT_LINEAR, WEIGHT_DIMS(8192), "c");
  for (int i = 0; i < 3; i++) weight_group_add(&g, &w[i]);
  const backend_ops ops = {.weight_load = fake_load, .weight_unload = fake_unload};
  assert_int_equal(weight_group_bytes(&(backend){.ops = &ops, .act = DT_BF16}, &g),
                   2 * 8192 + 4 * 128 + 2 * 8192);
  counter c = {.fail_at = -1, .copy = true};
  backend be = {.ops = &ops, .ctx = &ctx, .impl = &c};
  weight_group_prefetch(&be, &g);
  assert_int_equal(weight_group_acquire(&be, &g), WAN_OK);
  assert_int_equal(weight_group_acquire(&be, &g), WAN_OK);
  assert_int_equal(c.loads, 3);
  weight_group_release(&be, &g, RESIDENCY_STREAM);
  assert_int_equal(c.unloads, 0); /* somebody still uses it */
  weight_group_release(&be, &g, RESIDENCY_STREAM);
  assert_int_equal(c.unloads, 3);
  assert_null(w[0].data);
  assert_int_not_equal(is_mapped(w[2].src.data, sizeof large), 1); /* handed back after the copy */
  assert_memory_equal(w[2].src.data, large, sizeof large);         /* and read again */
  assert_int_not_equal(is_mapped(w[2].src.data, sizeof large), 0);

  assert_int_equal(weight_group_acquire(&be, &g), WAN_OK);
  weight_group_release(&be, &g, RESIDENCY_KEEP);
  assert_int_equal(c.unloads, 3);
  assert_non_null(w[0].data);
  weight_group_drop(&be, &g);
  assert_int_equal(c.unloads, 6);

  c.fail_at = c.loads + 2; /* the third load fails: the first two are given back */
  assert_int_equal(weight_group_acquire(&be, &g), WAN_ERR_BACKEND);
  assert_int_equal(c.unloads, 8);
  assert_int_equal(g.users, 0);
  c = (counter){.fail_at = -1};
  const uint64_t before = core_mem_current(&ctx);
  assert_int_equal(weight_group_acquire(&be, &g), WAN_OK); /* in place: held memory all the same */
  assert_int_equal(core_mem_current(&ctx) - before, 2 * sizeof large + 128 * sizeof(float));
  assert_memory_equal(w[2].data, large, sizeof large);
  weight_group_release(&be, &g, RESIDENCY_STREAM);
  assert_int_equal(c.unloads, 3);
  assert_int_equal(core_mem_current(&ctx), before);
  assert_int_not_equal(is_mapped(w[2].src.data, sizeof large), 1); /* handed back after use */

  c = (counter){.fail_at = -1, .copy = true};
  weight_group_load_ahead(&be, &g, RESIDENCY_STREAM); /* this backend does not work behind the host */
  assert_int_equal(c.loads, 0);
  const backend_ops behind = {
      .weight_load = fake_load, .weight_unload = fake_unload, .weight_prefetch = fake_prefetch};
  be.ops = &behind;
  c.fail_at = 1; /* loading the rest ahead fails; it is loaded when it is needed */
  weight_group_load_ahead(&be, &g, RESIDENCY_STREAM);
  assert_int_equal(c.loads, 1);
  c.fail_at = -1;
  assert_int_equal(weight_group_acquire(&be, &g), WAN_OK);
  assert_int_equal(c.loads, 3);
  assert_memory_equal(w[2].data, large, sizeof large);
  weight_group_load_ahead(&be, &g, RESIDENCY_STREAM); /* all there */
  assert_int_equal(c.loads, 3);
  weight_group_release(&be, &g, RESIDENCY_STREAM);
  assert_int_equal(c.unloads, 3);
  weight_group_load_ahead(&be, &g, RESIDENCY_STREAM); /* and never used */
  weight_group_drop(&be, &g);
  assert_int_equal(c.unloads, 6);
  assert_int_equal(core_mem_current(&ctx), before);

  weight_group full = {0};
  for (int i = 0; i <= WEIGHT_GROUP_MAX; i++) weight_group_add(&full, &w[0]);
  assert_int_equal(weight_group_acquire(&be, &full), WAN_ERR_ARGUMENT);
  weight_set_close(set);
}

static void test_allocation_failures(void **state) {
  (void)state;
  const char *path = shards(GOOD);
  wan_status status = WAN_ERR_MEMORY;
  int n = 0;
  for (; status != WAN_OK; n++) {
    weight_set *set;
    atomic_store(&ctx.mem_fail_in, n);
    status = weight_set_open(&ctx, path, WEIGHTS_DIT, &set);
    assert_true(status == WAN_OK || (status == WAN_ERR_MEMORY && !set));
    weight_set_close(set);
  }
  atomic_store(&ctx.mem_fail_in, -1);
  assert_true(n > 15);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_shards),
      cmocka_unit_test(test_bad_index),
      cmocka_unit_test(test_twice),
      cmocka_unit_test(test_empty_directory),
      cmocka_unit_test(test_bind),
      cmocka_unit_test(test_finish),
      cmocka_unit_test(test_residency),
      cmocka_unit_test(test_foreign_names),
      cmocka_unit_test(test_allocation_failures),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
