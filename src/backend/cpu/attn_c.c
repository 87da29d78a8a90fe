/* attn_c.c: attention kernels in f32 for whatever the compiler's target is (four floats a register). */
#define ATTN_TABLE cpu_attn_c
#define LANES 4
#include "backend/cpu/attn_impl.h"
