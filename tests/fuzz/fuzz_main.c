/* fuzz_main.c: a driver for compilers without libFuzzer: run the target over a folder of seeds, then over
 * mutations of them that a fixed seed determines. Not a search (nothing measures coverage), but a short
 * run in every test suite that catches what a careless change to a parser breaks.
 *
 *   fuzz_NAME SEEDS [RUNS]     mutations of every file in SEEDS; default 20000 runs
 *   fuzz_NAME FILE             one input
 *
 * An input that crashes is left in fuzz_NAME.input in the working folder.
 */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SEEDS_MAX = 256, INPUT_MAX = 1 << 16 };

typedef struct input {
  uint8_t data[INPUT_MAX];
  size_t size;
} input;

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static size_t below(uint64_t *state, size_t n) {
  return n ? (size_t)(next_random(state) % n) : 0;
}

static bool load(const char *path, input *in) {
  FILE *f = fopen(path, "rb");
  if (!f) return false;
  in->size = fread(in->data, 1, INPUT_MAX, f);
  fclose(f);
  return true;
}

/* Make room for n bytes at `at`, or take n away. */
static void resize_at(input *in, size_t at, size_t n, bool grow) {
  if (grow) {
    if (in->size + n > INPUT_MAX) return;
    memmove(in->data + at + n, in->data + at, in->size - at);
    in->size += n;
  } else {
    if (n > in->size - at) n = in->size - at;
    memmove(in->data + at, in->data + at + n, in->size - at - n);
    in->size -= n;
  }
}

static void overwrite(input *in, uint64_t *r) {
  static const uint64_t values[] = {0,          1,          0x7f,       0x80,
                                    0xff,       0x7fff,     0xffff,     0x7fffffff,
                                    0x80000000, 0xffffffff, UINT64_MAX, (uint64_t)1 << 63};
  uint64_t v = values[below(r, sizeof values / sizeof values[0])];
  size_t n = (size_t)1 << below(r, 4), at = below(r, in->size);
  for (size_t i = 0; i < n && at + i < in->size; i++) in->data[at + i] = (uint8_t)(v >> (8 * i));
}

static void splice(input *in, const input *other, uint64_t *r) {
  size_t from = below(r, other->size), n = below(r, other->size - from + 1), at = below(r, in->size + 1);
  if (n > 64) n = 64;
  resize_at(in, at, n, true);
  if (at + n <= in->size) memcpy(in->data + at, other->data + from, n);
}

static void mutate(input *in, const input *other, uint64_t *r) {
  size_t at = below(r, in->size), n = 1 + below(r, 16);
  switch (below(r, 8)) {
  case 0:
    if (in->size) in->data[at] ^= (uint8_t)(1u << below(r, 8));
    break;
  case 1:
    if (in->size) in->data[at] = (uint8_t)next_random(r);
    break;
  case 2:
    resize_at(in, at, n, false);
    break;
  case 3:
    resize_at(in, at, n, true);
    break;
  case 4:
    splice(in, other, r);
    break;
  case 5: /* another number in a text */
    for (size_t i = at; i < in->size && i < at + 64; i++)
      if (in->data[i] >= '0' && in->data[i] <= '9') {
        in->data[i] = (uint8_t)("0123456789-.e"[below(r, 13)]);
        break;
      }
    break;
  case 6:
    in->size = below(r, in->size + 1);
    break;
  default:
    overwrite(in, r);
  }
}

static const input *running;
static char record[600];

/* The last act of a process that is going down; calls only what a signal handler may call. */
static void keep_input(void) {
  int fd = open(record, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (fd >= 0 && running && write(fd, running->data, running->size) >= 0) close(fd);
}

static void on_signal(int signal_number) {
  keep_input();
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

/* Present when the program was built with a sanitizer. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void watch(void) {
  static const int fatal[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  bool sanitized = __sanitizer_set_death_callback != NULL;
  if (sanitized) __sanitizer_set_death_callback(keep_input);
  signal(SIGABRT, on_signal);
  for (size_t i = 1; !sanitized && i < sizeof fatal / sizeof fatal[0]; i++) signal(fatal[i], on_signal);
}

static void run(const input *in) {
  running = in;
  uint8_t *copy = malloc(in->size ? in->size : 1); /* exact size: an overrun is visible to the sanitizers */
  if (!copy) abort();
  memcpy(copy, in->data, in->size);
  if (LLVMFuzzerTestOneInput(copy, in->size) != 0) abort();
  free(copy);
}

static int compare(const void *a, const void *b) {
  return strcmp(a, b);
}

static int read_seeds(const char *dir, input *seeds) {
  static char names[SEEDS_MAX][512];
  int n = 0, loaded = 0;
  DIR *d = opendir(dir);
  if (!d) return 0;
  for (struct dirent *e; (e = readdir(d)) && n < SEEDS_MAX;)
    if (e->d_name[0] != '.') snprintf(names[n++], sizeof names[0], "%s/%s", dir, e->d_name);
  closedir(d);
  qsort(names, (size_t)n, sizeof names[0], compare); /* the same order on every machine */
  for (int i = 0; i < n; i++) loaded += load(names[i], &seeds[loaded]);
  return loaded;
}

int main(int argc, char **argv) {
  static input seeds[SEEDS_MAX], in;
  const char *name = strrchr(argv[0], '/');
  watch();
  snprintf(record, sizeof record, "%s.input", name ? name + 1 : argv[0]);
  if (argc < 2) return fprintf(stderr, "usage: %s SEEDS [RUNS], or %s FILE\n", argv[0], argv[0]), 2;
  struct stat st;
  if (stat(argv[1], &st) == 0 && S_ISREG(st.st_mode)) {
    if (!load(argv[1], &in)) return 2;
    run(&in);
    return 0;
  }
  int count = read_seeds(argv[1], seeds);
  long runs = argc > 2 ? atol(argv[2]) : 20000;
  if (!count) {
    fprintf(stderr, "%s: no seeds in %s: starting from nothing\n", argv[0], argv[1]);
    count = 1;
  }
  for (int i = 0; i < count; i++) run(&seeds[i]);
  uint64_t r = 1;
  for (long i = 0; i < runs; i++) {
    in = seeds[below(&r, (size_t)count)];
    const input *other = &seeds[below(&r, (size_t)count)];
    for (size_t k = 1 + below(&r, 4); k > 0; k--) mutate(&in, other, &r);
    run(&in);
  }
  printf("%d seeds, %ld mutations\n", count, runs);
  return 0;
}
