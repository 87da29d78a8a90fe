/* scratch_dir.h: one scratch folder for a whole test program, as its group's setup and teardown. */
#ifndef WAN_TESTS_SCRATCH_DIR_H
#define WAN_TESTS_SCRATCH_DIR_H

#include "scratch.h"

static scratch scratch_dir;

static inline int scratch_setup(void **state) {
  (void)state;
  scratch_open(&scratch_dir);
  return 0;
}

static inline int scratch_teardown(void **state) {
  (void)state;
  scratch_close(&scratch_dir);
  return 0;
}

#endif
