#!/usr/bin/env python3
"""Speed and memory of each stage at the official layer sizes with few layers, beside diffusers/transformers on
PyTorch and stable-diffusion.cpp, in turns: ours, theirs, ours, theirs. First the machine's ceilings are measured
(bare products of oneDNN, copying); each stage's floor is made of them and the work its own code counts. Prints a
table and keeps the figures in build/bench.json, where a part that is run again replaces its rows.

  bench/run.py [--only TEXT ...] [--precision bf16 f32] [--budget SECONDS] [--peer-python PYTHON] [--sdcpp PROGRAM]

PYTHON has bench/peers/requirements.txt installed, PROGRAM comes from bench/peers/sdcpp.sh; without them only our
own figures are made. For PyTorch its best setting counts: eager, channels-last and torch.compile are tried on a
small case of each kind of stage, and the choice is remembered in build/bench/settings.json."""
import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build/bench"
PRODUCTS = ("linear", "attention", "conv", "upsample_conv")
VAE22 = dict(base_dim=160, decoder_base_dim=256, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
             temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
             scale_factor_spatial=16, scale_factor_temporal=4, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
T5 = dict(d_model=4096, d_ff=10240, num_layers=2, num_heads=64, d_kv=64, vocab_size=1024,
          feed_forward_proj="gated-gelu", is_gated_act=True, dense_act_fn="gelu_new")


def transformer(heads, ffn, channels):
    return dict(patch_size=[1, 2, 2], num_attention_heads=heads, attention_head_dim=128, in_channels=channels,
                out_channels=channels, text_dim=4096, freq_dim=256, ffn_dim=ffn, num_layers=2)


# checkpoint -> arguments of tools/make_checkpoint.py
CHECKPOINTS = {name: ["--preset", preset, "--layers", "2", "--t5-layers", "2", "--t5-vocab", "1024"]
               for name, preset in (("5b", "ti2v-5B"), ("a14b", "t2v-A14B"))}
# kind -> stage, checkpoint, file for us and for stable-diffusion.cpp, dims for PyTorch, small case, settings to try
SAFE, TEXT = "diffusion_pytorch_model.safetensors", "models_t5_umt5-xxl-enc-bf16.pth"
COMPILE, LAST = ["--compile"], ["--channels-last"]
KINDS = {
    "text": ("text", "5b", TEXT, TEXT, T5, ["--tokens", "64"], [[], COMPILE]),
    "5b": ("dit", "5b", SAFE, SAFE, transformer(24, 14336, 48), ["--latent", "4,32,32"], [[], COMPILE]),
    "a14b": ("dit", "a14b", "high_noise_model/" + SAFE, "high_noise_model/" + SAFE, transformer(40, 13824, 16),
             ["--latent", "1,32,32"], [[], COMPILE]),
    "decode22": ("vae-decode", "5b", "Wan2.2_VAE.pth", "Wan2.2_VAE.pth", VAE22, ["--latent", "1,11,20"],
                 [[], LAST]),
    "encode22": ("vae-encode", "5b", "Wan2.2_VAE.pth", "Wan2.2_VAE.pth", VAE22, ["--video", "1,176,320"],
                 [[], LAST]),
    "decode21": ("vae-decode", "a14b", "Wan2.1_VAE.pth", "Wan2.1_VAE.pth", dict(z_dim=16), ["--latent", "1,30,52"],
                 [[], LAST]),
    "encode21": ("vae-encode", "a14b", "Wan2.1_VAE.pth", "Wan2.1_VAE.pth", dict(z_dim=16), ["--video", "1,240,416"],
                 [[], LAST]),
}
# name, kind, size, runs, whether stable-diffusion.cpp is measured too (its larger cases take many minutes)
STAGES = [
    ("UMT5-XXL, 2 layers, 64 tokens", "text", ["--tokens", "64"], 9, True),
    ("UMT5-XXL, 2 layers, 512 tokens", "text", ["--tokens", "512"], 7, True),
    ("5B, 2 blocks, 1,024 tokens", "5b", ["--latent", "4,32,32"], 7, True),
    ("5B, 2 blocks, 4,096 tokens", "5b", ["--latent", "4,64,64"], 5, True),
    ("5B, 2 blocks, 8,192 tokens", "5b", ["--latent", "8,64,64"], 3, False),
    ("5B, 2 blocks, 27,280 tokens", "5b", ["--latent", "31,44,80"], 1, False),
    ("A14B, 2 blocks, 4,096 tokens", "a14b", ["--latent", "4,64,64"], 3, False),
    ("VAE 2.2 decode, 5 frames 320x176", "decode22", ["--latent", "2,11,20"], 3, True),
    ("VAE 2.2 decode, 13 frames 640x352", "decode22", ["--latent", "4,22,40"], 2, False),
    ("VAE 2.2 decode, 13 frames 1280x704", "decode22", ["--latent", "4,44,80"], 1, False),
    ("VAE 2.2 encode, 1 frame 1280x704", "encode22", ["--video", "1,704,1280"], 3, False),
    ("VAE 2.1 decode, 13 frames 832x480", "decode21", ["--latent", "4,60,104"], 1, False),
    ("VAE 2.1 encode, 13 frames 832x480", "encode21", ["--video", "13,480,832"], 1, False),
]
WARM_FIRST = 20  # seconds: a stage with a floor above half of this warms up with one latent frame only


class Failed(Exception):
    pass


class Measured:
    """A process that makes one run for each line it is sent. It is killed when it is slower than `limit`."""

    def __init__(self, command, limit):
        self.limit = limit
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, bufsize=1)
        self.errors = []
        threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True).start()
        while not self.line().endswith("ready"):
            pass

    def line(self):
        timer = threading.Timer(self.limit, self.process.kill)
        timer.start()
        text = self.process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if not text:
            self.process.wait()
            why = [e.strip() for e in self.errors if e.strip()]
            raise Failed(f"more than {self.limit:.0f} s" if late else why[-1] if why else "ended early")
        return text.strip()

    def run(self):
        try:
            self.process.stdin.write("\n")
        except OSError:  # gone while it waited for its turn; line() says why
            pass
        return float(self.line().split()[-1])

    def finish(self):
        self.process.stdin.close()
        result = json.loads(self.line())
        self.process.wait()
        return result


def run_json(command):
    p = subprocess.run(command, capture_output=True, text=True)
    if p.returncode:
        raise Failed((p.stderr.strip().splitlines() or ["failed"])[-1])
    return json.loads(p.stdout.strip().splitlines()[-1])


def load(path, default):
    return json.loads(path.read_text()) if path.exists() else default


class Bench:
    def __init__(self, a):
        self.a, self.deadline = a, time.monotonic() + a.budget
        self.out = pathlib.Path(a.out)
        self.data = load(self.out, {"rows": []})
        self.settings = load(FOLDER / "settings.json", {})

    def save(self):
        self.out.write_text(json.dumps(self.data, indent=1) + "\n")
        (FOLDER / "settings.json").write_text(json.dumps(self.settings, indent=1) + "\n")

    def ceilings(self):
        """Products: the fastest of all oneDNN versions at hand; so no stage is compared with a slow library."""
        threads = ["--threads", str(self.a.threads)]
        clock = ["--cpu-time", "1"] if self.a.cpu_time else []
        ours = run_json([f"{self.a.build}/bench/wan_bench_peak", *threads, *clock, "--seconds", "0.7"])
        all_of_them = [ours]
        if self.a.peer_python:
            all_of_them.append(run_json([self.a.peer_python, str(ROOT / "bench/peers/torch_stage.py"), "peak", *threads,
                                          *clock[:1]]))
        model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        self.data["machine"] = {"cpu": model[0] if model else platform.machine(), "threads": ours["threads"],
                                "clock": "processor time" if self.a.cpu_time else "time",
                                "date": datetime.date.today().isoformat()}
        self.data["ceilings"] = {"measured": all_of_them, "copy_bytes": ours["copy_bytes"]}
        for key in ("bf16_flops", "f32_flops"):
            self.data["ceilings"][key] = max(c[key] for c in all_of_them)

    def checkpoint(self, name):
        path = FOLDER / name
        if not (path / "done").exists():
            python = self.a.peer_python or sys.executable
            if subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode:
                sys.exit("the cut-down checkpoints are made with NumPy: install python3-numpy, or give an interpreter "
                         "that has it as PEER_PYTHON (--peer-python); `wan bench` needs neither")
            subprocess.run([python, str(ROOT / "tools/make_checkpoint.py"),
                            *CHECKPOINTS[name], "--dtype", "bf16", "--vae-dtype", "bf16", "--fast", str(path)],
                           check=True, stdout=subprocess.DEVNULL)
            (path / "done").touch()
        return path

    def common(self, precision, size, warm):
        clock = ["--cpu-time", "1"] if self.a.cpu_time else []
        return [*size, "--threads", str(self.data["machine"]["threads"]), *clock, "--warm", warm, "--stdin", "1"]

    def ours(self, kind, precision, size, warm):
        stage, name, file = KINDS[kind][:3]
        return [f"{self.a.build}/bench/wan_bench_stages", stage, "--model", str(self.checkpoint(name) / file),
                "--precision", precision, *self.common(precision, size, warm)]

    def torch(self, kind, precision, size, warm, setting):
        stage, dims = KINDS[kind][0], KINDS[kind][4]
        common = self.common(precision, size, warm)
        for switch in ("--stdin", "--cpu-time"):  # plain switches there
            if switch in common:
                del common[common.index(switch) + 1]
        return [self.a.peer_python, str(ROOT / "bench/peers/torch_stage.py"), stage, "--dims", json.dumps(dims),
                "--precision", precision, *common, *setting]

    def sdcpp(self, kind, precision, size, warm):
        """Flash attention and direct convolution are faster in every case tried, f16 than bf16."""
        stage, name, _, file = KINDS[kind][:4]
        kept = ["--type", "f16" if precision == "bf16" else "f32"] if stage in ("dit", "text") else []
        return [self.a.sdcpp, stage, "--model", str(self.checkpoint(name) / file), *kept, "--flash", "1",
                "--direct", "1", *self.common(precision, size, warm)]

    def setting(self, kind, precision):
        """PyTorch's fastest setting for this kind of stage, tried on a small case."""
        key = f"{kind}, {precision}"
        if key not in self.settings:
            tried = {}
            for setting in KINDS[kind][6]:
                name = " ".join(setting).replace("--", "") or "eager"
                try:
                    p = Measured(self.torch(kind, precision, KINDS[kind][5], "full", setting), 300)
                    tried[name] = min(p.run() for _ in range(3))
                    p.finish()
                except Failed as e:
                    tried[name] = str(e)
            good = {k: v for k, v in tried.items() if isinstance(v, float)}
            self.settings[key] = {"use": min(good, key=good.get) if good else "eager", "tried": tried}
            self.save()
        return self.settings[key]

    def floor(self, ours, precision):
        """Seconds: every kind of operation takes its products at the ceiling or its bytes at the copy rate,
        whichever is more. Pixels that are replicated before a convolution need 4 of 9 taps."""
        c, seconds = self.data["ceilings"], 0
        for name, (flops, moved) in ours["work"].items():
            needed = flops * (4 / 9 if name == "upsample_conv" else 1) if name in PRODUCTS else 0
            seconds += max(needed / c[precision + "_flops"], moved / c["copy_bytes"])
        return seconds

    def competitors(self, kind, precision, size, warm, with_sdcpp):
        yield "ours", self.ours(kind, precision, size, warm)
        if self.a.peer_python:
            use = self.setting(kind, precision)["use"]
            yield "torch", self.torch(kind, precision, size, warm, ["--" + use] if use != "eager" else [])
        if self.a.sdcpp and with_sdcpp:
            yield "sdcpp", self.sdcpp(kind, precision, size, warm)

    def measure(self, name, kind, size, runs, with_sdcpp, precision):
        row, processes, seconds = {"name": name, "precision": precision}, {}, {}
        known = [r for r in self.data["rows"] if r["name"] == name and r.get("floor")]
        long = (precision == "f32" or any(r["floor"] > WARM_FIRST / 2 for r in known) or runs == 1)
        warm = "first" if long and "latent" in size[0] or runs == 1 else "full"
        for who, command in self.competitors(kind, precision, size, warm, with_sdcpp):
            try:
                processes[who] = Measured(command, self.a.limit)
            except Failed as e:
                row[who] = {"error": str(e)}
        for turn in range(self.a.runs or runs):
            for who, p in list(processes.items()):
                if who == "sdcpp" and turn > 1:  # many times slower: two runs have to do
                    continue
                try:
                    seconds.setdefault(who, []).append(p.run())
                except Failed as e:
                    row[who] = {"error": str(e)}
                    del processes[who]
        for who, p in processes.items():
            row[who] = p.finish() | {"seconds": statistics.median(seconds[who]), "all": seconds[who]}
        if "seconds" in row.get("ours", {}):
            row["floor"] = self.floor(row["ours"], precision)
        if KINDS[kind][0] in ("dit", "text") and "floor" in row:
            try:  # the same with weights loaded for their use only, as under a memory limit
                row["streamed"] = run_json([*self.ours(kind, precision, size, warm)[:-2], "--keep", "0", "--runs", "1"])
            except Failed as e:
                row["streamed"] = {"error": str(e)}
        if "torch" in row:
            row["torch"]["setting"] = self.settings[f"{kind}, {precision}"]["use"]
        return row

    def keep(self, row):
        rows = {(r["name"], r["precision"]): r for r in self.data["rows"]}
        rows[row["name"], row["precision"]] = row
        order = {name: i for i, (name, *_) in enumerate(STAGES)}
        self.data["rows"] = sorted(rows.values(), key=lambda r: (r["precision"], order.get(r["name"], 99)))
        self.save()

    def run(self):
        self.ceilings()
        print(heading(self.data), flush=True)
        for precision in self.a.precision:
            for name, kind, size, runs, with_sdcpp in STAGES:
                if self.a.only and not any(s in name for s in self.a.only):
                    continue
                if time.monotonic() > self.deadline:
                    print(f"| {name}, {precision}: not run, the time budget is spent |")
                    continue
                row = self.measure(name, kind, size, runs, with_sdcpp, precision)
                self.keep(row)
                print(line(row), flush=True)


# ---- The table ----

HEAD = ["stage", "ours, s", "floor, s", "share", "GiB engine / OS", "streamed s, GiB OS", "PyTorch, s", "setting", "GiB", "time ratio",
        "memory ratio", "sd.cpp, s", "GiB", "time ratio"]


def heading(data):
    c, m = data["ceilings"], data["machine"]
    return (f"{m['cpu']}, {m['threads']} threads, {m['clock']}, {m['date']}: products {c['bf16_flops'] / 1e9:.0f} GFLOP/s in bf16, "
            f"{c['f32_flops'] / 1e9:.0f} in f32; copying {c['copy_bytes'] / 1e9:.1f} GB/s (read and written)\n\n"
            "| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))


def gib(result, key="rss_peak_bytes"):
    return f"{result[key] / 2**30:.2f}"


def line(row):
    ours = row["ours"]
    cells = [f"{row['name']}, {row['precision']}"]
    if "error" in ours:
        return "| " + " | ".join(cells + [ours["error"]]) + " |"
    cells += [f"{ours['seconds']:.3f}", f"{row['floor']:.3f}", f"{100 * row['floor'] / ours['seconds']:.0f}%",
              f"{gib(ours, 'engine_peak_bytes')} / {gib(ours)}"]
    streamed = row.get("streamed", {})
    cells.append(f"{streamed['seconds']:.3f}, {gib(streamed)}" if "seconds" in streamed else "")
    for who in ("torch", "sdcpp"):
        peer = row.get(who)
        if not peer or "error" in peer:
            cells += [(peer or {}).get("error", "")] + [""] * (4 if who == "torch" else 2)
            continue
        cells.append(f"{peer['seconds']:.3f}")
        cells += [peer["setting"]] if who == "torch" else []
        cells += [gib(peer), f"{peer['seconds'] / ours['seconds']:.2f}"]
        cells += [f"{ours['rss_peak_bytes'] / peer['rss_peak_bytes']:.2f}"] if who == "torch" else []
    return "| " + " | ".join(cells) + " |"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=str(ROOT / "build/release"))
    p.add_argument("--peer-python", default="", help="interpreter with bench/peers/requirements.txt")
    p.add_argument("--sdcpp", default="", help="program made by bench/peers/sdcpp.sh")
    p.add_argument("--precision", nargs="+", default=["bf16"], choices=["bf16", "f32"])
    p.add_argument("--only", nargs="+", default=[], help="stages whose name holds one of these texts")
    p.add_argument("--budget", type=float, default=1e9, help="seconds after which no further stage is begun")
    p.add_argument("--limit", type=float, default=1800, help="seconds after which a single run is given up")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--runs", type=int, default=0)
    p.add_argument("--cpu-time", action="store_true", help="processor time: for a busy machine, with --threads 1")
    p.add_argument("--out", default=str(ROOT / "build/bench.json"))
    p.add_argument("--table", action="store_true", help="print the table of the figures there are, measure nothing")
    a = p.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    bench = Bench(a)
    if not a.table:
        bench.run()
        if not a.peer_python:
            print("\nPyTorch's figures: python3 -m venv .venv-peers && .venv-peers/bin/pip install -r "
                  "bench/peers/requirements.txt, then make bench PEER_PYTHON=.venv-peers/bin/python")
        if not a.sdcpp:
            print("stable-diffusion.cpp's: make bench SDCPP=$(bench/peers/sdcpp.sh)")
    elif bench.data["rows"]:
        print("\n".join([heading(bench.data), *(line(r) for r in bench.data["rows"])]))


if __name__ == "__main__":
    main()
