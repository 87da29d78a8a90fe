/* Messages, the memory account, limits and injected failures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "core/ctx.h"

static int make_ctx(void **state) {
  core_ctx *ctx = malloc(sizeof *ctx);
  if (!ctx) return -1;
  core_ctx_init(ctx);
  *state = ctx;
  return 0;
}

/* Whatever a test does, it must have given everything back. */
static int drop_ctx(void **state) {
  core_ctx *ctx = *state;
  int leaked = core_mem_current(ctx) != 0;
  free(ctx);
  return leaked;
}

/* ---- Messages ---- */

static void test_fail_and_prefix(void **state) {
  core_ctx *ctx = *state;
  assert_string_equal(ctx->message, "");
  assert_int_equal(core_fail(ctx, WAN_ERR_FORMAT, "%s at %d", "broken", 7), WAN_ERR_FORMAT);
  assert_string_equal(ctx->message, "broken at 7");
  assert_int_equal(core_prefix(ctx, WAN_ERR_FORMAT, "file %s", "a.b"), WAN_ERR_FORMAT);
  assert_string_equal(ctx->message, "file a.b: broken at 7");
  assert_int_equal(core_prefix(ctx, WAN_OK, "never"), WAN_OK);
  assert_string_equal(ctx->message, "file a.b: broken at 7");
  assert_int_equal(core_fail(NULL, WAN_ERR_IO, "dropped"), WAN_ERR_IO);
  assert_int_equal(core_prefix(NULL, WAN_ERR_IO, "dropped"), WAN_ERR_IO);
}

/* Too long messages are cut, and always terminated. */
static void test_long_messages(void **state) {
  core_ctx *ctx = *state;
  char *text = test_malloc(3 * CORE_MESSAGE_MAX);
  memset(text, 'x', 3 * CORE_MESSAGE_MAX);
  for (int n = CORE_MESSAGE_MAX - 8; n <= CORE_MESSAGE_MAX + 8; n++) {
    core_fail(ctx, WAN_ERR_IO, "%.*s", n, text);
    assert_int_equal(strlen(ctx->message), n < CORE_MESSAGE_MAX ? n : CORE_MESSAGE_MAX - 1);
    core_prefix(ctx, WAN_ERR_IO, "front");
    assert_memory_equal(ctx->message, "front: xxx", 10);
    assert_true(strlen(ctx->message) < CORE_MESSAGE_MAX);
    core_fail(ctx, WAN_ERR_IO, "end");
    core_prefix(ctx, WAN_ERR_IO, "%.*s", n, text);
    assert_memory_equal(ctx->message, "xxx", 3);
    assert_true(strlen(ctx->message) < CORE_MESSAGE_MAX);
  }
  test_free(text);
}

static void keep_line(void *user, wan_log_level level, const char *message) {
  char *line = user;
  line[0] = (char)('0' + (int)level);
  strncpy(line + 1, message, 62);
}

static void test_log(void **state) {
  core_ctx *ctx = *state;
  char line[64] = "";
  core_log(ctx, WAN_LOG_ERROR, "nobody listens");
  ctx->log = keep_line;
  ctx->log_user = line;
  core_log(ctx, WAN_LOG_INFO, "%d frames", 5);
  assert_string_equal(line, "25 frames");
  core_log(NULL, WAN_LOG_INFO, "nowhere");
}

static void test_cancel(void **state) {
  core_ctx *ctx = *state;
  assert_int_equal(core_check_cancel(ctx), WAN_OK);
  core_cancel(ctx);
  assert_int_equal(core_check_cancel(ctx), WAN_ERR_CANCELLED);
  assert_string_equal(ctx->message, "cancelled");
}

/* ---- Memory ---- */

static bool all_zero(const unsigned char *p, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (p[i]) return false;
  return true;
}

/* From the heap and from mappings: around the threshold of 2 MiB, less the header of 64 bytes. */
static void test_sizes(void **state) {
  core_ctx *ctx = *state;
  const size_t mib2 = 2 << 20,
               sizes[] = {0, 1, 63, 64, 65, 4096, mib2 - 65, mib2 - 64, mib2 - 63, mib2, 3 * mib2 + 1};
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    unsigned char *p = core_alloc(ctx, sizes[i]), *z = core_calloc(ctx, sizes[i], 1);
    assert_non_null(p);
    assert_non_null(z);
    assert_int_equal((uintptr_t)p % 64, 0);
    assert_int_equal((uintptr_t)z % 64, 0);
    assert_int_equal(core_mem_current(ctx), 2 * sizes[i]);
    assert_true(all_zero(z, sizes[i]));
    memset(p, 0x5a, sizes[i]);
    memset(z, 0xa5, sizes[i]);
    p = core_realloc(ctx, p, sizes[i] + 1000); /* grows, keeping what was there */
    assert_non_null(p);
    for (size_t k = 0; k < sizes[i]; k++)
      if (p[k] != 0x5a) fail_msg("byte %zu of %zu was lost", k, sizes[i]);
    p = core_realloc(ctx, p, sizes[i] / 2);
    assert_non_null(p);
    for (size_t k = 0; k < sizes[i] / 2; k++)
      if (p[k] != 0x5a) fail_msg("byte %zu of %zu was lost", k, sizes[i]);
    assert_int_equal(core_mem_current(ctx), sizes[i] / 2 + sizes[i]);
    core_free(ctx, p);
    core_free(ctx, z);
    assert_int_equal(core_mem_current(ctx), 0);
  }
  core_free(ctx, NULL);
  assert_int_equal(core_mem_current(ctx), 0);
}

static void test_peak(void **state) {
  core_ctx *ctx = *state;
  void *a = core_alloc(ctx, 1000), *b = core_alloc(ctx, 500);
  core_free(ctx, b);
  assert_int_equal(core_mem_current(ctx), 1000);
  assert_int_equal(core_mem_peak(ctx), 1500);
  core_mem_reset_peak(ctx);
  assert_int_equal(core_mem_peak(ctx), 1000);
  core_mem_add(ctx, 4000);
  core_mem_add(ctx, -4000);
  assert_int_equal(core_mem_current(ctx), 1000);
  assert_int_equal(core_mem_peak(ctx), 5000);
  core_free(ctx, a);
}

static void test_impossible_sizes(void **state) {
  core_ctx *ctx = *state;
  const size_t huge[] = {SIZE_MAX, SIZE_MAX - 63, SIZE_MAX - 64, SIZE_MAX / 2 + 1, SIZE_MAX / 2};
  for (size_t i = 0; i < sizeof huge / sizeof huge[0]; i++) {
    ctx->message[0] = 0;
    assert_null(core_alloc(ctx, huge[i]));
    assert_true(strlen(ctx->message) > 0);
  }
  assert_null(core_calloc(ctx, SIZE_MAX / 2, 3)); /* the product wraps around to a small number */
  assert_null(core_calloc(ctx, (size_t)1 << 33, (size_t)1 << 31));
  assert_int_equal(core_mem_current(ctx), 0);
}

static void test_limit(void **state) {
  core_ctx *ctx = *state;
  ctx->mem_limit = 1000;
  void *a = core_alloc(ctx, 900), *b = core_alloc(ctx, 100);
  assert_non_null(a);
  assert_non_null(b); /* exactly the limit */
  assert_null(core_alloc(ctx, 1));
  assert_non_null(strstr(ctx->message, "1000 bytes"));
  assert_null(core_realloc(ctx, b, 200)); /* b stays as it was */
  core_free(ctx, b);
  b = core_alloc(ctx, 50);
  assert_non_null(b);
  core_free(ctx, a);
  core_free(ctx, b);
}

static void test_injected_failure(void **state) {
  core_ctx *ctx = *state;
  atomic_store(&ctx->mem_fail_in, 2);
  void *a = core_alloc(ctx, 10), *b = core_calloc(ctx, 10, 1);
  assert_non_null(a);
  assert_non_null(b);
  assert_null(core_strdup(ctx, "third"));
  assert_non_null(strstr(ctx->message, "out of memory"));
  void *c = core_alloc(ctx, 10); /* one failure only */
  assert_non_null(c);
  core_free(ctx, a);
  core_free(ctx, b);
  core_free(ctx, c);
}

static void test_strings(void **state) {
  core_ctx *ctx = *state;
  char *a = core_strdup(ctx, "Käse"), *b = core_asprintf(ctx, "%s-%03d", a, 7),
       *c = core_asprintf(ctx, "%s", "");
  assert_string_equal(b, "Käse-007");
  assert_string_equal(c, "");
  core_free(ctx, a);
  core_free(ctx, b);
  core_free(ctx, c);
  void *p = core_alloc(NULL, 10); /* a ctx is not needed */
  assert_non_null(p);
  core_free(NULL, p);
}

static void test_clock(void **state) {
  (void)state;
  double a = core_now(), b = core_now();
  assert_true(b >= a && b - a < 10);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_ctx, drop_ctx)
  const struct CMUnitTest tests[] = {
      TEST(test_fail_and_prefix),  TEST(test_long_messages), TEST(test_log),
      TEST(test_cancel),           TEST(test_sizes),         TEST(test_peak),
      TEST(test_impossible_sizes), TEST(test_limit),         TEST(test_injected_failure),
      TEST(test_strings),          TEST(test_clock),
  };
  return cmocka_run_group_tests_name("ctx", tests, NULL, NULL);
}
