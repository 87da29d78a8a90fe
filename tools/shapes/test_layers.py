"""Hold the training forward passes to the library's own: python3 test_layers.py (CPU, seconds)."""
import tempfile

import torch

import layers
import model
import sample


def close(name, a, b, limit):
    err = ((a - b).norm() / b.norm()).item()
    print(f"{name}: relative error {err:.2e}")
    assert err < limit, name


@torch.no_grad()
def main():
    torch.manual_seed(0)
    vae = model.make_vae(tiny=True).double().eval()
    for p in vae.parameters():
        p.copy_(torch.randn_like(p) * (0.5 if p.ndim == 1 else 1.5 * p[0].numel() ** -0.5) + (p.ndim == 4 and p.shape[1] == 1))
    for frames in (1, 5, 17):
        video = torch.rand(2, frames, 64, 32, 3).double() * 2 - 1
        planar = video.permute(0, 4, 1, 2, 3).contiguous()
        want = vae.encode(planar).latent_dist
        z = want.mean
        clip = vae.decode(z).sample
        for flat in (False, True):
            layers.CONV_AS_2D = flat
            mean, logvar = layers.vae_encode(vae, video)
            close(f"encode {frames} frames, 2-D {flat}", mean.permute(0, 4, 1, 2, 3), z, 1e-5)
            close("  log variance", logvar.permute(0, 4, 1, 2, 3).clamp(-30, 20), want.logvar, 1e-5)
            got = layers.vae_decode(vae, z.permute(0, 2, 3, 4, 1))
            close(f"decode {frames} frames, 2-D {flat}", got.permute(0, 4, 1, 2, 3).clamp(-1, 1), clip, 1e-5)

    # Folding the statistics must normalise the latents and leave the decoded clip alone.
    vae = vae.float()
    z = layers.vae_encode(vae, video.float())[0]
    before = layers.vae_decode(vae, z)
    mu, sd = z.mean((0, 1, 2, 3)), z.std((0, 1, 2, 3))
    model.fold_statistics(vae, mu, sd)
    m, inv = model.statistics("cpu")
    norm = (layers.vae_encode(vae, video.float())[0] - m) * inv
    close("folded latents", norm, (z - mu) / sd, 1e-4)
    close("folded decode", layers.vae_decode(vae, norm / inv + m), before, 1e-4)

    text = model.make_text(50, tiny=True).eval()
    for p in text.parameters():
        p.copy_(torch.randn_like(p) * (1.0 if p.ndim == 1 else p.shape[1] ** -0.5))
    ids = torch.zeros(3, 24, dtype=torch.long)
    for row, n in enumerate((1, 9, 23)):
        ids[row, :n] = torch.randint(4, 50, (n,))
        ids[row, n - 1] = 1
    got = layers.text_encode(text, ids, layers._buckets(24, "cpu"))
    want = text(ids, attention_mask=(ids > 0).long()).last_hidden_state * (ids > 0)[..., None]
    close("text encoder", got, want, 1e-5)

    dit = model.make_dit(tiny=True).eval()
    for p in dit.parameters():
        p.copy_(torch.randn_like(p) * (0.3 if p.ndim == 1 else p[0].numel() ** -0.5) + (p.ndim == 1) * 0.5)
    x = torch.randn(3, model.Z_DIM, 5, 8, 8)
    times = torch.tensor([[0.0, 700.0], [999.0, 999.0], [0.0, 13.0]])
    context = torch.nn.functional.pad(got, (0, 0, 0, 8))
    token_times = torch.cat([times[:, :1].expand(-1, 16), times[:, 1:].expand(-1, 64)], 1)
    want = dit(hidden_states=x, timestep=token_times, return_dict=False,
               encoder_hidden_states=torch.nn.functional.pad(got, (0, 0, 0, 512 - 24)))[0]
    close("dit", layers.dit_forward(dit, x, times, context, layers.rope_tables(dit, (5, 4, 4), "cpu")), want, 1e-5)

    # The solver, on the scalar model v = 0.7 x - 0.3 + 0.0005 t, against values worked out by hand.
    for steps, shift, want in ((4, 5.0, 0.5086577528), (10, 5.0, 0.6329497483), (10, 12.0, 0.5429546078)):
        solver, y = sample.UniPC(steps, shift), 1.25
        for t in solver.times:
            y = solver.step(y, 0.7 * y - 0.3 + 0.0005 * t)
        assert abs(y - want) < 1e-9, (steps, shift, y)

    with tempfile.TemporaryDirectory() as d:
        model.save_vae(d, vae)
        model.save_text(d, text)
        model.save_dit(d, dit)
        close("vae file", model.load_vae(d, tiny=True).decoder.conv_in.weight, vae.decoder.conv_in.weight, 1e-3)
        close("text file", model.load_text(d, tiny=True).shared.weight, text.shared.weight, 1e-2)
        close("dit file", model.load_dit(d, tiny=True).proj_out.weight, dit.proj_out.weight, 1e-2)
        names = torch.load(d + "/" + model.VAE_FILE)
        print(len(names), "VAE tensors,", len(model.official(dit.state_dict(), model.rename_dit)), "DiT tensors")
        assert len(names) == 196
    for name, make in (("vae", model.make_vae), ("dit", model.make_dit), ("text", lambda: model.make_text(1200))):
        print(name, "parameters", model.parameters(make()))
    print("all equal")


if __name__ == "__main__":
    main()
