#!/usr/bin/env python3
"""Speed and memory of each stage on the CPU at the official layer sizes with few layers, beside
diffusers/transformers on PyTorch in the same run. Prints a table and writes build/bench.json.

bench/run.py [--build DIR] [--peer-python PYTHON] [--precision bf16 f32] [--stages NAME ...] [--runs N] [--quick]

PYTHON is an interpreter with bench/peers/requirements.txt installed; without one our own figures are printed
alone. For the peer its better setting counts: eager and channels-last weights are both tried for the
autoencoders. Weights are random on both sides. Memory is the engine's account and the peer's process."""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
VAE22 = dict(base_dim=160, decoder_base_dim=256, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
             temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
             scale_factor_spatial=16, scale_factor_temporal=4, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
T5 = dict(d_model=4096, d_ff=10240, num_layers=2, num_heads=64, d_kv=64, vocab_size=1024,
          feed_forward_proj="gated-gelu", is_gated_act=True, dense_act_fn="gelu_new")


def transformer(heads, ffn, channels):
    return dict(patch_size=[1, 2, 2], num_attention_heads=heads, attention_head_dim=128, in_channels=channels,
                out_channels=channels, text_dim=4096, freq_dim=256, ffn_dim=ffn, num_layers=2)


# name, our arguments, the peer's stage, its dims, its size, runs
STAGES = [
    ("UMT5-XXL, 2 layers, 64 tokens", ["text", "--layers", "2", "--tokens", "64"], "text", T5, ["--tokens", "64"], 9),
    ("UMT5-XXL, 2 layers, 512 tokens", ["text", "--layers", "2"], "text", T5, ["--tokens", "512"], 5),
    ("5B, 2 blocks, 1,024 tokens", ["dit-5b", "-s", "512x512", "-f", "13"], "dit", transformer(24, 14336, 48),
     ["--latent", "4,32,32"], 5),
    ("5B, 2 blocks, 4,096 tokens", ["dit-5b", "-s", "1024x1024", "-f", "13"], "dit", transformer(24, 14336, 48),
     ["--latent", "4,64,64"], 5),
    ("5B, 2 blocks, 8,192 tokens", ["dit-5b", "-s", "1024x1024", "-f", "29"], "dit", transformer(24, 14336, 48),
     ["--latent", "8,64,64"], 3),
    ("5B, 2 blocks, 27,280 tokens", ["dit-5b", "-s", "1280x704", "-f", "121"], "dit", transformer(24, 14336, 48),
     ["--latent", "31,44,80"], 1),
    ("A14B, 2 blocks, 4,096 tokens", ["dit-14b", "-s", "512x512", "-f", "13"], "dit", transformer(40, 13824, 16),
     ["--latent", "4,64,64"], 3),
    ("VAE 2.2 decode, 13 frames 640x352", ["vae22-decode", "-s", "640x352", "-f", "13"], "vae-decode", VAE22,
     ["--latent", "4,22,40"], 3),
    ("VAE 2.2 decode, 13 frames 1280x704", ["vae22-decode", "-s", "1280x704", "-f", "13"], "vae-decode", VAE22,
     ["--latent", "4,44,80"], 1),
    ("VAE 2.2 encode, 1 frame 1280x704", ["vae22-encode", "-s", "1280x704", "-f", "1"], "vae-encode", VAE22,
     ["--video", "1,704,1280"], 3),
    ("VAE 2.1 decode, 13 frames 832x480", ["vae21-decode", "-s", "832x480", "-f", "13"], "vae-decode",
     dict(z_dim=16), ["--latent", "4,60,104"], 1),
    ("VAE 2.1 encode, 13 frames 832x480", ["vae21-encode", "-s", "832x480", "-f", "13"], "vae-encode",
     dict(z_dim=16), ["--video", "13,480,832"], 1),
]
QUICK = {0, 2, 7}


def run_json(command):
    p = subprocess.run(command, capture_output=True, text=True)
    if p.returncode:
        return {"error": (p.stderr.strip().splitlines() or ["failed"])[-1]}
    return json.loads(p.stdout.strip().splitlines()[-1])


def ours(a, args, precision, runs):
    command = [f"{a.build}/wan", "bench", "--backend", "cpu", "--layers", "2", "--json", "--precision", precision,
               "--repeat", str(runs), "--stage", *args]
    if a.threads:
        command += ["--threads", str(a.threads)]
    r = run_json(command)
    return r if "error" in r or "seconds" in r else {"error": r.get("skipped", "no result")}


def peer(python, stage, dims, size, precision, runs, threads):
    command = [python, str(ROOT / "bench/peers/torch_stage.py"), stage, "--dims", json.dumps(dims), *size,
               "--precision", precision, "--runs", str(runs), "--threads", str(threads)]
    tries = [run_json(command)]
    if stage.startswith("vae"):
        tries.append(run_json(command + ["--channels-last"]))
    good = [t for t in tries if "seconds" in t]
    return min(good, key=lambda t: t["seconds"]) if good else tries[0]


def row(name, ours, theirs):
    cells = [name, f"{ours['seconds']:.3f}" if "seconds" in ours else ours["error"]]
    cells.append(f"{ours['flops'] / ours['seconds'] / 1e9:.0f}" if "seconds" in ours else "")
    cells.append(f"{ours['memory_peak'] / 2**30:.2f}" if "seconds" in ours else "")
    if theirs:
        cells.append(f"{theirs['seconds']:.3f}" if "seconds" in theirs else theirs["error"])
        cells.append(f"{theirs['rss_peak_bytes'] / 2**30:.2f}" if "seconds" in theirs else "")
        both = "seconds" in ours and "seconds" in theirs
        cells.append(f"{theirs['seconds'] / ours['seconds']:.2f}x" if both else "")
    return "| " + " | ".join(cells) + " |"


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--build", default=str(ROOT / "build/release"))
    p.add_argument("--peer-python", default="")
    p.add_argument("--precision", nargs="+", default=["bf16"])
    p.add_argument("--stages", nargs="+", default=[])
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--runs", type=int, default=0)
    p.add_argument("--quick", action="store_true")
    a = p.parse_args()
    python = a.peer_python or sys.executable
    head = ["stage", "ours, s", "GFLOP/s", "GiB"] + (["PyTorch, s", "GiB", "ratio"] if a.peer_python else [])
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    results = []
    for precision in a.precision:
        for i, (name, args, stage, dims, size, runs) in enumerate(STAGES):
            if (a.stages and not any(s in name for s in a.stages)) or (a.quick and i not in QUICK):
                continue
            runs = a.runs or runs
            own = ours(a, args, precision, runs)
            theirs = peer(python, stage, dims, size, precision, runs, a.threads) if a.peer_python else None
            print(row(f"{name}, {precision}", own, theirs), flush=True)
            results.append({"name": name, "precision": precision, "ours": own, "peer": theirs})
            (ROOT / "build/bench.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
