#!/usr/bin/env python3
"""List the tensors of the official checkpoints: `name dim0 dim1 ...`, in module order.

The modules of the official package (PyPI `wan22`) are built on torch's meta device, so nothing is
downloaded and no memory is used.  The totals must be the published ones.

  official_names.py                 write models/names/*.txt
  official_names.py --check         compare with the files instead of writing
  official_names.py --spec FILE     also compare the VAE lists with a document's appendices, which
                                    are fenced blocks of lines `name [d0, d1, ...]`
"""
import argparse
import math
import os
import re
import sys

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "tools", "fixtures"), os.path.join(ROOT, "tools")]

import make_checkpoint  # noqa: E402
import official  # noqa: E402

WAN21 = dict(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, in_dim=16, out_dim=16)
A14B = dict(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16)
TI2V = dict(dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48)

#  file: (build, tensors, parameters, the checkpoint writer's list)
MODELS = {
    "wan2.2-ti2v-5B": (lambda: official.dit(model_type="ti2v", **TI2V), 825, 4_999_787_712),
    "wan2.2-t2v-A14B": (lambda: official.dit(model_type="t2v", **A14B), 1095, 14_288_491_584),
    "wan2.2-i2v-A14B": (lambda: official.dit(model_type="i2v", **{**A14B, "in_dim": 36}),
                        1095, 14_288_901_184),
    "wan2.1-t2v-1.3B": (lambda: official.dit(model_type="t2v", **WAN21), 825, 1_418_996_800),
    "umt5-xxl-encoder": (lambda: official.module("modules.t5").umt5_xxl(
        encoder_only=True, device="meta"), 242, 5_680_910_336),
    "wan2.1-vae": (lambda: official.module("modules.vae2_1").WanVAE_(
        dim=96, z_dim=16, temperal_downsample=[False, True, True]), 194, 126_892_531),
    "wan2.2-vae": (lambda: official.module("modules.vae2_2").WanVAE_(
        dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True]),
        196, 704_688_668),
}

WRITER = {
    "wan2.2-ti2v-5B": lambda m: m.dit_tensors(m.DIT_5B),
    "wan2.2-t2v-A14B": lambda m: m.dit_tensors(m.DIT_14B),
    "wan2.2-i2v-A14B": lambda m: m.dit_tensors({**m.DIT_14B, "in_dim": 36}),
    "umt5-xxl-encoder": lambda m: m.t5_tensors(m.T5_XXL),
    "wan2.1-vae": lambda m: m.vae_tensors("2.1", (96, 96), 16),
    "wan2.2-vae": lambda m: m.vae_tensors("2.2", (160, 256), 48),
}


def tensors(build):
    with torch.device("meta"):
        return [(k, tuple(v.shape)) for k, v in build().state_dict().items()]


def appendices(path):
    """every fenced block of lines `name [dims]`"""
    with open(path, encoding="utf-8") as f:
        blocks = re.findall(r"```\n(.*?)```", f.read(), re.S)
    out = []
    for b in blocks:
        rows = re.findall(r"^(\S+) \[([\d, ]+)\]$", b, re.M)
        if rows:
            out.append([(n, tuple(int(x) for x in d.split(","))) for n, d in rows])
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--check", action="store_true")
    p.add_argument("--spec")
    p.add_argument("--out", default=os.path.join(ROOT, "models", "names"))
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    lists = {}
    for name, (build, count, params) in MODELS.items():
        got = lists[name] = tensors(build)
        total = sum(math.prod(s) for _, s in got)
        assert (len(got), total) == (count, params), (name, len(got), total)
        if name in WRITER:  # the checkpoint writer has its own lists: same names, shapes, order
            assert got == WRITER[name](make_checkpoint), name
        text = "".join(f"{n} {' '.join(map(str, s))}\n" for n, s in got)
        path = f"{a.out}/{name}.txt"
        if a.check:
            with open(path) as f:
                assert f.read() == text, path
        else:
            with open(path, "w") as f:
                f.write(text)
        print(f"{name}: {count} tensors, {params:,} parameters")
    if a.spec:
        blocks = appendices(a.spec)
        for name in ("wan2.1-vae", "wan2.2-vae"):
            assert any(sorted(b) == sorted(lists[name]) for b in blocks), name
            print(f"{name}: equal to the appendix")


if __name__ == "__main__":
    main()
