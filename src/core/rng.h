/* rng.h: reproducible Gaussian noise. */
#ifndef WAN_CORE_RNG_H
#define WAN_CORE_RNG_H

#include "core/ctx.h"

/* Bit-equal to torch.Generator('cpu').manual_seed(seed); torch.randn(n, generator=g), dtype f32:
 * mt19937 seeded with the low 32 bits, 24-bit uniforms and Box-Muller in blocks of 16 for n >= 16,
 * double-precision pairs below (PyTorch, ATen/native/cpu/DistributionTemplates.h). */
wan_status rng_normal_torch_cpu(core_ctx *ctx, uint64_t seed, float *out, size_t n);

/* Ours: Philox4x32-10 (Salmon et al., SC11), key = seed, counter = block index; Box-Muller in double.
 * The value at an index depends on nothing but (seed, index). */
void rng_normal_philox(uint64_t seed, float *out, size_t n);

/* A seed from the operating system's entropy, in [0, 2^63). */
uint64_t rng_random_seed(void);

#endif
