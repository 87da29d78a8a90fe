#!/usr/bin/env python3
"""Speed and memory of each stage at the official layer sizes with few layers, beside diffusers/transformers on
PyTorch in the same run. Prints a table and writes build/bench.json.

bench/run.py [--build DIR] [--peer-python PYTHON] [--precision bf16 f32] [--stages NAME ...] [--runs N] [--quick]

PYTHON is an interpreter with bench/peers/requirements.txt installed; without one our own figures are printed
alone. For the peer its better setting counts: eager and channels-last weights are both tried for the
autoencoders. Cut-down checkpoints are written below build/bench (needs NumPy in PYTHON or in this one)."""
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


# checkpoint name -> arguments of tools/make_checkpoint.py
CHECKPOINTS = {
    "5b": ["--preset", "ti2v-5B", "--layers", "2", "--t5-layers", "2", "--t5-vocab", "1024"],
    "a14b": ["--preset", "t2v-A14B", "--layers", "2", "--t5-layers", "2", "--t5-vocab", "1024"],
}
# name, stage, checkpoint, path below it, size arguments, the peer's dims, runs
STAGES = [
    ("UMT5-XXL, 2 layers, 64 tokens", "text", "5b", "models_t5_umt5-xxl-enc-bf16.pth", ["--tokens", "64"], T5, 9),
    ("UMT5-XXL, 2 layers, 512 tokens", "text", "5b", "models_t5_umt5-xxl-enc-bf16.pth", ["--tokens", "512"], T5, 5),
    ("5B, 2 blocks, 1,024 tokens", "dit", "5b", "", ["--latent", "4,32,32"], transformer(24, 14336, 48), 5),
    ("5B, 2 blocks, 4,096 tokens", "dit", "5b", "", ["--latent", "4,64,64"], transformer(24, 14336, 48), 5),
    ("5B, 2 blocks, 8,192 tokens", "dit", "5b", "", ["--latent", "8,64,64"], transformer(24, 14336, 48), 3),
    ("5B, 2 blocks, 27,280 tokens", "dit", "5b", "", ["--latent", "31,44,80"], transformer(24, 14336, 48), 1),
    ("A14B, 2 blocks, 4,096 tokens", "dit", "a14b", "high_noise_model", ["--latent", "4,64,64"],
     transformer(40, 13824, 16), 3),
    ("VAE 2.2 decode, 13 frames 640x352", "vae-decode", "5b", "Wan2.2_VAE.pth", ["--latent", "4,22,40"], VAE22, 3),
    ("VAE 2.2 decode, 13 frames 1280x704", "vae-decode", "5b", "Wan2.2_VAE.pth", ["--latent", "4,44,80"], VAE22, 1),
    ("VAE 2.2 encode, 1 frame 1280x704", "vae-encode", "5b", "Wan2.2_VAE.pth", ["--video", "1,704,1280"], VAE22, 3),
    ("VAE 2.1 decode, 13 frames 832x480", "vae-decode", "a14b", "Wan2.1_VAE.pth", ["--latent", "4,60,104"],
     dict(z_dim=16), 1),
    ("VAE 2.1 encode, 13 frames 832x480", "vae-encode", "a14b", "Wan2.1_VAE.pth", ["--video", "13,480,832"],
     dict(z_dim=16), 1),
]
QUICK = {0, 2, 7}


def run_json(command):
    p = subprocess.run(command, capture_output=True, text=True)
    if p.returncode:
        return {"error": (p.stderr.strip().splitlines() or ["failed"])[-1]}
    return json.loads(p.stdout.strip().splitlines()[-1])


def checkpoint(name, python, folder):
    path = folder / name
    if not (path / "done").exists():
        subprocess.run([python, str(ROOT / "tools/make_checkpoint.py"), *CHECKPOINTS[name], "--dtype", "bf16",
                        "--vae-dtype", "bf16", "--fast", str(path)], check=True)
        (path / "done").touch()
    return path


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
    cells.append(f"{ours.get('gflop_per_s', 0):.0f}" if "gflop_per_s" in ours else "")
    cells.append(f"{ours['rss_peak_bytes'] / 2**30:.2f}" if "seconds" in ours else "")
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
    python, folder = a.peer_python or sys.executable, ROOT / "build/bench"
    folder.mkdir(parents=True, exist_ok=True)
    head = ["stage", "ours, s", "GFLOP/s", "GiB"] + (["PyTorch, s", "GiB", "ratio"] if a.peer_python else [])
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    results = []
    for precision in a.precision:
        for i, (name, stage, ckpt, sub, size, dims, runs) in enumerate(STAGES):
            if (a.stages and not any(s in name for s in a.stages)) or (a.quick and i not in QUICK):
                continue
            runs = a.runs or runs
            path = checkpoint(ckpt, python, folder) / sub
            ours = run_json([f"{a.build}/bench/wan_bench_stages", stage, "--model", str(path), *size, "--precision",
                             precision, "--runs", str(runs), "--threads", str(a.threads)])
            theirs = peer(python, stage, dims, size, precision, runs, a.threads) if a.peer_python else None
            print(row(f"{name}, {precision}", ours, theirs), flush=True)
            results.append({"name": name, "precision": precision, "ours": ours, "peer": theirs})
            (ROOT / "build/bench.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
