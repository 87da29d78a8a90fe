/* cpu.c: the CPU backend: matrix products and convolutions on tile registers where the machine has them
 * (tiles.h) and by oneDNN elsewhere, own kernels for the rest. Tensors lie in ordinary memory, operations
 * have finished when they return. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "backend/cpu/cpu.h"
#include "backend/registry.h"

#include <omp.h>
#include <string.h>

static void *mem_alloc(backend *be, size_t bytes) {
  return core_alloc(be->ctx, bytes);
}

static void mem_free(backend *be, void *p, size_t bytes) {
  (void)bytes;
  core_free(be->ctx, p);
}

/* Large copies are split: one core does not fill the memory bus. */
enum { COPY_SPLIT = 1 << 20 };

static wan_status copy(backend *be, void *dst, const void *src, size_t bytes) {
  int64_t pieces = (int64_t)((bytes + COPY_SPLIT - 1) / COPY_SPLIT);
#pragma omp parallel for num_threads(be->threads) if (pieces > 1)
  for (int64_t i = 0; i < pieces; i++) {
    size_t at = (size_t)i * COPY_SPLIT, n = bytes - at < COPY_SPLIT ? bytes - at : COPY_SPLIT;
    memcpy((char *)dst + at, (const char *)src + at, n);
  }
  return WAN_OK;
}

static wan_status zero(backend *be, void *dst, size_t bytes) {
  int64_t pieces = (int64_t)((bytes + COPY_SPLIT - 1) / COPY_SPLIT);
#pragma omp parallel for num_threads(be->threads) if (pieces > 1)
  for (int64_t i = 0; i < pieces; i++) {
    size_t at = (size_t)i * COPY_SPLIT, n = bytes - at < COPY_SPLIT ? bytes - at : COPY_SPLIT;
    memset((char *)dst + at, 0, n);
  }
  return WAN_OK;
}

static wan_status sync_all(backend *be) {
  (void)be;
  return WAN_OK;
}

void *cpu_scratch_get(backend *be, cpu_scratch which, size_t bytes) {
  cpu_state *s = cpu_of(be);
  if (bytes <= s->scratch_bytes[which]) return s->scratch[which];
  core_free(be->ctx, s->scratch[which]);
  s->scratch_bytes[which] = 0;
  s->scratch[which] = core_alloc(be->ctx, bytes);
  if (s->scratch[which]) s->scratch_bytes[which] = bytes;
  return s->scratch[which];
}

static void close_backend(backend *be) {
  cpu_state *s = cpu_of(be);
  if (!s) return;
  prims_close(s->prims);
  for (int i = 0; i < SCRATCH_COUNT; i++) core_free(be->ctx, s->scratch[i]);
  core_free(be->ctx, s);
  be->impl = NULL;
}

static const backend_ops ops = {
    .name = "cpu",
    .close = close_backend,
    .mem_alloc = mem_alloc,
    .mem_free = mem_free,
    .upload = copy,
    .download = copy,
    .copy = copy,
    .zero = zero,
    .sync = sync_all,
    .weight_load = cpu_weight_load,
    .weight_unload = cpu_weight_unload,
    .linear = cpu_linear,
    .linear_add = cpu_linear_add,
    .ada_norm = cpu_ada_norm,
    .layer_norm = cpu_layer_norm,
    .rms_norm = cpu_rms_norm,
    .qk_norm_rope = cpu_qk_norm_rope,
    .attention = cpu_attention,
    .gate_add = cpu_gate_add,
    .mul = cpu_mul,
    .activate = cpu_activate,
    .modulation = cpu_modulation,
    .position_bias = cpu_position_bias,
    .embed = cpu_embed,
    .cast = cpu_cast,
    .patchify = cpu_patchify,
    .unpatchify = cpu_unpatchify,
    .channel_norm = cpu_channel_norm,
    .conv = cpu_conv,
    .upsample_conv = cpu_upsample_conv,
    .time_unshuffle = cpu_time_unshuffle,
    .dup_up_add = cpu_dup_up_add,
    .avg_down_add = cpu_avg_down_add,
    .space_to_depth = cpu_space_to_depth,
    .depth_to_space = cpu_depth_to_space,
    .lincomb = cpu_lincomb,
    .channel_affine = cpu_channel_affine,
    .concat_channels = cpu_concat_channels,
    .to_u8 = cpu_to_u8,
    .all_finite = cpu_all_finite,
    .dot = cpu_dot,
};

wan_status backend_cpu_open(backend *be, const backend_config *config) {
  if (be->precision == WAN_PRECISION_FP8)
    return core_fail(be->ctx, WAN_ERR_UNSUPPORTED,
                     "the cpu backend has no fp8 arithmetic; choose --precision bf16, or --backend cuda");
  cpu_state *s = core_calloc(be->ctx, 1, sizeof *s);
  if (!s) return WAN_ERR_MEMORY;
  be->impl = s;
  be->ops = &ops;
  be->host_memory = true;
  be->threads = config->threads > 0 ? config->threads : omp_get_num_procs();
  cpu_isa_detect(&s->isa);
  wan_status status = prims_open(be->ctx, be->threads, &s->prims);
  if (status != WAN_OK) {
    close_backend(be);
    return status;
  }
  s->native_bf16 = prims_native_bf16();
  if (!prims_native_amx()) s->isa.tiles = NULL;
  core_log(be->ctx, WAN_LOG_INFO, "cpu: %s, %d threads, %s products", s->isa.text, be->threads,
           be->act == DT_F32 ? "f32"
           : s->native_bf16  ? "bf16"
                             : "f32 (no bf16 instructions)");
  return WAN_OK;
}
