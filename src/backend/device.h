/* device.h: what takes how much memory on a CUDA device. The backend takes exactly this, and the planner,
 * which also works where there is no device, counts exactly this: one set of rules, so that they can't
 * disagree. */
#ifndef WAN_BACKEND_DEVICE_H
#define WAN_BACKEND_DEVICE_H

#include "backend/backend.h"

/* Every allocation is rounded to what the driver's pools hand out. */
enum { DEVICE_ALIGN = 512 };
/* The share of the driver and the libraries, their context and code: 543 MiB on an H100 with driver 580, less
 * on smaller cards. The account adds what a pool takes beyond what is asked of it, in steps of 32 MiB. */
#define DEVICE_CONTEXT_BYTES ((uint64_t)544 << 20)
#define DEVICE_DRIVER_BYTES (DEVICE_CONTEXT_BYTES + ((uint64_t)64 << 20))
/* What the backend holds as long as it is open: room for the library's best products on Hopper, and for sums.
 */
enum { DEVICE_WORKSPACE_BYTES = 32 << 20, DEVICE_REDUCE_BYTES = 16 << 10 };
#define DEVICE_LEAST_BYTES (DEVICE_DRIVER_BYTES + DEVICE_WORKSPACE_BYTES + DEVICE_REDUCE_BYTES)
/* Pinned host memory for weights on their way. */
enum { DEVICE_STAGING_BYTES = 32 << 20, DEVICE_STAGING_BUFFERS = 2 };
/* Scores of an attention that is made of products, at a time. */
enum { DEVICE_SCORE_BYTES = 256 << 20, DEVICE_WIDEST_FLASH = 128 };
/* Attention in 8 bits: heads it is for, keys of one tile, and the number below which quantising doesn't pay.
 */
enum { DEVICE_COARSE_HEAD = 128, DEVICE_COARSE_TILE = 128, DEVICE_COARSE_KEYS = 1024 };

size_t device_round(size_t bytes);
/* Channels of a packed convolution weight's rows, and of what it is applied to: ci, or its next multiple of 8
 * in bf16, so that every row starts on 16 bytes. */
int64_t device_conv_width(dtype act, int64_t ci);
/* The loaded form of a weight: its dtype and bytes (0: it stays in the file). */
size_t device_weight_bytes(const backend *be, const weight *w, dtype *type);
/* Where the bf16 twin of a vector begins behind its f32 form. */
size_t device_twin_offset(const weight *w);
/* Beside the loaded form while a weight is converted on the device: its raw bytes, and a widened copy. */
size_t device_raw_bytes(const backend *be, const weight *w);
size_t device_wide_bytes(const backend *be, const weight *w);
/* May the library write this product's result itself? Otherwise it goes through f32. */
bool device_linear_direct(dtype weight_type, op_act act, dtype out);
/* While an operation runs: */
size_t device_linear_bytes(tensor x, dtype weight_type, op_act act, tensor out);
bool device_attention_fused(tensor q, int heads);             /* one kernel without scores in memory */
int64_t device_attention_rows(tensor q, tensor k, int heads); /* query rows whose scores are made at a time */
size_t device_attention_bytes(tensor q, tensor k, int heads);
/* The same in 8 bits, where it is done: quantised keys and values, their scales, sums of columns. */
bool device_attention_coarse(tensor q, tensor k, const attention_spec *spec);
size_t device_coarse_bytes(tensor k, int heads);
size_t device_conv_bytes(dtype act, tensor x);

#endif
