/* tensor.h: the description of a contiguous array. A tensor is a plain value: copying it copies the
 * description, never the data; who owns the data is said where the tensor was made (a file mapping,
 * a backend's scope, tensor_alloc). Rows are the last dimension: dim[ndim-1] is contiguous.
 * Videos and latents are channels-last inside the engine: [T, H, W, C].
 */
#ifndef WAN_CORE_TENSOR_H
#define WAN_CORE_TENSOR_H

#include "core/ctx.h"

typedef enum dtype {
  DT_NONE = 0,
  DT_F32,
  DT_F16,
  DT_BF16,
  DT_F8E4M3, /* OCP e4m3 "fn": no infinities, 0x7f/0xff are NaN, largest 448 */
  DT_F8E5M2,
  DT_F64,
  DT_I8,
  DT_U8,
  DT_I16,
  DT_I32,
  DT_I64,
  DT_BOOL,
  DT_E4M3_ROWS, /* never in a file: rows of e4m3, then (from the next 16 bytes on) an F32 scale for each row,
                   by which its values are multiplied */
  DT_COUNT
} dtype;

enum { TENSOR_MAX_DIMS = 5 };

typedef struct tensor {
  dtype type; /* DT_NONE: the null tensor, what a failed operation returns */
  int ndim;
  int64_t dim[TENSOR_MAX_DIMS];
  void *data; /* in the memory of the backend (or host) that made it */
} tensor;

size_t dtype_size(dtype type);      /* bytes an element; 0 for DT_NONE */
const char *dtype_name(dtype type); /* safetensors' spelling: "F32", "BF16", "F8_E4M3", ... */
bool dtype_is_float(dtype type);

int64_t tensor_count(const tensor *t); /* elements; 0 for the null tensor */
size_t tensor_bytes(const tensor *t);
/* Where the scales of a DT_E4M3_ROWS begin. */
float *tensor_scales(const tensor *t);
int64_t tensor_rows(const tensor *t); /* product of all but the last dimension */
int64_t tensor_cols(const tensor *t); /* the last dimension */
bool tensor_same_shape(const tensor *a, const tensor *b);
/* "[2, 3, 4]" into buf; returns buf. */
char *tensor_shape_text(const tensor *t, char *buf, size_t size);
/* count elements with these dims, saturating: false when the product overflows int64 or a dim < 0 */
bool tensor_dims_count(int ndim, const int64_t *dim, int64_t *count);
/* The same data seen with other dims (the product must agree); null tensor in, null tensor out. */
tensor tensor_view(tensor t, int ndim, const int64_t *dim);
#define TENSOR_VIEW(t, ...) \
  tensor_view((t), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__})
/* Entries [begin, begin+count) of the first dimension; the null tensor for DT_E4M3_ROWS, which has no slices.
 */
tensor tensor_slice(tensor t, int64_t begin, int64_t count);
/* Describe caller-owned host memory. */
tensor tensor_of(dtype type, void *data, int ndim, const int64_t *dim);
#define TENSOR_OF(type, data, ...)                                                     \
  tensor_of((type), (data), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
            (const int64_t[]){__VA_ARGS__})

/* Scalar conversions. bf16 and f16 round to nearest even; NaN stays NaN. */
uint16_t f32_to_bf16(float f);
float bf16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);
float f16_to_f32(uint16_t h);
float f8e4m3_to_f32(uint8_t b);
float f8e5m2_to_f32(uint8_t b);
/* To nearest even, what is too large to 448; NaN stays NaN. */
uint8_t f32_to_f8e4m3(float f);
/* One row of DT_E4M3_ROWS; returns its scale, the largest magnitude / 448. A row with a value that is not
 * finite gets the scale infinity, so that whatever is made of it is not finite either. */
float e4m3_row_quantise(const float *src, uint8_t *dst, int64_t n);
/* Convert n host elements of any float dtype (or F64) to f32 / from f32 to F32, BF16 or F16. src of the
 * first may lie at any address. */
void convert_to_f32(dtype from, const void *src, float *dst, size_t n);
void convert_from_f32(dtype to, const float *src, void *dst, size_t n);

#endif
