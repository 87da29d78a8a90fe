#!/usr/bin/env python3
"""Write the official tensor names beside the diffusers / transformers ones: `official other`.

Both models are built on the meta device; the renaming rules of tools/fixtures/load.py must map one
state dict onto the other exactly, names and shapes.  With --check the files are compared instead.
"""
import os
import sys

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

import official_names as names

sys.path.insert(0, os.path.join(names.ROOT, "tools", "fixtures"))
import load  # noqa: E402


def dit(heads, ffn, layers, channels_in, channels_out):
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=128,
        in_channels=channels_in, out_channels=channels_out, text_dim=4096, freq_dim=256,
        ffn_dim=ffn, num_layers=layers, cross_attn_norm=True, qk_norm="rms_norm_across_heads")


def vae22():
    return AutoencoderKLWan(
        base_dim=160, decoder_base_dim=256, z_dim=48, temperal_downsample=[False, True, True],
        is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        latents_mean=[0.0] * 48, latents_std=[1.0] * 48)


def umt5():
    return UMT5EncoderModel(UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu"))


MODELS = {
    "wan2.2-ti2v-5B": (lambda: dit(24, 14336, 30, 48, 48), lambda n: load.rename(n, load.DIT_RULES)),
    "wan2.2-t2v-A14B": (lambda: dit(40, 13824, 40, 16, 16), lambda n: load.rename(n, load.DIT_RULES)),
    "umt5-xxl-encoder": (umt5, lambda n: load.rename(n, load.T5_RULES)),
    "wan2.1-vae": (AutoencoderKLWan, lambda n: load.vae_name(n, False)),
    "wan2.2-vae": (vae22, lambda n: load.vae_name(n, True)),
}


def main():
    check = "--check" in sys.argv[1:]
    folder = os.path.join(names.ROOT, "models", "names", "diffusers")
    os.makedirs(folder, exist_ok=True)
    for name, (build, rename) in MODELS.items():
        ours = {rename(k): (k, s) for k, s in names.tensors(names.MODELS[name][0])}
        theirs = dict(names.tensors(build))
        theirs.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
        assert {k: s for k, (_, s) in ours.items()} == theirs, name
        text = "".join(f"{k} {other}\n" for other, (k, _) in ours.items())
        path = f"{folder}/{name}.txt"
        if check:
            with open(path) as f:
                assert f.read() == text, path
        else:
            with open(path, "w") as f:
                f.write(text)
        print(f"{name}: {len(ours)} pairs")


if __name__ == "__main__":
    main()
