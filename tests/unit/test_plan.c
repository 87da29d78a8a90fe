/* The plan against a run. Memory: the plan runs the model's own code on a counting backend, so what differs
 * is how chunks of the arena are rounded (4 MiB each, arena.c), the compute library's scratch and the
 * backend's own: up to 16 MiB for the rows that a convolution gathers (cpu/conv.c). 10% and 16 MiB. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>

#include <wan/wan.h>

static void check_stage(const char *name, uint64_t planned, uint64_t used) {
  print_message("%s: planned %.1f MiB, used %.1f MiB\n", name, (double)planned / (1 << 20),
                (double)used / (1 << 20));
  double low = 0.9 * (double)used - (16 << 20), high = 1.1 * (double)used + (16 << 20);
  assert_true((double)planned >= low && (double)planned <= high);
}

static bool ignore_frame(void *user, int index, int width, int height, const uint8_t *rgb) {
  (void)user, (void)index, (void)width, (void)height, (void)rgb;
  return true;
}

static void test_memory(void **state) {
  (void)state;
  wan_context_params cp;
  wan_generate_params gp;
  wan_generate_result result = {.size = sizeof result};
  wan_plan plan = {.size = sizeof plan};
  wan_context *context;
  wan_model *model;
  wan_context_params_init(&cp);
  assert_int_equal(wan_context_create(&cp, &context), WAN_OK);
  if (wan_model_open(context, WAN_SOURCE_DIR "/models/shapes", &model) != WAN_OK)
    fail_msg("%s", wan_context_error(context));
  wan_generate_params_init(&gp);
  gp.prompt = "a green star on black";
  gp.width = gp.height = 256;
  gp.frames = 9;
  gp.steps = 1;
  gp.seed = 1;
  gp.frame = ignore_frame; /* without a taker of frames nothing is decoded */
  if (wan_plan_generate(model, &gp, &plan) != WAN_OK) fail_msg("%s", wan_context_error(context));
  if (wan_generate(model, &gp, &result) != WAN_OK) fail_msg("%s", wan_context_error(context));
  for (int i = 0; i < WAN_STAGE_COUNT; i++)
    if (plan.flops[i] > 0) {
      assert_true(plan.seconds[i] > 0 && plan.seconds[i] < 1e6);
      check_stage(wan_stage_name((wan_stage)i), plan.memory_peak[i], result.memory_peak[i]);
    }
  assert_true(plan.flops[WAN_STAGE_DENOISE] > 0 && plan.flops[WAN_STAGE_DECODE] > 0);
  wan_model_close(model);
  wan_context_destroy(context);
}

/* Twice the steps are nearly twice the work; the work of a decode follows the number of frames. */
static void test_scaling(void **state) {
  (void)state;
  wan_context_params cp;
  wan_generate_params gp;
  wan_plan one = {.size = sizeof one}, two = {.size = sizeof two};
  wan_context *context;
  wan_model *model;
  wan_context_params_init(&cp);
  assert_int_equal(wan_context_create(&cp, &context), WAN_OK);
  assert_int_equal(wan_model_open(context, WAN_SOURCE_DIR "/models/shapes", &model), WAN_OK);
  wan_generate_params_init(&gp);
  gp.prompt = "a green star on black";
  gp.width = gp.height = 128;
  gp.frames = 17;
  gp.steps = 5;
  assert_int_equal(wan_plan_generate(model, &gp, &one), WAN_OK);
  gp.steps = 10;
  assert_int_equal(wan_plan_generate(model, &gp, &two), WAN_OK);
  double steps = two.flops[WAN_STAGE_DENOISE] / one.flops[WAN_STAGE_DENOISE];
  assert_true(steps > 1.8 && steps < 2); /* the prompt's keys are made in the first step only */
  assert_true(two.flops[WAN_STAGE_DECODE] == one.flops[WAN_STAGE_DECODE]);
  gp.frames = 33;
  assert_int_equal(wan_plan_generate(model, &gp, &two), WAN_OK);
  double ratio = two.flops[WAN_STAGE_DECODE] / one.flops[WAN_STAGE_DECODE];
  assert_true(ratio > 1.8 && ratio < 2.1);
  assert_int_equal(two.memory_peak[WAN_STAGE_DECODE] >> 23, one.memory_peak[WAN_STAGE_DECODE] >> 23);
  wan_model_close(model);
  wan_context_destroy(context);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_memory), cmocka_unit_test(test_scaling)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
