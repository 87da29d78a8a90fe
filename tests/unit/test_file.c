/* Mappings, whole texts, and output files that appear whole or not at all. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>

#include "core/file.h"
#include "scratch.h"

typedef struct fixture {
  core_ctx ctx;
  scratch s;
} fixture;

static int make_fixture(void **state) {
  fixture *f = malloc(sizeof *f);
  if (!f) return -1;
  core_ctx_init(&f->ctx);
  scratch_open(&f->s);
  *state = f;
  return 0;
}

static int drop_fixture(void **state) {
  fixture *f = *state;
  int leaked = core_mem_current(&f->ctx) != 0;
  scratch_close(&f->s);
  free(f);
  return leaked;
}

static void says(const fixture *f, const char *part) {
  if (!strstr(f->ctx.message, part)) fail_msg("\"%s\" does not say \"%s\"", f->ctx.message, part);
}

static int files_in(const char *dir) {
  int n = 0;
  DIR *d = opendir(dir);
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
  closedir(d);
  return n;
}

/* ---- Reading ---- */

static void test_map(void **state) {
  fixture *f = *state;
  enum { SIZE = 3 * 4096 + 17 };
  unsigned char bytes[SIZE];
  for (int i = 0; i < SIZE; i++) bytes[i] = (unsigned char)(i * 7);
  core_map m;
  assert_int_equal(core_map_open(&f->ctx, scratch_write(&f->s, "some", bytes, SIZE), &m), WAN_OK);
  assert_int_equal(m.size, SIZE);
  core_map_prefetch(m.data + 100, 5000);
  core_map_drop(m.data + 1, SIZE - 2); /* may be read again at any time */
  assert_memory_equal(m.data, bytes, SIZE);
  core_map_prefetch(m.data, 0);
  core_map_drop(m.data + 5, 1);
  core_map_close(&m);
  assert_null(m.data);
  core_map_close(&m);
}

static void test_map_empty(void **state) {
  fixture *f = *state;
  core_map m = {(const unsigned char *)"x", 1};
  assert_int_equal(core_map_open(&f->ctx, scratch_text(&f->s, "empty", ""), &m), WAN_OK);
  assert_null(m.data);
  assert_int_equal(m.size, 0);
  core_map_close(&m);
}

static void test_not_a_file(void **state) {
  fixture *f = *state;
  core_map m = {(const unsigned char *)"x", 1};
  char *text = (char *)1;
  const char *missing = scratch_path(&f->s, "missing"), *pipe = scratch_path(&f->s, "pipe");
  assert_int_equal(core_map_open(&f->ctx, missing, &m), WAN_ERR_IO);
  says(f, missing);
  says(f, "No such file");
  assert_null(m.data);
  assert_int_equal(m.size, 0);
  assert_int_equal(core_read_text(&f->ctx, missing, 10, &text, NULL), WAN_ERR_IO);
  assert_null(text);
  assert_int_equal(core_map_open(&f->ctx, f->s.dir, &m), WAN_ERR_IO);
  says(f, "not a regular file");
  assert_int_equal(mkfifo(pipe, 0600), 0);
  assert_int_equal(core_map_open(&f->ctx, pipe, &m), WAN_ERR_IO); /* and it does not wait for a writer */
  says(f, "not a regular file");
}

static void test_read_text(void **state) {
  fixture *f = *state;
  char *text;
  size_t size = 99;
  const char *path = scratch_write(&f->s, "t", "ab\0cd", 5), *empty = scratch_text(&f->s, "e", "");
  assert_int_equal(core_read_text(&f->ctx, path, 5, &text, &size), WAN_OK);
  assert_int_equal(size, 5);
  assert_memory_equal(text, "ab\0cd", 6); /* with a NUL behind */
  core_free(&f->ctx, text);
  assert_int_equal(core_read_text(&f->ctx, path, 4, &text, &size), WAN_ERR_FORMAT);
  assert_null(text);
  says(f, path);
  says(f, "5 bytes");
  assert_int_equal(core_read_text(&f->ctx, empty, 0, &text, NULL), WAN_OK);
  assert_string_equal(text, "");
  core_free(&f->ctx, text);
  atomic_store(&f->ctx.mem_fail_in, 0);
  assert_int_equal(core_read_text(&f->ctx, path, 5, &text, NULL), WAN_ERR_MEMORY);
  assert_null(text);
}

/* ---- Writing ---- */

static void put(const char *path, const char *text) {
  FILE *out = fopen(path, "wb");
  assert_non_null(out);
  assert_true(fputs(text, out) >= 0);
  assert_int_equal(fclose(out), 0);
}

static void expect_text(fixture *f, const char *path, const char *expected) {
  char *text;
  assert_int_equal(core_read_text(&f->ctx, path, 100, &text, NULL), WAN_OK);
  assert_string_equal(text, expected);
  core_free(&f->ctx, text);
}

static void test_commit(void **state) {
  fixture *f = *state;
  const char *path = scratch_text(&f->s, "video.mp4", "old");
  core_outfile out;
  assert_int_equal(core_outfile_begin(&f->ctx, path, &out), WAN_OK);
  assert_string_not_equal(out.temp, path);
  put(out.temp, "new");
  expect_text(f, path, "old"); /* until the very end */
  assert_int_equal(core_outfile_commit(&f->ctx, &out), WAN_OK);
  expect_text(f, path, "new");
  core_outfile_abort(&f->ctx, &out);
  expect_text(f, path, "new");
  assert_int_equal(files_in(f->s.dir), 1);
}

static void test_abort(void **state) {
  fixture *f = *state;
  const char *path = scratch_text(&f->s, "video.mp4", "old");
  core_outfile out;
  assert_int_equal(core_outfile_begin(&f->ctx, path, &out), WAN_OK);
  put(out.temp, "half");
  core_outfile_abort(&f->ctx, &out);
  expect_text(f, path, "old");
  assert_int_equal(files_in(f->s.dir), 1);
  core_outfile_abort(&f->ctx, &out);
}

static void test_commit_fails(void **state) {
  fixture *f = *state;
  const char *path = scratch_path(&f->s, "video.mp4");
  core_outfile out;
  assert_int_equal(core_outfile_begin(&f->ctx, path, &out), WAN_OK);
  assert_int_equal(unlink(out.temp), 0); /* somebody tidied up */
  assert_int_equal(core_outfile_commit(&f->ctx, &out), WAN_ERR_IO);
  assert_null(out.temp);
  assert_false(core_path_exists(path));
  assert_int_equal(core_outfile_begin(&f->ctx, path, &out), WAN_OK);
  assert_int_equal(mkdir(path, 0700), 0); /* the name has become a folder: the rename fails */
  assert_int_equal(core_outfile_commit(&f->ctx, &out), WAN_ERR_IO);
  says(f, path);
  assert_int_equal(files_in(f->s.dir), 1); /* the temporary file is gone */
}

static void test_begin_fails(void **state) {
  fixture *f = *state;
  core_outfile out;
  const char *nowhere = scratch_path(&f->s, "no");
  char path[600];
  snprintf(path, sizeof path, "%s/such/video.mp4", nowhere);
  assert_int_equal(core_outfile_begin(&f->ctx, path, &out), WAN_ERR_IO);
  says(f, path);
  assert_null(out.path);
  assert_null(out.temp);
  assert_int_equal(core_outfile_begin(&f->ctx, "", &out), WAN_ERR_ARGUMENT);
  assert_int_equal(core_outfile_begin(&f->ctx, f->s.dir, &out), WAN_ERR_IO);
  says(f, "directory");
  for (int n = 0; n < 2; n++) {
    atomic_store(&f->ctx.mem_fail_in, n);
    assert_int_equal(core_outfile_begin(&f->ctx, scratch_path(&f->s, "v"), &out), WAN_ERR_MEMORY);
    core_outfile_abort(&f->ctx, &out);
  }
  assert_int_equal(files_in(f->s.dir), 0);
}

/* ---- Paths ---- */

static void test_paths(void **state) {
  fixture *f = *state;
  const char *path = scratch_text(&f->s, "a", "x");
  assert_true(core_path_exists(path));
  assert_false(core_path_is_dir(path));
  assert_true(core_path_is_dir(f->s.dir));
  assert_false(core_path_exists(scratch_path(&f->s, "b")));
  assert_false(core_path_is_dir(scratch_path(&f->s, "b")));
  const char *const join[][3] = {{"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"/", "b", "/b"}};
  for (int i = 0; i < 3; i++) {
    char *p = core_path_join(&f->ctx, join[i][0], join[i][1]);
    assert_string_equal(p, join[i][2]);
    core_free(&f->ctx, p);
  }
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_fixture, drop_fixture)
  const struct CMUnitTest tests[] = {
      TEST(test_map),          TEST(test_map_empty),   TEST(test_not_a_file),
      TEST(test_read_text),    TEST(test_commit),      TEST(test_abort),
      TEST(test_commit_fails), TEST(test_begin_fails), TEST(test_paths),
  };
  return cmocka_run_group_tests_name("file", tests, NULL, NULL);
}
