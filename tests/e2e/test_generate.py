#!/usr/bin/env python3
"""`wan generate` on tiny random checkpoints: all tasks to files, replay, resume, cancel. What the pictures show
is judged elsewhere (judge.py on the demo model); here it is files, frames, bytes and exit codes."""
import json
import os
import pathlib
import signal
import subprocess
import time

import numpy as np

from e2e import CKPT, DATA, WAN, frames, generate, main, read, rel, wan, write

PICTURE = DATA / "picture_rgb.png"


def leftovers(folder, *expected):
    found = sorted(p.name for p in folder.iterdir())
    assert found == sorted(expected), found


def test_tasks(folder):
    generate("t2v", "-o", folder / "t2v.mp4")
    assert frames(folder / "t2v.mp4").shape == (9, 32, 48, 3)
    generate("ti2v", "-o", folder / "ti2v.mp4")
    assert frames(folder / "ti2v.mp4").shape == (9, 64, 96, 3)
    generate("ti2v", "-i", PICTURE, "-o", folder / "ti2v-i.mp4")
    assert len(frames(folder / "ti2v-i.mp4")) == 9
    generate("i2v", "-i", PICTURE, "-o", folder / "i2v.mp4")
    assert len(frames(folder / "i2v.mp4")) == 9
    leftovers(folder, "t2v.mp4", "ti2v.mp4", "ti2v-i.mp4", "i2v.mp4")


def test_conditioning_variants(folder):
    generate("ti2v", "-o", folder / "clip.mp4", frames=13)
    for ckpt in ("ti2v", "i2v"):
        generate(ckpt, "--video", folder / "clip.mp4", "-o", folder / "a.mp4", frames=13)
        assert len(frames(folder / "a.mp4")) == 13
        generate(ckpt, "-i", PICTURE, "--last-frame", PICTURE, "-o", folder / "b.mp4")
        generate(ckpt, "-i", PICTURE, "--frame-image", f"4:{PICTURE}", "-o", folder / "c.mp4")
        assert not np.array_equal(frames(folder / "b.mp4"), frames(folder / "c.mp4"))


def test_given_frame_is_kept(folder):
    """TI2V: the first latent frame is the picture's own, bit for bit, whatever the run does."""
    generate("ti2v", "-i", PICTURE, "--precision", "f32", "--save-latent", folder / "l.safetensors", "-o", folder / "a.mp4")
    latent = read(folder / "l.safetensors")["latent"]
    wan("stage", "image", "--image", PICTURE, "--area", "96x64", "--out", folder / "i.safetensors")
    image = read(folder / "i.safetensors")["image"]
    write(folder / "v.safetensors", {"video": image[:, None]})
    wan("stage", "vae-encode", "-m", CKPT / "ti2v", "--precision", "f32", "--in", folder / "v.safetensors", "--out", folder / "z.safetensors")
    assert np.array_equal(latent[:, :1], read(folder / "z.safetensors")["latent"])


def test_formats(folder):
    for name in ("a.mp4", "a.gif", "a.webm"):
        p = generate("ti2v", "-o", folder / name, code=None)
        if p.returncode:  # this machine's FFmpeg lacks the encoder: said in one line, no file
            assert "no encoder" in p.stderr and name != "a.mp4", p.stderr
            continue
        assert len(frames(folder / name)) == 9, name
    (folder / "pngs").mkdir()
    generate("ti2v", "-o", folder / "pngs" / "f-%03d.png")
    assert len(list((folder / "pngs").iterdir())) == 9


def test_replay(folder):
    generate("t2v", "-o", folder / "a.mp4", "--guidance", "2,3.5", "--sampler", "dpm++", "--shift", "7", "--cfg-zero-star")
    wan("generate", "-m", CKPT / "t2v", "--replay", folder / "a.mp4", "-o", folder / "b.mp4", "--progress", "none", "-t", "1")
    assert np.array_equal(frames(folder / "a.mp4"), frames(folder / "b.mp4"))
    assert (folder / "a.mp4").read_bytes() == (folder / "b.mp4").read_bytes()
    generate("i2v", "-i", PICTURE, "-o", folder / "c.mp4")
    wan("generate", "-m", CKPT / "i2v", "--replay", folder / "c.mp4", "-o", folder / "d.mp4", "--progress", "none", "-t", "1")
    assert np.array_equal(frames(folder / "c.mp4"), frames(folder / "d.mp4"))
    wan("generate", "-m", CKPT / "t2v", "--replay", folder / "a.mp4", "--seed", "6", "-o", folder / "e.mp4", "--progress", "none")
    assert not np.array_equal(frames(folder / "a.mp4"), frames(folder / "e.mp4"))


def test_seed_and_noise(folder):
    a = generate("ti2v", "--save-latent", folder / "a.safetensors", "-o", folder / "a.mp4")
    assert "seed 5" in a.stdout
    wan("stage", "noise", "--seed", "5", "--shape", "48,3,4,6", "--out", folder / "n.safetensors")
    generate("ti2v", "--noise", folder / "n.safetensors", "--save-latent", folder / "b.safetensors", "-o", folder / "b.mp4", seed=99)
    assert np.array_equal(read(folder / "a.safetensors")["latent"], read(folder / "b.safetensors")["latent"])
    generate("ti2v", "--from-latent", folder / "a.safetensors", "-o", folder / "c.mp4")
    assert np.array_equal(frames(folder / "a.mp4"), frames(folder / "c.mp4"))


def test_guidance_one_is_one_pass(folder):
    """Guidance 1 makes no pass on the negative prompt, so the negative prompt can't matter."""
    out = [folder / n for n in ("a.mp4", "b.mp4")]
    for o, negative in zip(out, ("one thing", "another")):
        generate("ti2v", "-g", "1", "-n", negative, "-o", o)
    assert np.array_equal(frames(out[0]), frames(out[1]))
    assert "uncond" not in generate("ti2v", "-g", "1", "--dry-run").stdout


def start(folder, *args):
    return subprocess.Popen([WAN, "generate", "-m", str(CKPT / "ti2v"), "-p", "a red ball", "-s", "96x64", "-f", "9", "--seed", "5",
                             "--progress", "json", "-t", "1", *map(str, args)],
                            cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for_step(p, step):
    for line in p.stderr:
        if '"stage":"denoise"' in line and f'"step":{step},' in line:
            return
    raise AssertionError("the run ended early")


def test_kill_and_resume(folder):
    """kill -9 in the middle of the loop; the resumed run's latent has the same bits as an undisturbed one's."""
    for sampler in ("unipc", "dpm++", "euler"):
        flags = ["--steps", "40", "--sampler", sampler, "--apg"]
        generate("ti2v", *flags[2:], "--save-latent", folder / "whole.safetensors", "-o", folder / "whole.mp4", steps=40)
        p = start(folder, *flags, "--checkpoint", "c.safetensors", "-o", "cut.mp4")
        wait_for_step(p, 8)
        p.kill()
        p.wait()
        p.stderr.close()
        assert (folder / "c.safetensors").exists() and not (folder / "cut.mp4").exists()
        r = generate("ti2v", *flags[2:], "--checkpoint", folder / "c.safetensors", "--save-latent", folder / "cut.safetensors",
                     "-o", folder / "cut.mp4", steps=40)
        assert "resuming after step" in r.stderr, r.stderr
        assert np.array_equal(read(folder / "whole.safetensors")["latent"], read(folder / "cut.safetensors")["latent"]), sampler
        assert np.array_equal(frames(folder / "whole.mp4"), frames(folder / "cut.mp4"))
        assert not (folder / "c.safetensors").exists()
        (folder / "cut.mp4").unlink()


def test_checkpoint_of_another_run(folder):
    p = start(folder, "--steps", "40", "--checkpoint", "c.safetensors", "-o", "a.mp4")
    wait_for_step(p, 3)
    p.kill()
    p.wait()
    p.stderr.close()
    saved = (folder / "c.safetensors").read_bytes()
    for flags, name in ((["--shift", "4"], "shift"), (["-g", "3"], "guidance_low"), (["--precision", "f32"], "precision")):
        r = generate("ti2v", "--checkpoint", folder / "c.safetensors", "-o", folder / "b.mp4", *flags, steps=40, code=1)
        assert f"other settings: {name} was" in r.stderr, r.stderr
    assert (folder / "c.safetensors").read_bytes() == saved and not (folder / "b.mp4").exists()


def test_interrupt(folder):
    """Ctrl-C: exit code 130, one line, no file of any kind."""
    p = start(folder, "--steps", "1000", "-o", "a.mp4")
    wait_for_step(p, 2)
    p.send_signal(signal.SIGINT)
    began = time.time()
    rest = p.stderr.read()
    assert p.wait() == 130 and time.time() - began < 5, (p.returncode, rest)
    assert rest.strip().splitlines()[-1] == "wan: cancelled", rest
    leftovers(folder)


def test_preview_and_frame(folder):
    generate("ti2v", "--preview", folder / "p.png", "-o", folder / "a.mp4")
    wan("frame", folder / "a.mp4", "--index", "-1", "-o", folder / "last.png")
    assert (folder / "p.png").read_bytes()[:4] == (folder / "last.png").read_bytes()[:4] == b"\x89PNG"


def test_default_name_and_official_flags(folder):
    """A command line as in the Wan2.2 README."""
    p = wan("generate", "--task", "ti2v-5B", "--size", "96*64", "--ckpt_dir", CKPT / "ti2v", "--offload_model", "True",
            "--convert_model_dtype", "--t5_cpu", "--prompt", "Two cats/dogs " + "x" * 60, "--frame_num", "9",
            "--sample_steps", "2", "--base_seed", "3", "--sample_guide_scale", "4", "--ulysses_size", "1",
            "--sample_solver", "dpm++", "--sample_shift", "5.0", cwd=folder)
    (name,) = [f.name for f in folder.iterdir()]
    assert name.startswith("ti2v-5B_96*64_1_Two_cats_dogs_" + "x" * 36 + "_2") and name.endswith(".mp4"), name
    notes = [line for line in p.stderr.splitlines() if "has no effect" in line]
    assert len(notes) == 3, p.stderr


def test_plan_info_bench(folder):
    plan = wan("plan", "-m", CKPT / "t2v", "-s", "48x32", "-f", "9").stdout
    assert all(stage in plan for stage in ("text", "denoise", "decode")) and "2 experts" in plan
    args = ["bench", "-m", CKPT / "ti2v", "-s", "96x64", "-f", "5", "--repeat", "2"]
    table = wan(*args).stdout
    assert all(name in table for name in ("product", "copy", "text", "dit", "vae-decode", "vae-encode")), table
    rows = [json.loads(line) for line in wan(*args, "--json", "--stage", "vae").stdout.splitlines()]
    assert [r["stage"] for r in rows] == ["product", "copy", "vae-decode", "vae-encode"], rows
    assert all(r["seconds"] > 0 for r in rows) and all(r["floor"] > 0 and r["memory_peak"] > 0 for r in rows[2:]), rows
    info = json.loads(wan("info", CKPT / "i2v", "--json").stdout)
    assert info["family"] == "i2v" and info["experts"] == 2
    dry = wan("generate", "-m", CKPT / "t2v", "--dry-run").stdout
    assert "26 steps on the high-noise expert, 14 on the low-noise expert" in dry
    dry = wan("generate", "-m", CKPT / "i2v", "--dry-run").stdout
    assert "15 steps on the high-noise expert, 25 on the low-noise expert" in dry
    dry = wan("generate", "-m", CKPT / "t2v", "--steps-high", "2", "--steps-low", "2", "--sigmas", "1,0.9,0.5,0.2",
              "--sampler", "euler", "-g", "1", "--dry-run").stdout
    assert "2 steps on the high-noise expert, 2 on the low-noise" in dry and "uncond" not in dry


if __name__ == "__main__":
    main(globals())
