#!/usr/bin/env python3
"""The table of cards in docs/CUDA.md: what `wan plan` says for official sizes on cards of 8 to 80 GB.

Usage: tools/plan_table.py [WAN]

The checkpoints are sparse files: names and shapes from models/names, and no data. Half a gibibyte of each card
is left to the desktop and to other programs."""
import json
import os
import re
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CARDS = (8, 12, 16, 24, 48, 80)
LEFT = 0.5
DIT_5B = dict(model_type="ti2v", dim=3072, ffn_dim=14336, freq_dim=256, num_heads=24, num_layers=30, in_dim=48,
              out_dim=48, text_len=512, eps=1e-6)
DIT_14B = dict(model_type="t2v", dim=5120, ffn_dim=13824, freq_dim=256, num_heads=40, num_layers=40, in_dim=16,
               out_dim=16, text_len=512, eps=1e-6)
RUNS = (("TI2V-5B", "5B", "1280x704", 121), ("T2V-A14B", "A14B", "832x480", 81), ("T2V-A14B", "A14B", "1280x720", 81))


def sparse(names, dtype, size, path):
    header, at = {}, 0
    with open(f"{ROOT}/models/names/{names}.txt", encoding="ascii") as f:
        for line in f:
            name, *dims = line.split()
            n = size
            for d in dims:
                n *= int(d)
            header[name] = {"dtype": dtype, "shape": [int(d) for d in dims], "data_offsets": [at, at + n]}
            at += n
    text = json.dumps(header).encode()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)


def checkpoint(folder, dit, names, experts, vae):
    for e in experts:
        sparse(names, "BF16", 2, f"{folder}/{e}diffusion_pytorch_model.safetensors")
        with open(f"{folder}/{e}config.json", "w", encoding="ascii") as f:
            json.dump(dit, f)
    sparse("wan" + vae.lower() + "-vae", "F32", 4, f"{folder}/Wan{vae}_VAE.safetensors")
    sparse("umt5-xxl-encoder", "BF16", 2, f"{folder}/models_t5_umt5-xxl-enc-bf16.safetensors")
    os.makedirs(f"{folder}/google/umt5-xxl")
    with open(f"{folder}/google/umt5-xxl/spiece.model", "wb"):
        pass


def cell(wan, folder, size, frames, card, precision):
    out = subprocess.run([wan, "plan", "-m", folder, "--backend", "cuda", "--vram", f"{card - LEFT}G", "--size", size,
                          "--frames", str(frames), "--precision", precision], capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stderr)
    peak = re.search(r"^all .* (\S+)\s*$", out.stdout, re.M).group(1)
    if "does not fit" in out.stdout:
        return "no: " + re.search(r"it fits with (.*)", out.stdout).group(1)
    blocks = re.search(r"^denoise .* (all|(\d+) of (\d+) blocks)", out.stdout, re.M)
    share = "all" if blocks.group(1) == "all" else f"{blocks.group(2)}/{blocks.group(3)}"
    return f"{share}, {float(peak):.1f} GiB"


def main():
    wan = sys.argv[1] if len(sys.argv) > 1 else f"{ROOT}/build/release/wan"
    help_text = subprocess.run([wan, "plan", "--help"], capture_output=True, text=True).stdout
    precisions = ("bf16", "fp8") if "fp8" in help_text else ("bf16",)
    with tempfile.TemporaryDirectory() as tmp:
        checkpoint(f"{tmp}/5B", DIT_5B, "wan2.2-ti2v-5B", ("",), "2.2")
        checkpoint(f"{tmp}/A14B", DIT_14B, "wan2.2-t2v-A14B", ("high_noise_model/", "low_noise_model/"), "2.1")
        print("| model | size, frames | precision | " + " | ".join(f"{c} GB" for c in CARDS) + " |")
        print("|---|---|---|" + "---|" * len(CARDS))
        for name, folder, size, frames in RUNS:
            for p in precisions:
                row = [cell(wan, f"{tmp}/{folder}", size, frames, c, p) for c in CARDS]
                print(f"| {name} | {size}, {frames} | {p} | " + " | ".join(row) + " |")


main()
