/* attn_avx2.c: attention kernels in f32 for AVX2 and FMA (flags: cmake/rooms.cmake). */
#if defined(__x86_64__)
#define ATTN_TABLE cpu_attn_avx2
#define LANES 8
#include "backend/cpu/attn_impl.h"
#endif
