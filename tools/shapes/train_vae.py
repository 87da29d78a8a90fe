"""Train the demo model's VAE: python3 train_vae.py --out DIR --seconds 280

Whole clips (layers.py), bf16 autocast, one CUDA graph a step. Ends by folding the latents' own
statistics into the 1x1x1 convolutions and writing DIR/Wan2.2_VAE.pth (fp16).
"""
import argparse
import math
import os
import time

import torch

import common
import dataset as D
import layers
import model


def psnr(mse):
    """From a mean square error in [-1,1] units."""
    return -10 * math.log10(mse / 4)


@torch.no_grad()
def evaluate(vae, world, clips=128, batch=16):
    """PSNR of held-out clips after a round trip in fp32, per clip; and the first frames alone."""
    held = torch.tensor([c for c in D.combinations() if D.held_out(c)], device=world.device)
    gen = torch.Generator(device="cpu").manual_seed(5)
    errs, firsts = [], []
    for i in range(0, clips, batch):
        n = min(batch, clips - i)
        labels = held[torch.randint(len(held), (n,), generator=gen).to(world.device)]
        v = world.render(labels, torch.rand(n, D.UNIFORMS, generator=gen).to(world.device))
        y = layers.vae_decode(vae, layers.vae_encode(vae, v)[0]).clamp(-1, 1)
        f = layers.vae_decode(vae, layers.vae_encode(vae, v[:, :1])[0]).clamp(-1, 1)
        errs += (y - v).square().mean((1, 2, 3, 4)).tolist()
        firsts += (f - v[:, :1]).square().mean((1, 2, 3, 4)).tolist()
    return {"psnr": psnr(sum(errs) / len(errs)), "mean of clips": sum(map(psnr, errs)) / len(errs),
            "worst clip": psnr(max(errs)), "first frame": psnr(sum(firsts) / len(firsts)),
            "worst first frame": psnr(max(firsts))}


@torch.no_grad()
def latent_statistics(vae, world, clips=2048, batch=32):
    s = q = n = 0
    for _ in range(clips // batch):
        z = layers.vae_encode(vae, world.batch(batch)[0])[0].double().flatten(0, 3)
        s, q, n = s + z.sum(0), q + z.square().sum(0), n + len(z)
    mean = s / n
    return mean, (q / n - mean.square()).sqrt()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--seconds", type=float, default=280)
    p.add_argument("--steps", type=int, help="stop after so many steps instead")
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--kl", type=float, default=5e-5)
    p.add_argument("--tiny", action="store_true", help="miniature widths, for a machine without a GPU")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--resume", help="folder with a VAE to go on from")
    args = p.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    world = common.World(device)
    vae = (model.load_vae(args.resume, tiny=args.tiny) if args.resume else model.make_vae(args.tiny)).to(device)
    common.choose_convolution(device, args.batch)

    def objective(video, noise):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            mean, logvar = layers.vae_encode(vae, video)
            mean, logvar = mean.float(), logvar.float().clamp(-14, 4)
            y = layers.vae_decode(vae, mean + noise * torch.exp(0.5 * logvar)).float()
        d = y - video
        l1, mse = d.abs().mean(), d.square().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return l1 + 4 * mse + args.kl * kl, l1, mse, kl

    if device.type == "cuda" and not args.no_compile:
        objective = torch.compile(objective)
    latent = (args.batch, (D.FRAMES - 1) // 4 + 1, D.SIZE // 16, D.SIZE // 16, model.Z_DIM)

    def loss():
        video, _ = world.batch(args.batch, free_colour=0.15)
        return objective(video, torch.randn(latent, device=device))

    t0 = time.time()
    trainer = common.Trainer(vae.parameters(), loss, args.lr, args.seconds, device)
    trainer.prepare()
    print(f"prepared in {time.time() - t0:.0f} s", flush=True)
    trainer.run("vae", every=500 if device.type == "cuda" else 5, steps=args.steps)

    vae.float().eval()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    clips = 128 if device.type == "cuda" else 2
    print("round trip:", {k: round(v, 2) for k, v in evaluate(vae, world, clips, min(16, clips)).items()}, flush=True)
    mean, std = latent_statistics(vae, world, *((2048, 32) if device.type == "cuda" else (2, 2)))
    print("latent std:", [round(v, 3) for v in std.tolist()], flush=True)
    # A channel that carries next to nothing stays small instead of being blown up to unit variance.
    std = std.clamp_min(0.1 * std.max().item())
    model.fold_statistics(vae, mean, std)
    model.save_vae(args.out, vae)
    vae = model.load_vae(args.out, tiny=args.tiny).to(device).eval()
    print("as saved:", {k: round(v, 2) for k, v in evaluate(vae, world, clips, min(16, clips)).items()})
    print(os.path.getsize(os.path.join(args.out, model.VAE_FILE)), "bytes")


if __name__ == "__main__":
    main()
