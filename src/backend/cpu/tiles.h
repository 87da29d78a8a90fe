/* tiles.h: matrix products and convolutions in bf16 on tile registers (AMX): 16 rows of 64 bytes each.
 *
 * Everything is one product C[M, N] = A[M, K] . B[K, N] with K cut into steps of 32.
 *
 *   B, the weight, is packed once: panels of 32 columns, each a row of steps, a step two tiles of 16 columns
 *   with pairs of K together: [N/32][K/32][2][16 pairs][16 columns][2]. A panel is read from end to end.
 *   A is copied into lines: 32 consecutive k of one row, or of one pixel, are a line of 64 bytes, and a tile
 * is 16 lines one behind the other. A block of A (at most TILE_BLOCK_BYTES) stays in the second cache while
 * all panels pass by. Where a tile begins and how far each step lies from there is written in two tables; so
 *   the taps of a convolution are steps that point into the same lines, one pixel or one row further on.
 *   C is 32 rows by 32 columns in four tile registers. Every TILE_CHUNK steps it goes to memory and comes
 *   back, so that the panel's part of that chunk stays in the first cache for all rows of the block.
 *
 * Each sum is formed in the same order whatever the block sizes and the number of threads are. */
#ifndef WAN_CPU_TILES_H
#define WAN_CPU_TILES_H

#include "backend/backend.h"

enum {
  TILE = 16,                 /* rows of a tile, columns of a tile of B and of C */
  TILE_K = 32,               /* bf16 values in a line */
  TILE_LINE = 64,            /* bytes */
  TILE_COLUMNS = 32,         /* of a panel */
  TILE_B_BYTES = 1024,       /* a tile */
  TILE_STEP = 2048,          /* bytes of a panel's step */
  TILE_CHUNK = 16,           /* steps: 32 KiB of a panel, of 48 in the first cache */
  TILE_C = 1024,             /* floats of the four tiles of C */
  TILE_PAIRS_MAX = 32,       /* pairs of tiles in a block: 1024 rows */
  TILE_PART_MAX = 8,         /* lines of a pixel taken at a time in a convolution: 256 channels */
  TILE_BLOCK_BYTES = 1 << 20 /* half of the second cache */
};

/* Packed weights: `taps` lines for each 32 input channels. */
typedef struct tiled {
  int64_t N, C;       /* columns of C; channels of a row or pixel of A */
  int64_t kt, kh, kw; /* all 1 for a matrix */
  int64_t lines;      /* ceil(C / 32) */
  int64_t part;       /* lines taken at a time; the steps of a panel are [lines / part][kt][kh][part][kw] */
  size_t bytes;       /* of data */
  char *data;
} tiled;

/* 16 rows of A and of the result */
typedef struct tile_place {
  uint32_t a;   /* where the tile's first line is */
  int32_t rows; /* that exist; the others are computed and dropped */
  int64_t out;  /* element of the result's first column in the first row */
} tile_place;

typedef struct tile_job {
  const char *a;
  const tile_place *place; /* two for each pair */
  int64_t pairs;
  const uint32_t *step; /* where the step's lines are, added to the place */
  int64_t steps;
  bool reuse;              /* neighbouring steps share lines: keep them in the first cache */
  const char *b;           /* the first panel's first step */
  size_t panel_bytes;      /* from panel to panel */
  int64_t n0, n1;          /* columns, n0 a multiple of 32 */
  float *c;                /* pairs * TILE_C sums; for each panel when the steps come in parts */
  bool first, last, parts; /* part of the steps; whether there are several */
  const float *bias;       /* NULL, or of column 0 on */
  op_act act;
  const void *add; /* NULL, or added to the result; same dtype and places */
  void *out;
  dtype type;     /* F32 or BF16 */
  int64_t stride; /* elements between the result's rows */
} tile_job;

/* What is compiled for the instruction set. */
typedef struct cpu_tiles {
  /* once on each thread before and after multiply() */
  void (*enter)(void);
  void (*leave)(void);
  void (*multiply)(const tile_job *j);
  /* `lines` lines of each of 32 rows into to[line][row]; rows and columns that don't exist become zeros. x at
   * the first row's first column wanted, `columns` of them, F32 or BF16, `stride` elements from row to row.
   */
  void (*pack_rows)(const void *x, dtype type, int64_t stride, int64_t rows, int64_t columns, int64_t lines,
                    char *to);
  /* `lines` lines of a pixel of bf16, each `stride` bytes from the last; x NULL: zeros */
  void (*pack_pixel)(const uint16_t *x, int64_t columns, int64_t lines, size_t stride, char *to);
  /* 16 rows of `columns` bf16, `stride` bytes apart, as `steps` tiles of B, `pitch` bytes apart */
  void (*pack_weight)(const char *x, size_t stride, int64_t rows, int64_t columns, int64_t steps,
                      size_t pitch, char *to);
} cpu_tiles;

#if defined(__x86_64__)
extern const cpu_tiles cpu_tiles_amx;
#endif

/* tiles_pack.c: [N, C, kt, kh, kw] of any float dtype, PyTorch order. */
wan_status tiles_pack(backend *be, dtype from, const void *src, int64_t N, int64_t C, const int64_t kernel[3],
                      tiled **out);
void tiles_free(backend *be, tiled *w);
/* tiles_linear.c: out = act(x . w^T + bias) + residual; residual NULL, or of out's shape and dtype, perhaps
 * out itself. */
wan_status tiles_product(backend *be, tensor x, const tiled *w, const float *bias, op_act act,
                         const void *residual, tensor out);
/* tiles_conv.c */
wan_status tiles_conv(backend *be, tensor x, const tiled *w, const float *bias, const conv_spec *spec,
                      const void *residual, tensor out);
wan_status tiles_upsample(backend *be, tensor x, tiled *const w[4], const float *bias, tensor out);

#endif
