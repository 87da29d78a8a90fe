#!/usr/bin/env python3
"""Every stage of the official models on one CUDA device, ours and PyTorch's (diffusers, transformers), one after the
other in the same run: the table of ratios. Random weights, official sizes, nothing to download.

bench/cuda.py [--wan PATH] [--part NAME ...] [--precision bf16 fp8] [--blocks N] [--out FILE.json]

Needs an interpreter with bench/peers/requirements.txt. PyTorch counts with its best setting of those tried: for the
transformers eager with its own attention, and torch.compile on the repeated blocks with cuDNN attention; for the
autoencoders eager, with weights as they come and channels last. Times are medians; memory is the peak of each
side's own account of the device, weights included (ours has the driver's share in it, PyTorch's has not). All parts
together take about five minutes on an H100; a whole pass of the largest takes 11 s there, --blocks shortens it."""
import argparse
import json
import pathlib
import subprocess
import sys
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
sys.path.insert(0, str(ROOT / "bench/peers"))
from run import T5, VAE22, transformer  # noqa: E402

DIT_5B = dict(transformer(24, 14336, 48), num_layers=30)
DIT_14B = dict(transformer(40, 13824, 16), num_layers=40)
UMT5 = dict(T5, num_layers=24, vocab_size=256384)
VAE21 = dict(z_dim=16)
EAGER, COMPILED, CHANNELS_LAST = [], ["--cudnn", "--compile"], ["--channels-last"]


class Case(typing.NamedTuple):
    part: str
    name: str
    args: list  # of wan bench --stage
    stage: str  # of torch_stage.py, as all below
    dims: dict
    size: list
    settings: dict  # name: arguments
    runs: int  # of ours; of PyTorch's, which are slower, half


CASES = [
    Case("5b", "TI2V-5B, one pass, 1280x704x121", ["dit-5b"], "dit", DIT_5B, ["--latent", "31,44,80"],
         {"eager": EAGER, "compiled": COMPILED}, 5),
    Case("vae22", "Wan2.2 decode, 1280x704x121", ["vae22-decode"], "vae-decode", VAE22, ["--latent", "31,44,80"],
         {"eager": EAGER, "channels last": CHANNELS_LAST}, 3),
    Case("vae22-encode", "Wan2.2 encode, 1280x704x121", ["vae22-encode"], "vae-encode", VAE22,
         ["--video", "121,704,1280"], {"eager": EAGER, "channels last": CHANNELS_LAST}, 3),
    Case("a14b", "A14B, one pass, 832x480x81", ["dit-14b", "--size", "832x480"], "dit", DIT_14B,
         ["--latent", "21,60,104"], {"compiled": COMPILED}, 3),
    Case("vae21", "Wan2.1 decode, 832x480x81", ["vae21-decode", "--size", "832x480"], "vae-decode", VAE21,
         ["--latent", "21,60,104"], {"eager": EAGER, "channels last": CHANNELS_LAST}, 3),
    Case("vae21-720p", "Wan2.1 decode, 1280x720x81", ["vae21-decode", "--size", "1280x720"], "vae-decode", VAE21,
         ["--latent", "21,90,160"], {"eager": EAGER}, 3),
    Case("text", "UMT5-XXL, 512 tokens", ["text"], "text", UMT5, ["--tokens", "512"], {"eager": EAGER}, 9),
    Case("a14b-720p", "A14B, one pass, 1280x720x81", ["dit-14b", "--size", "1280x720"], "dit", DIT_14B,
         ["--latent", "21,90,160"], {"compiled": COMPILED}, 3),
]


def ours(a, case, precision):
    args = [a.wan, "bench", "--backend", "cuda", "--json", "--precision", precision, "--repeat", str(case.runs),
            "--stage", *case.args]
    if a.blocks and case.part == "a14b-720p":
        args += ["--layers", str(a.blocks)]
    p = subprocess.run(args, capture_output=True, text=True)
    rows = [json.loads(line) for line in p.stdout.splitlines() if line.startswith("{")]
    row = next((r for r in rows if "seconds" in r and "floor" in r), None)  # the ceilings have no floor
    return row or {"error": (p.stderr.strip().splitlines() or [f"no result, exit code {p.returncode}"])[-1]}


def theirs(a, case, setting):
    import torch_stage

    dims = dict(case.dims, num_layers=a.blocks) if a.blocks and case.part == "a14b-720p" else case.dims
    args = torch_stage.parse([case.stage, "--dims", json.dumps(dims), "--device", "cuda", "--runs",
                              str((case.runs + 1) // 2), *case.size, *case.settings[setting]])
    try:
        return torch_stage.measure(args)
    except Exception as e:  # a setting that this version lacks, or that does not fit
        return {"error": f"{type(e).__name__}: {e}".splitlines()[0][:200]}


def figure(r):
    return f"{r['seconds']:.4f} s" if "seconds" in r else r["error"]


def line(name, own, peers):
    good = {k: v for k, v in peers.items() if "seconds" in v}
    best = min(good, key=lambda k: good[k]["seconds"], default=None)
    fine = "seconds" in own
    cells = [name, figure(own), f"{own['floor']:.4f} s" if fine else "",
             "; ".join(f"{k} {figure(v)}" for k, v in peers.items()),
             f"{own['seconds'] / good[best]['seconds']:.2f}" if best and fine else "",
             f"{own['device_memory_peak'] / 1e9:.1f} GB" if fine else "",
             f"{good[best]['rss_peak_bytes'] / 1e9:.1f} GB" if best else ""]
    return "| " + " | ".join(cells) + " |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--wan", default=str(ROOT / "build/release/wan"))
    p.add_argument("--part", nargs="+", default=[c.part for c in CASES])
    p.add_argument("--precision", nargs="+", default=["bf16"], help="of our transformers; PyTorch's is bf16")
    p.add_argument("--blocks", type=int, default=0, help="transformer blocks in a14b-720p, on both sides; 0: all")
    p.add_argument("--out", default="")
    a = p.parse_args()
    results = []
    print("| stage | ours | floor | PyTorch | ratio to its best | memory | its memory |\n|---|---|---|---|---|---|---|",
          flush=True)
    for case in [c for c in CASES if c.part in a.part]:
        peers = {}
        for precision in a.precision if case.stage == "dit" else ["bf16"]:
            own = ours(a, case, precision)
            peers = peers or {setting: theirs(a, case, setting) for setting in case.settings}
            name = case.name + (f", {a.blocks} of 40 blocks" if a.blocks and case.part == "a14b-720p" else "")
            name += f", {precision}" if precision != "bf16" else ""
            print(line(name, own, peers), flush=True)
            results.append({"name": name, "ours": own, "peers": peers})
            if a.out:
                pathlib.Path(a.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
