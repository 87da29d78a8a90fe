"""What both training scripts share: the data on the device, the clock, one captured training step."""
import math
import time

import torch

import dataset as D


class World:
    """Renders batches of clips on a device."""

    def __init__(self, device):
        self.device = device
        self.tables = D.tables(torch, lambda v: torch.tensor(v, dtype=torch.float32, device=device))
        self.train = torch.tensor([c for c in D.combinations() if not D.held_out(c)], device=device)

    def render(self, labels, uniform, free_colour=0.0):
        """[B,T,H,W,3] in [-1,1]; a share of the clips gets colours from outside the palettes."""
        s = D.scene(torch, labels, uniform, self.tables)
        if free_colour:
            odd = (torch.rand(len(labels), 1, device=self.device) < free_colour).float()
            s["fg"] = s["fg"] * (1 - odd) + torch.rand_like(s["fg"]) * odd
            s["bg"] = s["bg"] * (1 - odd) + torch.rand_like(s["bg"]) * odd
        return D.render(torch, s, self.tables) * 2 - 1

    def batch(self, n, free_colour=0.0, favour=1.0):
        """n training clips and their rows in `train`; stars, and what spins, come `favour` times as often."""
        if favour == 1.0:
            pick = torch.randint(len(self.train), (n,), device=self.device)
        else:
            weight = torch.ones(len(self.train), device=self.device)
            weight[self.train[:, 2] == D.SHAPES.index("star")] *= favour
            weight[self.train[:, 3] == D.SPIN] *= favour
            pick = torch.multinomial(weight, n, replacement=True)
        uniform = torch.rand(n, D.UNIFORMS, device=self.device)
        return self.render(self.train[pick], uniform, free_colour), pick


class Trainer:
    """AdamW, gradient clipping and a running average of the weights, replayed as one CUDA graph.

    The learning rate follows the clock: a short warm-up, then a cosine down to zero at `seconds`.
    """

    def __init__(self, params, loss, lr, seconds, device, decay=0.998, weight_decay=0.0, betas=(0.9, 0.95), clip=1.0):
        self.params, self.loss, self.peak, self.seconds, self.clip = list(params), loss, lr, seconds, clip
        self.device, self.decay = device, decay
        cuda = device.type == "cuda"
        self.lr = torch.tensor(0.0, device=device)
        self.opt = torch.optim.AdamW(self.params, lr=self.lr, betas=betas, weight_decay=weight_decay,
                                     capturable=cuda, **({"fused": True} if cuda else {"foreach": False}))
        self.average = [p.detach().clone() for p in self.params]
        self.out = None

    def _once(self):
        self.opt.zero_grad(set_to_none=True)
        out = self.loss()
        out[0].backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        self.opt.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1 - self.decay)
        return torch.stack([v.detach().float() for v in out])

    def prepare(self):
        """Warm up (compiles, picks algorithms) and capture; falls back to plain steps."""
        if self.device.type != "cuda":
            self.step = self._once
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(4):
                self._once()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            self.opt.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                self.out = self._once()
            self.graph = graph
            self.step = self._replay
        except Exception as error:  # a slower run is better than none
            print("no graph capture:", repr(error)[:400], flush=True)
            torch.cuda.synchronize()
            self.step = self._once

    def _replay(self):
        self.graph.replay()
        return self.out

    def run(self, name, every=500, steps=None):
        t0, n, total = time.time(), 0, 0
        while True:
            done = n / steps if steps else (time.time() - t0) / self.seconds
            if done >= 1:
                break
            self.lr.fill_(self.peak * min(1.0, (n + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * done)))
            out = self.step()
            total = total + out
            n += 1
            if n % 10 == 0 and self.device.type == "cuda":
                torch.cuda.synchronize()  # keep the clock honest
            if n % every == 0 or (steps and n == steps):
                mean = [round(v, 5) for v in (total / every).tolist()]
                print(f"{name} step {n} at {time.time() - t0:.0f} s: {mean}", flush=True)
                total = 0
        print(f"{name}: {n} steps in {time.time() - t0:.1f} s", flush=True)
        for p, a in zip(self.params, self.average):
            p.data.copy_(a)
        return n


def choose_convolution(device, batch):
    """Time both forms of the 3x3x3 convolution and keep the faster."""
    import layers
    if device.type != "cuda":
        return
    took = {}
    for flat in (False, True):
        layers.CONV_AS_2D = flat
        total = 0.0
        for c, t, s in ((24, 17, 64), (48, 17, 32), (96, 9, 16)):
            conv = torch.nn.Conv3d(c, c, 3).to(device)
            x = torch.randn(batch, t, s, s, c, device=device, dtype=torch.bfloat16, requires_grad=True)
            for i in range(6):
                if i == 2:
                    torch.cuda.synchronize()
                    t0 = time.time()
                with torch.autocast("cuda", torch.bfloat16):
                    layers.causal_conv(x, conv).float().square().mean().backward()
            torch.cuda.synchronize()
            total += (time.time() - t0) / 4
        took[flat] = total
    layers.CONV_AS_2D = took[True] < took[False]
    print(f"convolution: 3-D {took[False] * 1e3:.2f} ms, 2-D {took[True] * 1e3:.2f} ms", flush=True)
