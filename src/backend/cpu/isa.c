/* isa.c: which kernels this machine can run. Portable C first, then whatever is better overrides it. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "backend/cpu/cpu.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static bool has_amx_bf16(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & (1u << 22)) && (d & (1u << 24)); /* AMX-BF16, AMX-TILE */
}

static bool has_avx512_bf16(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
  return a & (1u << 5);
}

/* Linux hands out the 8 KiB of tile registers only to processes that ask (arch_prctl(2)). */
static bool amx_granted(void) {
#if defined(__linux__)
  enum { REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
  return false;
#endif
}
#endif

static void note(cpu_isa *isa, const char *name) {
  size_t used = strlen(isa->text), room = sizeof isa->text - used;
  if (used && room > 3) {
    memcpy(isa->text + used, ", ", 3);
    used += 2;
    room -= 2;
  }
  size_t n = strlen(name);
  if (n < room) memcpy(isa->text + used, name, n + 1);
}

void cpu_isa_detect(cpu_isa *isa) {
  memset(isa, 0, sizeof *isa);
  isa->rows = &cpu_rows_c;
  isa->attn_f32 = isa->attn_bf16 = &cpu_attn_c;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  bool bf16 = avx512 && has_avx512_bf16();
  if (avx2) {
    isa->rows = &cpu_rows_avx2;
    isa->attn_f32 = isa->attn_bf16 = &cpu_attn_avx2;
    note(isa, "avx2");
  }
  if (avx512) {
    isa->rows = &cpu_rows_avx512;
    isa->attn_f32 = isa->attn_bf16 = &cpu_attn_avx512;
    note(isa, "avx512");
  }
  if (bf16) {
    isa->attn_bf16 = &cpu_attn_bf16;
    isa->rows_bf16 = &cpu_rows_avx512bf16;
    note(isa, "avx512_bf16");
  }
  if (bf16 && has_amx_bf16() && amx_granted()) {
    isa->attn_bf16 = &cpu_attn_amx;
    isa->tiles = &cpu_tiles_amx;
    note(isa, "amx_bf16");
  }
#endif
  if (!isa->text[0]) note(isa, "portable C");
}
