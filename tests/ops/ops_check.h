/* ops_check.h: compares every operation of every backend with the reference on random data.
 *
 * A rig holds two backends, `ref` and the one under test, and makes everything twice: a twin is one
 * tensor in each. One case of a test is
 *
 *     rig_begin(r, "layer_norm");                      a fresh seed, poisoned scopes
 *     twin x = TWIN(r, DT_F32, rig_fill(r), L, C);     the same random data in both
 *     rig_compare(r, op_...(r->ref, x.ref, ..), op_...(r->be, x.sub, ..), limit);
 *     rig_end(r);                                      inputs unchanged, nothing failed, all released
 *
 * Result memory is filled with NaN before each case, so that an element nobody wrote is noticed; the
 * padding behind each result must stay as it was. Every failure prints the seed: WAN_TEST_SEED=n
 * repeats it. WAN_TEST_BACKEND=name tests that backend only ("ref" compares the reference with itself).
 */
#ifndef WAN_TESTS_OPS_CHECK_H
#define WAN_TESTS_OPS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/backend.h"

typedef struct twin {
  tensor ref, sub;
} twin;

typedef struct twin_weight {
  weight ref, sub;
  void *block;      /* the source's memory; the weights may start one byte into it */
  void *copy;       /* the source's bytes, to see that nobody changed them */
  size_t src_bytes; /* of the source */
} twin_weight;

typedef struct rig_input {
  twin t;
  void *host; /* what was uploaded; NULL once the operation may change the tensor */
} rig_input;

enum { RIG_INPUTS = 24, RIG_WEIGHTS = 4 };

typedef struct rig {
  core_ctx ref_ctx, ctx;
  backend *ref, *be;
  dtype act;
  uint64_t seed;  /* of the whole run */
  uint64_t state; /* of the generator */
  bool open;      /* between rig_begin() and rig_end() */
  int cases;      /* begun so far */
  const char *op;
  char note[256]; /* shapes and options of the case */
  scope_mark ref_mark, mark;
  rig_input input[RIG_INPUTS];
  int inputs;
  twin_weight weights[RIG_WEIGHTS];
  int weight_count;
} rig;

typedef struct ops_test {
  const char *name;
  void (*run)(void **state); /* *state is the rig */
} ops_test;

/* Run the tests on every backend in both precisions. Returns the number of failures. */
int ops_run(const char *program, const ops_test *tests, int count);
/* The same in fp8, on those that have it. */
int ops_run_fp8(const char *program, const ops_test *tests, int count);

/* ---- Random choices ---- */

uint64_t rig_bits(rig *r);
int64_t rig_int(rig *r, int64_t lo, int64_t hi); /* both included */
bool rig_chance(rig *r, double p);
double rig_uniform(rig *r); /* [0, 1) */
double rig_normal(rig *r);
/* A size in [lo, hi] that often is the lowest, or next to a multiple of 8, 16, 32, 64 or 128. */
int64_t rig_size(rig *r, int64_t lo, int64_t hi);
/* DT_F32 or the act dtype. */
dtype rig_type(rig *r);

typedef enum fill {
  FILL_NORMAL,     /* N(0, 1) */
  FILL_LARGE,      /* N(0, 1e4) */
  FILL_TINY,       /* N(0, 1e-15): squares vanish beside every epsilon */
  FILL_EQUAL_ROWS, /* every row one value */
  FILL_OFFSET,     /* N(100, 1): variance by difference of squares loses all digits in f32 */
  FILL_ZEROS,      /* 0 and -0 */
  FILL_MIXED,      /* any of the above, element by element */
  FILL_COUNT
} fill;
/* FILL_NORMAL half of the time, the others otherwise. */
fill rig_fill(rig *r);

/* ---- Making things ---- */

void rig_begin(rig *r, const char *op);
void rig_note(rig *r, const char *fmt, ...) CORE_PRINTF(2, 3); /* what a failure says about the case */
void rig_end(rig *r);
/* Outside of scopes; checked by rig_end() to be unchanged unless rig_may_change() was called. */
twin rig_tensor(rig *r, dtype type, fill how, int ndim, const int64_t *dim);
#define TWIN(r, type, how, ...)                                                             \
  rig_tensor((r), (type), (how), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
             (const int64_t[]){__VA_ARGS__})
/* The same from host data in dtype `type`. */
twin rig_tensor_from(rig *r, dtype type, const void *host, int ndim, const int64_t *dim);
#define TWIN_FROM(r, type, host, ...)                                                             \
  rig_tensor_from((r), (type), (host), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
                  (const int64_t[]){__VA_ARGS__})
void rig_may_change(rig *r, twin t);
/* Entries of the first dimension. */
twin twin_slice(twin t, int64_t begin, int64_t count);
/* Loaded in both backends. N(mean, scale), file dtype and alignment at random. */
const twin_weight *rig_weight(rig *r, weight_role role, double mean, double scale, int ndim,
                              const int64_t *dim);
#define TWIN_WEIGHT(r, role, mean, scale, ...)                                                        \
  rig_weight((r), (role), (mean), (scale), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
             (const int64_t[]){__VA_ARGS__})
/* op_linear & co take NULL for no bias. */
const weight *ref_of(const twin_weight *w);
const weight *sub_of(const twin_weight *w);

/* ---- Judging ---- */

/* What a result may differ by. Element i: |difference| <= rel |expected| + slack (rms(row) + scale) + abs.
 * In tensors of some size also, over the whole tensor:
 * ||difference|| <= l2 ||expected|| + (l2 scale + abs) sqrt(count).
 * `scale` is for the test to set: how large the terms are whose sum may happen to be small. */
typedef struct limit {
  double l2, rel, slack, abs, scale;
} limit;

/* Bit for bit (0 and -0 are equal). */
limit limit_exact(void);
/* The internal arithmetic is f32 with `depth` terms summed; the result is rounded to `out`. */
limit limit_f32(dtype out, double depth);
/* The same where the terms are squares: equal ones round alike, and their errors add up. */
limit limit_squares(dtype out, double depth);
/* As limit_f32 when act is F32; with BF16 the backend may round operands to bf16 on their way. */
limit limit_act(const rig *r, dtype out, double depth);

/* Largest magnitude, largest Euclidean norm of a row (of `part` of its columns), rms of a weight. */
double max_abs(tensor t);
double max_norm(tensor t, int64_t parts);
double weight_rms(const twin_weight *w);

void rig_compare(rig *r, tensor expected, tensor found, limit l);
/* Fail the test with a message that tells the case. */
void rig_fail(rig *r, const char *fmt, ...) CORE_PRINTF(2, 3);

#endif
