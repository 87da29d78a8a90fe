/* Scopes of a backend, its registry, and what failing allocations leave behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"

typedef struct fixture {
  core_ctx ctx;
  backend *be;
} fixture;

static int make_fixture(void **state) {
  fixture *f = malloc(sizeof *f);
  if (!f) return -1;
  backend_config config = {.name = "ref", .precision = WAN_PRECISION_F32, .profile = true};
  core_ctx_init(&f->ctx);
  *state = f;
  return backend_open(&f->ctx, &config, &f->be);
}

static int drop_fixture(void **state) {
  fixture *f = *state;
  backend_close(f->be);
  int leaked = core_mem_current(&f->ctx) != 0;
  free(f);
  return leaked;
}

enum { MIB = 1 << 20 };

/* ---- Scopes ---- */

static void test_alignment_and_order(void **state) {
  backend *be = ((fixture *)*state)->be;
  scope_mark mark = scope_begin(be);
  char *last = NULL;
  for (int i = 0; i < 50; i++) {
    tensor t = TENSOR_NEW(be, DT_U8, 1 + i * 37);
    assert_int_equal(t.type, DT_U8);
    assert_int_equal((uintptr_t)t.data % 64, 0);
    if (last) assert_true((char *)t.data >= last); /* no overlap with what came before */
    last = (char *)t.data + 1 + i * 37;
    memset(t.data, i, (size_t)(1 + i * 37));
  }
  tensor act = TENSOR_NEW(be, DT_NONE, 2, 2);
  assert_int_equal(act.type, DT_F32);
  scope_end(be, mark);
}

/* The inner scope's memory comes back, the outer one's contents stay. */
static void test_nesting(void **state) {
  backend *be = ((fixture *)*state)->be;
  scope_mark outer = scope_begin(be);
  tensor kept = TENSOR_NEW(be, DT_U8, 1000);
  memset(kept.data, 1, 1000);
  void *seen = NULL;
  for (int i = 0; i < 3; i++) {
    scope_mark inner = scope_begin(be);
    tensor small = TENSOR_NEW(be, DT_U8, 1000), large = TENSOR_NEW(be, DT_U8, 9 * MIB);
    memset(small.data, 2, 1000);
    memset(large.data, 3, 9 * MIB);
    if (seen) assert_ptr_equal(small.data, seen);
    seen = small.data;
    scope_mark innermost = scope_begin(be);
    tensor huge = TENSOR_NEW(be, DT_U8, 20 * MIB);
    memset(huge.data, 4, 20 * MIB);
    scope_end(be, innermost);
    for (int k = 0; k < 1000; k++) assert_int_equal(((unsigned char *)small.data)[k], 2);
    scope_end(be, inner);
  }
  for (int k = 0; k < 1000; k++) assert_int_equal(((unsigned char *)kept.data)[k], 1);
  tensor next = TENSOR_NEW(be, DT_U8, 10);
  assert_ptr_equal(next.data, seen);
  scope_end(be, outer);
  assert_int_equal(backend_status(be), WAN_OK);
}

/* Chunks stay cached; a loop costs nothing after its first turn; trimming returns everything. */
static void test_cache_and_trim(void **state) {
  fixture *f = *state;
  backend *be = f->be;
  uint64_t before = core_mem_current(&f->ctx), cached = 0;
  for (int i = 0; i < 4; i++) {
    scope_mark mark = scope_begin(be);
    TENSOR_NEW(be, DT_U8, 3 * MIB);
    TENSOR_NEW(be, DT_U8, 6 * MIB);
    TENSOR_NEW(be, DT_U8, 2 * MIB);
    scope_end(be, mark);
    if (i) assert_int_equal(core_mem_current(&f->ctx), cached);
    cached = core_mem_current(&f->ctx);
  }
  assert_true(cached >= before + 11 * MIB);
  scope_trim(be);
  assert_int_equal(core_mem_current(&f->ctx), before);
}

/* A cached chunk that is too small makes way instead of piling up. */
static void test_growing(void **state) {
  fixture *f = *state;
  uint64_t before = core_mem_current(&f->ctx);
  for (int mib = 5; mib <= 40; mib += 5) {
    scope_mark mark = scope_begin(f->be);
    tensor t = TENSOR_NEW(f->be, DT_U8, (int64_t)mib * MIB);
    memset(t.data, 1, (size_t)mib * MIB);
    scope_end(f->be, mark);
    assert_true(core_mem_current(&f->ctx) <= before + (uint64_t)mib * MIB + 4096);
  }
}

/* Trimming with a scope open must leave that scope's memory alone. */
static void test_trim_in_a_scope(void **state) {
  backend *be = ((fixture *)*state)->be;
  scope_mark mark = scope_begin(be);
  tensor t = TENSOR_NEW(be, DT_U8, 100);
  memset(t.data, 7, 100);
  scope_trim(be);
  for (int i = 0; i < 100; i++) assert_int_equal(((unsigned char *)t.data)[i], 7);
  scope_end(be, mark);
}

static void test_empty_tensors(void **state) {
  backend *be = ((fixture *)*state)->be;
  scope_mark mark = scope_begin(be);
  tensor t = TENSOR_NEW(be, DT_F32, 0, 5), a = TENSOR_ALLOC(be, DT_F32, 5, 0);
  assert_int_equal(t.type, DT_F32);
  assert_non_null(t.data);
  assert_non_null(a.data);
  tensor_zero(be, t);
  tensor_copy(be, a, t);
  assert_int_equal(backend_status(be), WAN_OK);
  tensor_free(be, &a);
  assert_int_equal(a.type, DT_NONE);
  tensor_free(be, &a);
  scope_end(be, mark);
}

/* ---- Failure ---- */

static void test_too_large(void **state) {
  fixture *f = *state;
  const int64_t huge[][2] = {{INT64_MAX, 2}, {INT64_MAX, 1}, {(int64_t)1 << 40, (int64_t)1 << 30}, {4, -1}};
  for (size_t i = 0; i < sizeof huge / sizeof huge[0]; i++) {
    assert_int_equal(tensor_new(f->be, DT_F32, 2, huge[i]).type, DT_NONE);
    assert_int_equal(backend_status(f->be), WAN_ERR_ARGUMENT);
    backend_clear(f->be);
    assert_int_equal(tensor_alloc(f->be, DT_F64, 2, huge[i]).type, DT_NONE);
    assert_int_equal(backend_status(f->be), WAN_ERR_ARGUMENT);
    backend_clear(f->be);
  }
  assert_int_equal(TENSOR_NEW(f->be, DT_U8, (int64_t)1 << 58).type,
                   DT_NONE); /* countable, but not to be had */
  assert_int_equal(backend_status(f->be), WAN_ERR_MEMORY);
}

static void test_memory_limit(void **state) {
  fixture *f = *state;
  f->ctx.mem_limit = core_mem_current(&f->ctx) + 6 * MIB;
  scope_mark mark = scope_begin(f->be);
  assert_int_equal(TENSOR_NEW(f->be, DT_U8, MIB).type, DT_U8);
  assert_int_equal(TENSOR_NEW(f->be, DT_U8, 4 * MIB).type, DT_NONE); /* needs a second chunk */
  assert_int_equal(backend_status(f->be), WAN_ERR_MEMORY);
  assert_non_null(strstr(f->ctx.message, "limit"));
  scope_end(f->be, mark);
  backend_clear(f->be);
  mark = scope_begin(f->be);
  assert_int_equal(TENSOR_NEW(f->be, DT_U8, 4 * MIB).type, DT_U8);
  scope_end(f->be, mark);
}

static void test_null_tensors_fail(void **state) {
  fixture *f = *state;
  float x = 0;
  tensor_download(f->be, &x, (tensor){0});
  assert_int_equal(backend_status(f->be), WAN_ERR_ARGUMENT);
  assert_non_null(strstr(f->ctx.message, "download"));
  tensor_upload(f->be, (tensor){0}, &x); /* the first message stays */
  assert_non_null(strstr(f->ctx.message, "download"));
  backend_clear(f->be);
  tensor_zero(f->be, (tensor){0});
  assert_int_equal(backend_status(f->be), WAN_ERR_ARGUMENT);
  backend_clear(f->be);
  assert_int_equal(backend_fail(f->be, WAN_ERR_NUMERIC, "step %d", 3), WAN_ERR_NUMERIC);
  assert_int_equal(backend_fail(f->be, WAN_ERR_IO, "later"), WAN_ERR_NUMERIC);
  assert_string_equal(f->ctx.message, "step 3");
  assert_int_equal(backend_sync(f->be), WAN_ERR_NUMERIC);
  assert_int_equal(TENSOR_NEW(f->be, DT_F32, 1).type, DT_NONE);
  assert_int_equal(TENSOR_ALLOC(f->be, DT_F32, 1).type, DT_NONE);
}

/* A few operations, each of which allocates: result, scratch, converted weight, chunk. */
static wan_status small_pass(backend *be) {
  uint16_t half[6] = {0x3c00, 0, 0, 0, 0x3c00, 0};
  float x[3] = {1, 2, 3}, y[2] = {0};
  weight w = {.name = "w", .role = WEIGHT_LINEAR, .src = TENSOR_OF(DT_F16, half, 2, 3)};
  wan_status s = backend_weight_load(be, &w);
  if (s != WAN_OK) return s;
  scope_mark mark = scope_begin(be);
  tensor t = TENSOR_NEW(be, DT_F32, 1, 3), own = TENSOR_ALLOC(be, DT_F32, 1, 2);
  tensor_upload(be, t, x);
  op_linear_into(be, t, &w, NULL, ACT_NONE, own);
  tensor far = TENSOR_NEW(be, DT_F32, 2 * MIB); /* another chunk */
  tensor_copy(be, tensor_slice(far, 0, 2), TENSOR_VIEW(own, 2));
  tensor_download(be, y, tensor_slice(far, 0, 2));
  s = backend_status(be);
  if (s == WAN_OK && (y[0] != 1 || y[1] != 2)) s = WAN_ERR_NUMERIC;
  tensor_free(be, &own);
  scope_end(be, mark);
  backend_weight_unload(be, &w);
  return s;
}

/* Opening, computing and closing with the n-th allocation failing, for every n until none fails. */
static void test_every_allocation_fails(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  int failures = 0;
  for (int n = 0;; n++) {
    backend_config config = {.name = "ref", .profile = true};
    backend *be = NULL;
    ctx.message[0] = 0;
    atomic_store(&ctx.mem_fail_in, n);
    wan_status s = backend_open(&ctx, &config, &be);
    if (s != WAN_OK) assert_null(be);
    if (s == WAN_OK) s = small_pass(be);
    bool injected = atomic_load(&ctx.mem_fail_in) < 0;
    atomic_store(&ctx.mem_fail_in, -1);
    if (be && s != WAN_OK) { /* usable again once cleared */
      backend_clear(be);
      assert_int_equal(small_pass(be), WAN_OK);
    }
    backend_close(be);
    assert_int_equal(core_mem_current(&ctx), 0);
    if (!injected) {
      assert_int_equal(s, WAN_OK);
      break;
    }
    assert_int_equal(s, WAN_ERR_MEMORY);
    assert_non_null(strstr(ctx.message, "out of memory"));
    failures++;
  }
  assert_true(failures >= 8); /* backend, profile, weight, two chunks with their notes, own, scratch */
}

/* ---- Registry and profile ---- */

static void test_registry(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  backend *be = (backend *)1;
  backend_config config = {.name = "abacus"};
  assert_int_equal(backend_open(&ctx, &config, &be), WAN_ERR_ARGUMENT);
  assert_null(be);
  assert_non_null(strstr(ctx.message, "abacus"));
  assert_non_null(strstr(ctx.message, "ref"));
  int n = 0;
  while (backend_name(n)) n++;
  assert_true(n >= 1);
  assert_string_equal(backend_name(n - 1), "ref");
  assert_null(backend_name(-1));
  config = (backend_config){.name = "ref"};
  assert_int_equal(backend_open(&ctx, &config, &be), WAN_OK);
  assert_int_equal(be->act, DT_BF16); /* the default */
  assert_true(be->host_memory);
  assert_null(backend_profile_text(be));
  backend_close(be);
  config = (backend_config){0}; /* the best one there is */
  assert_int_equal(backend_open(&ctx, &config, &be), WAN_OK);
  backend_close(be);
  backend_close(NULL);
  assert_int_equal(core_mem_current(&ctx), 0);
}

static void test_profile(void **state) {
  fixture *f = *state;
  assert_int_equal(small_pass(f->be), WAN_OK);
  char *text = backend_profile_text(f->be);
  assert_non_null(text);
  assert_non_null(strstr(text, "linear"));
  assert_non_null(strstr(text, "transfer"));
  assert_null(strstr(text, "attention"));
  core_free(&f->ctx, text);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_fixture, drop_fixture)
  const struct CMUnitTest tests[] = {
      TEST(test_alignment_and_order),
      TEST(test_nesting),
      TEST(test_cache_and_trim),
      TEST(test_growing),
      TEST(test_trim_in_a_scope),
      TEST(test_empty_tensors),
      TEST(test_too_large),
      TEST(test_memory_limit),
      TEST(test_null_tensors_fail),
      cmocka_unit_test(test_every_allocation_fails),
      cmocka_unit_test(test_registry),
      TEST(test_profile),
  };
  return cmocka_run_group_tests_name("arena", tests, NULL, NULL);
}
