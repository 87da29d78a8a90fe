"""Sampling as the official TI2V pipeline does it: UniPC, classifier-free guidance, clean first frame.

    python3 sample.py --model models/shapes --prompt "a red circle moving right on a navy background" --out a.mp4
    python3 sample.py --model models/shapes --evaluate        the bars over tests/e2e/captions.json
"""
import argparse
import json
import math
import multiprocessing
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tests", "e2e"))
import judge  # noqa: E402

STEPS, SHIFT, GUIDE = 50, 5.0, 5.0
TEXT_ROWS = 64  # context rows computed; the rest of the 512 are zero and counted by weight


def unipc_sigmas(steps, shift):
    """(sigmas with a final 0, integer timesteps), in the operation order of the original."""
    top = float(np.float32(0.999))
    u = np.linspace(top, 0.0, steps + 1)[:-1]
    s = shift * u / (1 + (shift - 1) * u)
    return np.append(s, 0.0).astype(np.float32).astype(np.float64), np.trunc(1000 * s).astype(np.int64)


class UniPC:
    """Order 2, B(h) = expm1, corrector always on, first order at both ends. Works on anything with arithmetic."""

    def __init__(self, steps, shift):
        self.sigma, self.times = unipc_sigmas(steps, shift)
        self.k, self.m0, self.m1, self.last, self.p = 0, None, None, None, 1

    def _lam(self, i):
        s = self.sigma[i]
        return math.inf if s == 0 else math.log(1 - s) - math.log(s)

    def step(self, x, v):
        k, s, n = self.k, self.sigma, len(self.times)
        clean = x - float(s[k]) * v
        if k:
            h = self._lam(k) - self._lam(k - 1)
            e = math.expm1(-h)
            alpha = 1 - s[k]
            base = float(s[k] / s[k - 1]) * self.last - float(alpha * e) * self.m0
            if self.p == 1:
                x = base - float(alpha * e * 0.5) * (clean - self.m0)
            else:
                r = (self._lam(k - 2) - self._lam(k - 1)) / h
                g = e / -h - 1
                b1, b2 = g / e, 2 * (g / -h - 0.5) / e
                c1 = (b1 - b2) / (1 - r)
                x = base - float(alpha * e) * (c1 * ((self.m1 - self.m0) / r) + (b1 - c1) * (clean - self.m0))
        self.m1, self.m0, self.last = self.m0, clean, x
        self.p = min(2, n - k, k + 1)
        self.k += 1
        if s[k + 1] == 0:
            return clean
        h = self._lam(k + 1) - self._lam(k)
        e = math.expm1(-h)
        alpha = 1 - s[k + 1]
        out = float(s[k + 1] / s[k]) * x - float(alpha * e) * clean
        if self.p == 2:
            r = (self._lam(k - 1) - self._lam(k)) / h
            out = out - float(alpha * e * 0.5) * ((self.m1 - clean) / r)
        return out


class Sampler:
    """The checkpoint in a folder, on a device, in fp32."""

    def __init__(self, folder, device, tiny=False):
        import torch
        import layers
        import model
        self.torch, self.layers, self.model = torch, layers, model
        self.device = torch.device(device)
        self.vae = model.load_vae(folder, tiny=tiny).to(device).eval()
        self.dit = model.load_dit(folder, tiny=tiny).to(device).eval()
        self.text = model.load_text(folder, tiny=tiny).to(device).eval()
        self.tok = model.load_tokenizer(folder)
        self.mean, self.inv = model.statistics(self.device)
        self.buckets = layers._buckets(TEXT_ROWS, self.device)

    def context(self, prompts):
        ids = [self.model.encode_text(self.tok, p, TEXT_ROWS) for p in prompts]
        return self.layers.text_encode(self.text, self.torch.tensor(ids, device=self.device), self.buckets)

    def encode(self, pictures):
        """uint8 [B,H,W,3] to the normalised latent of one frame, [B,z,1,h,w]."""
        v = self.torch.tensor(np.asarray(pictures), device=self.device).float()[:, None] / 127.5 - 1
        return ((self.layers.vae_encode(self.vae, v)[0] - self.mean) * self.inv).permute(0, 4, 1, 2, 3)

    def decode(self, latents, batch=32):
        """Latents to uint8 clips [B,T,H,W,3]."""
        out = []
        for z in latents.split(batch):
            y = self.layers.vae_decode(self.vae, z.permute(0, 2, 3, 4, 1) / self.inv + self.mean)
            out.append(((y.clamp(-1, 1) + 1) / 2 * 255).to(self.torch.uint8).cpu().numpy())
        return np.concatenate(out)

    def generate(self, prompts, steps=STEPS, guide=GUIDE, shift=SHIFT, first=None, negative=None, seed=0,
                 frames=17, height=128, width=128):
        torch = self.torch
        b, t, h, w = len(prompts), (frames - 1) // 4 + 1, height // 16, width // 16
        gen = torch.Generator("cpu").manual_seed(seed)
        x = torch.randn(b, self.model.Z_DIM, t, h, w, generator=gen).to(self.device)
        cond = self.context(prompts)
        null = self.context([self.model.NEGATIVE if negative is None else negative]).expand_as(cond)
        rope = self.layers.rope_tables(self.dit, (t, h // 2, w // 2), self.device)
        solver = UniPC(steps, shift)

        def clamp_first(x):
            return x if first is None else torch.cat([first, x[:, :, 1:]], 2)

        x = clamp_first(x)
        for step in solver.times:
            times = torch.tensor([[0.0 if first is not None else float(step), float(step)]], device=self.device)
            times = times.expand(b, 2)
            vc = self.layers.dit_forward(self.dit, x, times, cond, rope)
            vu = self.layers.dit_forward(self.dit, x, times, null, rope)
            x = clamp_first(solver.step(x, vu + guide * (vc - vu)))
        return x


def _verdict(job):
    return judge.verdict(*job)[0]


def bars(pool, clips, captions, pictures=None):
    results = pool.map(_verdict, [(c, judge.labels_of(e)) for c, e in zip(clips, captions)])
    out = {k: round(100 * sum(r[k] for r in results) / len(results), 1) for k in judge.ASPECTS + ("all",)}
    if pictures is not None:
        q = [judge.psnr(c[0], p) for c, p in zip(clips, pictures)]
        out["first frame dB"] = [round(sum(q) / len(q), 1), round(min(q), 1)]
    return out


def evaluate(sampler, pool, captions, cases, log=print):
    """Run the cases (name, picture mode, generate's options) and return {name: (bars, latents)}."""
    torch = sampler.torch
    prompts = [e["prompt"] for e in captions]
    pictures = [judge.truth_clip(judge.labels_of(e), int(e["id"]))[0] for e in captions]
    found = {}
    with torch.no_grad():
        first = sampler.encode(pictures)
        for name, picture, options in cases:
            z = sampler.generate(prompts, first=first if picture else None, **options)
            got = bars(pool, sampler.decode(z), captions, pictures if picture else None)
            log(f"{name}: {got}", flush=True)
            found[name] = (got, z)
    return found


CASES = [("text, 50 steps", False, {}), ("picture, 50 steps", True, {}),
         ("text, 20 steps", False, dict(steps=20)), ("picture, 20 steps", True, dict(steps=20)),
         ("text, 12 steps", False, dict(steps=12)), ("text, 8 steps", False, dict(steps=8)),
         ("picture, 8 steps", True, dict(steps=8)),
         ("text, 20 steps, guide 3", False, dict(steps=20, guide=3.0)),
         ("text, 20 steps, guide 1", False, dict(steps=20, guide=1.0)),
         ("picture, 20 steps, guide 1", True, dict(steps=20, guide=1.0)),
         ("text, 20 steps, negative ''", False, dict(steps=20, negative="")),
         ("text, 20 steps, another seed", False, dict(steps=20, seed=1))]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--prompt")
    p.add_argument("--image", help="picture mode: a 128x128 PNG")
    p.add_argument("--out", default="out.mp4")
    p.add_argument("--steps", type=int, default=STEPS)
    p.add_argument("--guide", type=float, default=GUIDE)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--evaluate", action="store_true")
    p.add_argument("--captions", default=os.path.join(HERE, "..", "..", "tests", "e2e", "captions.json"))
    args = p.parse_args()
    pool = multiprocessing.get_context("fork").Pool() if args.evaluate else None  # before CUDA starts
    import torch
    sampler = Sampler(args.model, "cuda" if torch.cuda.is_available() else "cpu")
    if args.evaluate:
        found = evaluate(sampler, pool, judge.load_captions(args.captions), CASES)
        print(json.dumps({k: v[0] for k, v in found.items()}, indent=1))
        return
    with torch.no_grad():
        first = sampler.encode([judge.read_picture(args.image)]) if args.image else None
        z = sampler.generate([args.prompt], args.steps, args.guide, first=first, seed=args.seed)
        judge.write_video(args.out, sampler.decode(z)[0])


if __name__ == "__main__":
    main()
