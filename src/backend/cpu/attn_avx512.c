/* attn_avx512.c: attention kernels in f32 for AVX-512 (flags: cmake/rooms.cmake). */
#if defined(__x86_64__)
#define ATTN_TABLE cpu_attn_avx512
#define LANES 16
#include "backend/cpu/attn_impl.h"
#endif
