/* amx.h: what the files compiled for AMX share: the one tile configuration. */
#ifndef WAN_CPU_AMX_H
#define WAN_CPU_AMX_H

#include <immintrin.h>
#include <stdint.h>

/* Layout from the instruction set reference, LDTILECFG. */
typedef struct amx_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
} amx_config;
_Static_assert(sizeof(amx_config) == 64, "LDTILECFG reads 64 bytes");

/* All eight tiles are 16 rows of 64 bytes. Constant and not filled in at run time: the intrinsic tells GCC 12
 * about its first 8 bytes only, and stores to the others would be dropped as unused. */
static const amx_config amx_all_tiles = {
    .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

#endif
