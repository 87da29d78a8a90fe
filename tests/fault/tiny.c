/* tiny.c: see tiny.h. */
#define _GNU_SOURCE
#include "tiny.h"

#include <dirent.h>
#include <time.h>

#include "core/file.h"

#define CKPT TINY_DATA "ckpt/"

const tiny_task tiny_tasks[TINY_TASKS] = {{"text to video, two experts", "t2v", NULL},
                                          {"picture to video, two experts", "i2v", TINY_PICTURE},
                                          {"text to video, one model", "ti2v", NULL},
                                          {"picture to video, one model", "ti2v", TINY_PICTURE}};

/* ---- Files ---- */

unsigned char *tiny_read(const char *path, size_t *size) {
  FILE *f = fopen(path, "rb");
  if (!f || fseek(f, 0, SEEK_END) != 0) fail_msg("%s can't be read", path);
  *size = (size_t)ftell(f);
  rewind(f);
  unsigned char *data = malloc(*size + 1);
  if (!data || fread(data, 1, *size, f) != *size) fail_msg("%s can't be read", path);
  fclose(f);
  return data;
}

void tiny_write(const char *path, const void *data, size_t size) {
  FILE *f = fopen(path, "wb");
  if (!f || (size && fwrite(data, 1, size, f) != size) || fclose(f) != 0)
    fail_msg("%s can't be written", path);
}

static void copy_tree(const char *from, const char *to) {
  char a[600], b[600];
  mkdir(to, 0777);
  DIR *dir = opendir(from);
  if (!dir) fail_msg("%s is not there", from);
  for (struct dirent *e; (e = readdir(dir));) {
    if (e->d_name[0] == '.') continue;
    snprintf(a, sizeof a, "%s/%s", from, e->d_name);
    snprintf(b, sizeof b, "%s/%s", to, e->d_name);
    if (core_path_is_dir(a)) {
      copy_tree(a, b);
      continue;
    }
    size_t size;
    unsigned char *data = tiny_read(a, &size);
    tiny_write(b, data, size);
    free(data);
  }
  closedir(dir);
}

const char *tiny_copy(scratch *s, const char *ckpt, const char *name) {
  char from[512];
  const char *to = scratch_path(s, name);
  snprintf(from, sizeof from, CKPT "%s", ckpt);
  copy_tree(from, to);
  return to;
}

void tiny_rewrite(const char *from, weight_kind kind, const char *to, tiny_edit edit, void *user) {
  core_ctx ctx;
  weight_set *set;
  core_ctx_init(&ctx);
  if (weight_set_open(&ctx, from, kind, &set) != WAN_OK) fail_msg("%s", ctx.message);
  int count = (int)weight_set_count(set), n = 0;
  named_tensor *t = calloc((size_t)count, sizeof *t);
  void **copy = calloc((size_t)count, sizeof *copy);
  for (int i = 0; i < count; i++) {
    t[n] = (named_tensor){weight_set_name(set, i), weight_set_tensor(set, i)};
    size_t bytes = tensor_bytes(&t[n].value);
    copy[i] = malloc(bytes + 1);
    t[n].value.data = memcpy(copy[i], t[n].value.data, bytes);
    if (edit) edit(user, &t[n]);
    n += t[n].name != NULL;
  }
  if (safetensors_write(&ctx, to, n, t, NULL) != WAN_OK) fail_msg("%s", ctx.message);
  for (int i = 0; i < count; i++) free(copy[i]);
  free(copy);
  free(t);
  weight_set_close(set);
}

int tiny_entries(const char *dir) {
  DIR *d = opendir(dir);
  int n = 0;
  if (!d) return -1;
  for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
  closedir(d);
  return n;
}

/* ---- Runs ---- */

const char *tiny_backend(void) {
  for (int i = 0; backend_name(i); i++)
    if (strcmp(backend_name(i), "cpu") == 0) return "cpu";
  return "ref";
}

wan_context *tiny_context(const char *name) {
  wan_context_params p;
  wan_context *c;
  wan_context_params_init(&p);
  p.backend = name ? name : tiny_backend();
  p.threads = 1;
  if (wan_context_create(&p, &c) != WAN_OK) fail_msg("backend %s can't be opened", p.backend);
  return c;
}

wan_model *tiny_open(wan_context *c, const char *dir) {
  wan_model *m;
  if (wan_model_open(c, dir, &m) != WAN_OK) fail_msg("%s", wan_context_error(c));
  return m;
}

static void on_progress(void *user, const wan_progress *p) {
  tiny_run *r = user;
  r->last = *p;
  if (r->events++ == r->cancel_at) wan_context_cancel(r->context);
}

static bool on_frame(void *user, int index, int width, int height, const uint8_t *rgb) {
  tiny_run *r = user;
  size_t n = (size_t)width * (size_t)height * 3;
  if (r->used + n > sizeof r->rgb) return false;
  memcpy(r->rgb + r->used, rgb, n);
  r->used += n;
  return index != r->stop_at;
}

void tiny_reset(tiny_run *run, wan_context *c) {
  *run = (tiny_run){.context = c, .cancel_at = -1, .stop_at = -1};
}

void tiny_params(tiny_run *run, const char *picture, wan_generate_params *out) {
  wan_generate_params_init(out);
  out->prompt = "a red ball";
  out->negative = "grey";
  out->image_path = picture;
  out->width = out->height = TINY_SIDE;
  out->frames = TINY_FRAMES;
  out->steps = 2;
  out->seed = 7;
  out->frame = on_frame;
  out->progress = on_progress;
  out->user = run;
}

void tiny_must_run(wan_context *c, wan_model *m, const char *picture, tiny_run *out) {
  wan_generate_params p;
  tiny_reset(out, c);
  tiny_params(out, picture, &p);
  if (wan_generate(m, &p, NULL) != WAN_OK) fail_msg("%s", wan_context_error(c));
  assert_true(out->used > 0); /* a picture's aspect may make the frames smaller than they could be */
}

void tiny_same(const tiny_run *a, const tiny_run *b, const char *what) {
  if (a->used != b->used || memcmp(a->rgb, b->rgb, a->used) != 0) fail_msg("%s: another video", what);
}

/* ---- Chance ---- */

uint64_t tiny_seed(void) {
  const char *given = getenv("WAN_TEST_SEED");
  uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
  print_message("seed %llu (WAN_TEST_SEED repeats it)\n", (unsigned long long)seed);
  return seed;
}

/* splitmix64 (Steele, Lea, Flood 2014) */
uint64_t tiny_next(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return z ^ z >> 31;
}

double tiny_seconds(void) {
  return (double)clock() / CLOCKS_PER_SEC;
}

double tiny_budget(double seconds) {
#ifdef __SANITIZE_ADDRESS__
  return 1.5 * seconds; /* for a fifth of the cases */
#else
  return seconds;
#endif
}
