#!/usr/bin/env python3
"""The stage door: every stage of `wan stage` through the command, against the fixtures of tests/parity/data.

Limits are those of the parity programs: f32 1e-5 for transformer and text encoder, 1e-4 for the autoencoders and
the loop (derived there); schedules and noise are exact."""
import numpy as np

from e2e import CKPT, DATA, cases, main, read, rel, wan, write


def stage(name, folder, *args, **kw):
    out = folder / "out.safetensors"
    wan("stage", name, "--out", out, "--precision", "f32", *args, **kw)
    return read(out)


def test_clean(folder):
    p = wan("stage", "clean", "--text", "  a &amp;lt; b \n  c ")
    assert p.stdout == "a < b c\n", p.stdout


def test_tokenize_and_text(folder):
    for c in cases("text")[:4]:
        fixture = read(DATA / c["file"])
        got = stage("text", folder, "-m", CKPT / c["ckpt"], "--in", DATA / c["file"])
        assert got["context"].shape == fixture["context"].shape
        assert rel(got["context"], fixture["context"]) < 1e-5, c
    tokens = stage("tokenize", folder, "-m", CKPT / "ti2v", "--text", "a red ball")
    assert tokens["input_ids"].dtype == np.int64 and tokens["input_ids"].shape == (512,)
    n = int(tokens["attention_mask"].sum())
    assert tokens["input_ids"][n - 1] == 1 and not tokens["input_ids"][n:].any()
    direct = stage("text", folder, "-m", CKPT / "ti2v", "--text", "a red ball")["context"]
    write(folder / "tokens.safetensors", tokens)
    again = stage("text", folder, "-m", CKPT / "ti2v", "--in", folder / "tokens.safetensors")["context"]
    assert np.array_equal(direct, again) and direct.shape[0] == n


def test_dit(folder):
    for c in cases("dit"):
        fixture = read(DATA / c["file"])
        expert = ["--expert", c["expert"]] if c["expert"] else []
        got = stage("dit", folder, "-m", CKPT / c["ckpt"], "--in", DATA / c["file"], *expert)
        assert rel(got["velocity"], fixture["velocity_official"]) < 1e-5, c


def test_vae(folder):
    for c in cases("vae21") + cases("vae22"):
        fixture = read(DATA / c["file"])
        key = "latent" if c["op"] == "encode" else "video"
        got = stage("vae-" + c["op"], folder, "-m", CKPT / c["ckpt"], "--in", DATA / c["file"])
        assert rel(got[key], fixture[key]) < 1e-4, c


def test_schedule(folder):
    flags = {"official-unipc": ("unipc", "official"), "official-dpmpp": ("dpm++", "official"),
             "diffusers-unipc": ("unipc", "diffusers"), "diffusers-euler": ("euler", "diffusers")}
    for c in cases("schedule"):
        if c["n"] not in (1, 4, 50) or c["shift"] not in (5, 12):
            continue
        fixture = read(DATA / c["file"])
        sampler, schedule = flags[c["solver"]]
        got = stage("schedule", folder, "--sampler", sampler, "--schedule", schedule, "--steps", c["n"], "--shift", c["shift"])
        assert np.array_equal(got["timesteps"], fixture[c["prefix"] + "timesteps"].astype(np.float32)), c
        assert np.abs(got["sigmas"] - fixture[c["prefix"] + "sigmas"]).max() <= 6e-8, c  # one unit in the last place


def test_noise(folder):
    for c in cases("noise"):
        if "key" not in c:
            continue
        want = read(DATA / c["file"])[c["key"]]
        got = stage("noise", folder, "--seed", c["seed"], "--shape", f"1,1,1,{c['size']}")["noise"].reshape(-1)
        # from 16 values up the last bits of torch itself depend on the CPU (see the fixtures' README)
        assert np.abs(got - want.reshape(-1)).max() <= c["scalar"] + 1e-12, c


def test_denoise(folder):
    samplers = {"official-unipc": ("unipc", "official"), "official-dpmpp": ("dpm++", "official")}
    for c in cases("loop"):
        fixture = read(DATA / c["file"])
        sampler, schedule = samplers[c["solver"]]
        boundary = ["--boundary", c["boundary"] / 1000] if c["boundary"] else []
        got = stage("denoise", folder, "-m", CKPT / c["ckpt"], "--in", DATA / c["file"], "--steps", c["steps"],
                    "--shift", c["shift"], "--sampler", sampler, "--schedule", schedule,
                    "--guidance", f"{c['guide_low']},{c['guide_high']}", *boundary)
        assert rel(got["latent"], fixture["latents"][-1]) < 1e-4, c


def test_image(folder):
    """Size and range here; the resize itself is compared byte by byte in test_media.c."""
    out = stage("image", folder, "--image", DATA / "picture_rgb.png", "--area", "96x64")["image"]
    assert out.shape[0] == 3 and out.shape[1] % 32 == 0 and out.shape[2] % 32 == 0
    assert -1 <= out.min() and out.max() <= 1
    steps = (out + 1) * 127.5
    assert np.abs(steps - np.round(steps)).max() < 1e-3  # 8-bit values
    i2v = stage("image", folder, "-m", CKPT / "i2v", "--image", DATA / "picture_rgb.png", "--area", "96x64")["image"]
    assert i2v.shape[1] % 16 == 0 and i2v.shape[2] % 16 == 0


if __name__ == "__main__":
    main(globals())
