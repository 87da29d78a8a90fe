#!/usr/bin/env python3
"""The demo model through the command, judged from the decoded MP4 files by judge.py.

Held-out captions in text mode and in picture mode, official defaults but for 20 steps. The full set (228
captions, the bars of the model card) takes seven minutes on two cores and is run with WAN_JUDGE_EVERY=1; by
default every 19th caption is made. Seeds are fixed, so the outcome is too; the bars on 12 clips are the full bars
less one clip's share, since one clip more or less is what a sample of that size can show:
100/12 = 8.4 points. WAN_JUDGE_DIR keeps the clips."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import e2e

HERE = pathlib.Path(__file__).resolve().parent
JUDGE = [sys.executable, str(HERE / "judge.py")]
EVERY = int(os.environ.get("WAN_JUDGE_EVERY", "19"))
SLACK = 0 if EVERY == 1 else 8.4
TEXT = {"background": 95, "colour": 95, "shape": 90, "motion": 95, "all": 85}
PICTURE = {"motion": 90, "first_frame": 100}


def bars(full):
    return ",".join(f"{k}={v - (SLACK if v < 100 else 0)}" for k, v in full.items())


def captions():
    rows = json.loads((HERE / "captions.json").read_text(encoding="utf-8"))["captions"]
    return rows[::EVERY]


def make(caption, out, *args):
    e2e.wan("generate", "-m", e2e.ROOT / "models/shapes", "-p", caption["prompt"], "-s", "128x128", "-f", "17",
            "--steps", "20", "--seed", int(caption["id"]) + 100, "--progress", "none", "-o", out, *args)


def judge(*args):
    p = subprocess.run([*JUDGE, *map(str, args)], capture_output=True, text=True)
    print(p.stdout, end="", flush=True)
    assert p.returncode == 0, p.stdout + p.stderr


def keep(folder):
    """Where clips go: a folder of WAN_JUDGE_DIR, or the test's own, which is removed."""
    kept = os.environ.get("WAN_JUDGE_DIR")
    if not kept:
        return folder
    os.makedirs(kept, exist_ok=True)
    return pathlib.Path(tempfile.mkdtemp(dir=kept))


def test_judge_proves_itself(_folder):
    judge("--self-test", "--count", 40)


def test_text_to_video(folder):
    out = keep(folder)
    for c in captions():
        make(c, out / f"{c['id']}.mp4")
    judge("--dir", out, "--partial", "--bars", bars(TEXT))


def test_picture_to_video(folder):
    out = keep(folder)
    pictures = out / "pictures"
    judge("--first-frames", pictures)
    for c in captions():
        make(c, out / f"{c['id']}.mp4", "-i", pictures / f"{c['id']}.png")
    judge("--dir", out, "--partial", "--first-frame-dir", pictures, "--bars", bars(PICTURE))


if __name__ == "__main__":
    sys.exit(e2e.main(globals()))
