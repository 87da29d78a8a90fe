/* Video out: every format is written, read back and compared; every way of failing leaves no file. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "media/media.h"

enum { W = 96, H = 64, FRAMES = 13 };
static const char settings[] = "{\"prompt\": \"a caf\xc3\xa9 at dusk\", \"seed\": 42, \"steps\": 50}";

typedef struct fixture {
  core_ctx ctx;
  char dir[64], path[128];
} fixture;

static int setup(void **state) {
  fixture *f = calloc(1, sizeof *f);
  if (!f) return -1;
  core_ctx_init(&f->ctx);
  strcpy(f->dir, "/tmp/wan-video-XXXXXX");
  if (!mkdtemp(f->dir)) return -1;
  *state = f;
  return 0;
}

static int entries(const char *dir) {
  int n = 0;
  DIR *d = opendir(dir);
  if (!d) return -1;
  for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
  closedir(d);
  return n;
}

static int teardown(void **state) {
  fixture *f = *state;
  char command[128];
  assert_int_equal(core_mem_current(&f->ctx), 0);
  snprintf(command, sizeof command, "rm -rf '%s'", f->dir);
  int rc = system(command);
  free(f);
  return rc;
}

static const char *in_dir(fixture *f, const char *name) {
  snprintf(f->path, sizeof f->path, "%s/%s", f->dir, name);
  return f->path;
}

/* Smooth colours that move, so that every codec and palette can follow. */
static void draw(uint8_t *rgb, int w, int h, int index) {
  for (int y = 0; y < h; y++)
    for (int x = 0; x < w; x++) {
      *rgb++ = (uint8_t)(40 + 170 * x / w);
      *rgb++ = (uint8_t)(30 + 190 * y / h);
      *rgb++ = (uint8_t)(220 - 12 * index);
    }
}

static wan_status write_video(core_ctx *ctx, const video_params *p, int frames) {
  video_writer *w;
  CORE_TRY(video_writer_open(ctx, p, &w));
  uint8_t *rgb = malloc((size_t)p->width * (size_t)p->height * 3);
  for (int i = 0; i < frames; i++) {
    draw(rgb, p->width, p->height, i);
    wan_status s = video_writer_push(w, rgb);
    if (s == WAN_OK) continue;
    free(rgb);
    video_writer_abort(w);
    return s;
  }
  free(rgb);
  return video_writer_finish(w);
}

typedef struct comparison {
  int frames;
  double worst; /* PSNR in dB */
} comparison;

static wan_status compare(void *user, int index, int width, int height, const uint8_t *rgb) {
  comparison *c = user;
  assert_int_equal(index, c->frames);
  assert_int_equal(width, W);
  assert_int_equal(height, H);
  static uint8_t want[W * H * 3];
  draw(want, W, H, index);
  double error = 0;
  for (size_t i = 0; i < sizeof want; i++) error += (rgb[i] - want[i]) * (rgb[i] - want[i]);
  double psnr = 10 * log10(255.0 * 255.0 * sizeof want / fmax(error, 1));
  if (!c->frames || psnr < c->worst) c->worst = psnr;
  c->frames++;
  return WAN_OK;
}

/* psnr: what 8-bit limited-range YUV (about 45 dB) or 256 dithered colours allow, less a margin of 5 dB.
 * A wrong colour matrix costs 15 dB, a frame out of order 25. */
static void round_trip(void **state, const char *name, video_format format, double fps, double psnr) {
  fixture *f = *state;
  if (!video_format_available(format)) skip();
  video_params p = {in_dir(f, name), format, W, H, fps, -1, settings};
  wan_status s = write_video(&f->ctx, &p, FRAMES);
  if (s != WAN_OK) fail_msg("%s", f->ctx.message);
  assert_int_equal(entries(f->dir), 1);
  comparison c = {0};
  double found = 0;
  s = video_read_frames(&f->ctx, p.path, compare, &c, &found);
  if (s != WAN_OK) fail_msg("%s", f->ctx.message);
  print_message("%s: worst PSNR %.1f dB, %.4f fps\n", name, c.worst, found);
  assert_int_equal(c.frames, FRAMES);
  assert_true(c.worst > psnr);
  assert_true(fabs(found - fps) < 0.02 * fps);
  char *text;
  assert_int_equal(video_read_metadata(&f->ctx, p.path, &text), WAN_OK);
  assert_string_equal(text, settings);
  core_free(&f->ctx, text);
}

static void mp4(void **state) {
  round_trip(state, "clip.mp4", VIDEO_MP4, 24, 38);
}

static void mp4_fractional_rate(void **state) {
  round_trip(state, "a:b.mp4", VIDEO_MP4, 23.976, 38);
}

static void webm(void **state) {
  round_trip(state, "clip.webm", VIDEO_WEBM, 16, 38);
}

static void gif(void **state) {
  round_trip(state, "clip.gif", VIDEO_GIF, 20, 27);
}

static void png_folder(void **state) {
  fixture *f = *state;
  if (!video_format_available(VIDEO_PNG_SEQUENCE)) skip();
  char folder[128], first[160];
  snprintf(folder, sizeof folder, "%s/frames", f->dir);
  video_params p = {folder, VIDEO_PNG_SEQUENCE, 5, 3, 24, -1, settings}; /* odd sizes are fine here */
  assert_int_equal(write_video(&f->ctx, &p, 3), WAN_OK);
  assert_int_equal(entries(folder), 3);
  for (int i = 0; i < 3; i++) {
    snprintf(first, sizeof first, "%s/frame_%04d.png", folder, i);
    picture got;
    uint8_t want[5 * 3 * 3];
    assert_int_equal(picture_load(&f->ctx, first, NULL, &got), WAN_OK);
    draw(want, 5, 3, i);
    assert_int_equal(got.width, 5);
    assert_int_equal(got.height, 3);
    assert_memory_equal(got.rgb, want, sizeof want);
    picture_free(&f->ctx, &got);
  }
  snprintf(first, sizeof first, "%s/frame_0000.png", folder);
  char *text;
  assert_int_equal(video_read_metadata(&f->ctx, first, &text), WAN_OK);
  assert_string_equal(text, settings);
  core_free(&f->ctx, text);
  snprintf(first, sizeof first, "%s/frame_0001.png", folder);
  assert_int_equal(video_read_metadata(&f->ctx, first, &text), WAN_ERR_FORMAT);
}

static void png_patterns(void **state) {
  fixture *f = *state;
  if (!video_format_available(VIDEO_PNG_SEQUENCE)) skip();
  video_params p = {in_dir(f, "100%%_%03d.png"), VIDEO_PNG_SEQUENCE, 4, 4, 24, -1, NULL};
  assert_int_equal(write_video(&f->ctx, &p, 2), WAN_OK);
  assert_true(core_path_exists(in_dir(f, "100%_001.png")));
  p.path = in_dir(f, "x.png");
  assert_int_equal(write_video(&f->ctx, &p, 1), WAN_OK);
  assert_true(core_path_exists(in_dir(f, "x_0000.png")));
  static const char *const bad[] = {"%s.png", "%d%d.png", "%n.png", "%", "%-3d.png", "%999999999999d.png"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    p.path = in_dir(f, bad[i]);
    assert_int_equal(write_video(&f->ctx, &p, 1), WAN_ERR_ARGUMENT);
  }
  assert_int_equal(entries(f->dir), 3);
}

static void formats_by_name(void **state) {
  (void)state;
  video_format v;
  assert_true(video_format_from_path("a.MP4", &v) && v == VIDEO_MP4);
  assert_true(video_format_from_path("a.b.webm", &v) && v == VIDEO_WEBM);
  assert_true(video_format_from_path("a.gif", &v) && v == VIDEO_GIF);
  assert_true(video_format_from_path("a%04d.png", &v) && v == VIDEO_PNG_SEQUENCE);
  assert_true(video_format_from_path("frames/", &v) && v == VIDEO_PNG_SEQUENCE);
  assert_false(video_format_from_path("a.mkv", &v));
  assert_false(video_format_from_path("", &v));
}

static void bad_parameters(void **state) {
  fixture *f = *state;
  static const struct {
    int width, height;
    double fps;
  } bad[] = {{95, 64, 24}, {96, 63, 24},  {0, 64, 24},   {96, -2, 24},
             {96, 64, 0},  {96, 64, NAN}, {96, 64, 1e9}, {40000, 64, 24}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    video_params p = {in_dir(f, "a.mp4"), VIDEO_MP4, bad[i].width, bad[i].height, bad[i].fps, -1, NULL};
    assert_int_not_equal(write_video(&f->ctx, &p, 1), WAN_OK);
  }
  for (int crf = -2; crf <= 52; crf += 54) {
    video_params p = {in_dir(f, "a.mp4"), VIDEO_MP4, W, H, 24, crf, NULL};
    assert_int_equal(write_video(&f->ctx, &p, 1), WAN_ERR_ARGUMENT);
  }
  assert_int_equal(entries(f->dir), 0);
}

static const struct {
  const char *name;
  video_format format;
} all[] = {{"a.mp4", VIDEO_MP4}, {"a.webm", VIDEO_WEBM}, {"a.gif", VIDEO_GIF}, {"a", VIDEO_PNG_SEQUENCE}};
enum { ALL = sizeof all / sizeof *all };

static void unwritable(void **state) {
  fixture *f = *state;
  char path[160];
  for (int i = 0; i < ALL; i++) {
    if (!video_format_available(all[i].format)) continue;
    snprintf(path, sizeof path, "%s/missing/%s", f->dir, all[i].name);
    video_params p = {path, all[i].format, W, H, 24, -1, NULL};
    assert_int_equal(write_video(&f->ctx, &p, 1), WAN_ERR_IO);
    assert_non_null(strstr(f->ctx.message, path));
  }
}

static void nothing_left(void **state) {
  fixture *f = *state;
  static uint8_t rgb[W * H * 3];
  for (int i = 0; i < ALL; i++) {
    if (!video_format_available(all[i].format)) continue;
    video_params p = {in_dir(f, all[i].name), all[i].format, W, H, 24, -1, settings};
    video_writer *w;
    assert_int_equal(video_writer_open(&f->ctx, &p, &w), WAN_OK);
    for (int k = 0; k < 20; k++) assert_int_equal(video_writer_push(w, rgb), WAN_OK);
    video_writer_abort(w);
    assert_int_equal(entries(f->dir), 0);
    assert_int_equal(write_video(&f->ctx, &p, 0), WAN_ERR_ARGUMENT); /* no frames */
    assert_int_equal(entries(f->dir), 0);
  }
  video_writer_abort(NULL);
}

/* A file size limit stands in for a full disk: writes fail half-way (EFBIG instead of ENOSPC). */
static void full_disk(void **state) {
  fixture *f = *state;
  static uint8_t rgb[W * H * 3];
  struct rlimit old, small;
  signal(SIGXFSZ, SIG_IGN);
  getrlimit(RLIMIT_FSIZE, &old);
  small = old;
  small.rlim_cur = 4096;
  for (int i = 0; i < ALL; i++) {
    if (!video_format_available(all[i].format)) continue;
    video_params p = {in_dir(f, all[i].name), all[i].format, W, H, 24, -1, settings};
    video_writer *w;
    assert_int_equal(video_writer_open(&f->ctx, &p, &w), WAN_OK);
    setrlimit(RLIMIT_FSIZE, &small);
    wan_status s = WAN_OK;
    uint32_t noise = 1;
    for (int k = 0; k < 40 && s == WAN_OK; k++) {
      for (size_t j = 0; j < sizeof rgb; j++)
        rgb[j] = (uint8_t)((noise = noise * 1664525 + 1013904223) >> 24);
      s = video_writer_push(w, rgb);
    }
    if (s == WAN_OK)
      s = video_writer_finish(w);
    else
      video_writer_abort(w);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(s, WAN_ERR_IO);
    assert_non_null(strstr(f->ctx.message, "File too large"));
    assert_non_null(strstr(f->ctx.message, p.path));
    assert_int_equal(entries(f->dir), 0);
  }
}

/* Every allocation of our own fails once; the last round, with none left to fail, succeeds. */
static void no_memory(void **state) {
  fixture *f = *state;
  for (int i = 0; i < ALL; i++) {
    if (!video_format_available(all[i].format)) continue;
    video_params p = {in_dir(f, all[i].name), all[i].format, 16, 16, 24, -1, settings};
    wan_status s = WAN_ERR_MEMORY;
    for (int k = 0; s != WAN_OK; k++) {
      assert_true(k < 50);
      atomic_store(&f->ctx.mem_fail_in, k);
      s = write_video(&f->ctx, &p, 2);
      atomic_store(&f->ctx.mem_fail_in, -1);
      if (s == WAN_OK) break;
      assert_int_equal(s, WAN_ERR_MEMORY);
      assert_int_equal(core_mem_current(&f->ctx), 0);
      assert_int_equal(entries(f->dir), 0);
    }
    char command[160];
    snprintf(command, sizeof command, "rm -r '%s'", p.path);
    assert_int_equal(system(command), 0);
  }
}

static char *slurp(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  assert_non_null(file);
  char *data = malloc(1 << 20);
  *size = fread(data, 1, 1 << 20, file);
  fclose(file);
  return data;
}

/* Not at the size of the other tests: of pictures of 96x64 x264 reads memory that nothing has written, with
 * any number of threads; from 128x128 on MALLOC_PERTURB_ changes nothing. */
static void same_input_same_bytes(void **state) {
  fixture *f = *state;
  for (int i = 0; i < 3; i++) {
    if (!video_format_available(all[i].format)) continue;
    char *data[2];
    size_t size[2];
    for (int k = 0; k < 2; k++) {
      video_params p = {in_dir(f, all[i].name), all[i].format, 128, 128, 24, -1, settings};
      assert_int_equal(write_video(&f->ctx, &p, FRAMES), WAN_OK); /* the second overwrites the first */
      data[k] = slurp(p.path, &size[k]);
    }
    assert_int_equal(size[0], size[1]);
    assert_memory_equal(data[0], data[1], size[0]);
    free(data[0]);
    free(data[1]);
  }
}

/* Every prefix of a file that FFmpeg or the GIF reader gets to see: an error or fewer frames, no crash. */
static wan_status ignore(void *user, int index, int width, int height, const uint8_t *rgb) {
  (void)user, (void)index, (void)width, (void)height, (void)rgb;
  return WAN_OK;
}

static void cut_short(void **state) {
  fixture *f = *state;
  for (int i = 0; i < 3; i++) {
    if (!video_format_available(all[i].format)) continue;
    video_params p = {in_dir(f, all[i].name), all[i].format, 16, 16, 24, -1, settings};
    assert_int_equal(write_video(&f->ctx, &p, 2), WAN_OK);
    size_t size;
    char *data = slurp(p.path, &size), *text;
    for (size_t n = 0; n < size; n += 1 + n / 16) {
      assert_int_equal(truncate(p.path, (off_t)n), 0);
      video_read_frames(&f->ctx, p.path, ignore, NULL, NULL);
      if (video_read_metadata(&f->ctx, p.path, &text) == WAN_OK) core_free(&f->ctx, text);
      FILE *file = fopen(p.path, "wb");
      fwrite(data, 1, size, file);
      fclose(file);
    }
    free(data);
  }
}

static wan_status stop_at_two(void *user, int index, int width, int height, const uint8_t *rgb) {
  (void)width, (void)height, (void)rgb;
  return index == 2 ? core_fail(user, WAN_ERR_CANCELLED, "enough") : WAN_OK;
}

static void reading_fails(void **state) {
  fixture *f = *state;
  if (!video_format_available(VIDEO_MP4)) skip();
  assert_int_equal(video_read_frames(&f->ctx, in_dir(f, "none.mp4"), ignore, NULL, NULL), WAN_ERR_IO);
  FILE *file = fopen(in_dir(f, "list.m3u8"), "w");
  fputs("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n", file);
  fclose(file);
  assert_int_equal(video_read_frames(&f->ctx, f->path, ignore, NULL, NULL), WAN_ERR_FORMAT);
  video_params p = {in_dir(f, "a.mp4"), VIDEO_MP4, W, H, 24, -1, NULL};
  assert_int_equal(write_video(&f->ctx, &p, 5), WAN_OK);
  assert_int_equal(video_read_frames(&f->ctx, p.path, stop_at_two, &f->ctx, NULL), WAN_ERR_CANCELLED);
  char *text;
  assert_int_equal(video_read_metadata(&f->ctx, p.path, &text), WAN_ERR_FORMAT);
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
  const struct CMUnitTest tests[] = {
      T(mp4),
      T(mp4_fractional_rate),
      T(webm),
      T(gif),
      T(png_folder),
      T(png_patterns),
      T(formats_by_name),
      T(bad_parameters),
      T(unwritable),
      T(nothing_left),
      T(full_disk),
      T(no_memory),
      T(same_input_same_bytes),
      T(cut_short),
      T(reading_fails),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
