#!/usr/bin/env python3
"""What goes wrong says so: each bad input gives a non-zero exit code, exactly one error line that says what to do,
and leaves no file behind. Things that are rounded say so and go on."""
import json
import os
import shutil

import numpy as np

from e2e import CKPT, DATA, generate, main, read, wan, write

PICTURE = DATA / "picture_rgb.png"


def refused(folder, expected, *args, code=1):
    """Runs in an empty output folder; `expected` must be in the one error line."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    p = wan(*args, code=code, cwd=out)
    errors = [line for line in p.stderr.splitlines() if line.startswith("wan: ") and not line.startswith("wan: note: ")]
    assert len(errors) == 1 and expected in errors[0], (args, p.stderr)
    assert not list(out.iterdir()), list(out.iterdir())
    assert "  " not in errors[0] and len(errors[0]) < 600, errors[0]


def run_of(ckpt, *args, size=None, frames="9"):
    size = size or ("96x64" if ckpt == "ti2v" else "48x32")
    return ("generate", "-m", CKPT / ckpt, "-p", "x", "-s", size, "-f", frames, "--steps", "2", "--seed", "1", "-o", "a.mp4",
            "--progress", "none", *args)


def test_usage(folder):
    for expected, *args in [
            ("unknown option", "generate", "--nonsense"),
            ("missing argument", "generate", "-p"),
            ("a prompt is needed", "generate", "-m", CKPT / "ti2v"),
            ("a model is needed", "generate", "-p", "x"),
            ("unexpected argument", "generate", "-m", CKPT / "ti2v", "-p", "x", "y"),
            ("there is no command", "genrate"),
            ("whole number", *run_of("ti2v", "--steps", "many")),
            ("whole number", *run_of("ti2v", "--frames", "0")),
            ("whole number", *run_of("ti2v", "--seed", "1.5")),
            ("width x height", *run_of("ti2v", size="96")),
            ("width x height", *run_of("ti2v", size="96x-64")),
            ("one of unipc", *run_of("ti2v", "--sampler", "heun")),
            ("a number is needed", *run_of("ti2v", "--shift", "big")),
            ("at least 0", *run_of("ti2v", "-g", "-3")),
            ("two numbers", *run_of("ti2v", "--guidance-interval", "0.5")),
            ("N:FILE", *run_of("ti2v", "--frame-image", "4")),
            ("such as 14G", *run_of("ti2v", "--memory", "lots")),
            ("not supported", *run_of("ti2v", "--task", "s2v-14B")),
            ("C,T,h,w", "stage", "noise", "--shape", "1,2,3", "--seed", "1", "--out", "n.safetensors")]:
        refused(folder, expected, *args, code=2)


def test_models(folder):
    refused(folder, "no such folder", "generate", "-m", "nowhere", "-p", "x", "-o", "a.mp4")
    refused(folder, "no Wan model", "generate", "-m", folder, "-p", "x", "-o", "a.mp4")
    refused(folder, "another kind", *run_of("ti2v", "--task", "t2v-A14B"))

    def copy(name, ckpt):
        shutil.copytree(CKPT / ckpt, folder / name, symlinks=False)
        return folder / name

    m = copy("half", "t2v")
    shutil.rmtree(m / "low_noise_model")
    refused(folder, "low_noise_model", "generate", "-m", m, "-p", "x", "-o", "a.mp4")
    m = copy("no-vae", "ti2v")
    (m / "Wan2.2_VAE.pth").unlink()
    refused(folder, "Wan2.2_VAE.pth", "generate", "-m", m, "-p", "x", "-o", "a.mp4")
    m = copy("no-shard", "ti2v")
    (m / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    refused(folder, "00002-of-00003", "generate", "-m", m, "-p", "x", "-o", "a.mp4")
    m = copy("cut", "ti2v")
    shard = m / "diffusion_pytorch_model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(folder, "00003-of-00003", "generate", "-m", m, "-p", "x", "-o", "a.mp4")
    m = copy("dims", "ti2v")
    config = json.loads((m / "config.json").read_text())
    (m / "config.json").write_text(json.dumps({**config, "dim": 64}))
    refused(folder, "dim = 64", "generate", "-m", m, "-p", "x", "-o", "a.mp4")
    m = copy("mixed", "i2v")
    shutil.rmtree(m / "low_noise_model")
    shutil.copytree(CKPT / "t2v" / "low_noise_model", m / "low_noise_model")
    refused(folder, "", "generate", "-m", m, "-p", "x", "-i", PICTURE, "-o", "a.mp4")
    m = copy("vae", "t2v")
    (m / "Wan2.1_VAE.pth").write_bytes((CKPT / "ti2v" / "Wan2.2_VAE.pth").read_bytes())
    refused(folder, "not of one model", "generate", "-m", m, "-p", "x", "-o", "a.mp4")
    m = copy("nan", "ti2v")
    shard = m / "diffusion_pytorch_model-00002-of-00003.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-4000:] = np.full(1000, np.nan, np.float32).tobytes()
    shard.write_bytes(raw)
    refused(folder, "not finite", "generate", "-m", m, "-p", "x", "-s", "96x64", "-f", "5", "--steps", "2", "-o", "a.mp4",
            "--progress", "none")


def test_tasks(folder):
    refused(folder, "needs a picture", *run_of("i2v"))
    refused(folder, "takes no picture", *run_of("t2v", "-i", PICTURE))
    refused(folder, "at least 5", *run_of("i2v", "-i", PICTURE, frames="1"))
    refused(folder, "at least 5", *run_of("ti2v", "-i", PICTURE, frames="3"))
    refused(folder, "missing.png", *run_of("ti2v", "-i", "missing.png"))
    (folder / "bad.png").write_bytes(PICTURE.read_bytes()[:60])
    refused(folder, "bad.png", *run_of("ti2v", "-i", folder / "bad.png"))
    refused(folder, "one expert", *run_of("ti2v", "--steps-high", "1", "--steps-low", "1")[:9], "--seed", "1", "-o", "a.mp4",
            "--steps-high", "1", "--steps-low", "1")
    refused(folder, "two pictures", *run_of("ti2v", "-i", PICTURE, "--frame-image", f"0:{PICTURE}"))
    refused(folder, "share one latent frame", *run_of("ti2v", "-i", PICTURE, "--frame-image", f"5:{PICTURE}", "--last-frame", PICTURE))
    refused(folder, "frames are 0 to 8", *run_of("ti2v", "--frame-image", f"9:{PICTURE}"))
    refused(folder, "block 7 does not exist", *run_of("ti2v", "--slg-layers", "7"))
    refused(folder, "choose one", *run_of("ti2v", "--apg", "--cfg-zero-star"))
    refused(folder, "in order", *run_of("ti2v", "--guidance-interval", "0.9,0.1"))
    refused(folder, "sigma", *run_of("ti2v", "--sigmas", "0.5,0.9")[:9], "--seed", "1", "-o", "a.mp4", "--sigmas", "0.5,0.9")


def test_files(folder):
    for name, expected in (("a.xyz", "kind of output"), ("none/a.mp4", "does not exist")):
        refused(folder, expected, *run_of("ti2v", "-o", name))
    locked = folder / "locked"
    locked.mkdir()
    os.chmod(locked, 0o555)
    if os.getuid() != 0:  # root may write anywhere
        refused(folder, "no permission", *run_of("ti2v", "-o", locked / "a.mp4"))
    write(folder / "n.safetensors", {"noise": np.zeros((48, 3, 4, 4), np.float32)})
    refused(folder, "shape [48, 3, 4, 6]", *run_of("ti2v", "--noise", folder / "n.safetensors"))
    write(folder / "l.safetensors", {"latent": np.zeros((16, 3, 4, 6), np.float32)})
    refused(folder, "latent", *run_of("ti2v", "--from-latent", folder / "l.safetensors"))
    write(folder / "c.safetensors", {"x": np.zeros((3, 4, 6, 48), np.float32)})
    refused(folder, "delete the file", *run_of("ti2v", "--checkpoint", folder / "c.safetensors"))
    (folder / "v.mp4").write_bytes(b"not a video")
    refused(folder, "v.mp4", *run_of("ti2v", "--replay", folder / "v.mp4"))
    refused(folder, "v.mp4", *run_of("ti2v", "--video", folder / "v.mp4"))
    refused(folder, "v.mp4", "frame", folder / "v.mp4", "-o", "f.png")
    refused(folder, "there is no stage", "stage", "nonsense")
    refused(folder, "needs a model", "stage", "text", "--text", "x", "--out", "o.safetensors")
    refused(folder, "has no tensor", "stage", "vae-decode", "-m", CKPT / "ti2v", "--in", folder / "n.safetensors", "--out", "o.safetensors")
    refused(folder, "choose one", "stage", "dit", "-m", CKPT / "t2v", "--in", folder / "n.safetensors", "--out", "o.safetensors")


def test_full_disk(folder):
    """/dev/full stands for a disk without room: the write fails, and that is said."""
    p = wan("info", CKPT / "ti2v", code=None)
    assert p.returncode == 0
    with open("/dev/full", "w") as full:
        import subprocess
        from e2e import WAN
        r = subprocess.run([WAN, "info", str(CKPT / "ti2v")], stdout=full, stderr=subprocess.PIPE, text=True)
    assert r.returncode == 1 and "can't be written" in r.stderr, (r.returncode, r.stderr)


def test_memory_limit(folder):
    refused(folder, "limit", *run_of("ti2v", "--memory", "1M"))


def test_notices(folder):
    """Rounded, not refused."""
    p = generate("ti2v", "-o", folder / "a.mp4", frames=11, size="100x60")
    assert "9 are made" in p.stderr and "96x64 is made" in p.stderr, p.stderr
    assert "96x64, 9 frames" in p.stdout
    p = generate("t2v", "-o", folder / "b.mp4", frames=3)
    assert "1 are made" in p.stderr


if __name__ == "__main__":
    main(globals())
