/* test_fetch.c: results that come to the host behind its back are those of the moment they were asked for. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "backend/backend.h"

enum { N = 3 << 20 };

static void check_backend(const char *name) {
  core_ctx ctx;
  backend *be;
  backend_fetch f[2] = {0};
  backend_config config = {.name = name};
  core_ctx_init(&ctx);
  if (backend_open(&ctx, &config, &be) != WAN_OK) {
    print_message("SKIPPED %s: %s\n", name, ctx.message);
    return;
  }
  uint64_t before = core_mem_current(&ctx);
  uint8_t *data = core_alloc(&ctx, N);
  assert_non_null(data);
  for (int i = 0; i < 2; i++) assert_int_equal(backend_fetch_open(be, N, &f[i]), WAN_OK);
  scope_mark mark = scope_begin(be);
  tensor t = TENSOR_NEW(be, DT_U8, N);
  for (int round = 0; round < 4; round++) {
    memset(data, 17 + round, N);
    tensor_upload(be, t, data);
    assert_int_equal(backend_fetch_begin(be, &f[round % 2], t), WAN_OK);
    tensor_zero(be, t); /* later operations may change what was asked for */
    if (round == 0) continue;
    const backend_fetch *last = &f[(round - 1) % 2];
    assert_int_equal(backend_fetch_end(be, &f[(round - 1) % 2]), WAN_OK);
    memset(data, 16 + round, N);
    assert_memory_equal(last->host, data, N);
  }
  assert_int_equal(backend_fetch_end(be, &f[1]), WAN_OK);
  assert_memory_equal(f[1].host, (memset(data, 20, N), data), N);
  /* more than the buffer holds */
  backend_fetch small;
  assert_int_equal(backend_fetch_open(be, N - 1, &small), WAN_OK);
  assert_int_equal(backend_fetch_begin(be, &small, t), WAN_ERR_ARGUMENT);
  backend_clear(be);
  backend_fetch_close(be, &small);
  for (int i = 0; i < 2; i++) backend_fetch_close(be, &f[i]);
  backend_fetch_close(be, &f[0]); /* a closed one is a zeroed one */
  scope_end(be, mark);
  scope_trim(be);
  core_free(&ctx, data);
  assert_int_equal(core_mem_current(&ctx), before);
  backend_close(be);
}

static void test_every_backend(void **state) {
  (void)state;
  for (int i = 0; backend_name(i); i++) check_backend(backend_name(i));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_backend)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
