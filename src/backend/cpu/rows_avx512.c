/* rows_avx512.c: the row kernels for AVX-512 (flags: cmake/rooms.cmake). */
#if defined(__x86_64__)
#define ROWS_TABLE cpu_rows_avx512
#include "backend/cpu/rows_impl.h"
#endif
