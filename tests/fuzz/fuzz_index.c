/* fuzz_index.c: any bytes as the index.json of a sharded checkpoint whose two shards are there. */
#define _GNU_SOURCE /* mkdtemp, nftw */
#include "../scratch.h"
#include "fuzz_weights.h"
#include "weights/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static scratch dir;

static void remove_dir(void) {
  scratch_close(&dir);
}

static void make_dir(void) {
  static float x[4];
  core_ctx ctx;
  core_ctx_init(&ctx);
  named_tensor a = {"a", TENSOR_OF(DT_F32, x, 4)}, b = {"b", TENSOR_OF(DT_F32, x, 2, 2)};
  scratch_open(&dir);
  atexit(remove_dir);
  if (safetensors_write(&ctx, scratch_path(&dir, "model-1.safetensors"), 1, &a, NULL) != WAN_OK ||
      safetensors_write(&ctx, scratch_path(&dir, "model-2.safetensors"), 1, &b, NULL) != WAN_OK)
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!dir.dir[0]) make_dir();
  char target[64];
  const char *link = scratch_path(&dir, "model.safetensors.index.json");
  int fd = fuzz_file(data, size, target); /* by a link: memory is faster than the disk */
  if (symlink(target, link) != 0) abort();
  fuzz_weight_sets(dir.dir);
  unlink(link);
  close(fd);
  return 0;
}
