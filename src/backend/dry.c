/* dry.c: a backend that computes nothing. The op wrappers still check every shape, take every result from a
 * scope and count every floating-point operation, and memory is counted although none is taken. So running a
 * model's own code on it says what a run will need, and can't disagree with that code. For a device it counts
 * what the CUDA backend would take (device.h), on the device's account.
 *
 * Addresses it hands out are only labels: nothing reads or writes them. */
#include "backend/dry.h"
#include "backend/device.h"

#include <string.h>

enum { LABEL_START = 1 << 20, LABEL_ALIGN = 4096, CALLS_FIRST = 64 };

typedef struct dry {
  backend_ops ops;
  bool device;
  uintptr_t next; /* label of the next allocation */
  dry_call *call;
  int64_t calls, capacity;
} dry;

/* ---- Calls ---- */

static bool same_tensor(const tensor *a, const tensor *b) {
  return a->type == b->type && tensor_same_shape(a, b);
}

static bool same_call(const dry_call *a, const dry_call *b) {
  const conv_spec *c = &a->conv, *d = &b->conv;
  return a->op == b->op && a->act == b->act && a->add == b->add && a->frames == b->frames &&
         a->w.role == b->w.role && a->spec.heads == b->spec.heads && same_tensor(&a->x, &b->x) &&
         same_tensor(&a->out, &b->out) && same_tensor(&a->keys, &b->keys) &&
         same_tensor(&a->w.src, &b->w.src) && same_tensor(&a->spec.key_bias, &b->spec.key_bias) &&
         same_tensor(&a->spec.rel_bias, &b->spec.rel_bias) && c->stride_t == d->stride_t &&
         c->stride_h == d->stride_h && c->stride_w == d->stride_w && c->pad_top == d->pad_top &&
         c->pad_bottom == d->pad_bottom && c->pad_left == d->pad_left && c->pad_right == d->pad_right;
}

static wan_status record(backend *be, dry_call c) {
  dry *d = be->impl;
  c.x.data = c.out.data = c.keys.data = c.spec.key_bias.data = c.spec.rel_bias.data = NULL;
  c.conv.frame = NULL;
  for (int64_t i = 0; i < d->calls; i++)
    if (same_call(&d->call[i], &c)) {
      d->call[i].count++;
      return WAN_OK;
    }
  if (d->calls == d->capacity) {
    int64_t capacity = d->capacity ? 2 * d->capacity : CALLS_FIRST;
    dry_call *more = core_realloc(be->ctx, d->call, (size_t)capacity * sizeof *more);
    if (!more) return WAN_ERR_MEMORY;
    d->call = more;
    d->capacity = capacity;
  }
  c.count = 1;
  d->call[d->calls++] = c;
  return WAN_OK;
}

int64_t backend_dry_calls(const backend *be, const dry_call **calls) {
  const dry *d = be->impl;
  *calls = d->call;
  return d->calls;
}

void backend_dry_forget(backend *be) {
  dry *d = be->impl;
  d->calls = 0;
  memset(be->profile, 0, sizeof *be->profile);
}

/* ---- Memory ---- */

static void count_bytes(backend *be, size_t bytes, int sign) {
  const dry *d = be->impl;
  if (d->device)
    core_device_add(be->ctx, sign * (int64_t)device_round(bytes));
  else
    core_mem_add(be->ctx, sign * (int64_t)bytes);
}

static void *label(backend *be, size_t bytes) {
  dry *d = be->impl;
  uintptr_t at = d->next;
  d->next += (bytes + LABEL_ALIGN) / LABEL_ALIGN * LABEL_ALIGN;
  count_bytes(be, bytes, 1);
  return (void *)at;
}

static void dry_close(backend *be) {
  dry *d = be->impl;
  if (d->device) {
    core_device_add(be->ctx, -(int64_t)DEVICE_LEAST_BYTES);
    core_mem_add(be->ctx, -DEVICE_STAGING_BUFFERS * (int64_t)DEVICE_STAGING_BYTES);
  }
  core_free(be->ctx, d->call);
  core_free(be->ctx, d);
}

static void dry_free(backend *be, void *p, size_t bytes) {
  (void)p;
  count_bytes(be, bytes, -1);
}

/* What an operation of a device holds while it runs. */
static void transient(backend *be, size_t bytes) {
  const dry *d = be->impl;
  if (!d->device || !bytes) return;
  count_bytes(be, bytes, 1);
  count_bytes(be, bytes, -1);
}

static wan_status dry_move(backend *be, void *dst, const void *src, size_t bytes) {
  (void)be, (void)dst, (void)src, (void)bytes;
  return WAN_OK;
}

static wan_status dry_zero(backend *be, void *dst, size_t bytes) {
  (void)be, (void)dst, (void)bytes;
  return WAN_OK;
}

static wan_status dry_sync(backend *be) {
  (void)be;
  return WAN_OK;
}

/* What a backend holds of a weight: f32 where the role says so, the act dtype otherwise; an upsampling kernel
 * becomes four phases of 2x2 taps out of 3x3; of a table only the rows in use are read. */
static size_t dry_weight_bytes(backend *be, const weight *w) {
  const dry *d = be->impl;
  dtype type;
  if (d->device) return device_weight_bytes(be, w, &type);
  tensor loaded = w->src;
  loaded.type = backend_weight_type(be, w);
  size_t bytes = tensor_bytes(&loaded);
  if (w->role == WEIGHT_CONV_UP) bytes = bytes / 9 * 16;
  return w->role == WEIGHT_TABLE ? 0 : bytes;
}

static wan_status dry_weight_load(backend *be, weight *w) {
  const dry *d = be->impl;
  w->data_bytes = dry_weight_bytes(be, w);
  if (d->device)
    device_weight_bytes(be, w, &w->type);
  else
    w->type = backend_weight_type(be, w);
  if (!w->data_bytes) { /* used in the file */
    w->data = (void *)(uintptr_t)LABEL_START;
    return WAN_OK;
  }
  w->data = label(be, w->data_bytes);
  transient(be, device_raw_bytes(be, w) + device_wide_bytes(be, w));
  return record(be, (dry_call){.op = PROF_WEIGHT_LOAD, .w = *w});
}

static void dry_weight_unload(backend *be, weight *w) {
  if (w->data_bytes) dry_free(be, w->data, w->data_bytes);
}

static void dry_weight_prefetch(backend *be, weight *w) {
  dry_weight_load(be, w);
}

static wan_status dry_linear(backend *be, tensor x, const weight *w, const weight *b, op_act act,
                             tensor out) {
  (void)b;
  transient(be, device_linear_bytes(x, w->type, act, out));
  return record(be, (dry_call){.op = PROF_LINEAR, .x = x, .w = *w, .act = act, .out = out});
}

static wan_status dry_linear_add(backend *be, tensor x, const weight *w, const weight *b, tensor sum) {
  tensor y = sum;
  y.type = DT_BF16;
  if (w->type == DT_E4M3_ROWS) /* made apart */
    transient(be, tensor_bytes(&y) + device_linear_bytes(x, w->type, ACT_NONE, y));
  return dry_linear(be, x, w, b, ACT_NONE, sum);
}

static wan_status dry_ada_norm(backend *be, tensor x, tensor mod, const token_rows *rows, int shift,
                               int scale, float eps, tensor out) {
  (void)be, (void)x, (void)mod, (void)rows, (void)shift, (void)scale, (void)eps, (void)out;
  return WAN_OK;
}

static wan_status dry_layer_norm(backend *be, tensor x, const weight *gamma, const weight *beta, float eps,
                                 tensor out) {
  (void)be, (void)x, (void)gamma, (void)beta, (void)eps, (void)out;
  return WAN_OK;
}

static wan_status dry_rms_norm(backend *be, tensor x, const weight *gamma, float eps, tensor out) {
  (void)be, (void)x, (void)gamma, (void)eps, (void)out;
  return WAN_OK;
}

static wan_status dry_qk_norm_rope(backend *be, tensor x, const weight *gamma, float eps, tensor rope,
                                   int heads) {
  (void)be, (void)x, (void)gamma, (void)eps, (void)rope, (void)heads;
  return WAN_OK;
}

static wan_status dry_attention(backend *be, tensor q, tensor k, tensor v, const attention_spec *s,
                                tensor out) {
  (void)v;
  transient(be, device_attention_coarse(q, k, s) ? device_coarse_bytes(k, s->heads)
                                                 : device_attention_bytes(q, k, s->heads));
  return record(be, (dry_call){.op = PROF_ATTENTION, .x = q, .keys = k, .spec = *s, .out = out});
}

static wan_status dry_gate_add(backend *be, tensor x, tensor y, tensor mod, const token_rows *rows,
                               int gate) {
  (void)be, (void)x, (void)y, (void)mod, (void)rows, (void)gate;
  return WAN_OK;
}

static wan_status dry_pair(backend *be, tensor a, tensor b) {
  (void)be, (void)a, (void)b;
  return WAN_OK;
}

static wan_status dry_activate(backend *be, tensor x, op_act act, tensor out) {
  (void)be, (void)x, (void)act, (void)out;
  return WAN_OK;
}

static wan_status dry_modulation(backend *be, const weight *base, tensor e, tensor out) {
  (void)be, (void)base, (void)e, (void)out;
  return WAN_OK;
}

static wan_status dry_position_bias(backend *be, const weight *table, tensor bucket, tensor out) {
  (void)be, (void)table, (void)bucket, (void)out;
  return WAN_OK;
}

static wan_status dry_embed(backend *be, const weight *table, const int32_t *ids, tensor out) {
  (void)ids;
  transient(be, (size_t)out.dim[0] * (size_t)out.dim[1] * dtype_size(table->src.type));
  return WAN_OK;
}

static wan_status dry_channel_norm(backend *be, tensor x, const weight *gamma, op_act act, tensor out) {
  (void)be, (void)x, (void)gamma, (void)act, (void)out;
  return WAN_OK;
}

static wan_status dry_conv(backend *be, tensor x, const weight *w, const weight *b, const conv_spec *s,
                           tensor residual, tensor out) {
  (void)b;
  transient(be, device_conv_bytes(be->act, x));
  return record(be, (dry_call){.op = PROF_CONV,
                               .x = x,
                               .w = *w,
                               .conv = *s,
                               .add = residual.type != DT_NONE,
                               .frames = s->frame != NULL,
                               .out = out});
}

static wan_status dry_upsample_conv(backend *be, tensor x, const weight *w, const weight *b, tensor out) {
  (void)b;
  transient(be, device_conv_bytes(be->act, x));
  return record(be, (dry_call){.op = PROF_UPSAMPLE_CONV, .x = x, .w = *w, .out = out});
}

static wan_status dry_dup_up_add(backend *be, tensor out, tensor x, int ft, int fs, int skip) {
  (void)be, (void)out, (void)x, (void)ft, (void)fs, (void)skip;
  return WAN_OK;
}

static wan_status dry_avg_down_add(backend *be, tensor out, tensor x, int ft, int fs) {
  (void)be, (void)out, (void)x, (void)ft, (void)fs;
  return WAN_OK;
}

static wan_status dry_lincomb(backend *be, tensor out, int n, const tensor *x, const float *coef) {
  (void)be, (void)out, (void)n, (void)x, (void)coef;
  return WAN_OK;
}

static wan_status dry_three(backend *be, tensor a, tensor b, tensor out) {
  (void)be, (void)a, (void)b, (void)out;
  return WAN_OK;
}

static wan_status dry_affine(backend *be, tensor x, tensor mul, tensor add, tensor out) {
  (void)be, (void)x, (void)mul, (void)add, (void)out;
  return WAN_OK;
}

static wan_status dry_all_finite(backend *be, tensor x, bool *finite) {
  (void)be, (void)x;
  *finite = true;
  return WAN_OK;
}

static wan_status dry_dot(backend *be, tensor a, tensor b, double *sum) {
  (void)be, (void)a, (void)b;
  *sum = 0;
  return WAN_OK;
}

static const backend_ops dry_ops = {
    .name = "dry",
    .close = dry_close,
    .mem_alloc = label,
    .mem_free = dry_free,
    .upload = dry_move,
    .download = dry_move,
    .copy = dry_move,
    .zero = dry_zero,
    .sync = dry_sync,
    .weight_load = dry_weight_load,
    .weight_unload = dry_weight_unload,
    .weight_bytes = dry_weight_bytes,
    .linear = dry_linear,
    .linear_add = dry_linear_add,
    .ada_norm = dry_ada_norm,
    .layer_norm = dry_layer_norm,
    .rms_norm = dry_rms_norm,
    .qk_norm_rope = dry_qk_norm_rope,
    .attention = dry_attention,
    .gate_add = dry_gate_add,
    .mul = dry_pair,
    .activate = dry_activate,
    .modulation = dry_modulation,
    .position_bias = dry_position_bias,
    .embed = dry_embed,
    .cast = dry_pair,
    .patchify = dry_pair,
    .unpatchify = dry_pair,
    .channel_norm = dry_channel_norm,
    .conv = dry_conv,
    .upsample_conv = dry_upsample_conv,
    .time_unshuffle = dry_pair,
    .dup_up_add = dry_dup_up_add,
    .avg_down_add = dry_avg_down_add,
    .space_to_depth = dry_pair,
    .depth_to_space = dry_pair,
    .lincomb = dry_lincomb,
    .channel_affine = dry_affine,
    .concat_channels = dry_three,
    .to_u8 = dry_pair,
    .all_finite = dry_all_finite,
    .dot = dry_dot,
};

wan_status backend_open_dry(core_ctx *ctx, const backend_config *config, backend **out) {
  *out = NULL;
  backend *be = core_calloc(ctx, 1, sizeof *be);
  dry *d = core_calloc(ctx, 1, sizeof *d);
  backend_profile *profile = core_calloc(ctx, 1, sizeof *profile);
  if (!be || !d || !profile) {
    core_free(ctx, profile);
    core_free(ctx, d);
    core_free(ctx, be);
    return WAN_ERR_MEMORY;
  }
  d->next = LABEL_START;
  d->ops = dry_ops;
  d->device = config->name && strcmp(config->name, "cuda") == 0;
  if (d->device) {
    d->ops.name = "cuda";
    d->ops.weight_prefetch = dry_weight_prefetch;
  }
  *be = (backend){.ops = &d->ops,
                  .ctx = ctx,
                  .act = config->precision == WAN_PRECISION_F32 ? DT_F32 : DT_BF16,
                  .product = config->precision == WAN_PRECISION_FP8   ? DT_E4M3_ROWS
                             : config->precision == WAN_PRECISION_F32 ? DT_F32
                                                                      : DT_BF16,
                  .precision = config->precision ? config->precision : WAN_PRECISION_BF16,
                  .threads = 1,
                  .host_memory = !d->device,
                  .dry = true,
                  .impl = d,
                  .profile = profile};
  if (d->device) {
    core_device_add(ctx, (int64_t)DEVICE_LEAST_BYTES);
    core_mem_add(ctx, DEVICE_STAGING_BUFFERS * (int64_t)DEVICE_STAGING_BYTES);
  }
  *out = be;
  return WAN_OK;
}
