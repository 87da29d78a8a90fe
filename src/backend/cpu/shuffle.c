/* shuffle.c: operations that move elements and hardly compute. One pixel's channels are the unit. */
#include "backend/cpu/cpu.h"

#include <string.h>

static void *element(tensor t, int64_t index) {
  return (char *)t.data + (size_t)index * dtype_size(t.type);
}

/* x [T, h, w, C] F32 -> rows of C*4 with columns (c, ph, pw) */
wan_status cpu_patchify(backend *be, tensor x, tensor out) {
  const cpu_rows *k = cpu_of(be)->isa.rows;
  int64_t h = x.dim[1], w = x.dim[2], C = x.dim[3], tokens = out.dim[0], across = w / 2;
  float *rows = cpu_scratch_get(be, SCRATCH_OUT, (size_t)tokens * (size_t)C * 4 * sizeof(float));
  if (!rows) return WAN_ERR_MEMORY;
#pragma omp parallel for num_threads(be->threads)
  for (int64_t i = 0; i < tokens; i++) {
    int64_t row = i / across * 2, col = i % across * 2; /* row counts through all frames: h is even */
    const float *p = (const float *)x.data + (row * w + col) * C;
    float *y = cpu_row_target(out, i, C * 4, rows + i * C * 4);
    for (int64_t c = 0; c < C; c++) {
      y[c * 4] = p[c];
      y[c * 4 + 1] = p[C + c];
      y[c * 4 + 2] = p[w * C + c];
      y[c * 4 + 3] = p[(w + 1) * C + c];
    }
    cpu_row_end(k, out, i, C * 4, y);
  }
  (void)h;
  return WAN_OK;
}

/* columns (ph, pw, c): a token is two runs of 2C floats */
wan_status cpu_unpatchify(backend *be, tensor y, tensor out) {
  int64_t w = out.dim[2], C = out.dim[3], tokens = y.dim[0], across = w / 2;
#pragma omp parallel for num_threads(be->threads)
  for (int64_t i = 0; i < tokens; i++) {
    const float *p = (const float *)y.data + i * C * 4;
    float *q = (float *)out.data + (i / across * 2 * w + i % across * 2) * C;
    memcpy(q, p, (size_t)C * 2 * sizeof *q);
    memcpy(q + w * C, p + C * 2, (size_t)C * 2 * sizeof *q);
  }
  return WAN_OK;
}

wan_status cpu_time_unshuffle(backend *be, tensor x, tensor out) {
  int64_t T = x.dim[0], pixels = x.dim[1] * x.dim[2], C = out.dim[3];
  size_t bytes = (size_t)C * dtype_size(x.type);
#pragma omp parallel for num_threads(be->threads)
  for (int64_t i = 0; i < T * pixels; i++) {
    int64_t t = i / pixels, p = i % pixels;
    memcpy(element(out, (2 * t * pixels + p) * C), element(x, i * 2 * C), bytes);
    memcpy(element(out, ((2 * t + 1) * pixels + p) * C), element(x, (i * 2 + 1) * C), bytes);
  }
  return WAN_OK;
}

wan_status cpu_concat_channels(backend *be, tensor a, tensor b, tensor out) {
  int64_t n = tensor_rows(&a), ca = tensor_cols(&a), cb = tensor_cols(&b);
  size_t size = dtype_size(a.type);
#pragma omp parallel for num_threads(be->threads)
  for (int64_t i = 0; i < n; i++) {
    memcpy(element(out, i * (ca + cb)), element(a, i * ca), (size_t)ca * size);
    memcpy(element(out, i * (ca + cb) + ca), element(b, i * cb), (size_t)cb * size);
  }
  return WAN_OK;
}

/* ---- Pixels into channels: channel c*4 + r*2 + q of [T, H, W, 4C] is row 2i+q, column 2j+r ---- */

#define SWAP_DEPTH(type)                                                                     \
  static void swap_depth_##type(type *small, type *large, int64_t row, int64_t W, int64_t C, \
                                bool to_small) {                                             \
    for (int64_t j = 0; j < W; j++)                                                          \
      for (int64_t rq = 0; rq < 4; rq++) {                                                   \
        type *s = small + (row * W + j) * 4 * C + rq;                                        \
        type *l = large + ((2 * row + rq % 2) * 2 * W + 2 * j + rq / 2) * C;                 \
        if (to_small)                                                                        \
          for (int64_t c = 0; c < C; c++) s[4 * c] = l[c];                                   \
        else                                                                                 \
          for (int64_t c = 0; c < C; c++) l[c] = s[4 * c];                                   \
      }                                                                                      \
  }
SWAP_DEPTH(uint16_t)
SWAP_DEPTH(float)

/* Rows of all frames are one sequence: frame t, row i of the small one is row t*H + i. */
static void swap_depth(backend *be, tensor small, tensor large, bool to_small) {
  int64_t rows = small.dim[0] * small.dim[1], W = small.dim[2], C = large.dim[3];
#pragma omp parallel for num_threads(be->threads)
  for (int64_t r = 0; r < rows; r++) {
    if (small.type == DT_F32)
      swap_depth_float(small.data, large.data, r, W, C, to_small);
    else
      swap_depth_uint16_t(small.data, large.data, r, W, C, to_small);
  }
}

wan_status cpu_space_to_depth(backend *be, tensor x, tensor out) {
  swap_depth(be, out, x, true);
  return WAN_OK;
}

wan_status cpu_depth_to_space(backend *be, tensor x, tensor out) {
  swap_depth(be, x, out, false);
  return WAN_OK;
}

/* ---- Shortcuts of the Wan2.2 VAE: see backend.h for the index arithmetic ---- */

/* Four float rows a thread: x, out, and what is between them. */
static float *pixel_buffers(backend *be, int64_t cols) {
  return cpu_scratch_get(be, SCRATCH_ROWS, (size_t)be->threads * (size_t)cols * sizeof(float));
}

wan_status cpu_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip) {
  const cpu_rows *k = cpu_of(be)->isa.rows;
  int64_t Ho = out.dim[1], Wo = out.dim[2], Co = out.dim[3], H = x.dim[1], W = x.dim[2], Ci = x.dim[3];
  int64_t fold = (int64_t)ft * fs * fs, repeats = Co * fold / Ci;
  int64_t cols = (2 * Co + Ci + 15) / 16 * 16, pixels = out.dim[0] * Ho * Wo;
  float *buffers = pixel_buffers(be, cols);
  if (!buffers) return WAN_ERR_MEMORY;
#pragma omp parallel num_threads(be->threads)
  {
    float *sum = buffers + cpu_thread() * cols, *add = sum + Co, *in = add + Co;
#pragma omp for
    for (int64_t p = 0; p < pixels; p++) {
      int64_t frame = p / (Ho * Wo) + skip, i = p / Wo % Ho, j = p % Wo;
      int64_t sub = (frame % ft * fs + i % fs) * fs + j % fs; /* place within the fold */
      const float *v = cpu_row_begin(k, x, (frame / ft * H + i / fs) * W + j / fs, Ci, in);
      float *y = cpu_row_target(out, p, Co, sum);
      if (out.type != DT_F32) k->from_bf16(element(out, p * Co), y, Co);
      for (int64_t o = 0; o < Co; o++) add[o] = v[(o * fold + sub) / repeats];
      k->gate_add(y, add, NULL, Co);
      cpu_row_end(k, out, p, Co, y);
    }
  }
  return WAN_OK;
}

/* Mean over the group of output channel o: flat sub-samples s = channel * fold + place. Adds the pixel
 * of one place to every group it belongs to. */
static void add_place(const float *v, int64_t Ci, int64_t fold, int64_t place, int64_t group, float *sum) {
  for (int64_t c = 0; c < Ci; c++) sum[(c * fold + place) / group] += v[c];
}

wan_status cpu_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs) {
  const cpu_rows *k = cpu_of(be)->isa.rows;
  int64_t Ho = out.dim[1], Wo = out.dim[2], Co = out.dim[3], H = x.dim[1], W = x.dim[2], Ci = x.dim[3];
  int64_t fold = (int64_t)ft * fs * fs, group = Ci * fold / Co, missing = out.dim[0] * ft - x.dim[0];
  int64_t cols = (2 * Co + Ci + 15) / 16 * 16, pixels = out.dim[0] * Ho * Wo;
  float *buffers = pixel_buffers(be, cols);
  if (!buffers) return WAN_ERR_MEMORY;
#pragma omp parallel num_threads(be->threads)
  {
    float *sum = buffers + cpu_thread() * cols, *mean = sum + Co, *in = mean + Co;
#pragma omp for
    for (int64_t p = 0; p < pixels; p++) {
      int64_t t = p / (Ho * Wo), i = p / Wo % Ho, j = p % Wo;
      memset(mean, 0, (size_t)Co * sizeof *mean);
      for (int64_t place = 0; place < fold; place++) {
        int64_t frame = t * ft + place / (fs * fs) - missing;
        if (frame < 0) continue; /* a zero frame in front */
        int64_t row = i * fs + place / fs % fs, col = j * fs + place % fs;
        add_place(cpu_row_begin(k, x, (frame * H + row) * W + col, Ci, in), Ci, fold, place, group, mean);
      }
      float *y = cpu_row_target(out, p, Co, sum);
      if (out.type != DT_F32) k->from_bf16(element(out, p * Co), y, Co);
      for (int64_t o = 0; o < Co; o++) y[o] += mean[o] / (float)group;
      cpu_row_end(k, out, p, Co, y);
    }
  }
  return WAN_OK;
}
