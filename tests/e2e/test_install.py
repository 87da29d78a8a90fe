#!/usr/bin/env python3
"""The installed library: only wan_* leaves it, wan.h compiles alone as C11 and as C++, and a program built through
pkg-config generates frames with two contexts at once."""
import os
import pathlib
import subprocess

from e2e import CKPT, ROOT, WAN, main

BUILD = pathlib.Path(WAN).parent

PROGRAM = r"""
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <wan/wan.h>

/* A private run: its own context, its own progress; the fraction never falls and ends at 1. */
typedef struct run {
  const char *dir;
  unsigned long sum;
  double fraction;
  int frames, bad;
} run;

static void on_progress(void *user, const wan_progress *p) {
  run *r = user;
  r->bad |= p->fraction < r->fraction || p->step > p->steps;
  r->fraction = p->fraction;
}

static bool on_frame(void *user, int index, int width, int height, const uint8_t *rgb) {
  run *r = user;
  r->bad |= index != r->frames++;
  for (int i = 0; i < width * height * 3; i++) r->sum = r->sum * 31 + rgb[i];
  return true;
}

static void *work(void *user) {
  run *r = user;
  wan_context *c = NULL;
  wan_model *m = NULL;
  wan_context_params cp;
  wan_context_params_init(&cp);
  cp.threads = 1;
  r->bad = wan_context_create(&cp, &c) != WAN_OK || wan_model_open(c, r->dir, &m) != WAN_OK;
  wan_generate_params p;
  wan_generate_params_init(&p);
  p.prompt = "a ball";
  p.width = p.height = 64;
  p.frames = 5;
  p.steps = 3;
  p.seed = 1;
  p.progress = on_progress;
  p.frame = on_frame;
  p.user = r;
  for (int i = 0; i < 3 && !r->bad; i++) { /* a context can be used again */
    r->frames = 0;
    r->sum = 0;
    r->fraction = 0;
    if (wan_generate(m, &p, NULL) != WAN_OK) {
      fprintf(stderr, "%s\n", wan_context_error(c));
      r->bad = 1;
    }
    r->bad |= r->fraction != 1 || r->frames != 5;
  }
  if (!r->bad) { /* a missing picture fails with a message and leaves the context usable */
    p.image_path = "/nowhere.png";
    r->bad = wan_generate(m, &p, NULL) != WAN_ERR_IO || !strstr(wan_context_error(c), "nowhere.png");
  }
  if (!r->bad) { /* cancelled before it began */
    p.image_path = NULL;
    wan_context_cancel(c);
    r->bad = wan_generate(m, &p, NULL) != WAN_ERR_CANCELLED;
  }
  wan_model_close(m);
  wan_context_destroy(c);
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t thread[2];
  run r[2] = {{argv[1]}, {argv[1]}};
  (void)argc;
  for (int i = 0; i < 2; i++) pthread_create(&thread[i], NULL, work, &r[i]);
  for (int i = 0; i < 2; i++) pthread_join(thread[i], NULL);
  printf("%s %d %d %lu %lu\n", wan_version(), r[0].bad, r[1].bad, r[0].sum, r[1].sum);
  return r[0].bad || r[1].bad || r[0].sum != r[1].sum;
}
"""


def test_header_alone(folder):
    header = ROOT / "include"
    for name, compiler, flags in (("a.c", "cc", ["-std=c11"]), ("a.cpp", "c++", ["-std=c++11"])):
        (folder / name).write_text("#include <wan/wan.h>\nint main(void) { return wan_status_name(WAN_OK) == 0; }\n")
        subprocess.run([compiler, *flags, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", f"-I{header}", name],
                       cwd=folder, check=True)


def test_exports(folder):
    names = subprocess.check_output(["nm", "-D", "--defined-only", BUILD / "libwan.so"], text=True).split("\n")
    symbols = [line.split()[-1] for line in names if line.strip()]
    assert "wan_generate" in symbols
    assert all(s.startswith("wan_") for s in symbols), [s for s in symbols if not s.startswith("wan_")]
    # every function of the header is there
    import re
    declared = set(re.findall(r"WAN_API[^;(]*?\b(wan_\w+)\(", (ROOT / "include" / "wan" / "wan.h").read_text()))
    assert declared == set(symbols), declared ^ set(symbols)


def test_installed_program(folder):
    prefix = folder / "prefix"
    subprocess.run(["cmake", "--install", BUILD, "--prefix", prefix], check=True, stdout=subprocess.DEVNULL)
    lib = next(prefix.glob("lib*/**/libwan.so")).parent
    for f in ("bin/wan", "include/wan/wan.h"):
        assert (prefix / f).exists(), f
    assert [p.name for p in (prefix / "include").rglob("*.h")] == ["wan.h"]
    pc = lib / "pkgconfig" / "wan.pc"
    flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "wan"], text=True,
                                    env={**os.environ, "PKG_CONFIG_PATH": str(pc.parent)}).split()
    (folder / "p.c").write_text(PROGRAM)
    sanitizers = ["-fsanitize=address,undefined"] if "asan" in str(BUILD) else []
    subprocess.run(["cc", "-std=c11", *sanitizers, "p.c", "-o", "p", *flags, "-lpthread"], cwd=folder, check=True)
    out = subprocess.run(["./p", CKPT / "ti2v"], cwd=folder, capture_output=True, text=True,
                         env={**os.environ, "LD_LIBRARY_PATH": str(lib)})
    assert out.returncode == 0, out.stdout + out.stderr


if __name__ == "__main__":
    main(globals())
