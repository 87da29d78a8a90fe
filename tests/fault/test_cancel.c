/* Cancelling at every moment, and two contexts at work at once. */
#define _GNU_SOURCE
#include "tiny.h"
#include "scratch_dir.h"

#include <pthread.h>

/* ---- Cancelling ---- */

typedef struct bench {
  wan_context *c;
  wan_model *m;
  const tiny_task *task;
  char out[600], checkpoint[600];
  tiny_run want, run;
} bench;

static void bench_open(bench *b, const tiny_task *task) {
  char model[512];
  snprintf(model, sizeof model, TINY_DATA "ckpt/%s", task->ckpt);
  b->c = tiny_context(NULL);
  b->m = tiny_open(b->c, model);
  b->task = task;
  snprintf(b->out, sizeof b->out, "%s/out.mp4", scratch_dir.dir);
  snprintf(b->checkpoint, sizeof b->checkpoint, "%s/state", scratch_dir.dir);
  tiny_must_run(b->c, b->m, task->picture, &b->want);
}

static void bench_close(bench *b) {
  wan_model_close(b->m);
  wan_context_destroy(b->c);
}

static wan_status run(bench *b, int cancel_at, int stop_at, const char *checkpoint) {
  wan_generate_params p;
  tiny_reset(&b->run, b->c);
  b->run.cancel_at = cancel_at;
  b->run.stop_at = stop_at;
  tiny_params(&b->run, b->task->picture, &p);
  p.output_path = b->out;
  p.checkpoint_path = checkpoint;
  return wan_generate(b->m, &p, NULL);
}

static void must_be_cancelled(bench *b, wan_status s, const char *what, int at) {
  if (s != WAN_ERR_CANCELLED || !strstr(wan_context_error(b->c), "cancel"))
    fail_msg("%s, cancelled at %s %d: status %d, \"%s\"", b->task->name, what, at, (int)s,
             wan_context_error(b->c));
}

static void each_event(bench *b) {
  assert_int_equal(run(b, -1, -1, NULL), WAN_OK);
  const int events = b->run.events;
  unlink(b->out);
  const uint64_t held = wan_context_memory(b->c);
  for (int at = 0; at < events; at++) {
    wan_status s = run(b, at, -1, NULL);
    if (at == events - 1) { /* the file is complete: too late, and no business of the next run */
      assert_int_equal(s, WAN_OK);
      assert_int_equal(unlink(b->out), 0);
      continue;
    }
    must_be_cancelled(b, s, "event", at);
    assert_int_equal(tiny_entries(scratch_dir.dir), 0);
    if (wan_context_memory(b->c) != held) fail_msg("%s: event %d leaks", b->task->name, at);
    if (at % 4) continue;
    tiny_must_run(b->c, b->m, b->task->picture, &b->run);
    tiny_same(&b->run, &b->want, "after a cancelled run");
  }
  print_message("%s: %d events\n", b->task->name, events);
}

static void each_frame(bench *b) {
  for (int at = 0; at < TINY_FRAMES; at++) {
    must_be_cancelled(b, run(b, -1, at, NULL), "frame", at);
    assert_int_equal(tiny_entries(scratch_dir.dir), 0);
  }
}

/* Cancelled at every event with a checkpoint: going on gives the same video. */
static void each_resume(bench *b) {
  for (int at = 0;; at += 3) {
    wan_status s = run(b, at, -1, b->checkpoint);
    if (s == WAN_OK) break;
    must_be_cancelled(b, s, "event", at);
    if (run(b, -1, -1, b->checkpoint) != WAN_OK) fail_msg("%s", wan_context_error(b->c));
    tiny_same(&b->run, &b->want, "resumed");
    assert_int_equal(unlink(b->out), 0);
    assert_int_equal(tiny_entries(scratch_dir.dir), 0); /* the checkpoint is gone, too */
  }
  unlink(b->out);
}

static void test_cancel(void **state) {
  (void)state;
  static bench b;
  for (int t = 0; t < TINY_TASKS; t++) {
    bench_open(&b, &tiny_tasks[t]);
    each_event(&b);
    each_frame(&b);
    each_resume(&b);
    wan_context_cancel(b.c); /* before a call: it is for that call */
    must_be_cancelled(&b, run(&b, -1, -1, NULL), "start", 0);
    tiny_must_run(b.c, b.m, b.task->picture, &b.run);
    bench_close(&b);
  }
}

/* ---- Two at once ---- */

typedef struct worker {
  pthread_t thread;
  const tiny_task *task;
  int rounds;
  tiny_run want, got;
  bool differs;
  char error[256];
} worker;

static void *work(void *arg) {
  worker *w = arg;
  char model[512];
  wan_model *m = NULL;
  wan_context *c = tiny_context(NULL);
  snprintf(model, sizeof model, TINY_DATA "ckpt/%s", w->task->ckpt);
  wan_status s = wan_model_open(c, model, &m);
  for (int i = 0; i < w->rounds && s == WAN_OK; i++) {
    wan_generate_params p;
    tiny_reset(&w->got, c);
    tiny_params(&w->got, w->task->picture, &p);
    s = wan_generate(m, &p, NULL);
    w->differs |= w->got.used != w->want.used || memcmp(w->got.rgb, w->want.rgb, w->got.used) != 0;
  }
  snprintf(w->error, sizeof w->error, "%s", s == WAN_OK ? "" : wan_context_error(c));
  wan_model_close(m);
  wan_context_destroy(c);
  return NULL;
}

static void test_two_contexts(void **state) {
  (void)state;
  enum { WORKERS = 3 };
  static worker w[WORKERS];
  for (int i = 0; i < WORKERS; i++) {
    w[i] = (worker){.task = &tiny_tasks[i == 2 ? 1 : i], .rounds = 3};
    char model[512];
    snprintf(model, sizeof model, TINY_DATA "ckpt/%s", w[i].task->ckpt);
    wan_context *c = tiny_context(NULL);
    wan_model *m = tiny_open(c, model);
    tiny_must_run(c, m, w[i].task->picture, &w[i].want);
    wan_model_close(m);
    wan_context_destroy(c);
  }
  for (int i = 0; i < WORKERS; i++) assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
  for (int i = 0; i < WORKERS; i++) pthread_join(w[i].thread, NULL);
  for (int i = 0; i < WORKERS; i++) {
    if (*w[i].error) fail_msg("context %d: %s", i, w[i].error);
    if (w[i].differs) fail_msg("context %d: another video than alone", i);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_cancel), cmocka_unit_test(test_two_contexts)};
  return cmocka_run_group_tests_name("cancelled runs and two contexts", tests, scratch_setup,
                                     scratch_teardown);
}
