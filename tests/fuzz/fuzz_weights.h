/* fuzz_weights.h: what the fuzz targets of the weight readers share. */
#ifndef WAN_TESTS_FUZZ_WEIGHTS_H
#define WAN_TESTS_FUZZ_WEIGHTS_H

#include "weights/weights.h"

#include <stddef.h>
#include <stdint.h>

/* Header and pickle may ask for many times their own size; more than this they don't get. */
enum { FUZZ_MEMORY = 256 << 20 };

/* A file in memory with these bytes; returns its descriptor and its path. */
int fuzz_file(const uint8_t *data, size_t size, char path[64]);

/* Open path as each kind of network, read the first and last byte of every tensor, bind one. */
void fuzz_weight_sets(const char *path);

/* abort() unless everything that ctx handed out was given back. */
void fuzz_check_leaks(core_ctx *ctx);

#endif
