#!/usr/bin/env python3
"""Every stage of the official models on one CUDA device, ours and PyTorch's (diffusers, transformers), one after the
other in the same run: the table of ratios. Random weights, official sizes, nothing to download.

bench/cuda.py [--wan PATH] [--part 5b vae22 text a14b vae21 a14b-720p] [--out FILE.json] [--precision NAME]

Needs an interpreter with bench/peers/requirements.txt. PyTorch counts with its best setting of those tried: for the
transformers eager with its own attention, and torch.compile on the repeated blocks with cuDNN attention; for the
autoencoders eager, with weights as they come and channels last. Times are medians; memory is the peak of each
side's own account of the device, weights included."""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "bench/peers"))
from run import T5, VAE22, transformer  # noqa: E402

DIT_5B = dict(transformer(24, 14336, 48), num_layers=30)
DIT_14B = dict(transformer(40, 13824, 16), num_layers=40)
UMT5 = dict(T5, num_layers=24, vocab_size=256384)
EAGER, COMPILED = [], ["--cudnn", "--compile"]
PLAIN, CHANNELS_LAST = [], ["--channels-last"]

# part, name, our arguments, the peer's stage, its dims, its size, {setting: its arguments}, runs of each
CASES = [
    ("5b", "TI2V-5B, one pass, 1280x704x121", ["dit-5b"], "dit", DIT_5B, ["--latent", "31,44,80"],
     {"eager": EAGER, "compiled": COMPILED}, 5),
    ("vae22", "Wan2.2 decode, 1280x704x121", ["vae22-decode"], "vae-decode", VAE22, ["--latent", "31,44,80"],
     {"eager": PLAIN, "channels last": CHANNELS_LAST}, 2),
    ("vae22", "Wan2.2 encode, 1280x704x121", ["vae22-encode"], "vae-encode", VAE22, ["--video", "121,704,1280"],
     {"eager": PLAIN, "channels last": CHANNELS_LAST}, 2),
    ("text", "UMT5-XXL, 512 tokens", ["text"], "text", UMT5, ["--tokens", "512"], {"eager": EAGER}, 9),
    ("a14b", "A14B, one pass, 832x480x81", ["dit-14b", "--size", "832x480"], "dit", DIT_14B, ["--latent", "21,60,104"],
     {"compiled": COMPILED}, 3),
    ("vae21", "Wan2.1 decode, 832x480x81", ["vae21-decode", "--size", "832x480"], "vae-decode", dict(z_dim=16),
     ["--latent", "21,60,104"], {"eager": PLAIN, "channels last": CHANNELS_LAST}, 3),
    ("vae21", "Wan2.1 decode, 1280x720x81", ["vae21-decode", "--size", "1280x720"], "vae-decode", dict(z_dim=16),
     ["--latent", "21,90,160"], {"eager": PLAIN, "channels last": CHANNELS_LAST}, 2),
    ("a14b-720p", "A14B, one pass, 1280x720x81", ["dit-14b", "--size", "1280x720"], "dit", DIT_14B,
     ["--latent", "21,90,160"], {"compiled": COMPILED}, 2),
]


def ours(a, case):
    args = [a.wan, "bench", "--backend", "cuda", "--json", "--repeat", str(case[7]), "--stage", *case[2]]
    if a.precision:
        args += ["--precision", a.precision]
    p = subprocess.run(args, capture_output=True, text=True)
    rows = [json.loads(line) for line in p.stdout.splitlines() if line.startswith("{")]
    row = next((r for r in rows if "seconds" in r and "floor" in r), None)  # the ceilings have no floor
    return row or {"error": (p.stderr.strip().splitlines() or ["no result"])[-1]}


def theirs(case, setting):
    import torch_stage

    _, _, _, stage, dims, size, settings, runs = case
    args = torch_stage.parse([stage, "--dims", json.dumps(dims), "--device", "cuda", "--runs", str(runs), *size,
                              *settings[setting]])
    try:
        return torch_stage.measure(args)
    except Exception as e:  # a setting that this version lacks, or that does not fit
        return {"error": f"{type(e).__name__}: {e}".splitlines()[0][:200]}


def figure(r):
    return f"{r['seconds']:.4f} s" if "seconds" in r else r["error"]


def line(case, own, peers):
    good = {k: v for k, v in peers.items() if "seconds" in v}
    best = min(good, key=lambda k: good[k]["seconds"], default=None)
    cells = [case[1], figure(own), "; ".join(f"{k} {figure(v)}" for k, v in peers.items())]
    both = best and "seconds" in own
    cells.append(f"{own['seconds'] / good[best]['seconds']:.2f}" if both else "")
    cells.append(f"{own['device_memory_peak'] / 1e9:.1f} GB" if "seconds" in own else "")
    cells.append(f"{good[best]['rss_peak_bytes'] / 1e9:.1f} GB" if best else "")
    return "| " + " | ".join(cells) + " |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--wan", default=str(ROOT / "build/release/wan"))
    p.add_argument("--part", nargs="+", default=sorted({c[0] for c in CASES}))
    p.add_argument("--precision", default="")
    p.add_argument("--out", default="")
    a = p.parse_args()
    results = []
    print("| stage | ours | PyTorch | ratio to its best | memory | its memory |\n|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        if case[0] not in a.part:
            continue
        own = ours(a, case)
        peers = {setting: theirs(case, setting) for setting in case[6]}
        print(line(case, own, peers), flush=True)
        results.append({"name": case[1], "ours": own, "peers": peers})
        if a.out:
            pathlib.Path(a.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
