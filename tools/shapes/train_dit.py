"""Train the demo model's DiT and text encoder together: python3 train_dit.py --model DIR --seconds 330

DIR holds the VAE and the tokenizer; the DiT, its config.json and the text encoder are written there.
Flow matching on latents encoded once. A share of the clips is given with a clean first latent frame
(picture mode); a share of the captions is replaced by the empty prompt or by the default negative
prompt, so that guidance works with either.
"""
import argparse
import multiprocessing
import os
import time

import torch

import common
import dataset as D
import layers
import model
import sample


def encode_bank(world, vae, clips, batch=128, favour=1.0):
    """Normalised latents [N,z,t,h,w] in half precision, and each clip's row among the training combinations."""
    mean, inv = model.statistics(world.device)
    z, rows = [], []
    with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=world.device.type == "cuda"):
        for _ in range(clips // batch):
            video, pick = world.batch(batch, favour=favour)
            video = (video + 1).mul(127.5).round().div(127.5) - 1  # as a picture file would hold it
            z.append(((layers.vae_encode(vae, video)[0].float() - mean) * inv).permute(0, 4, 1, 2, 3).half())
            rows.append(pick)
    return torch.cat(z), torch.cat(rows)


def caption_table(world, tok, phrasings):
    """Token ids [combination, phrasing, TEXT_ROWS] of the training captions."""
    rows = [[model.encode_text(tok, D.caption(tuple(c), v), sample.TEXT_ROWS) for v in range(phrasings)]
            for c in world.train.tolist()]
    return torch.tensor(rows, dtype=torch.long, device=world.device)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--seconds", type=float, default=330)
    p.add_argument("--steps", type=int)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--clips", type=int, default=65536)
    p.add_argument("--phrasings", type=int, default=64)
    p.add_argument("--shift", type=float, default=3.0, help="how far training favours high noise")
    p.add_argument("--picture", type=float, default=0.4, help="share of clips with a clean first frame")
    p.add_argument("--drop", type=float, default=0.1, help="share of captions replaced by a null prompt")
    p.add_argument("--calibrate", type=float, metavar="G",
                   help="second stage: make the default guidance act as plain guidance G would")
    p.add_argument("--favour", type=float, default=1.0, help="weight of stars, and of spinning, among the clips")
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--resume", action="store_true", help="go on from the DiT and text encoder in DIR")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--save-latents", help="file for the evaluation's latents")
    p.add_argument("--cases", type=int, default=len(sample.CASES), help="how many of the evaluation's cases to run")
    args = p.parse_args()
    pool = multiprocessing.get_context("fork").Pool(min(14, os.cpu_count()))  # judges; before CUDA starts
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    t0 = time.time()
    world = common.World(device)
    tok = model.load_tokenizer(args.model)
    vae = model.load_vae(args.model, tiny=args.tiny).to(device).eval().requires_grad_(False)
    bank, rows = encode_bank(world, vae, args.clips, min(128, args.clips), args.favour)
    flat = bank.float().permute(1, 0, 2, 3, 4).flatten(1)
    print(f"{len(bank)} clips encoded after {time.time() - t0:.0f} s; latent mean "
          f"{flat.mean(1).abs().max():.3f}, std {flat.std(1).min():.3f} to {flat.std(1).max():.3f}", flush=True)
    del flat
    table = caption_table(world, tok, args.phrasings)
    null = torch.tensor([model.encode_text(tok, t, sample.TEXT_ROWS) for t in ("", model.NEGATIVE)], device=device)
    print(f"captions ready after {time.time() - t0:.0f} s", flush=True)

    if args.resume:
        dit, text = model.load_dit(args.model, tiny=args.tiny), model.load_text(args.model, tiny=args.tiny)
    else:
        dit, text = model.make_dit(args.tiny), model.make_text(tok.get_piece_size(), args.tiny)
        text.encoder.embed_tokens.weight = text.shared.weight
    dit, text = dit.to(device).train(), text.to(device).train()
    rope = layers.rope_tables(dit, (bank.shape[2], bank.shape[3] // 2, bank.shape[4] // 2), device)
    buckets = layers._buckets(sample.TEXT_ROWS, device)
    b = args.batch

    # With guidance w, sampling follows null + w (cond - null). The second stage asks that
    # null + gain (cond - null) be the velocity, so that the default guidance amounts to only
    # sample.GUIDE / gain: enough to follow the caption, not enough to exaggerate the shape.
    gain = sample.GUIDE / args.calibrate if args.calibrate else 1.0

    def objective(clean, noise, sigma, picture, ids, null_ids, dropped):
        """sigma [B]; picture [B] is 1 where the first latent frame is given; dropped [B]: ids are a null prompt."""
        given = torch.zeros_like(clean[:, :1])
        given[:, :, 0] = picture[:, None, None, None]
        s = sigma[:, None, None, None, None] * (1 - given)
        x = (1 - s) * clean + s * noise
        times = torch.floor(1000 * torch.stack([sigma * (1 - picture), sigma], 1))

        def velocity(ids):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                context = layers.text_encode(text, ids, buckets)
                return layers.dit_forward(dit, x, times, context, rope, block).float()

        v = velocity(ids)
        if gain != 1.0:
            with torch.no_grad():
                base = velocity(null_ids)
            v = base + torch.where(dropped, 1.0, gain)[:, None, None, None, None] * (v - base)
        err = (v - (noise - clean)).square() * (1 - given)
        return err.mean() / (1 - given).mean(), (err[:, :, 1:].mean((1, 2, 3, 4)) * picture).sum() / picture.sum()

    block = torch.compile(layers.dit_block) if device.type == "cuda" else layers.dit_block

    def loss():
        pick = torch.randint(len(bank), (b,), device=device)
        clean = bank[pick].float()
        ids = table[rows[pick], torch.randint(args.phrasings, (b,), device=device)]
        drop = torch.rand(b, device=device)
        nulls = null[(torch.rand(b, device=device) < 0.6).long()]  # the default negative prompt a little more often
        ids = torch.where((drop < args.drop)[:, None], nulls, ids)
        u = torch.rand(b, device=device)
        sigma = args.shift * u / (1 + (args.shift - 1) * u)
        picture = (torch.arange(b, device=device) < round(args.picture * b)).float()
        return objective(clean, torch.randn_like(clean), sigma, picture, ids, nulls, drop < args.drop)

    params = list(dit.parameters()) + [q for n, q in text.named_parameters()]
    trainer = common.Trainer(params, loss, args.lr, args.seconds, device, decay=0.999, weight_decay=0.01,
                             betas=(0.9, 0.98))
    trainer.prepare()
    print(f"prepared after {time.time() - t0:.0f} s", flush=True)
    trainer.run("dit", every=1000 if device.type == "cuda" else 5, steps=args.steps)
    model.save_dit(args.model, dit)
    model.save_text(args.model, text)
    print(f"saved after {time.time() - t0:.0f} s", flush=True)
    if not args.cases:
        return

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    del bank
    sampler = sample.Sampler(args.model, device, tiny=args.tiny)
    path = os.path.join(sample.HERE, "..", "..", "tests", "e2e", "captions.json")
    captions = sample.judge.load_captions(path)
    cases = sample.CASES[:args.cases]
    if device.type != "cuda":
        captions, cases = captions[:2], [("text", False, dict(steps=2)), ("picture", True, dict(steps=2))]
    found = sample.evaluate(sampler, pool, captions, cases)
    if args.save_latents:
        torch.save({k: v[1].half().cpu() for k, v in list(found.items())[:4]}, args.save_latents)
    print(f"evaluated after {time.time() - t0:.0f} s", flush=True)


if __name__ == "__main__":
    main()
