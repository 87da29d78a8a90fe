/* tiny.h: what the fault tests share: copies of the small checkpoints that may be damaged, whole runs through
 * the public API that collect their frames, and the proof that a failed run left nothing behind. */
#ifndef WAN_TESTS_TINY_H
#define WAN_TESTS_TINY_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "api/context.h"
#include "weights/safetensors.h"
#include "weights/weights.h"
#include "scratch.h"

#define TINY_DATA WAN_SOURCE_DIR "/tests/parity/data/"
#define TINY_PICTURE TINY_DATA "picture_rgb.png"

enum { TINY_FRAMES = 5, TINY_SIDE = 32, TINY_BYTES = TINY_FRAMES * TINY_SIDE * TINY_SIDE * 3 };

/* The frames of one run, and what its callbacks are to do. */
typedef struct tiny_run {
  wan_context *context;
  uint8_t rgb[TINY_BYTES];
  size_t used;
  int events;    /* progress events so far */
  int cancel_at; /* event that cancels; -1: none */
  int stop_at;   /* frame whose receiver says stop; -1: none */
  wan_progress last;
} tiny_run;

/* The four ways to make a video with the small checkpoints. */
typedef struct tiny_task {
  const char *name, *ckpt, *picture;
} tiny_task;
enum { TINY_TASKS = 4 };
extern const tiny_task tiny_tasks[TINY_TASKS];

/* A checkpoint of tests/parity/data/ckpt as real files in the scratch folder; returns its path, which lives
 * as long as the scratch folder does not hand out seven more paths. */
const char *tiny_copy(scratch *s, const char *ckpt, const char *name);
/* A whole file; free(). */
unsigned char *tiny_read(const char *path, size_t *size);
void tiny_write(const char *path, const void *data, size_t size);

/* All weights of `from` under their official names as one safetensors file; edit (may be NULL) may change
 * each one's description and data, and takes it out by setting its name to NULL. */
typedef void (*tiny_edit)(void *user, named_tensor *t);
void tiny_rewrite(const char *from, weight_kind kind, const char *to, tiny_edit edit, void *user);

/* The faster of the backends that run on every machine: "cpu" where it is built, else "ref". */
const char *tiny_backend(void);
/* One thread, so that allocations come in a fixed order. name NULL: the best of this build. */
wan_context *tiny_context(const char *name);
wan_model *tiny_open(wan_context *c, const char *dir);
/* Two steps, five frames, 32x32, frames to `run`. */
void tiny_params(tiny_run *run, const char *picture, wan_generate_params *out);
void tiny_reset(tiny_run *run, wan_context *c);
/* A run that has to succeed. */
void tiny_must_run(wan_context *c, wan_model *m, const char *picture, tiny_run *out);
void tiny_same(const tiny_run *a, const tiny_run *b, const char *what);

/* Number of entries in a folder. */
int tiny_entries(const char *dir);
/* Seeds come from the clock unless WAN_TEST_SEED is set, and are printed. */
uint64_t tiny_seed(void);
uint64_t tiny_next(uint64_t *state);
/* Seconds of this process's processor time, which a busy machine does not make scarce. */
double tiny_seconds(void);
/* Seconds a test may spend on a search that could go on: more under sanitizers. */
double tiny_budget(double seconds);

#endif
