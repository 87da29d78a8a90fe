/* test_text_unit.c: the small parts of src/text: cleaning goldens, character references, position
 * buckets, and what the tokenizer refuses. */
#define _GNU_SOURCE /* scratch.h */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <time.h>

#include "core/file.h"
#include "scratch.h"
#include "text/badness.h"
#include "text/buckets.h"
#include "text/charsmap.h"
#include "text/spiece.h"
#include "text/text.h"

#define MODEL WAN_SOURCE_DIR "/tests/parity/data/ckpt/ti2v/google/umt5-xxl/spiece.model"

/* ---- Cleaning ---- */

static void expect_clean(const char *raw, const char *want) {
  core_ctx ctx;
  char *got;
  core_ctx_init(&ctx);
  if (text_clean(&ctx, raw, &got) != WAN_OK) fail_msg("'%s': %s", raw, ctx.message);
  assert_string_equal(got, want);
  core_free(&ctx, got);
  assert_int_equal(core_mem_current(&ctx), 0);
}

static void test_clean_goldens(void **state) {
  (void)state;
  expect_clean("“a’s” ﬁne — ok…", "\"a's\" fine — ok…");
  expect_clean("A &amp;amp; B &lt;3", "A & B <3");
  expect_clean("<b>&amp;</b>", "<b>&</b>");
  expect_clean("ＬＯＵＤ！", "LOUD!");
  expect_clean("①½℃", "①½℃");
  expect_clean("tab\tx\u3000y\r\nz ", "tab x y z");
  expect_clean("  ", "");
  expect_clean("", "");
}

static void test_clean_mojibake(void **state) {
  (void)state;
  expect_clean("schÃ¶n", "schön");
  expect_clean("âœ” No problems", "✔ No problems");
  expect_clean("voilÃ le travail", "voilà le travail"); /* the lost A0 */
  expect_clean("â€œquotedâ€\xc2\x9d", "\"quoted\"");
  expect_clean("ГўВЂВ™ x", "' x"); /* misread twice */
  expect_clean("naïve café ¿Qué?", "naïve café ¿Qué?");
  expect_clean("\x1b[1;31mred\x1b[0m e\u0301", "red é");
}

static void test_clean_refusals(void **state) {
  (void)state;
  static const char *const invalid[] = {"ab\xff",         "ab\xc0\x80",         "ab\xe0\x80\x80",
                                        "ab\xed\xa0\x80", "ab\xf4\x90\x80\x80", "ab\xe4\xb8",
                                        "ab\x80",         "ab\xf0\x8f\xbf\xbf"};
  core_ctx ctx;
  core_ctx_init(&ctx);
  char *out, *large;
  for (size_t i = 0; i < sizeof invalid / sizeof invalid[0]; i++) {
    assert_int_equal(text_clean(&ctx, invalid[i], &out), WAN_ERR_ARGUMENT);
    assert_null(out);
    assert_non_null(strstr(ctx.message, "byte 2"));
  }
  large = calloc(1, 70000);
  memset(large, 'a', 69999);
  assert_int_equal(text_clean(&ctx, large, &out), WAN_ERR_ARGUMENT);
  free(large);
}

/* A chain of 10,000 nested references has to end, and soon. */
static void test_clean_ends(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  char *text = calloc(1, 50000), *out;
  strcpy(text, "&");
  for (int i = 0; i < 10000; i++) memcpy(text + 1 + 4 * i, "amp;", 4);
  assert_int_equal(text_clean(&ctx, text, &out), WAN_OK);
  core_free(&ctx, out);
  free(text);
}

static bool is_bad(const char *s) {
  core_ctx ctx;
  core_ctx_init(&ctx);
  utext t = {.ctx = &ctx};
  size_t offset;
  assert_true(utext_from_utf8(&t, s, strlen(s), &offset));
  bool bad = text_is_bad(&t);
  utext_free(&t);
  return bad;
}

static void test_badness(void **state) {
  (void)state;
  static const char *const bad[] = {
      "\xc2\x85", "é¦", "aα¤", "¦é",      "éÀ", "²é",  "é£",   " À£", "À²",   "é«±", "é²»¿", "²«", "aÀ«",
      "█Ö",       "é█", "█»",  "é«a",     "œ.", "À°",  "Â–",   "×²",  "Ø·Ù„", "à²",  "√±",   "≈°", "‚Äì",
      "‚âà",      "вЂ", "В°С", "ГўВЂВ™ ", "Ã¡", "aÃ ", "a Â ", "Ã ",  "!Â «", "β€™", "Ξ°Ο",  "ā€"};
  static const char *const good[] = {"",      "a",  "é",    "Ã",  "œuvre", "ГўВЂВ™", "ГўВЂВ\n ", " Ã ",
                                     "X\nÃ ", "Ø·", "¿Qué", "9²", "ВС",    "猫",     "β€a",      "№"};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    if (!is_bad(bad[i])) fail_msg("'%s' passes as good", bad[i]);
  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
    if (is_bad(good[i])) fail_msg("'%s' passes as bad", good[i]);
}

/* ---- Buckets ---- */

static void test_buckets(void **state) {
  (void)state;
  static const int bounds[][3] = {{8, 11, 8},   {12, 15, 9},  {16, 22, 10}, {23, 31, 11},
                                  {32, 45, 12}, {46, 63, 13}, {64, 90, 14}, {91, 600, 15}};
  assert_int_equal(bucket_of(0), 0);
  for (int n = 1; n < 8; n++) {
    assert_int_equal(bucket_of(-n), n);
    assert_int_equal(bucket_of(n), 16 + n);
  }
  for (size_t i = 0; i < sizeof bounds / sizeof bounds[0]; i++)
    for (int n = bounds[i][0]; n <= bounds[i][1]; n++) {
      double exact = 8 + floor(log(n / 8.0) / log(16) * 8 + 1e-9);
      assert_int_equal(bounds[i][2], exact > 15 ? 15 : (int)exact);
      assert_int_equal(bucket_of(-n), bounds[i][2]);
      assert_int_equal(bucket_of(n), 16 + bounds[i][2]);
    }
}

/* ---- Tokenizer ---- */

#ifdef WAN_HAVE_SENTENCEPIECE

static core_map map_model(core_ctx *ctx) {
  core_map map;
  if (core_map_open(ctx, MODEL, &map) != WAN_OK) fail_msg("%s", ctx->message);
  return map;
}

static void test_tokenizer_cut(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  tokenizer *t;
  int32_t ids[TEXT_MAX_TOKENS];
  int n;
  char text[2 * 600 + 1];
  assert_int_equal(tokenizer_open(&ctx, MODEL, &t), WAN_OK);
  assert_int_equal(tokenizer_encode(t, "", ids, &n), WAN_OK);
  assert_int_equal(n, 1);
  assert_int_equal(ids[0], 1);
  for (int i = 0; i < 600; i++) memcpy(text + 2 * i, "? ", 2);
  text[2 * 600] = 0;
  assert_int_equal(tokenizer_encode(t, text, ids, &n), WAN_OK);
  assert_int_equal(n, 512);
  assert_int_equal(ids[511], 1);
  assert_int_equal(tokenizer_encode(t, "a</s></s>", ids, &n), WAN_OK);
  assert_int_equal(n, 4);
  char *huge = calloc(1, 70000);
  memset(huge, 'a', 69999);
  assert_int_equal(tokenizer_encode(t, huge, ids, &n), WAN_ERR_ARGUMENT);
  free(huge);
  tokenizer_close(t);
  assert_int_equal(core_mem_current(&ctx), 0);
}

/* The three files that may list added tokens, and the flags that eat white space. */
static void test_added_tokens(void **state) {
  (void)state;
  core_ctx ctx;
  scratch s;
  tokenizer *t;
  int32_t ids[TEXT_MAX_TOKENS];
  int n;
  core_ctx_init(&ctx);
  scratch_open(&s);
  core_map map = map_model(&ctx);
  scratch_write(&s, "spiece.model", map.data, map.size);
  core_map_close(&map);
  scratch_text(
      &s, "tokenizer.json",
      "{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 900, \"content\": \"<x>\", \"lstrip\": true, "
      "\"rstrip\": true}, {\"id\": 903, \"content\": \"<x>y\"}], \"model\": {\"vocab\": [[\"cut off");
  scratch_text(&s, "tokenizer_config.json",
               "{\"added_tokens_decoder\": {\"901\": {\"content\": \"word\", \"single_word\": true}, "
               "\"77\": {\"content\": \"<x>\"}}}");
  scratch_text(
      &s, "special_tokens_map.json",
      "{\"eos_token\": {\"content\": \"</s>\"}, \"additional_special_tokens\": [\"<s>\", \"<unknown>\"]}");
  if (tokenizer_open(&ctx, s.dir, &t) != WAN_OK) fail_msg("%s", ctx.message);
  assert_int_equal(tokenizer_vocab_size(t), 904);
  const struct {
    const char *text;
    int n;
    int32_t ids[4];
  } cases[] = {{"  <x> \u3000", 2, {900, 1}},
               {"<x>y", 2, {903, 1}},
               {"<x><s>", 3, {900, 2, 1}},
               {"word", 2, {901, 1}}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    assert_int_equal(tokenizer_encode(t, cases[i].text, ids, &n), WAN_OK);
    assert_int_equal(n, cases[i].n);
    assert_memory_equal(ids, cases[i].ids, (size_t)n * sizeof *ids);
  }
  assert_int_equal(tokenizer_encode(t, "swords", ids, &n), WAN_OK);
  for (int i = 0; i < n; i++) assert_int_not_equal(ids[i], 901);
  tokenizer_close(t);
  static const char *const broken[] = {"{\"added_tokens\": 3}",
                                       "{\"added_tokens\": [{\"content\": \"x\"}]}",
                                       "{\"added_tokens\": [{\"id\": 5}]}",
                                       "{\"added_tokens\": [{\"id\": 5, \"content\": \"\"}]}",
                                       "{\"added_tokens\":",
                                       "{\"added_tokens\": [{\"id\": 99999999999, \"content\": \"x\"}]}"};
  for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
    scratch_text(&s, "tokenizer.json", broken[i]);
    assert_int_equal(tokenizer_open(&ctx, s.dir, &t), WAN_ERR_FORMAT);
    assert_null(t);
    assert_non_null(strstr(ctx.message, "tokenizer.json"));
  }
  scratch_close(&s);
  assert_int_equal(core_mem_current(&ctx), 0);
}

/* A model may carry a sample for a self-test, of which the library would demand its own segmentation. */
static void test_self_test_sample(void **state) {
  (void)state;
  static const unsigned char sample[] = "\x22\x08\x0a\x06\x0a\x01x\x12\x01y"; /* input x, expected y */
  core_ctx ctx;
  scratch s;
  tokenizer *t;
  core_ctx_init(&ctx);
  scratch_open(&s);
  core_map map = map_model(&ctx);
  unsigned char *copy = malloc(map.size + sizeof sample);
  memcpy(copy, map.data, map.size);
  memcpy(copy + map.size, sample, sizeof sample - 1);
  const char *path = scratch_write(&s, "spiece.model", copy, map.size + sizeof sample - 1);
  if (tokenizer_open(&ctx, path, &t) != WAN_OK) fail_msg("%s", ctx.message);
  tokenizer_close(t);
  free(copy);
  core_map_close(&map);
  scratch_close(&s);
}

/* Whatever is cut off or flipped, the answer is an error or a tokenizer that works. */
static void test_damaged_models(void **state) {
  (void)state;
  core_ctx ctx;
  scratch s;
  core_ctx_init(&ctx);
  scratch_open(&s);
  core_map map = map_model(&ctx);
  unsigned seed = (unsigned)time(NULL), opened = 0;
  print_message("seed %u\n", seed);
  srand(seed);
  unsigned char *copy = malloc(map.size);
  for (int i = 0; i < 300; i++) {
    size_t size = i % 3 ? map.size : (size_t)rand() % map.size;
    memcpy(copy, map.data, map.size);
    for (int k = 0; k < 4 && i % 3; k++)
      copy[(size_t)rand() % (i % 3 == 1 ? 64 : size)] = (unsigned char)rand();
    tokenizer *t;
    int32_t ids[TEXT_MAX_TOKENS];
    int n;
    wan_status status = tokenizer_open(&ctx, scratch_write(&s, "spiece.model", copy, size), &t);
    if (status == WAN_OK) {
      opened++;
      (void)tokenizer_encode(t, "A cat ① ﬁ 猫 \u0344 ΐ</s>", ids, &n);
      tokenizer_close(t);
    } else {
      assert_true(status == WAN_ERR_FORMAT || status == WAN_ERR_UNSUPPORTED);
      assert_true(ctx.message[0]);
    }
    if (core_mem_current(&ctx)) fail_msg("leak, case %d", i);
  }
  assert_in_range(opened, 1, 299);
  free(copy);
  core_map_close(&map);
  scratch_close(&s);
}

/* Every allocation of opening, encoding and cleaning fails once. */
static void test_memory_faults(void **state) {
  (void)state;
  core_ctx ctx;
  core_ctx_init(&ctx);
  wan_status s = WAN_ERR_MEMORY;
  int k = 0;
  for (; s != WAN_OK && k < 5000; k++) {
    tokenizer *t = NULL;
    char *clean = NULL;
    int32_t ids[TEXT_MAX_TOKENS];
    int n;
    atomic_store(&ctx.mem_fail_in, k);
    s = tokenizer_open(&ctx, WAN_SOURCE_DIR "/tests/parity/data/ckpt/ti2v/google/umt5-xxl", &t);
    if (s == WAN_OK) s = text_clean(&ctx, "schÃ¶n — вЂ™ Ã©x e\u0301\n&amp; ﬁ", &clean);
    if (s == WAN_OK) s = tokenizer_encode(t, clean, ids, &n);
    core_free(&ctx, clean);
    tokenizer_close(t);
    if (s != WAN_OK) assert_int_equal(s, WAN_ERR_MEMORY);
    assert_int_equal(core_mem_current(&ctx), 0);
  }
  assert_int_equal(s, WAN_OK);
  assert_in_range(k, 20, 4999);
}

#endif

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_clean_goldens),    cmocka_unit_test(test_clean_mojibake),
      cmocka_unit_test(test_clean_refusals),   cmocka_unit_test(test_clean_ends),
      cmocka_unit_test(test_badness),          cmocka_unit_test(test_buckets),
#ifdef WAN_HAVE_SENTENCEPIECE
      cmocka_unit_test(test_tokenizer_cut),    cmocka_unit_test(test_added_tokens),
      cmocka_unit_test(test_self_test_sample), cmocka_unit_test(test_damaged_models),
      cmocka_unit_test(test_memory_faults),
#endif
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
