/* test_pth.c: PyTorch checkpoints: what torch.save() wrote, and what an attacker could write. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <sys/mman.h>

#include "scratch.h"
#include "weights/pth.h"
#include "weights/weights.h"

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
  return core_mem_current(&ctx) == 0 ? 0 : -1;
}

/* ---- A zip writer whose every field can be set wrong ---- */

typedef struct buffer {
  unsigned char data[1 << 16];
  size_t size;
} buffer;

static void put(buffer *b, uint64_t v, int bytes) {
  for (int i = 0; i < bytes; i++) b->data[b->size++] = (unsigned char)(i < 8 ? v >> (8 * i) : 0);
}

static void put_bytes(buffer *b, const void *p, size_t n) {
  if (n) memcpy(b->data + b->size, p, n);
  b->size += n;
}

typedef struct file {
  const char *name;
  const void *data;
  size_t size;
} file;

typedef struct damage {
  bool zip64;      /* write 64-bit fields everywhere */
  int method;      /* 8: deflated */
  int flags;       /* 1: encrypted */
  int64_t offset;  /* added to the first entry's local offset */
  int64_t length;  /* added to the first entry's size */
  int64_t dir;     /* added to the directory's offset */
  int64_t entries; /* added to the number of entries */
  const char *local_name;
} damage;

static void put_local(buffer *b, const file *f, const damage *d, const char *name) {
  put(b, 0x04034b50, 4);
  put(b, 0, 2);
  put(b, (uint64_t)d->flags, 2);
  put(b, (uint64_t)d->method, 2);
  put(b, 0, 8); /* time, date, crc */
  put(b, f->size, 4);
  put(b, f->size, 4);
  put(b, strlen(name), 2);
  put(b, 5, 2); /* padding in the extra field, as torch.save() has it */
  put_bytes(b, name, strlen(name));
  put_bytes(b, "FB\1\0Z", 5);
  put_bytes(b, f->data, f->size);
}

static void put_central(buffer *b, const file *f, const damage *d, uint64_t size, uint64_t at) {
  put(b, 0x02014b50, 4);
  put(b, 0, 4);
  put(b, (uint64_t)d->flags, 2);
  put(b, (uint64_t)d->method, 2);
  put(b, 0, 8);
  put(b, d->zip64 ? 0xffffffff : size, 4);
  put(b, d->zip64 ? 0xffffffff : size, 4);
  put(b, strlen(f->name), 2);
  put(b, d->zip64 ? 28 : 0, 2);
  put(b, 0, 10); /* comment length, disk, attributes */
  put(b, d->zip64 ? 0xffffffff : at, 4);
  put_bytes(b, f->name, strlen(f->name));
  if (!d->zip64) return;
  put(b, 1, 2);
  put(b, 24, 2);
  put(b, size, 8);
  put(b, size, 8);
  put(b, at, 8);
}

static void put_end(buffer *b, const damage *d, uint64_t n, uint64_t from) {
  uint64_t size = b->size - from, end64 = b->size, at = from + (uint64_t)d->dir,
           count = n + (uint64_t)d->entries;
  if (d->zip64) {
    put(b, 0x06064b50, 4);
    put(b, 44, 8);
    put(b, 0, 12);
    put(b, count, 8);
    put(b, count, 8);
    put(b, size, 8);
    put(b, at, 8);
    put(b, 0x07064b50, 4);
    put(b, 0, 4);
    put(b, end64, 8);
    put(b, 1, 4);
  }
  put(b, 0x06054b50, 4);
  put(b, 0, 4);
  put(b, d->zip64 ? 0xffff : count, 2);
  put(b, d->zip64 ? 0xffff : count, 2);
  put(b, d->zip64 ? 0xffffffff : size, 4);
  put(b, d->zip64 ? 0xffffffff : at, 4);
  put(b, 0, 2);
}

static const char *make_zip(int n, const file *files, const damage *d) {
  static buffer b;
  uint64_t at[8];
  b.size = 0;
  for (int i = 0; i < n; i++) {
    at[i] = b.size;
    put_local(&b, &files[i], d, i == 0 && d->local_name ? d->local_name : files[i].name);
  }
  uint64_t from = b.size;
  for (int i = 0; i < n; i++)
    put_central(&b, &files[i], d, files[i].size + (uint64_t)(i == 0 ? d->length : 0),
                at[i] + (uint64_t)(i == 0 ? d->offset : 0));
  put_end(&b, d, (uint64_t)n, from);
  return scratch_write(&dir, "a.pth", b.data, b.size);
}

/* ---- Pickles ---- */

#define PROTO "\x80\x02"
#define TENSOR_GLOBAL "ctorch._utils\n_rebuild_tensor_v2\n"
#define STORAGE(type, key, n) "(X\7\0\0\0storagectorch\n" type "\nX\1\0\0\0" key "X\3\0\0\0cpuK" n "tQ"
#define HOOKS \
  "\x89"      \
  "ccollections\nOrderedDict\n)R"
/* a tensor from K-encoded offset, and the pickled size and stride tuples */
#define TENSOR(storage, offset, size, stride) TENSOR_GLOBAL "(" storage "K" offset size stride HOOKS "tR"
#define NAME_W "X\1\0\0\0w"
#define GOOD_TENSOR TENSOR(STORAGE("FloatStorage", "0", "\6"), "\0", "K\2K\3\x86", "K\3K\1\x86")

static const float values[6] = {1, 2, 3, 4, 5, 6};

static const char *make_pth(const char *pkl, size_t size) {
  const file files[] = {
      {"x/data.pkl", pkl, size}, {"x/byteorder", "little", 6}, {"x/data/0", values, sizeof values}};
  return make_zip(3, files, &(damage){0});
}
#define PTH(pkl) make_pth(pkl, sizeof(pkl) - 1)

static void expect(const char *path, wan_status want, const char *text) {
  pth *p = (pth *)&ctx;
  wan_status got = pth_open(&ctx, path, &p);
  if (got != want || !strstr(ctx.message, text))
    fail_msg("status %d, \"%s\"; expected %d, \"%s\"", got, ctx.message, want, text);
  assert_null(p);
  assert_non_null(strstr(ctx.message, dir.dir)); /* every message names the file */
}
#define REJECT(pkl, want, text) expect(PTH(pkl), want, text)

static void accept(const char *path) {
  pth *p;
  if (pth_open(&ctx, path, &p) != WAN_OK) fail_msg("%s", ctx.message);
  assert_int_equal(pth_count(p), 1);
  assert_string_equal(pth_name(p, 0), "w");
  tensor t = pth_tensor(p, 0);
  assert_int_equal(t.type, DT_F32);
  assert_true(t.ndim == 2 && t.dim[0] == 2 && t.dim[1] == 3);
  assert_memory_equal(t.data, values, sizeof values);
  pth_close(p);
}

static void test_accepted(void **state) {
  (void)state;
  accept(PTH(PROTO "}" NAME_W GOOD_TENSOR "s."));
  accept(PTH(PROTO "ccollections\nOrderedDict\n)R" NAME_W GOOD_TENSOR "s}X\11\0\0\0_metadata}sb."));
  accept(PTH(PROTO "}(" NAME_W GOOD_TENSOR "X\5\0\0\0epochK\7X\2\0\0\0lrG12345678X\1\0\0\0l](K\1Ne"
                   "u."));
  accept(PTH(PROTO "}X\12\0\0\0state_dict}" NAME_W GOOD_TENSOR "ss."));
  accept(PTH(PROTO "}" NAME_W "ctorch._utils\n_rebuild_parameter\n(" GOOD_TENSOR HOOKS "tRs."));
  accept(PTH(PROTO "(" NAME_W GOOD_TENSOR "d."));
  accept(PTH("\x80\x05\x95\x10\0\0\0\0\0\0\0}\x94\x8c\1w\x94" /* protocol 5: frames, memo, short strings */
             "\x8c\14torch._utils\x94\x8c\22_rebuild_tensor_v2\x94\x93\x94(" STORAGE(
                 "FloatStorage", "0", "\6") "K\0K\2K\3\x86K\3K\1\x86\x89"
                                            "ccollections\nOrderedDict\n)RtRs."));
  /* a stride over a dimension of one entry is free */
  pth *p;
  const char *path = PTH(PROTO "}" NAME_W TENSOR(STORAGE("HalfStorage", "0", "\14"), "\2", "K\1K\12K\1\x87",
                                                 "K\7K\1K\x63\x87") "s.");
  assert_int_equal(pth_open(&ctx, path, &p), WAN_OK);
  assert_int_equal(pth_tensor(p, 0).type, DT_F16);
  assert_memory_equal(pth_tensor(p, 0).data, (const char *)values + 4, 20);
  pth_close(p);
}

static void test_refused(void **state) {
  (void)state;
  wan_status F = WAN_ERR_FORMAT, U = WAN_ERR_UNSUPPORTED;
  REJECT(PROTO "cos\nsystem\n(X\2\0\0\0idtR.", F, "refers to os.system, which is refused");
  REJECT("\x80\4\x8c\10builtins\x8c\4eval\x93.", F, "builtins.eval");
  REJECT(PROTO "ctorch._utils\n_rebuild_sparse_tensor\n.", F, "torch._utils._rebuild_sparse_tensor");
  REJECT(PROTO "c\x1b[2Jevil\nx\n.", F, "?[2Jevil.x"); /* nothing that a terminal obeys */
  REJECT(PROTO "cos\nsys", F, "a name without an end");
  REJECT(PROTO "}i.", F, "instruction 0x69");                   /* INST */
  REJECT(PROTO "(cos\no\no.", F, "os.o");                       /* OBJ needs GLOBAL first */
  REJECT(PROTO "ccollections\nOrderedDict\n)\x81.", F, "0x81"); /* NEWOBJ */
  REJECT("\x80\1}.", U, "protocol 1");
  REJECT("\x80\6}.", U, "protocol 6");
  REJECT("(dp0\n.", F, "0x70"); /* protocol 0 */
  REJECT(PROTO "K\1.", F, "no tensors");
  REJECT(PROTO "}.", F, "no tensors");
  REJECT(PROTO "}X\5\0\0\0model}" NAME_W GOOD_TENSOR "ss.", F, "no tensors");
  REJECT(PROTO "]" GOOD_TENSOR "a.", F, "no tensors");
}

static void test_stack_abuse(void **state) {
  (void)state;
  wan_status F = WAN_ERR_FORMAT;
  static const struct {
    const char *pkl;
    size_t size;
  } cases[] = {
#define C(s) {PROTO s, sizeof(PROTO s) - 1}
      C("."),
      C("}}."),
      C("(."),
      C("t."),
      C("\x85."),
      C("K\1\x86."),
      C("K\1(\x86."),
      C("s."),
      C("}K\1s."),
      C("}(K\1u."),
      C("(u."),
      C("}(](u."),
      C("]K\1s."),
      C("K\1K\2a."),
      C("}K\1a."),
      C("(K\1d."),
      C("h\0."),
      C("q\0."),
      C("K\1q\1h\0."),
      C("j\xff\xff\xff\xff."),
      C("K\1r\xff\xff\xff\xff."),
      C("\x94."),
      C("R."),
      C("K\1)R."),
      C("b."),
      C("K\1}b."),
      C("}K\1b."),
      C("Q."),
      C("K\1Q."),
      C(")Q."),
      C("(e."),
      C("K\1(\x94."),
      C("\x8a\x09"
        "123456789."),
      C("\x8b\xff\xff\xff\xff."),
      C("X\xff\xff\xff\xff."),
      C("\x8d\xff\xff\xff\xff\xff\xff\xff\xff."),
      C("X\1\0\0\0\xff."),
      C("K"),
      C("J\0\0"),
      C("G\0"),
      C("\x95\xff\xff\xff\xff\xff\xff\xff\xff."),
      C("\x93."),
      C("K\1K\1\x93."),
      C(""),
      C(TENSOR_GLOBAL ")R."),
      C(TENSOR_GLOBAL "K\1K\1K\1\x87R."),
      C("ctorch\nFloatStorage\n)R."),
      C("ctorch._utils\n_rebuild_parameter\n)R."),
      C("ccollections\nOrderedDict\nK\1\x85R."),
      C("(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
        "0X\3\0\0\0cputQ."),
      C("(X\7\0\0\0storagectorch\nfloat8_e5m2\nX\1\0\0\0"
        "0X\3\0\0\0cpuK\1tQ."),
#undef C
  };
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    pth *p;
    wan_status got = pth_open(&ctx, make_pth(cases[i].pkl, cases[i].size), &p);
    if (got != F) fail_msg("case %zu gave %d \"%s\"", i, got, ctx.message);
  }
}

/* Lists that contain themselves, and nesting without end, are only data. */
static void test_depth(void **state) {
  (void)state;
  REJECT(PROTO "]q\0h\0ah\0h\0a.", WAN_ERR_FORMAT, "damaged");
  REJECT(PROTO "}q\0X\1\0\0\0ah\0s.", WAN_ERR_FORMAT, "no tensors");
  REJECT(PROTO "}q\0X\12\0\0\0state_dicth\0s.", WAN_ERR_FORMAT, "no tensors");
  size_t n = 50000;
  char *deep = malloc(n + 8);
  memcpy(deep, PROTO, 2);
  memset(deep + 2, ')', 1);
  memset(deep + 3, 0x85, n); /* ((((...),),),) */
  deep[n + 3] = '.';
  expect(make_pth(deep, n + 4), WAN_ERR_FORMAT, "no tensors");
  free(deep);
}

static void test_too_many_objects(void **state) {
  (void)state;
  const size_t n = (1 << 20) + 16;
  char *many = malloc(n);
  memset(many, ')', n);
  memcpy(many, PROTO, 2);
  /* larger than the zip writer's buffer: a bare archive with one entry is written by hand */
  char *path = strdup(scratch_path(&dir, "many.pth"));
  FILE *f = fopen(path, "wb");
  static buffer b;
  b.size = 0;
  damage d = {0};
  file none = {"x/data.pkl", NULL, 0}, all = {"x/data.pkl", many, n};
  put(&b, 0, 0);
  put_local(&b, &none, &d, "x/data.pkl");
  assert_int_equal(fwrite(b.data, 1, b.size, f), b.size);
  assert_int_equal(fwrite(many, 1, n, f), n);
  uint64_t from = b.size + n;
  b.size = 0;
  put_central(&b, &all, &d, n, 0);
  size_t dir_size = b.size;
  put_end(&b, &d, 1, 0);
  for (int i = 0; i < 4; i++) { /* size and place of the directory */
    b.data[dir_size + 12 + (size_t)i] = (unsigned char)(dir_size >> (8 * i));
    b.data[dir_size + 16 + (size_t)i] = (unsigned char)(from >> (8 * i));
  }
  assert_int_equal(fwrite(b.data, 1, b.size, f), b.size);
  fclose(f);
  expect(path, WAN_ERR_FORMAT, "more than 1048576 objects");
  free(path);
  free(many);
}

static void test_tensors(void **state) {
  (void)state;
  wan_status F = WAN_ERR_FORMAT, U = WAN_ERR_UNSUPPORTED;
#define W(storage, offset, size, stride) PROTO "}" NAME_W TENSOR(storage, offset, size, stride) "s."
#define S6 STORAGE("FloatStorage", "0", "\6")
  REJECT(W(S6, "\0", "K\3K\2\x86", "K\1K\3\x86"), U, "tensor w is not contiguous");
  REJECT(W(S6, "\0", "K\2K\3\x86", "K\0K\1\x86"), U, "not contiguous"); /* an expanded row */
  REJECT(W(S6, "\1", "K\2K\3\x86", "K\3K\1\x86"), F, "tensor w: 6 elements from element 1 on exceed");
  REJECT(W(S6, "\7", "K\0\x85", "K\1\x85"), F, "exceed");
  REJECT(W(S6, "\0", "K\7\x85", "K\1\x85"), F, "exceed");
  REJECT(W(S6, "\0", "J\xff\xff\xff\xff\x85", "K\1\x85"), F, "impossible shape");
  REJECT(W(S6, "\0", "N\x85", "K\1\x85"), F, "impossible shape");
  REJECT(W(S6, "\0", "K\6\x85", "K\1K\1\x86"), F, "impossible shape");
  REJECT(W(S6, "\0", "(K\1K\1K\1K\1K\1K\6t", "(K\6K\6K\6K\6K\6K\1t"), U, "tensor w has 6 dimensions");
  REJECT(W(S6, "\0", "\x8a\10\0\0\0\0\0\0\0\1\x8a\10\0\0\0\0\0\0\0\1\x86", "K\1K\1\x86"), F,
         "impossible shape");
  REJECT(W(STORAGE("FloatStorage", "1", "\6"), "\0", "K\6\x85", "K\1\x85"), F,
         "storage data/1 is not in the file");
  REJECT(W(STORAGE("FloatStorage", "0", "\5"), "\0", "K\5\x85", "K\1\x85"), F,
         "24 bytes, but 5 elements of 4");
  REJECT(W(STORAGE("DoubleStorage", "0", "\6"), "\0", "K\6\x85", "K\1\x85"), F,
         "24 bytes, but 6 elements of 8");
  REJECT(W(STORAGE("FloatStorage", "/", "\6"), "\0", "K\6\x85", "K\1\x85"), F, "impossible key");
  REJECT(W(STORAGE("QInt8Storage", "0", "\6"), "\0", "K\6\x85", "K\1\x85"), F, "torch.QInt8Storage");
  REJECT(PROTO "}K\1" GOOD_TENSOR "s.", F, "not a text");
  /* a name of two tensors: the set sees it */
  weight_set *set;
  assert_int_equal(
      weight_set_open(&ctx, PTH(PROTO "}" NAME_W GOOD_TENSOR "s" NAME_W GOOD_TENSOR "s."), WEIGHTS_VAE, &set),
      F);
  assert_non_null(strstr(ctx.message, "tensor w is in"));
}

static void test_zip(void **state) {
  (void)state;
  static const char pkl[] = PROTO "}" NAME_W GOOD_TENSOR "s.";
  file f[] = {
      {"x/data.pkl", pkl, sizeof pkl - 1}, {"x/data/0", values, sizeof values}, {"x/version", "3\n", 2}};
  wan_status F = WAN_ERR_FORMAT, U = WAN_ERR_UNSUPPORTED;
  accept(make_zip(3, f, &(damage){0}));
  accept(make_zip(3, f, &(damage){.zip64 = true}));
  for (int z = 0; z < 2; z++) {
    bool zip64 = z == 1;
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .method = 8}), U,
           "x/data.pkl is compressed or encrypted");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .flags = 1}), U, "x/data.pkl is compressed or encrypted");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .offset = 1}), F, "without its header");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .offset = -1}), F, "damaged zip file");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .length = 20000}), F, "out of bounds");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .length = 1}), F, "overlap");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .dir = 1}), F, "directory");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .dir = 100000}), F, "directory");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .entries = 1}), F, "directory");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .entries = -1}), F, "directory");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .entries = 60000}), F, "directory");
    expect(make_zip(3, f, &(damage){.zip64 = zip64, .local_name = "y/data.pkl"}), F, "two different names");
  }
  file twice[] = {f[0], f[1], f[1]};
  expect(make_zip(3, twice, &(damage){0}), F, "same name");
  file two[] = {f[0], f[1], {"y/data.pkl", pkl, sizeof pkl - 1}};
  expect(make_zip(3, two, &(damage){0}), F, "more than one data.pkl");
  expect(make_zip(1, f + 1, &(damage){0}), F, "no data.pkl");
  file script[] = {f[0], f[1], {"x/constants.pkl", "", 0}};
  expect(make_zip(3, script, &(damage){0}), U, "TorchScript");
  expect(make_zip(3, script, &(damage){.method = 8}), U, "TorchScript"); /* its code is compressed */
  file big[] = {f[0], f[1], {"x/byteorder", "big", 3}};
  expect(make_zip(3, big, &(damage){0}), U, "little-endian");
  expect(scratch_write(&dir, "old.pth", "\x80\2\x8a\nl\xfc\x9c\x46\xf9 j\xa8P\x19.", 15), U, "before 1.6");
  expect(scratch_write(&dir, "text.pth", "hello world", 11), F, "not a PyTorch checkpoint");
  expect(scratch_write(&dir, "empty.pth", "", 0), F, "not a PyTorch checkpoint");
  expect(scratch_write(&dir, "pk.pth", "PK\3\4", 4), F, "cut off");
}

/* Rewrite the memory file `fd`. */
static void refill(int fd, const void *data, size_t size) {
  assert_int_equal(ftruncate(fd, 0), 0);
  assert_int_equal(pwrite(fd, data, size, 0), size);
}

/* A checkpoint cut at every byte, and with every byte changed. */
static void test_damage(void **state) {
  (void)state;
  static const char pkl[] = PROTO "}" NAME_W GOOD_TENSOR "s.";
  static unsigned char whole[4096], bent[4096];
  file f[] = {{"x/data.pkl", pkl, sizeof pkl - 1}, {"x/data/0", values, sizeof values}};
  char path[64];
  pth *p;
  int fd = memfd_create("damage", MFD_CLOEXEC);
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  for (int z = 0; z < 2; z++) {
    FILE *in = fopen(make_zip(2, f, &(damage){.zip64 = z == 1}), "rb");
    size_t n = fread(whole, 1, sizeof whole, in);
    fclose(in);
    assert_true(n > 300 && n < sizeof whole);
    for (size_t cut = 0; cut < n; cut++) {
      refill(fd, whole, cut);
      assert_int_equal(pth_open(&ctx, path, &p), WAN_ERR_FORMAT);
    }
    for (size_t i = 0; i < 3 * n; i++) { /* any outcome but a crash; the sanitizers watch */
      static const unsigned char masks[] = {0x01, 0x80, 0xff};
      memcpy(bent, whole, n);
      bent[i / 3] ^= masks[i % 3];
      refill(fd, bent, n);
      pth_open(&ctx, path, &p);
      pth_close(p);
    }
  }
  close(fd);
}

static void test_fixtures(void **state) {
  (void)state;
  static const struct {
    const char *name;
    weight_kind kind;
    int64_t tensors;
  } files[] = {{"ti2v/Wan2.2_VAE.pth", WEIGHTS_VAE, 196},
               {"t2v/Wan2.1_VAE.pth", WEIGHTS_VAE, 194},
               {"ti2v/models_t5_umt5-xxl-enc-bf16.pth", WEIGHTS_TEXT, 0}};
  for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
    char path[512];
    snprintf(path, sizeof path, "%s/tests/parity/data/ckpt/%s", WAN_SOURCE_DIR, files[i].name);
    weight_set *set;
    if (weight_set_open(&ctx, path, files[i].kind, &set) != WAN_OK) fail_msg("%s", ctx.message);
    if (files[i].tensors) assert_int_equal(weight_set_count(set), files[i].tensors);
    for (int64_t k = 0; k < weight_set_count(set); k++) {
      tensor t = weight_set_tensor(set, k);
      assert_true(dtype_is_float(t.type) && tensor_count(&t) > 0);
      assert_int_equal((uintptr_t)t.data % dtype_size(t.type), 0);
    }
    weight_set_close(set);
  }
}

static void test_allocation_failures(void **state) {
  (void)state;
  const char *path = PTH(PROTO "}" NAME_W GOOD_TENSOR "s.");
  wan_status status = WAN_ERR_MEMORY;
  int n = 0;
  for (; status != WAN_OK; n++) {
    weight_set *set;
    atomic_store(&ctx.mem_fail_in, n);
    status = weight_set_open(&ctx, path, WEIGHTS_VAE, &set);
    assert_true(status == WAN_OK || (status == WAN_ERR_MEMORY && !set));
    weight_set_close(set);
  }
  atomic_store(&ctx.mem_fail_in, -1);
  assert_true(n > 20);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_accepted),    cmocka_unit_test(test_refused),
      cmocka_unit_test(test_stack_abuse), cmocka_unit_test(test_depth),
      cmocka_unit_test(test_tensors),     cmocka_unit_test(test_too_many_objects),
      cmocka_unit_test(test_zip),         cmocka_unit_test(test_damage),
      cmocka_unit_test(test_fixtures),    cmocka_unit_test(test_allocation_failures),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
