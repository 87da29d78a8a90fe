/* Prompt extension: the texts that are sent and read, and whole extensions against
 * tests/e2e/extend_server.py, a server on the loopback address that plays both services and misbehaves. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "prompt/base64.h"
#include "prompt/extend.h"
#include "prompt/http.h"
#include "prompt/protocol.h"
#include "prompt/vision.h"

#define KEY "sk-a-key-that-nobody-may-see"
#define PICTURE WAN_SOURCE_DIR "/tests/parity/data/picture_rgb.png" /* 33 x 17 */

static core_ctx ctx;
static char server[64]; /* http://127.0.0.1:PORT */
static pid_t server_pid;
static int server_stdin;

static int start_context(void **state) {
  (void)state;
  core_ctx_init(&ctx);
  return 0;
}

static int end_context(void **state) {
  (void)state;
  assert_int_equal(core_mem_current(&ctx), 0);
  return 0;
}

static int start_server(void **state) {
  (void)state;
  int in[2], out[2];
  unsetenv("DASH_API_KEY"), unsetenv("DASH_API_URL"), unsetenv("WAN_EXTEND_KEY");
  setenv("no_proxy", "127.0.0.1", 1);
  if (pipe(in) != 0 || pipe(out) != 0 || (server_pid = fork()) < 0) return -1;
  if (server_pid == 0) {
    dup2(in[0], 0), dup2(out[1], 1);
    close(in[0]), close(in[1]), close(out[0]), close(out[1]);
    execlp("python3", "python3", WAN_SOURCE_DIR "/tests/e2e/extend_server.py", (char *)NULL);
    _exit(127);
  }
  close(in[0]), close(out[1]);
  server_stdin = in[1];
  FILE *f = fdopen(out[0], "r");
  int port = 0;
  if (!f || fscanf(f, "%d", &port) != 1) fail_msg("the test server does not start (python3 is needed)");
  fclose(f);
  snprintf(server, sizeof server, "http://127.0.0.1:%d", port);
  return 0;
}

static int stop_server(void **state) {
  (void)state;
  close(server_stdin);
  waitpid(server_pid, NULL, 0);
  return 0;
}

/* ---- Base64, addresses ---- */

static void test_base64(void **state) {
  (void)state;
  static const char *const pairs[][2] = {{"", ""},
                                         {"f", "Zg=="},
                                         {"fo", "Zm8="},
                                         {"foo", "Zm9v"},
                                         {"foob", "Zm9vYg=="},
                                         {"fooba", "Zm9vYmE="},
                                         {"foobar", "Zm9vYmFy"}}; /* RFC 4648, section 10 */
  char text[64];
  uint8_t *data;
  size_t n;
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    base64_encode((const uint8_t *)pairs[i][0], strlen(pairs[i][0]), text);
    assert_string_equal(text, pairs[i][1]);
    assert_int_equal(strlen(text), base64_length(strlen(pairs[i][0])));
    assert_int_equal(base64_decode(&ctx, text, strlen(text), &data, &n), WAN_OK);
    assert_int_equal(n, strlen(pairs[i][0]));
    assert_memory_equal(data, pairs[i][0], n);
    core_free(&ctx, data);
  }
  assert_int_equal(base64_decode(&ctx, "Zm\n9v Yg", 8, &data, &n), WAN_OK); /* white space, no padding */
  assert_int_equal(n, 4);
  core_free(&ctx, data);
  static const char *const bad[] = {"Z", "Zg=", "Zg===", "Zm9v=", "Zg==Zg==", "Z-9v", "Zm9v\x80", "="};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    assert_int_equal(base64_decode(&ctx, bad[i], strlen(bad[i]), &data, &n), WAN_ERR_FORMAT);
}

static void test_addresses_hide_secrets(void **state) {
  (void)state;
  char text[HTTP_URL_TEXT];
  assert_string_equal(http_url_text("https://host/v1", text), "https://host/v1");
  assert_string_equal(http_url_text("http://me:pa@ss@host:1/v1?key=secret#x", text), "http://host:1/v1");
  assert_string_equal(http_url_text("http://host/@x", text), "http://host/@x");
  assert_string_equal(http_url_text("host\x1b", text), "host?");
  assert_true(http_is_url("HTTPS://x") && http_is_url("http://x") && !http_is_url("file:///x") &&
              !http_is_url("htt"));
}

static void test_endpoints(void **state) {
  (void)state;
  static const struct {
    protocol p;
    const char *picture, *base, *url;
  } cases[] = {
      {PROTOCOL_OPENAI, NULL, "http://a/v1", "http://a/v1/chat/completions"},
      {PROTOCOL_OPENAI, "x", "http://a/v1/", "http://a/v1/chat/completions"},
      {PROTOCOL_OPENAI, NULL, "http://a/v1/chat/completions", "http://a/v1/chat/completions"},
      {PROTOCOL_OPENAI, NULL, "http://a/d?api-version=1", "http://a/d/chat/completions?api-version=1"},
      {PROTOCOL_DASHSCOPE, NULL, "http://a/api/v1",
       "http://a/api/v1/services/aigc/text-generation/generation"},
      {PROTOCOL_DASHSCOPE, "x", "http://a/api/v1",
       "http://a/api/v1/services/aigc/multimodal-generation/generation"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    question q = {.protocol = cases[i].p, .picture = cases[i].picture};
    char *url = protocol_url(&ctx, &q, cases[i].base);
    assert_string_equal(url, cases[i].url);
    core_free(&ctx, url);
  }
}

/* ---- Requests and answers ---- */

static void check_request(const question *q, const char *expected) {
  char *text;
  assert_int_equal(protocol_request(&ctx, q, &text), WAN_OK);
  json_t *got = json_loads(text, JSON_REJECT_DUPLICATES, NULL), *want = json_loads(expected, 0, NULL);
  assert_non_null(want);
  if (!json_equal(got, want)) fail_msg("%s\nis not\n%s", text, expected);
  json_decref(got), json_decref(want);
  core_free(&ctx, text);
}

static void test_requests(void **state) {
  (void)state;
  question q = {PROTOCOL_DASHSCOPE, "m", "s\"", "u猫", NULL, INT64_MAX, 0};
  check_request(&q, "{\"model\":\"m\",\"input\":{\"messages\":[{\"role\":\"system\",\"content\":\"s\\\"\"},"
                    "{\"role\":\"user\",\"content\":\"u猫\"}]},"
                    "\"parameters\":{\"seed\":9223372036854775807,\"result_format\":\"message\"}}");
  q.picture = "data:x";
  check_request(
      &q,
      "{\"model\":\"m\",\"input\":{\"messages\":[{\"role\":\"system\",\"content\":[{\"text\":\"s\\\"\"}]},"
      "{\"role\":\"user\",\"content\":[{\"text\":\"u猫\"},{\"image\":\"data:x\"}]}]},"
      "\"parameters\":{\"seed\":9223372036854775807,\"result_format\":\"message\"}}");
  q.protocol = PROTOCOL_OPENAI;
  q.max_tokens = 512;
  check_request(
      &q, "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"s\\\"\"},{\"role\":\"user\","
          "\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:x\"}},"
          "{\"type\":\"text\",\"text\":\"u猫\"}]}],\"seed\":2147483647,\"stream\":false,\"max_tokens\":512}");
  q.picture = NULL;
  q.max_tokens = 0;
  check_request(&q, "{\"model\":\"m\",\"messages\":[{\"role\":\"system\",\"content\":\"s\\\"\"},"
                    "{\"role\":\"user\",\"content\":\"u猫\"}],\"seed\":2147483647,\"stream\":false}");
  char *text;
  q.user = "\xff";
  assert_int_equal(protocol_request(&ctx, &q, &text), WAN_ERR_ARGUMENT);
}

static void test_answers(void **state) {
  (void)state;
  static const struct {
    protocol p;
    const char *body, *text; /* NULL: a format error */
  } cases[] = {
      {PROTOCOL_OPENAI, "{\"choices\":[{\"message\":{\"content\":\"a\\nb\"}}]}", "a\nb"},
      {PROTOCOL_OPENAI,
       "{\"choices\":[{\"message\":{\"content\":[{\"type\":\"text\",\"text\":\"a\"},{},{\"text\":\"b\"}]}}]}",
       "ab"},
      {PROTOCOL_DASHSCOPE, "{\"output\":{\"choices\":[{\"message\":{\"content\":\"x\"}}]}}", "x"},
      {PROTOCOL_DASHSCOPE, "{\"output\":{\"choices\":[{\"message\":{\"content\":[{\"text\":\"y\"}]}}]}}",
       "y"},
      {PROTOCOL_DASHSCOPE, "{\"choices\":[{\"message\":{\"content\":\"x\"}}]}", NULL},
      {PROTOCOL_OPENAI, "{\"choices\":[{\"message\":{\"content\":null}}]}", NULL},
      {PROTOCOL_OPENAI, "{\"choices\":[{\"message\":{\"content\":[]}}]}", NULL},
      {PROTOCOL_OPENAI, "{\"choices\":{}}", NULL},
      {PROTOCOL_OPENAI, "[]", NULL},
      {PROTOCOL_OPENAI, "{\"choices\":", NULL},
      {PROTOCOL_OPENAI, "", NULL}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char *text = NULL;
    wan_status s = protocol_answer(&ctx, cases[i].p, cases[i].body, strlen(cases[i].body), &text);
    assert_int_equal(s, cases[i].text ? WAN_OK : WAN_ERR_FORMAT);
    if (cases[i].text) assert_string_equal(text, cases[i].text);
    core_free(&ctx, text);
  }
}

static void test_reasons(void **state) {
  (void)state;
  static const char *const pairs[][2] = {{"{\"error\":{\"message\":\"a\\u001bb\\u009bc\"}}", "a b c"},
                                         {"{\"error\":\"plain\"}", "plain"},
                                         {"{\"code\":\"X\",\"message\":\"dash\"}", "dash"},
                                         {"{\"detail\":\"fast\"}", "fast"},
                                         {"{\"detail\":[1]}", ""},
                                         {"<html>", ""}};
  char out[8];
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    protocol_reason(pairs[i][0], strlen(pairs[i][0]), out, sizeof out);
    assert_string_equal(out, pairs[i][1]);
  }
  const char *wide = "{\"error\":\"猫猫猫猫\"}"; /* cut between characters */
  protocol_reason(wide, strlen(wide), out, sizeof out);
  assert_string_equal(out, "猫猫");
}

static void test_tidy(void **state) {
  (void)state;
  static const char *const pairs[][2] = {{"  a b \n", "a b"},
                                         {"<think>x</think>\n\nb", "b"},
                                         {"<think>never ends", ""},
                                         {"a\x1b[31mb\x7f", "a [31mb"},
                                         {"a\xc2\x9b"
                                          "c\nd",
                                          "a c\nd"},
                                         {" \n\t", ""}};
  char text[64];
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    strcpy(text, pairs[i][0]);
    protocol_tidy(text, 60);
    assert_string_equal(text, pairs[i][1]);
  }
  strcpy(text, "猫猫猫");
  protocol_tidy(text, 8);
  assert_string_equal(text, "猫猫");
}

/* ---- System prompts ---- */

static void test_system_prompts(void **state) {
  (void)state;
  const wan_language zh = WAN_LANGUAGE_ZH, en = WAN_LANGUAGE_EN;
  for (int l = 0; l < 2; l++) {
    const wan_language lang = l ? en : zh;
    const char *text = extend_system_prompt(WAN_FAMILY_T2V, lang, true, false),
               *frame = extend_system_prompt(WAN_FAMILY_I2V, lang, true, true),
               *alone = extend_system_prompt(WAN_FAMILY_I2V, lang, false, true);
    assert_true(text != frame && frame != alone && text != alone);
    assert_ptr_equal(extend_system_prompt(WAN_FAMILY_T2V, lang, true, true), text);
    assert_ptr_equal(extend_system_prompt(WAN_FAMILY_TI2V, lang, true, false), text);
    assert_ptr_equal(extend_system_prompt(WAN_FAMILY_TI2V, lang, true, true), frame);
    assert_ptr_equal(extend_system_prompt(WAN_FAMILY_TI2V, lang, false, true),
                     frame); /* no variant of its own */
    assert_ptr_equal(extend_system_prompt(WAN_FAMILY_I2V, lang, true, false), frame);
    /* What each has to ask for: its language, a length, motion or light, the camera, nothing else. */
    static const char *const asked[2][3][6] = {
        {{"中文", "80到200字", "镜头运动", "光", "只输出", "引号"},
         {"中文", "100字", "运动", "镜头", "只输出", "第一帧"},
         {"中文", "100字", "运动", "镜头", "只输出", "没有文字"}},
        {{"English", "60 to 200 words", "camera movement", "light", "alone", "quotation marks"},
         {"English", "100 words", "motion", "camera", "alone", "first frame"},
         {"English", "100 words", "motion", "camera", "alone", "no text"}}};
    const char *all[] = {text, frame, alone};
    for (int i = 0; i < 3; i++) {
      for (int k = 0; k < 6; k++)
        if (!strstr(all[i], asked[l][i][k])) fail_msg("text %d/%d lacks \"%s\"", l, i, asked[l][i][k]);
      assert_in_range(strlen(all[i]), 300, 2000);
      json_t *valid = json_string(all[i]); /* UTF-8 */
      assert_non_null(valid);
      json_decref(valid);
      bool ascii = true;
      for (const char *c = all[i]; *c; c++) ascii = ascii && (unsigned char)*c < 0x80;
      assert_int_equal(ascii, l == 1);
    }
  }
}

/* ---- Whole extensions ---- */

typedef struct run {
  wan_extend_params p;
  wan_extend_result r;
  char url[256];
} run;

static wan_status extend(run *t, wan_extend_method method, const char *path) {
  snprintf(t->url, sizeof t->url, "%s/%s", server, path);
  t->p.size = sizeof t->p;
  t->p.method = method;
  t->p.url = t->url;
  if (!t->p.prompt) t->p.prompt = "a red ball";
  if (!t->p.model && method == WAN_EXTEND_OPENAI) t->p.model = "some-model";
  if (!t->p.key) t->p.key = KEY;
  wan_status s = extend_prompt(&ctx, &t->p, &t->r);
  assert_int_equal(t->r.status, s == WAN_OK);
  if (s != WAN_OK) {
    assert_string_equal(t->r.prompt, t->p.prompt);
    assert_string_equal(t->r.message, ctx.message);
  }
  assert_null(strstr(t->r.message, KEY));
  return s;
}

/* The last request that the server has seen (json_decref). */
static json_t *last_request(void) {
  char url[96];
  http_response r;
  snprintf(url, sizeof url, "%s/log", server);
  http_request q = {.url = url, .limit = 64 << 20, .timeout = 20};
  assert_int_equal(http_perform(&ctx, &q, &r), WAN_OK);
  json_t *all = json_loadb(r.body, r.size, 0, NULL);
  json_t *last = json_incref(json_array_get(all, json_array_size(all) - 1));
  json_decref(all);
  http_response_free(&ctx, &r);
  return last;
}

static const char *text_at(json_t *o, const char *key) {
  return json_string_value(json_object_get(o, key));
}

static void test_dashscope_text(void **state) {
  (void)state;
  run t = {.p = {.seed = 42, .language = WAN_LANGUAGE_EN}};
  assert_int_equal(extend(&t, WAN_EXTEND_DASHSCOPE, "ok"), WAN_OK);
  /* Line breaks stay as they are: the official client spells them out only where there is a picture. */
  assert_string_equal(t.r.prompt, "A long take.\nA red ball rolls “slowly” down a hill, 低角度。");
  assert_int_equal(t.r.seed, 42);
  assert_string_equal(t.r.model, "qwen-plus");
  assert_string_equal(t.r.system_prompt, extend_system_prompt(WAN_FAMILY_T2V, WAN_LANGUAGE_EN, true, false));
  json_t *q = last_request(), *headers = json_object_get(q, "headers"), *body = json_object_get(q, "body");
  assert_string_equal(text_at(headers, "Authorization"), "Bearer " KEY);
  assert_string_equal(text_at(headers, "Content-Type"), "application/json; charset=utf-8");
  assert_int_equal(json_integer_value(json_object_get(json_object_get(body, "parameters"), "seed")), 42);
  json_decref(q);
  char *json;
  assert_int_equal(extend_result_json(&ctx, &t.r, &json), WAN_OK);
  json_t *record = json_loads(json, 0, NULL);
  assert_true(json_is_true(json_object_get(record, "status")));
  assert_string_equal(text_at(record, "prompt"), t.r.prompt);
  assert_int_equal(json_integer_value(json_object_get(record, "seed")), 42);
  assert_non_null(text_at(record, "message"));
  json_decref(record);
  core_free(&ctx, json);
  extend_result_free(&t.r);
}

/* Width and height of the PNG in a data URL. */
static void picture_in(const char *url, int *width, int *height) {
  picture p;
  wan_vision_params v = {.size = sizeof v};
  assert_memory_equal(url, "data:image/png;base64,", 22);
  assert_int_equal(vision_source(&ctx, url, &v, &p), WAN_OK);
  *width = p.width;
  *height = p.height;
  picture_free(&ctx, &p);
}

static void test_dashscope_picture(void **state) {
  (void)state;
  run t = {.p = {.seed = -1, .image = PICTURE, .prompt = "", .family = WAN_FAMILY_I2V}};
  int w, h;
  assert_int_equal(extend(&t, WAN_EXTEND_DASHSCOPE, "ok"), WAN_OK);
  assert_string_equal(t.r.prompt, "A long take.\\nA red ball rolls “slowly” down a hill, 低角度。");
  assert_string_equal(t.r.model, "qwen-vl-max");
  assert_true(t.r.seed >= 0);
  assert_string_equal(t.r.system_prompt, extend_system_prompt(WAN_FAMILY_I2V, WAN_LANGUAGE_ZH, false, true));
  json_t *q = last_request(), *input = json_object_get(json_object_get(q, "body"), "input");
  json_t *content = json_object_get(json_array_get(json_object_get(input, "messages"), 1), "content");
  picture_in(text_at(json_array_get(content, 1), "image"), &w, &h);
  assert_true(w == 33 && h == 17); /* smaller than 512 x 512: as it is */
  json_decref(q);
  extend_result_free(&t.r);
}

static void test_openai_picture(void **state) {
  (void)state;
  uint8_t *rgb = calloc(1, 1920 * 1080 * 3);
  run t = {.p = {.seed = 1, .pixels = {1920, 1080, rgb}, .family = WAN_FAMILY_TI2V}};
  int w, h;
  assert_int_equal(extend(&t, WAN_EXTEND_LOCAL_QWEN, "ok/v1"), WAN_OK);
  assert_string_equal(t.r.model, "Qwen/Qwen2.5-VL-7B-Instruct");
  assert_non_null(strchr(t.r.prompt, '\n'));
  json_t *q = last_request(), *body = json_object_get(q, "body");
  json_t *content = json_object_get(json_array_get(json_object_get(body, "messages"), 1), "content");
  picture_in(text_at(json_object_get(json_array_get(content, 0), "image_url"), "url"), &w, &h);
  assert_true(w == 1316 && h == 728); /* spec 7.4 */
  assert_int_equal(json_integer_value(json_object_get(body, "max_tokens")), 512);
  json_decref(q);
  extend_result_free(&t.r);
  free(rgb);
}

static void test_retries(void **state) {
  (void)state;
  static const struct {
    const char *path;
    int attempts;
    wan_status status;
    double least, most;                            /* seconds */
  } cases[] = {{"429/a/2", 0, WAN_OK, 1.4, 10},    /* 0.5 s, then 1 s */
               {"429/asks/1", 0, WAN_OK, 0.9, 10}, /* the server asks for 1 s */
               {"500/b/1", 0, WAN_OK, 0.4, 10},          {"429/c/9", 2, WAN_ERR_NETWORK, 0.4, 10},
               {"429/far/9", 0, WAN_ERR_NETWORK, 0, 10}, /* more than the time allowed */
               {"cut", 2, WAN_ERR_NETWORK, 0.4, 10},     {"silent", 2, WAN_ERR_NETWORK, 0.4, 10}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    run t = {.p = {.attempts = cases[i].attempts, .timeout = 20}};
    double start = core_now();
    wan_status s = extend(&t, WAN_EXTEND_OPENAI, cases[i].path);
    double seconds = core_now() - start;
    if (s != cases[i].status || seconds < cases[i].least || seconds > cases[i].most)
      fail_msg("%s: status %d after %.2f s: %s", cases[i].path, (int)s, seconds, t.r.message);
    if (cases[i].attempts == 2) assert_non_null(strstr(t.r.message, "after 2 attempts"));
    if (s != WAN_OK && strstr(cases[i].path, "429"))
      assert_non_null(strstr(t.r.message, "HTTP status 429: please [31m wait")); /* no escape sequences */
    extend_result_free(&t.r);
  }
}

static void test_failures(void **state) {
  (void)state;
  static const struct {
    const char *path;
    wan_status status;
    const char *says;
  } cases[] = {{"slow", WAN_ERR_NETWORK, "time"},
               {"huge", WAN_ERR_NETWORK, "larger than 1048576 bytes"},
               {"text", WAN_ERR_FORMAT, "not JSON"},
               {"empty", WAN_ERR_FORMAT, "choices[0].message.content"},
               {"blank", WAN_ERR_FORMAT, "empty"},
               {"null", WAN_ERR_FORMAT, "no text"},
               {"refuse", WAN_ERR_NETWORK, "wrong key: Bearer ****"},
               {"nothing", WAN_ERR_NETWORK, "nothing here"},
               {"moved", WAN_ERR_NETWORK, "HTTP status 308"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    run t = {.p = {.timeout = strcmp(cases[i].path, "slow") == 0 ? 0.5 : 20}};
    double start = core_now();
    wan_status s = extend(&t, WAN_EXTEND_OPENAI, cases[i].path);
    if (s != cases[i].status || !strstr(t.r.message, cases[i].says))
      fail_msg("%s: status %d: %s", cases[i].path, (int)s, t.r.message);
    assert_true(core_now() - start < 10);
    extend_result_free(&t.r);
  }
}

static void test_odd_answers(void **state) {
  (void)state;
  run t = {0};
  assert_int_equal(extend(&t, WAN_EXTEND_OPENAI, "think"), WAN_OK);
  assert_string_equal(t.r.prompt, "A cat  sits.");
  extend_result_free(&t.r);
  t = (run){0};
  assert_int_equal(extend(&t, WAN_EXTEND_OPENAI, "long"), WAN_OK);
  assert_int_equal(strlen(t.r.prompt), EXTEND_PROMPT_MAX / 3 * 3);
  extend_result_free(&t.r);
}

static void test_arguments(void **state) {
  (void)state;
  static const struct {
    wan_extend_params p;
    const char *says;
  } cases[] = {{{.prompt = ""}, "nothing to extend"},
               {{.prompt = "x", .method = WAN_EXTEND_DASHSCOPE}, "DASH_API_KEY"},
               {{.prompt = "x", .method = WAN_EXTEND_DASHSCOPE, .key = " \n"}, "DASH_API_KEY"},
               {{.prompt = "x", .key = "abc\ndef: evil"}, "position 3"},
               {{.prompt = "x", .method = WAN_EXTEND_OPENAI, .model = "m"}, "address"},
               {{.prompt = "x", .method = WAN_EXTEND_OPENAI, .url = "http://127.0.0.1:9"}, "model"},
               {{.prompt = "x", .url = "ftp://a:b@c/"}, "ftp://c/chat/completions: an address"},
               {{.prompt = "\xff"}, "UTF-8"},
               {{.prompt = "x", .method = (wan_extend_method)9}, "method 9"},
               {{.prompt = "x", .pixels = {0, 1, (const uint8_t *)""}}, "0x1"},
               {{.prompt = "x", .image = "http://127.0.0.1:9/x.png"}, "not allowed"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    wan_extend_result r = {.size = sizeof r};
    assert_int_equal(extend_prompt(&ctx, &cases[i].p, &r), WAN_ERR_ARGUMENT);
    if (!strstr(r.message, cases[i].says)) fail_msg("%zu: %s", i, r.message);
    assert_string_equal(r.prompt, cases[i].p.prompt);
    assert_false(r.status);
    extend_result_free(&r);
  }
}

static void test_environment(void **state) {
  (void)state;
  run t = {0};
  char url[96];
  snprintf(url, sizeof url, "%s/ok", server);
  setenv("DASH_API_KEY", KEY "\n", 1), setenv("DASH_API_URL", url, 1);
  t.p = (wan_extend_params){.size = sizeof t.p, .method = WAN_EXTEND_DASHSCOPE, .prompt = "x"};
  assert_int_equal(extend_prompt(&ctx, &t.p, &t.r), WAN_OK);
  unsetenv("DASH_API_KEY"), unsetenv("DASH_API_URL");
  json_t *q = last_request();
  assert_string_equal(text_at(json_object_get(q, "headers"), "Authorization"), "Bearer " KEY);
  json_decref(q);
  extend_result_free(&t.r);
  /* A local service gets no key unless there is one for it. */
  t.p = (wan_extend_params){.size = sizeof t.p, .url = url, .prompt = "x"};
  assert_int_equal(extend_prompt(&ctx, &t.p, &t.r), WAN_OK);
  q = last_request();
  assert_null(json_object_get(json_object_get(q, "headers"), "Authorization"));
  json_decref(q);
  extend_result_free(&t.r);
}

static void *cancel_soon(void *user) {
  (void)user;
  nanosleep(&(struct timespec){0, 200000000}, NULL);
  core_cancel(&ctx);
  return NULL;
}

static void test_cancel(void **state) {
  (void)state;
  static const char *const paths[] = {"slow", "429/cancel/9"}; /* while reading, while waiting */
  for (int i = 0; i < 2; i++) {
    run t = {0};
    pthread_t thread;
    double start = core_now();
    pthread_create(&thread, NULL, cancel_soon, NULL);
    assert_int_equal(extend(&t, WAN_EXTEND_OPENAI, paths[i]), WAN_ERR_CANCELLED);
    pthread_join(thread, NULL);
    assert_true(core_now() - start < 10);
    atomic_store(&ctx.cancelled, false);
    extend_result_free(&t.r);
  }
}

static void test_remote_pictures(void **state) {
  (void)state;
  static const struct {
    const char *path;
    wan_status status;
    const char *says;
  } cases[] = {{"picture", WAN_OK, ""},
               {"move/5", WAN_OK, ""},
               {"move/6", WAN_ERR_NETWORK, "redirects"},
               {"loop", WAN_ERR_NETWORK, "redirects"},
               {"away", WAN_ERR_NETWORK, "not supported"}, /* a server must not make us read files */
               {"page", WAN_ERR_FORMAT, "not a picture"},
               {"huge", WAN_ERR_NETWORK, "larger than 67108864 bytes"},
               {"nothing", WAN_ERR_NETWORK, "HTTP status 404"}};
  wan_vision_params v = {.size = sizeof v, .allow_remote = true};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char url[96];
    picture p;
    snprintf(url, sizeof url, "%s/%s", server, cases[i].path);
    wan_status s = vision_source(&ctx, url, &v, &p);
    if (s != cases[i].status || (s != WAN_OK && !strstr(ctx.message, cases[i].says)))
      fail_msg("%s: status %d: %s", cases[i].path, (int)s, ctx.message);
    if (s == WAN_OK) assert_true(p.width == 40 && p.height == 30);
    picture_free(&ctx, &p);
  }
}

/* Every allocation fails in turn: an error that says so, and nothing is left behind. */
static void test_memory(void **state) {
  (void)state;
  for (int with_picture = 0; with_picture < 2; with_picture++) {
    wan_status s = WAN_ERR_MEMORY;
    int n = 0;
    for (; n < 300 && s != WAN_OK; n++) {
      run t = {.p = {.image = with_picture ? PICTURE : NULL}};
      atomic_store(&ctx.mem_fail_in, n);
      s = extend(&t, WAN_EXTEND_DASHSCOPE, "ok");
      atomic_store(&ctx.mem_fail_in, -1);
      if (s != WAN_OK) assert_int_equal(s, WAN_ERR_MEMORY);
      assert_int_equal(core_mem_current(&ctx), 0);
      extend_result_free(&t.r);
    }
    assert_int_equal(s, WAN_OK);
    assert_true(n > (with_picture ? 10 : 4));
  }
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, start_context, end_context)
  const struct CMUnitTest offline[] = {TEST(test_base64),    TEST(test_addresses_hide_secrets),
                                       TEST(test_endpoints), TEST(test_requests),
                                       TEST(test_answers),   TEST(test_reasons),
                                       TEST(test_tidy),      TEST(test_system_prompts)};
  int failed = cmocka_run_group_tests(offline, NULL, NULL);
  const struct CMUnitTest online[] = {TEST(test_dashscope_text), TEST(test_dashscope_picture),
                                      TEST(test_openai_picture), TEST(test_retries),
                                      TEST(test_failures),       TEST(test_odd_answers),
                                      TEST(test_arguments),      TEST(test_environment),
                                      TEST(test_cancel),         TEST(test_remote_pictures),
                                      TEST(test_memory)};
#ifdef WAN_HAVE_CURL
  const bool network = true;
#else
  const bool network = false;
#endif
  if (network)
    failed += cmocka_run_group_tests(online, start_server, stop_server);
  else
    print_message("SKIPPED whole extensions: this build has no libcurl\n");
  return failed;
}
