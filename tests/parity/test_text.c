/* test_text.c: cleaning against the official code with ftfy, tokens against the fast tokenizer. */
#define _GNU_SOURCE /* scratch.h */
#include "parity/parity.h"

#include "scratch.h"
#include "text/text.h"

static json_t *load_rows(const char *file, json_t **root) {
  char path[512];
  json_error_t error;
  snprintf(path, sizeof path, PARITY_DATA "%s", file);
  if (!(*root = json_load_file(path, 0, &error))) fail_msg("%s: %s", file, error.text);
  json_t *rows = json_object_get(*root, "cases");
  assert_true(json_array_size(rows) > 0);
  return rows;
}

/* A folder with the model and the sentinels <extra_id_0..N-1>, numbered downwards behind the pieces. */
static void make_folder(scratch *s, const char *model, int pieces, int sentinels) {
  char from[512];
  core_ctx ctx;
  core_ctx_init(&ctx);
  core_map map;
  snprintf(from, sizeof from, PARITY_DATA "%s", model);
  MUST(&ctx, core_map_open(&ctx, from, &map));
  scratch_write(s, "spiece.model", map.data, map.size);
  core_map_close(&map);
  json_t *list = json_object();
  for (int i = 0; i < sentinels; i++) {
    char id[16], content[32];
    snprintf(id, sizeof id, "%d", pieces + sentinels - 1 - i);
    snprintf(content, sizeof content, "<extra_id_%d>", i);
    json_object_set_new(list, id, json_pack("{s:s, s:b, s:b}", "content", content, "lstrip", 0, "rstrip", 0));
  }
  json_t *root = json_pack("{s:o}", "added_tokens_decoder", list);
  assert_int_equal(json_dump_file(root, scratch_path(s, "tokenizer_config.json"), 0), 0);
  json_decref(root);
}

static bool same_ids(json_t *want, const int32_t *ids, int n) {
  if ((int)json_array_size(want) != n) return false;
  for (int i = 0; i < n; i++)
    if (json_integer_value(json_array_get(want, (size_t)i)) != ids[i]) return false;
  return true;
}

static void tokens_file(core_ctx *ctx, json_t *c, void *user) {
  json_t *root, *rows = load_rows(case_text(c, "file"), &root), *row;
  int pieces = (int)json_integer_value(json_object_get(root, "pieces")), *other = user;
  int sentinels = (int)json_integer_value(json_object_get(root, "sentinels"));
  scratch s;
  tokenizer *t;
  scratch_open(&s);
  make_folder(&s, case_text(c, "model"), pieces, sentinels);
  MUST(ctx, tokenizer_open(ctx, s.dir, &t));
  assert_int_equal(tokenizer_vocab_size(t), pieces + sentinels);
  size_t i;
  json_array_foreach(rows, i, row) {
    int32_t ids[TEXT_MAX_TOKENS];
    int n;
    MUST(ctx, tokenizer_encode(t, case_text(row, "text"), ids, &n));
    if (same_ids(json_object_get(row, "ids"), ids, n)) continue;
    print_message("%s: other ids for '%.60s'\n", case_text(c, "file"), case_text(row, "text"));
    if (!same_ids(json_object_get(row, "sentencepiece"), ids, n))
      fail_msg("neither the fast tokenizer's nor sentencepiece's ids");
    ++*other;
  }
  tokenizer_close(t);
  scratch_close(&s);
  json_decref(root);
}

static void test_tokens(void **state) {
  (void)state;
#ifndef WAN_HAVE_SENTENCEPIECE
  skip(); /* a build without tokenizer */
#endif
  int other = 0;
  assert_int_equal(parity_cases("tokens", tokens_file, &other), 2);
  assert_in_range(other, 0, 2);
}

static void test_clean(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  json_t *root, *rows = load_rows("clean.json", &root), *row;
  size_t i, wrong = 0;
  json_array_foreach(rows, i, row) {
    char *got;
    MUST(&ctx, text_clean(&ctx, case_text(row, "raw"), &got));
    if (strcmp(got, case_text(row, "clean")) != 0) {
      print_message("[%s] '%.80s': '%.80s', expected '%.80s'\n", case_text(row, "group"),
                    case_text(row, "raw"), got, case_text(row, "clean"));
      wrong++;
    }
    core_free(&ctx, got);
  }
  json_decref(root);
  assert_int_equal(wrong, 0);
  assert_int_equal(core_mem_current(&ctx), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_clean), cmocka_unit_test(test_tokens)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
