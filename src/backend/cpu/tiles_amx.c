/* tiles_amx.c: the kernels of tiles.h for AMX-BF16. */
#if defined(__x86_64__)
#include "backend/cpu/avx512.h"
#include "backend/cpu/amx.h"
#include "backend/cpu/tiles.h"

enum { C_ROW = TILE_COLUMNS * 4 /* bytes */, C_HALF = TILE * TILE_COLUMNS /* floats */ };

static void enter(void) {
  _tile_loadconfig(&amx_all_tiles);
}

static void leave(void) {
  _tile_release();
}

/* ---- The product ---- */

/* Lines of the next chunk to fetch beside each step, and where they are. */
typedef struct ahead {
  const char *at;
  int64_t lines;
} ahead;

/* c (+)= the sum over `steps` steps. C in tiles 0-3, A in 4 and 5, B in 6 and 7. A is read past the first
 * cache (which holds B) unless its lines are needed again at once; the order of the loads keeps the
 * multiplier busy. */
static inline __attribute__((always_inline)) void sum_steps(const char *a0, const char *a1,
                                                            const uint32_t *step, int64_t steps,
                                                            const char *b, float *c, bool add, ahead next,
                                                            bool reuse, bool half) {
  if (add) {
    _tile_loadd(0, c, C_ROW);
    _tile_loadd(2, c + C_HALF, C_ROW);
    if (!half) {
      _tile_loadd(1, c + TILE, C_ROW);
      _tile_loadd(3, c + C_HALF + TILE, C_ROW);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; s++) {
    for (int64_t i = 0; i < next.lines; i++) _mm_prefetch(next.at + i * TILE_LINE, _MM_HINT_T1);
    next.at += next.lines * TILE_LINE;
    if (reuse) {
      _tile_loadd(4, a0 + step[s], TILE_LINE);
      _tile_loadd(5, a1 + step[s], TILE_LINE);
    } else {
      _tile_stream_loadd(4, a0 + step[s], TILE_LINE);
      _tile_stream_loadd(5, a1 + step[s], TILE_LINE);
    }
    _tile_loadd(6, b, TILE_LINE);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if (!half) {
      _tile_loadd(7, b + TILE_B_BYTES, TILE_LINE);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    b += TILE_STEP;
  }
  _tile_stored(0, c, C_ROW);
  _tile_stored(2, c + C_HALF, C_ROW);
  if (!half) {
    _tile_stored(1, c + TILE, C_ROW);
    _tile_stored(3, c + C_HALF + TILE, C_ROW);
  }
}

/* The copies of the loop above, one for each constant. */
static __attribute__((noinline)) void sum_stream(const tile_job *j, const tile_place *p, int64_t s0,
                                                 int64_t n, const char *b, float *c, bool add, ahead next) {
  sum_steps(j->a + p[0].a, j->a + p[1].a, j->step + s0, n, b, c, add, next, false, false);
}

static __attribute__((noinline)) void sum_reuse(const tile_job *j, const tile_place *p, int64_t s0, int64_t n,
                                                const char *b, float *c, bool add, ahead next) {
  sum_steps(j->a + p[0].a, j->a + p[1].a, j->step + s0, n, b, c, add, next, true, false);
}

static __attribute__((noinline)) void sum_half(const tile_job *j, const tile_place *p, int64_t s0, int64_t n,
                                               const char *b, float *c, bool add, ahead next) {
  sum_steps(j->a + p[0].a, j->a + p[1].a, j->step + s0, n, b, c, add, next, true, true);
}

static inline __m512 activate(__m512 v, op_act act) {
  return act == ACT_NONE ? v : act == ACT_SILU ? silu_bf16(v) : gelu_bf16(v);
}

/* Two vectors of finished sums to columns n.. of the result; `live` marks the columns that exist. */
static inline void finish_row(const tile_job *j, const float *c, int64_t at, const __m512 bias[2],
                              uint32_t live) {
  __m512 v[2] = {_mm512_load_ps(c), _mm512_load_ps(c + TILE)};
  __mmask16 part[2] = {(__mmask16)live, (__mmask16)(live >> TILE)};
  for (int i = 0; i < 2; i++) v[i] = activate(_mm512_add_ps(v[i], bias[i]), j->act);
  if (j->type == DT_F32) {
    float *out = (float *)j->out + at;
    for (int i = 0; i < 2; i++) {
      if (j->add)
        v[i] = _mm512_add_ps(v[i], _mm512_maskz_loadu_ps(part[i], (const float *)j->add + at + i * TILE));
      _mm512_mask_storeu_ps(out + i * TILE, part[i], v[i]);
    }
    return;
  }
  if (j->add) {
    __m512i add = _mm512_maskz_loadu_epi16(live, (const uint16_t *)j->add + at);
    v[0] = _mm512_add_ps(v[0], widen_bf16(_mm512_castsi512_si256(add)));
    v[1] = _mm512_add_ps(v[1], widen_bf16(_mm512_extracti64x4_epi64(add, 1)));
  }
  _mm512_mask_storeu_epi16((uint16_t *)j->out + at, live, two_bf16(v[0], v[1]));
}

static void finish(const tile_job *j, const tile_place *p, const float *c, int64_t n) {
  int64_t columns = j->n1 - n;
  uint32_t live = columns >= TILE_COLUMNS ? ~0u : (1u << columns) - 1;
  __m512 bias[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  if (j->bias)
    for (int i = 0; i < 2; i++)
      bias[i] = _mm512_maskz_loadu_ps((__mmask16)(live >> (i * TILE)), j->bias + n + i * TILE);
  for (int t = 0; t < 2; t++)
    for (int64_t r = 0; r < p[t].rows; r++)
      finish_row(j, c + t * C_HALF + r * TILE_COLUMNS, p[t].out + r * j->stride + n, bias, live);
}

static void multiply(const tile_job *j) {
  for (int64_t n = j->n0; n < j->n1; n += TILE_COLUMNS) {
    const char *panel = j->b + (size_t)(n / TILE_COLUMNS) * j->panel_bytes;
    float *c = j->c + (j->parts ? (n - j->n0) / TILE_COLUMNS * j->pairs * TILE_C : 0);
    bool half = j->n1 - n <= TILE;
    for (int64_t s = 0; s < j->steps; s += TILE_CHUNK) {
      int64_t count = j->steps - s < TILE_CHUNK ? j->steps - s : TILE_CHUNK;
      bool end = s + count == j->steps, done = end && j->last, add = s || !j->first;
      ahead next = {end ? panel + j->panel_bytes : panel + (s + count) * TILE_STEP,
                    (TILE_STEP / TILE_LINE + j->pairs - 1) / j->pairs};
      for (int64_t i = 0; i < j->pairs; i++) {
        const tile_place *p = j->place + 2 * i;
        const char *b = panel + s * TILE_STEP;
        if (half)
          sum_half(j, p, s, count, b, c + i * TILE_C, add, next);
        else if (j->reuse)
          sum_reuse(j, p, s, count, b, c + i * TILE_C, add, next);
        else
          sum_stream(j, p, s, count, b, c + i * TILE_C, add, next);
        next.at += next.lines * count * TILE_LINE;
        if (done) finish(j, p, c + i * TILE_C, n);
      }
    }
  }
}

/* ---- Packing ---- */

static inline __m512i load_line(const void *x, dtype type, __mmask32 live) {
  if (type == DT_BF16) return _mm512_maskz_loadu_epi16(live, x);
  const float *f = x;
  return two_bf16(_mm512_maskz_loadu_ps((__mmask16)live, f),
                  _mm512_maskz_loadu_ps((__mmask16)(live >> TILE), f + TILE));
}

/* Four lines of a row at a time: few enough targets for the first cache, long enough reads. */
static void pack_rows(const void *x, dtype type, int64_t stride, int64_t rows, int64_t columns, int64_t lines,
                      char *to) {
  enum { GROUP = 4, ROWS = 2 * TILE };
  int64_t size = (int64_t)dtype_size(type);
  for (int64_t l = 0; l < lines; l += GROUP)
    for (int64_t r = 0; r < ROWS; r++)
      for (int64_t g = l; g < l + GROUP && g < lines; g++) {
        __mmask32 live = r < rows ? first_lanes(columns - g * TILE_K) : 0;
        const char *from = (const char *)x + (r < rows ? r * stride + g * TILE_K : 0) * size;
        _mm512_store_si512(to + (g * ROWS + r) * TILE_LINE, load_line(from, type, live));
      }
}

static void pack_pixel(const uint16_t *x, int64_t columns, int64_t lines, size_t stride, char *to) {
  for (int64_t l = 0; l < lines; l++) {
    __mmask32 live = x ? first_lanes(columns - l * TILE_K) : 0;
    _mm512_store_si512(to + (size_t)l * stride, _mm512_maskz_loadu_epi16(live, x ? x + l * TILE_K : NULL));
  }
}

static void pack_weight(const char *x, size_t stride, int64_t rows, int64_t columns, int64_t steps,
                        size_t pitch, char *to) {
  for (int64_t s = 0; s < steps; s++) {
    __mmask32 live = first_lanes(columns - s * TILE_K);
    __m512i r[TILE];
#pragma GCC unroll 16
    for (int i = 0; i < TILE; i++)
      r[i] = i < rows ? _mm512_maskz_loadu_epi16(live, x + (size_t)i * stride + s * TILE_LINE)
                      : _mm512_setzero_si512();
    transpose_16(r, to + (size_t)s * pitch, TILE_LINE);
  }
}

const cpu_tiles cpu_tiles_amx = {.enter = enter,
                                 .leave = leave,
                                 .multiply = multiply,
                                 .pack_rows = pack_rows,
                                 .pack_pixel = pack_pixel,
                                 .pack_weight = pack_weight};
#endif
