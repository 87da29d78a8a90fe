#!/usr/bin/env python3
"""One stage of Wan in diffusers/transformers on PyTorch, timed as ours are, as a line of JSON.

torch_stage.py STAGE --dims JSON [--device cpu|cuda] [--precision bf16|f32] [--threads N] [--runs N] [--compile]
               [--channels-last] [--cudnn] [--latent T,h,w | --video F,H,W | --tokens N] [--warm first] [--stdin]
torch_stage.py peak

Weights are random; --dims holds the constructor arguments of the module. Peak memory is the process's on the CPU,
PyTorch's own account on a device. measure() is the same for other scripts. --warm and --stdin are as in
bench/bench_stages.c. peak: FLOP/s of a large product, by PyTorch's own oneDNN."""
import argparse
import gc
import json
import resource
import statistics
import sys
import time

import torch


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("stage", choices=["dit", "vae-decode", "vae-encode", "text", "peak"])
    p.add_argument("--dims", type=json.loads, default={})
    p.add_argument("--device", default="cpu")
    p.add_argument("--precision", default="bf16", choices=["bf16", "f32"])
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--channels-last", action="store_true")
    p.add_argument("--cudnn", action="store_true", help="cuDNN's attention instead of PyTorch's choice")
    for name in ("latent", "video"):
        p.add_argument("--" + name, type=lambda s: tuple(map(int, s.split(","))))
    p.add_argument("--tokens", type=int, default=512)
    p.add_argument("--warm", choices=["full", "first"], default="full")
    p.add_argument("--stdin", action="store_true")
    p.add_argument("--cpu-time", action="store_true", help="processor time instead of time: see bench_stages.c")
    return p.parse_args(argv)


def build(cls, a, dtype, **kw):
    torch.set_default_dtype(dtype)
    with torch.device(a.device):
        module = cls(**kw)
    torch.set_default_dtype(torch.float32)
    return module.eval().requires_grad_(False)


def dit(a, dtype):
    from diffusers import WanTransformer3DModel

    m = build(WanTransformer3DModel, a, dtype, **a.dims)
    if a.cudnn:
        m.set_attention_backend("_native_cudnn")
    if a.compile:
        m.compile_repeated_blocks(fullgraph=True)
    T, h, w = a.latent
    channels = a.dims["in_channels"]
    x = torch.randn(1, channels, T, h, w, device=a.device, dtype=dtype)
    text = torch.randn(1, 512, a.dims["text_dim"], device=a.device, dtype=dtype)
    # the 5B pipeline gives every token a time of its own; beside few layers that would be most of the work
    own_times = channels == 48 and a.dims["num_layers"] > 2
    t = torch.full((1, T * (h // 2) * (w // 2)) if own_times else (1,), 500.0, device=a.device)
    return lambda n: m(hidden_states=x[:, :, :n], timestep=t, encoder_hidden_states=text, return_dict=False)


def vae(a, dtype):
    from diffusers import AutoencoderKLWan

    m = build(AutoencoderKLWan, a, dtype, **a.dims)
    decode = a.stage == "vae-decode"
    if a.compile:
        part = "decoder" if decode else "encoder"
        setattr(m, part, torch.compile(getattr(m, part)))
    F, H, W = a.latent if decode else a.video
    if decode:
        x = torch.randn(1, a.dims["z_dim"], F, H, W, device=a.device, dtype=dtype)
    else:
        x = torch.rand(1, 3, F, H, W, device=a.device, dtype=dtype) * 2 - 1
    if a.channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        for p in m.parameters():
            if p.ndim == 5:
                p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
    run = m.decode if decode else m.encode
    return lambda n: run(x[:, :, :n])


def text(a, dtype):
    from transformers import UMT5Config, UMT5EncoderModel

    m = build(UMT5EncoderModel, a, dtype, config=UMT5Config(**a.dims))
    if a.compile:
        m = torch.compile(m)
    ids = torch.randint(0, a.dims["vocab_size"] - 1, (1, a.tokens), device=a.device)
    mask = torch.ones_like(ids)
    return lambda n: m(ids, attention_mask=mask)


def turns(a):
    """The runs: one for each line of input, or as many as asked for."""
    if not a.stdin:
        yield from range(a.runs)
        return
    print("ready", flush=True)
    for i, _ in enumerate(sys.stdin):
        yield i


def measure(a):
    """One setting: builds the module, runs it, frees it."""
    dtype = torch.bfloat16 if a.precision == "bf16" else torch.float32
    cuda = a.device == "cuda"
    torch.manual_seed(0)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    if a.compile:
        torch._dynamo.reset()  # shapes seen before would be compiled as variable, and slower
    body = {"dit": dit, "vae-decode": vae, "vae-encode": vae, "text": text}[a.stage](a, dtype)
    frames, seconds = (a.latent or a.video or (1,))[0], []

    clock = time.process_time if a.cpu_time else time.perf_counter

    def run(n):
        t0 = clock()
        body(n)
        if cuda:
            torch.cuda.synchronize()
        return clock() - t0

    with torch.no_grad():
        if a.compile:
            run(frames)
        run(1 if a.warm == "first" and not a.compile else frames)
        for _ in turns(a):
            seconds.append(run(frames))
            if a.stdin:
                print(f"{seconds[-1]:.6f}", flush=True)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del body
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return {"stage": a.stage, "backend": "torch " + torch.__version__, "precision": a.precision,
            "threads": torch.get_num_threads(), "seconds": statistics.median(seconds), "min": min(seconds),
            "max": max(seconds), "runs": len(seconds), "rss_peak_bytes": peak, "compile": a.compile,
            "channels_last": a.channels_last, "cudnn": a.cudnn}


def ceiling(a):
    """The best median FLOP/s of square products."""
    best, clock = {}, time.process_time if a.cpu_time else time.perf_counter
    for name, dtype, sizes in (("bf16", torch.bfloat16, (2048, 4096)), ("f32", torch.float32, (2048,))):
        for n in sizes:
            x, y, seconds = torch.rand(n, n, dtype=dtype), torch.rand(n, n, dtype=dtype), []
            for _ in range(6):
                t0 = clock()
                torch.mm(x, y)
                seconds.append(clock() - t0)
            best[name] = max(best.get(name, 0), 2 * n**3 / statistics.median(seconds[1:]))
    return {"library": "torch " + torch.__version__, "threads": torch.get_num_threads(),
            "bf16_flops": best["bf16"], "f32_flops": best["f32"]}


def main():
    a = parse()
    if a.threads:
        torch.set_num_threads(a.threads)
    print(json.dumps(ceiling(a) if a.stage == "peak" else measure(a)))


if __name__ == "__main__":
    main()
