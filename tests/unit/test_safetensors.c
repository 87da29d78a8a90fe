/* test_safetensors.c: what the reader takes, and that nothing malformed gets past it. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "scratch.h"
#include "weights/safetensors.h"

static core_ctx ctx;
static scratch dir;

static int setup(void **state) {
  (void)state;
  core_ctx_init(&ctx);
  scratch_open(&dir);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  scratch_close(&dir);
  return core_mem_current(&ctx) == 0 ? 0 : -1; /* everything was given back */
}

/* A file with this header and `data` bytes 0, 1, 2, ... */
static const char *make(const char *header, size_t data) {
  size_t n = strlen(header);
  unsigned char *p = calloc(1, 8 + n + data + 1);
  for (int i = 0; i < 8; i++) p[i] = (unsigned char)((uint64_t)n >> (8 * i));
  memcpy(p + 8, header, n);
  for (size_t i = 0; i < data; i++) p[8 + n + i] = (unsigned char)i;
  const char *path = scratch_write(&dir, "a.safetensors", p, 8 + n + data);
  free(p);
  return path;
}

static void reject(const char *header, size_t data, wan_status want, const char *text) {
  safetensors *s = (safetensors *)&ctx;
  wan_status got = safetensors_open(&ctx, make(header, data), &s);
  if (got != want || !strstr(ctx.message, text))
    fail_msg("%s\n gave status %d, \"%s\"; expected %d, \"%s\"", header, got, ctx.message, want, text);
  assert_null(s);
  assert_non_null(strstr(ctx.message, "a.safetensors")); /* every message names the file */
}

static void test_round_trip(void **state) {
  (void)state;
  float f[6] = {1, 2, 3, 4, 5, 6};
  uint16_t h[3] = {7, 8, 9};
  int64_t scalar = -5;
  unsigned char bytes[4] = {0, 255, 1, 2};
  named_tensor in[] = {
      {"f", TENSOR_OF(DT_F32, f, 2, 3)},
      {"h \"quoted\" \xc3\xa4", TENSOR_OF(DT_BF16, h, 3, 1)},
      {"scalar", {.type = DT_I64, .ndim = 0, .data = &scalar}},
      {"empty", TENSOR_OF(DT_F16, NULL, 0, 4)},
      {"five", TENSOR_OF(DT_F8E4M3, bytes, 1, 1, 2, 1, 2)},
  };
  const char *meta[] = {"format", "pt", "note", "a\nb", NULL};
  const char *path = scratch_path(&dir, "rt.safetensors");
  assert_int_equal(safetensors_write(&ctx, path, 5, in, meta), WAN_OK);
  safetensors *s;
  assert_int_equal(safetensors_open(&ctx, path, &s), WAN_OK);
  assert_int_equal(safetensors_count(s), 5);
  assert_string_equal(safetensors_metadata(s, "note"), "a\nb");
  assert_null(safetensors_metadata(s, "absent"));
  for (int i = 0; i < 5; i++) {
    tensor t = safetensors_find(s, in[i].name), u = safetensors_tensor(s, i);
    assert_string_equal(safetensors_name(s, i), in[i].name);
    assert_true(tensor_same_shape(&t, &in[i].value) && t.type == in[i].value.type);
    assert_ptr_equal(t.data, u.data);
    if (tensor_bytes(&t)) assert_memory_equal(t.data, in[i].value.data, tensor_bytes(&t));
  }
  assert_int_equal((uintptr_t)safetensors_tensor(s, 0).data % 8, 0); /* the data area is aligned */
  assert_int_equal(safetensors_find(s, "absent").type, DT_NONE);
  safetensors_close(s);
}

static void test_dtypes(void **state) {
  (void)state;
  for (int t = DT_NONE + 1; t < DT_E4M3_ROWS; t++) {
    char header[128];
    size_t bytes = 3 * dtype_size((dtype)t);
    snprintf(header, sizeof header, "{\"x\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%zu]}}",
             dtype_name((dtype)t), bytes);
    safetensors *s;
    assert_int_equal(safetensors_open(&ctx, make(header, bytes), &s), WAN_OK);
    assert_int_equal(safetensors_find(s, "x").type, t);
    safetensors_close(s);
  }
  reject("{\"x\":{\"dtype\":\"C64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, WAN_ERR_UNSUPPORTED,
         "\"C64\"");
  reject("{\"x\":{\"dtype\":\"none\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, WAN_ERR_UNSUPPORTED,
         "\"none\"");
  reject("{\"x\":{\"dtype\":\"e4m3 rows\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3, WAN_ERR_UNSUPPORTED,
         "\"e4m3 rows\""); /* a dtype that only memory has */
}

#define T(name, shape, begin, end) \
  "\"" name "\":{\"dtype\":\"U8\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void test_layout(void **state) {
  (void)state;
  safetensors *s;
  /* out of order in the header, with an empty tensor between: fine */
  assert_int_equal(
      safetensors_open(
          &ctx, make("{" T("b", "[4]", 4, 8) "," T("e", "[0]", 4, 4) "," T("a", "[2,2]", 0, 4) "} ", 8), &s),
      WAN_OK);
  assert_int_equal(((unsigned char *)safetensors_find(s, "b").data)[0], 4);
  safetensors_close(s);
  assert_int_equal(safetensors_open(&ctx, make("{}", 0), &s), WAN_OK);
  assert_int_equal(safetensors_count(s), 0);
  safetensors_close(s);

  wan_status F = WAN_ERR_FORMAT;
  reject("{" T("a", "[4]", 0, 4) "," T("b", "[4]", 3, 7) "}", 7, F, "tensors a and b overlap at byte 3");
  reject("{" T("a", "[8]", 0, 8) "," T("b", "[2]", 3, 5) "}", 8, F, "overlap");
  reject("{" T("a", "[4]", 0, 4) "," T("b", "[4]", 0, 4) "}", 4, F, "overlap");
  reject("{" T("a", "[4]", 0, 4) "," T("b", "[2]", 6, 8) "}", 8, F, "bytes 4 to 6");
  reject("{" T("a", "[4]", 1, 5) "}", 5, F, "bytes 0 to 1");
  reject("{" T("a", "[4]", 0, 4) "}", 5, F, "1 bytes after its last tensor");
  reject("{}", 3, F, "3 bytes after");
  reject("{" T("a", "[4]", 0, 4) "}", 3, F, "ends at byte 4");
  reject("{" T("a", "[4]", 4, 0) "}", 4, F, "not a range");
  reject("{" T("a", "[4]", -4, 0) "}", 4, F, "not a range");
  reject("{" T("a", "[5]", 0, 4) "}", 4, F, "does not fill its 4 bytes");
  reject("{" T("a", "[-1,-4]", 0, 4) "}", 4, F, "dimension 0");
  reject("{" T("a", "[1.5]", 0, 4) "}", 4, F, "dimension 0");
  reject("{" T("a", "[\"4\"]", 0, 4) "}", 4, F, "dimension 0");
  reject("{" T("a", "4", 0, 4) "}", 4, F, "shape");
  reject("{" T("a", "[1,1,1,1,1,4]", 0, 4) "}", 4, WAN_ERR_UNSUPPORTED, "tensor a has 6 dimensions");
  /* products that wrap around to 4 in 64 bits */
  reject("{" T("a", "[4294967296,4294967296,4]", 0, 4) "}", 4, F, "does not fill");
  reject("{" T("a", "[4611686018427387905,4]", 0, 4) "}", 4, F, "does not fill");
  reject("{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, F,
         "does not fill");
  reject("{" T("a", "[9223372036854775808]", 0, 4) "}", 4, F, "JSON");
  reject("{" T("a", "[4]", 0, 9223372036854775807) "}", 4, F, "cut off");
}

static void test_headers(void **state) {
  (void)state;
  wan_status F = WAN_ERR_FORMAT;
  reject("", 0, F, "JSON");
  reject("[]", 0, F, "not a JSON object");
  reject("{", 0, F, "JSON");
  reject("{} x", 0, F, "JSON");
  reject("{\"a\":1}", 0, F, "no \"dtype\"");
  reject("{\"a\":{\"dtype\":\"U8\"}}", 0, F, "no \"shape\"");
  reject("{\"a\":{\"dtype\":\"U8\",\"shape\":[]}}", 0, F, "data_offsets");
  reject("{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0]}}", 0, F, "data_offsets");
  reject("{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,\"1\"]}}", 1, F, "data_offsets");
  reject("{" T("a", "[]", 0, 1) "," T("a", "[]", 1, 2) "}", 2, F, "duplicate");
  reject("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1, F,
         "duplicate");
  reject("{\"__metadata__\":[]}", 0, F, "__metadata__");
  reject("{\"__metadata__\":{\"k\":1}}", 0, F, "\"k\"");
  reject("{\"a\\u0000b\":1}", 0, F, "JSON");
  reject("{\"\xff\":1}", 0, F, "JSON");
  char *deep = malloc(200001); /* nesting must not exhaust the stack */
  memset(deep, '[', 200000);
  deep[200000] = 0;
  safetensors *s;
  assert_int_equal(safetensors_open(&ctx, make(deep, 0), &s), F);
  free(deep);
}

/* Cut anywhere, and with absurd header lengths, the file is refused. */
static void test_truncation(void **state) {
  (void)state;
  const char *header = "{" T("a", "[4]", 0, 4) "," T("b", "[2]", 4, 6) "}";
  size_t n = 8 + strlen(header) + 6;
  unsigned char whole[256], part[256];
  FILE *f = fopen(make(header, 6), "rb");
  assert_int_equal(fread(whole, 1, sizeof whole, f), n);
  fclose(f);
  for (size_t cut = 0; cut < n; cut++) {
    safetensors *s;
    const char *path = scratch_write(&dir, "cut.safetensors", whole, cut);
    assert_int_equal(safetensors_open(&ctx, path, &s), WAN_ERR_FORMAT);
    assert_null(s);
  }
  const uint64_t lengths[] = {n, 100000000, 100000001, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63};
  for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
    safetensors *s;
    memcpy(part, whole, n);
    for (int b = 0; b < 8; b++) part[b] = (unsigned char)(lengths[i] >> (8 * b));
    assert_int_equal(safetensors_open(&ctx, scratch_write(&dir, "len.safetensors", part, n), &s),
                     WAN_ERR_FORMAT);
  }
}

static void test_missing_file(void **state) {
  (void)state;
  safetensors *s;
  assert_int_equal(safetensors_open(&ctx, scratch_path(&dir, "none"), &s), WAN_ERR_IO);
  assert_int_equal(safetensors_open(&ctx, dir.dir, &s), WAN_ERR_IO);
}

static void test_write_errors(void **state) {
  (void)state;
  char x = 0;
  named_tensor twice[] = {{"a", TENSOR_OF(DT_U8, &x, 1)}, {"a", TENSOR_OF(DT_U8, &x, 1)}};
  named_tensor meta = {"__metadata__", TENSOR_OF(DT_U8, &x, 1)}, none = {"n", {0}};
  named_tensor latin = {"\xe4", TENSOR_OF(DT_U8, &x, 1)};
  const char *path = scratch_path(&dir, "w.safetensors");
  assert_int_equal(safetensors_write(&ctx, path, 2, twice, NULL), WAN_ERR_ARGUMENT);
  assert_int_equal(safetensors_write(&ctx, path, 1, &meta, NULL), WAN_ERR_ARGUMENT);
  assert_int_equal(safetensors_write(&ctx, path, 1, &none, NULL), WAN_ERR_ARGUMENT);
  assert_int_not_equal(safetensors_write(&ctx, path, 1, &latin, NULL), WAN_OK);
  assert_int_equal(safetensors_write(&ctx, "/nonexistent/w", 1, twice, NULL), WAN_ERR_IO);
  assert_int_not_equal(access(path, F_OK), 0);
}

/* The temporary name is a link to /dev/full: the disk is full from the first byte on. */
static void test_disk_full(void **state) {
  (void)state;
  static float big[4096];
  named_tensor t = {"big", TENSOR_OF(DT_F32, big, 4096)};
  char temp[600];
  const char *path = scratch_path(&dir, "full.safetensors");
  snprintf(temp, sizeof temp, "%s.part-%ld", path, (long)getpid());
  if (access("/dev/full", W_OK) != 0 || symlink("/dev/full", temp) != 0) skip();
  assert_int_equal(safetensors_write(&ctx, path, 1, &t, NULL), WAN_ERR_IO);
  assert_non_null(strstr(ctx.message, "No space left"));
  assert_int_not_equal(access(path, F_OK), 0);
  struct stat st;
  assert_int_not_equal(lstat(temp, &st), 0); /* nothing is left behind */
}

static void test_allocation_failures(void **state) {
  (void)state;
  float f[4] = {0};
  named_tensor t = {"f", TENSOR_OF(DT_F32, f, 4)};
  const char *path = scratch_path(&dir, "m.safetensors");
  wan_status status = WAN_ERR_MEMORY;
  int writes = 0, opens = 0;
  for (; status != WAN_OK; writes++) {
    atomic_store(&ctx.mem_fail_in, writes);
    status = safetensors_write(&ctx, path, 1, &t, NULL);
    assert_true(status == WAN_OK || status == WAN_ERR_MEMORY);
  }
  for (status = WAN_ERR_MEMORY; status != WAN_OK; opens++) {
    safetensors *s;
    atomic_store(&ctx.mem_fail_in, opens);
    status = safetensors_open(&ctx, path, &s);
    assert_true(status == WAN_OK || (status == WAN_ERR_MEMORY && !s));
    safetensors_close(s);
  }
  atomic_store(&ctx.mem_fail_in, -1);
  assert_true(writes > 2 && opens > 4);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip),
      cmocka_unit_test(test_dtypes),
      cmocka_unit_test(test_layout),
      cmocka_unit_test(test_headers),
      cmocka_unit_test(test_truncation),
      cmocka_unit_test(test_missing_file),
      cmocka_unit_test(test_write_errors),
      cmocka_unit_test(test_disk_full),
      cmocka_unit_test(test_allocation_failures),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
