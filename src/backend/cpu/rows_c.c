/* rows_c.c: the row kernels for whatever the compiler's target is. */
#define ROWS_TABLE cpu_rows_c
#include "backend/cpu/rows_impl.h"
