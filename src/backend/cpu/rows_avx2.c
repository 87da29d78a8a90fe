/* rows_avx2.c: the row kernels for AVX2 and FMA (flags: cmake/rooms.cmake). */
#if defined(__x86_64__)
#define ROWS_TABLE cpu_rows_avx2
#include "backend/cpu/rows_impl.h"
#endif
