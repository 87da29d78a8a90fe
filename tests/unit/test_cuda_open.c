/* Opening the CUDA backend: it works or says why not, and leaves nothing behind; without a name the next
 * backend takes over. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "backend/backend.h"

static bool built_in(void) {
  for (int i = 0; backend_name(i); i++)
    if (strcmp(backend_name(i), "cuda") == 0) return true;
  return false;
}

static void test_open_by_name(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  backend *be = NULL;
  backend_config config = {.name = "cuda"};
  wan_status s = backend_open(&ctx, &config, &be);
  if (!built_in()) {
    assert_int_equal(s, WAN_ERR_ARGUMENT);
    assert_non_null(strstr(ctx.message, "\"cuda\" is not in this build"));
  } else if (s == WAN_OK) {
    assert_string_equal(be->ops->name, "cuda");
  } else {
    print_message("SKIPPED opening: %s\n", ctx.message);
    assert_int_equal(s, WAN_ERR_BACKEND);
    assert_int_equal(strncmp(ctx.message, "CUDA: ", 6), 0);
    assert_null(be);
  }
  backend_close(be);
  assert_int_equal(core_mem_current(&ctx), 0);
}

static void note(void *user, wan_log_level level, const char *message) {
  if (level == WAN_LOG_INFO && strstr(message, "backend cuda is not used: CUDA: ")) ++*(int *)user;
}

static void test_next_takes_over(void **state) {
  (void)state;
  int notes = 0;
  core_ctx ctx;
  core_ctx_init(&ctx);
  ctx.log = note;
  ctx.log_user = &notes;
  backend *be = NULL;
  backend_config config = {0};
  assert_int_equal(backend_open(&ctx, &config, &be), WAN_OK);
  if (built_in()) assert_int_equal(notes, strcmp(be->ops->name, "cuda") != 0);
  backend_close(be);
  assert_int_equal(core_mem_current(&ctx), 0);
}

static void test_out_of_memory(void **state) {
  (void)state;
  if (!built_in()) skip();
  core_ctx ctx;
  core_ctx_init(&ctx);
  for (int i = 0; i < 2; i++) { /* the backend itself, then its state */
    backend *be = NULL;
    backend_config config = {.name = "cuda"};
    atomic_store(&ctx.mem_fail_in, i);
    assert_int_equal(backend_open(&ctx, &config, &be), WAN_ERR_MEMORY);
    assert_null(be);
    atomic_store(&ctx.mem_fail_in, -1);
    assert_int_equal(core_mem_current(&ctx), 0);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_open_by_name),
                                     cmocka_unit_test(test_next_takes_over),
                                     cmocka_unit_test(test_out_of_memory)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
