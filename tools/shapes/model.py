"""What the demo model is made of: library modules in miniature, official names on disk.

The modules are those of diffusers (AutoencoderKLWan, WanTransformer3DModel) and transformers
(UMT5EncoderModel). On disk they carry the names of the original Wan2.2 checkpoint; `rename_*` below
translate both ways.
"""
import json
import os
import re
import sys

try:
    import importlib_metadata  # noqa: F401  (diffusers asks for the backport; the standard one will do)
except ImportError:
    import importlib.metadata
    sys.modules["importlib_metadata"] = importlib.metadata

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

# The per-channel statistics that every 16-channel Wan VAE is used with.
OFFICIAL_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
OFFICIAL_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)

# The negative prompt that the TI2V pipeline uses unless it is given another, after text cleaning.
NEGATIVE = ("色调艳丽,过曝,静态,细节模糊不清,字幕,风格,作品,画作,画面,静止,整体发灰,最差质量,低质量,JPEG压缩残留,"
            "丑陋的,残缺的,多余的手指,画得不好的手部,画得不好的脸部,畸形的,毁容的,形态畸形的肢体,手指融合,"
            "静止不动的画面,杂乱的背景,三条腿,背景人很多,倒着走")

Z_DIM, TEXT_LEN = 16, 512
VAE = dict(base_dim=16, decoder_base_dim=24, z_dim=Z_DIM, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
           temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
           scale_factor_spatial=16, scale_factor_temporal=4, latents_mean=list(OFFICIAL_MEAN),
           latents_std=list(OFFICIAL_STD))
DIT = dict(patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=48, in_channels=Z_DIM, out_channels=Z_DIM,
           text_dim=128, freq_dim=256, ffn_dim=768, num_layers=8)
TEXT = dict(d_model=128, d_ff=256, num_layers=2, num_heads=4, d_kv=32, feed_forward_proj="gated-gelu",
            dropout_rate=0.0, tie_word_embeddings=False)
TINY_VAE = dict(VAE, base_dim=8, decoder_base_dim=8)
TINY_DIT = dict(DIT, num_attention_heads=2, attention_head_dim=24, ffn_dim=64, num_layers=2, text_dim=32, freq_dim=32)
TINY_TEXT = dict(TEXT, d_model=32, d_ff=48, num_heads=2, d_kv=8)

DIT_FILE, VAE_FILE = "diffusion_pytorch_model.safetensors", "Wan2.2_VAE.pth"
TEXT_FILE, TOKENIZER_DIR = "models_t5_umt5-xxl-enc-bf16.pth", os.path.join("google", "umt5-xxl")


def make_vae(tiny=False):
    return AutoencoderKLWan(**(TINY_VAE if tiny else VAE))


def make_dit(tiny=False):
    dit = WanTransformer3DModel(**(TINY_DIT if tiny else DIT))
    torch.nn.init.zeros_(dit.proj_out.weight)
    torch.nn.init.zeros_(dit.proj_out.bias)
    return dit


def make_text(vocab, tiny=False):
    return UMT5EncoderModel(UMT5Config(vocab_size=vocab, **(TINY_TEXT if tiny else TEXT)))


# ---------------------------------------------------------------------------- names

# (diffusers or transformers, official) fragments; applied left to right one way, right to left the other.
_DIT_NAMES = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    (".attn1.", ".self_attn."), (".attn2.", ".cross_attn."), (".to_q.", ".q."), (".to_k.", ".k."), (".to_v.", ".v."),
    (".to_out.0.", ".o."), (".norm2.", ".norm3."), (".ffn.net.0.proj.", ".ffn.0."), (".ffn.net.2.", ".ffn.2."),
    ("proj_out.", "head.head."),
)
_TEXT_NAMES = (
    ("encoder.block.", "blocks."), (".layer.0.layer_norm.", ".norm1."), (".layer.0.SelfAttention.", ".attn."),
    (".attn.relative_attention_bias.", ".pos_embedding.embedding."), (".layer.1.layer_norm.", ".norm2."),
    (".layer.1.DenseReluDense.wi_0.", ".ffn.gate.0."), (".layer.1.DenseReluDense.wi_1.", ".ffn.fc1."),
    (".layer.1.DenseReluDense.wo.", ".ffn.fc2."), ("encoder.final_layer_norm.", "norm."),
    ("shared.", "token_embedding."),
)
_RESIDUAL = (("norm1.", "residual.0."), ("conv1.", "residual.2."), ("norm2.", "residual.3."),
             ("conv2.", "residual.6."), ("conv_shortcut.", "shortcut."))


def rename_dit(name):
    if name.endswith("scale_shift_table"):
        return name.replace("scale_shift_table", "modulation") if name.startswith("blocks.") else "head.modulation"
    for a, b in _DIT_NAMES:
        name = name.replace(a, b)
    return name


def rename_text(name):
    for a, b in _TEXT_NAMES:
        name = name.replace(a, b)
    return name


def _residual(tail):
    for a, b in _RESIDUAL:
        if tail.startswith(a):
            return b + tail[len(a):]
    return tail


def rename_vae(name):
    """diffusers' name of a Wan2.2 VAE tensor to the official one. Block counts are the official ones."""
    for a, b in (("post_quant_conv.", "conv2."), ("quant_conv.", "conv1.")):
        if name.startswith(a):
            return b + name[len(a):]
    half, rest = name.split(".", 1)
    for a, b in (("conv_in.", "conv1."), ("norm_out.", "head.0."), ("conv_out.", "head.2."),
                 ("mid_block.attentions.0.", "middle.1.")):
        if rest.startswith(a):
            return f"{half}.{b}{rest[len(a):]}"
    if m := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.*)", rest):
        return f"{half}.middle.{2 * int(m[1])}.{_residual(m[2])}"
    level, count = ("downsamples", 2) if half == "encoder" else ("upsamples", 3)
    if m := re.fullmatch(r"(?:down|up)_blocks\.(\d)\.resnets\.(\d)\.(.*)", rest):
        return f"{half}.{level}.{m[1]}.{level}.{m[2]}.{_residual(m[3])}"
    m = re.fullmatch(r"(?:down|up)_blocks\.(\d)\.(?:down|up)sampler\.(.*)", rest)
    return f"{half}.{level}.{m[1]}.{level}.{count}.{m[2]}"


def official(state, rename, drop=()):
    return {rename(k): v for k, v in state.items() if k not in drop}


def restore(module, tensors, rename, drop=()):
    """Load official tensors into a library module."""
    names = {rename(k): k for k in module.state_dict() if k not in drop}
    assert set(names) == set(tensors), set(names) ^ set(tensors)
    missing = module.load_state_dict({names[k]: v.float() for k, v in tensors.items()}, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= set(drop), missing
    return module


TIED = ("encoder.embed_tokens.weight",)


# ---------------------------------------------------------------------------- files

def fold_statistics(vae, mean, std):
    """Rewrite the two 1x1x1 convolutions so that the official statistics normalise this VAE's latents.

    The engine computes (mu - M) / S and feeds z * S + M to the decoder, M and S being the official
    constants. We want (mu - mean) / std, so mu becomes M + S * (mu - mean) / std, and the decoder
    undoes it.
    """
    m, s = (torch.tensor(v, dtype=torch.float64) for v in (OFFICIAL_MEAN, OFFICIAL_STD))
    mean, std = mean.double().cpu(), std.double().cpu()
    z = vae.config.z_dim
    with torch.no_grad():
        w, b = vae.quant_conv.weight.double().cpu(), vae.quant_conv.bias.double().cpu()
        gain = s / std
        w[:z] *= gain[:, None, None, None, None]
        b[:z] = (b[:z] - mean) * gain + m
        vae.quant_conv.weight.copy_(w)
        vae.quant_conv.bias.copy_(b)
        w, b = vae.post_quant_conv.weight.double().cpu(), vae.post_quant_conv.bias.double().cpu()
        b = b + w[:, :, 0, 0, 0] @ (mean - m / gain)
        w = w / gain[None, :, None, None, None]
        vae.post_quant_conv.weight.copy_(w)
        vae.post_quant_conv.bias.copy_(b)


def save_pth(path, tensors, dtype):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    torch.save({k: v.detach().to("cpu", dtype).contiguous().clone() for k, v in tensors.items()}, path)


def save_vae(folder, vae):
    save_pth(os.path.join(folder, VAE_FILE), official(vae.state_dict(), rename_vae), torch.float16)


def save_text(folder, text):
    save_pth(os.path.join(folder, TEXT_FILE), official(text.state_dict(), rename_text, TIED), torch.bfloat16)


def save_dit(folder, dit):
    from safetensors.torch import save_file
    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous()
               for k, v in official(dit.state_dict(), rename_dit).items()}
    save_file(tensors, os.path.join(folder, DIT_FILE), metadata={"format": "pt"})
    c = dit.config
    config = {"_class_name": "WanModel", "dim": c.num_attention_heads * c.attention_head_dim, "eps": c.eps,
              "ffn_dim": c.ffn_dim, "freq_dim": c.freq_dim, "in_dim": c.in_channels, "model_type": "ti2v",
              "num_heads": c.num_attention_heads, "num_layers": c.num_layers, "out_dim": c.out_channels,
              "text_dim": c.text_dim, "text_len": TEXT_LEN}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


def load_vae(folder, **kw):
    return restore(make_vae(**kw), torch.load(os.path.join(folder, VAE_FILE)), rename_vae)


def load_text(folder, **kw):
    tensors = torch.load(os.path.join(folder, TEXT_FILE))
    text = make_text(tensors["token_embedding.weight"].shape[0], **kw)
    restore(text, tensors, rename_text, TIED)
    text.encoder.embed_tokens.weight = text.shared.weight
    return text


def load_dit(folder, **kw):
    from safetensors.torch import load_file
    return restore(make_dit(**kw), load_file(os.path.join(folder, DIT_FILE)), rename_dit)


def load_tokenizer(folder):
    import sentencepiece
    return sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, TOKENIZER_DIR, "spiece.model"))


def encode_text(tokenizer, text, width=None):
    """Token ids as the pipeline makes them: pieces, then </s>, then padding with 0 up to `width`."""
    ids = tokenizer.encode(text)[:TEXT_LEN - 1] + [1]
    if width is not None:
        assert len(ids) < width, (len(ids), width, text)
        ids += [0] * (width - len(ids))
    return ids


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def statistics(device):
    m, s = (torch.tensor(v, dtype=torch.float32, device=device) for v in (OFFICIAL_MEAN, OFFICIAL_STD))
    return m, 1.0 / s
