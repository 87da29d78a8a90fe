/* A whole run with allocations failing: one message, nothing leaked, no file left, and the context still
 * works afterwards. A run makes some thousands of allocations, most of them while opening files, where each
 * room's own test fails every one; here every STRIDE-th is taken, from a random start. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/context.h"
#include "core/rng.h"

enum { STRIDE = 61 }; /* prime: no allocation pattern of the code can hide behind it */

#define CKPT WAN_SOURCE_DIR "/tests/parity/data/ckpt/"

static const uint8_t picture[3 * 4] = {200, 10, 30, 0, 255, 9, 90, 80, 70, 1, 2, 3}; /* 2x2 pixels */
static char folder[] = "/tmp/wan-fault-XXXXXX";

typedef struct counter {
  int frames;
  uint64_t sum;
} counter;

static bool on_frame(void *user, int index, int width, int height, const uint8_t *rgb) {
  counter *c = user;
  (void)index;
  c->frames++;
  for (int i = 0; i < width * height * 3; i++) c->sum = c->sum * 31 + rgb[i];
  return true;
}

static wan_status run(wan_context *c, const char *dir, bool with_picture, counter *result) {
  char latent[64], checkpoint[64];
  wan_generate_params p;
  wan_model *m = NULL;
  snprintf(latent, sizeof latent, "%s/l.safetensors", folder);
  snprintf(checkpoint, sizeof checkpoint, "%s/c.safetensors", folder);
  wan_generate_params_init(&p);
  *result = (counter){0};
  p.prompt = "a ball";
  if (with_picture) p.image = (wan_image){2, 2, picture};
  p.width = p.height = 32;
  p.frames = 5;
  p.steps = 2;
  p.seed = 1;
  p.apg = true;
  p.save_latent_path = latent;
  p.checkpoint_path = checkpoint;
  p.frame = on_frame;
  p.user = result;
  wan_status s = wan_model_open(c, dir, &m);
  if (s == WAN_OK) s = wan_generate(m, &p, NULL);
  wan_model_close(m);
  /* Both are kept after a failure by design: the next run would resume, and a finished latent is finished. */
  unlink(checkpoint);
  int missing = unlink(latent);
  assert_true(s != WAN_OK || !missing);
  return s;
}

static void fail_each(const char *dir, bool with_picture) {
  wan_context_params cp;
  wan_context *c;
  counter good, got;
  wan_context_params_init(&cp);
  cp.backend = "ref";
  cp.threads = 1;
  assert_int_equal(wan_context_create(&cp, &c), WAN_OK);
  const int_least64_t many = INT64_C(1) << 40;
  atomic_store(&c->core.mem_fail_in, many);
  if (run(c, dir, with_picture, &good) != WAN_OK) fail_msg("%s", wan_context_error(c));
  const int64_t total = many - atomic_load(&c->core.mem_fail_in);
  atomic_store(&c->core.mem_fail_in, -1);
  const uint64_t held = wan_context_memory(c);
  assert_int_equal(good.frames, 5);
  int64_t failed = 0, tried = 0;
  const int64_t first = (int64_t)(rng_random_seed() % STRIDE);
  print_message("first allocation to fail: %lld\n", (long long)first);
  for (int64_t k = first; k < total; k += STRIDE) {
    tried++;
    c->core.message[0] = 0;
    atomic_store(&c->core.mem_fail_in, k);
    wan_status s = run(c, dir, with_picture, &got);
    atomic_store(&c->core.mem_fail_in, -1);
    if (s == WAN_OK) { /* something that can be done without: the result has to be the same */
      assert_int_equal(got.sum, good.sum);
    } else {
      failed++;
      if (s != WAN_ERR_MEMORY || !*wan_context_error(c))
        fail_msg("allocation %lld: status %d, \"%s\"", (long long)k, (int)s, wan_context_error(c));
    }
    if (wan_context_memory(c) > held)
      fail_msg("allocation %lld: %llu bytes leaked", (long long)k,
               (unsigned long long)(wan_context_memory(c) - held));
    if (rmdir(folder) != 0) fail_msg("allocation %lld: a file was left in %s", (long long)k, folder);
    assert_non_null(strcpy(folder, "/tmp/wan-fault-XXXXXX"));
    assert_non_null(mkdtemp(folder));
  }
  assert_int_equal(run(c, dir, with_picture, &got), WAN_OK);
  assert_int_equal(got.sum, good.sum);
  print_message("%s: %lld allocations, %lld of %lld were missed\n", dir + sizeof CKPT - 1, (long long)total,
                (long long)failed, (long long)tried);
  assert_true(failed > tried / 2);
  wan_context_destroy(c);
}

static void test_memory(void **state) {
  (void)state;
  assert_non_null(mkdtemp(folder));
  fail_each(CKPT "ti2v", true);
  fail_each(CKPT "i2v", true);
  rmdir(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
