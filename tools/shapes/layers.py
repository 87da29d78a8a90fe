"""The forward passes that training uses, over the library modules' own weights.

The library code streams the VAE in chunks through a cache, expands time embeddings to every token
and attends to 512 context rows; that is right for inference and slow for training. These functions
compute the same numbers on whole clips. tools/shapes/test_layers.py holds them to the library's
results.

Videos are channels-last here: [B,T,H,W,C].
"""
import math

import torch
import torch.nn.functional as F

TEXT_LEN = 512
CONV_AS_2D = False  # 3x3x3 convolutions as 2-D ones over three stacked frames; train_vae.py times both


# ---------------------------------------------------------------------------- VAE

def _history(x, frames):
    """Zero frames in front: what a causal convolution sees before the clip."""
    return F.pad(x, (0, 0, 0, 0, 0, 0, frames, 0))


def causal_conv(x, conv):
    """3x3x3 convolution over (t-2, t-1, t), zero padding all around."""
    b, t, h, w, c = x.shape
    weight = conv.weight
    if CONV_AS_2D:
        p = _history(x, 2)
        x = torch.cat([p[:, :-2], p[:, 1:-1], x], -1).reshape(b * t, h, w, 3 * c).permute(0, 3, 1, 2)
        weight = weight.permute(0, 2, 1, 3, 4).reshape(weight.shape[0], 3 * c, 3, 3)
        x = F.conv2d(x, weight, conv.bias, padding=1)
        return x.permute(0, 2, 3, 1).reshape(b, t, h, w, -1)
    x = F.conv3d(_history(x, 2).permute(0, 4, 1, 2, 3), weight, conv.bias, padding=(0, 1, 1))
    return x.permute(0, 2, 3, 4, 1)


def time_taps(x0, x1, x2, conv):
    """(3,1,1) convolution, its three inputs given side by side."""
    w = conv.weight[:, :, :, 0, 0].permute(0, 2, 1).flatten(1)
    return F.linear(torch.cat([x0, x1, x2], -1), w, conv.bias)


def pointwise(x, conv):
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def conv2d(x, conv, pad, stride=1):
    b, t, h, w, c = x.shape
    x = F.pad(x, (0, 0, pad[0], pad[1], pad[0], pad[1])).flatten(0, 1).permute(0, 3, 1, 2)
    return F.conv2d(x, conv.weight, conv.bias, stride=stride).permute(0, 2, 3, 1).unflatten(0, (b, t))


def rms(x, norm):
    f = x.float()
    scale = torch.rsqrt(f.square().sum(-1, keepdim=True).clamp_min(1e-24)) * f.shape[-1] ** 0.5
    return (f * scale * norm.gamma.flatten()).to(x.dtype)


def residual(x, block):
    skip = pointwise(x, block.conv_shortcut) if hasattr(block.conv_shortcut, "weight") else x
    h = causal_conv(F.silu(rms(x, block.norm1)), block.conv1)
    return causal_conv(F.silu(rms(h, block.norm2)), block.conv2) + skip


def frame_attention(x, block):
    b, t, h, w, c = x.shape
    q, k, v = pointwise(rms(x, block.norm), block.to_qkv).reshape(b * t, 1, h * w, 3 * c).chunk(3, -1)
    y = F.scaled_dot_product_attention(q, k, v).reshape(b, t, h, w, c)
    return x + pointwise(y, block.proj)


def middle(x, block):
    x = residual(x, block.resnets[0])
    return residual(frame_attention(x, block.attentions[0]), block.resnets[1])


def average_down(x, spec):
    ft, fs = spec.factor_t, spec.factor_s
    x = _history(x, -x.shape[1] % ft)
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // ft, ft, h // fs, fs, w // fs, fs, c).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, t // ft, h // fs, w // fs, spec.out_channels, spec.group_size).mean(-1)


def duplicate_up(x, spec):
    ft, fs = spec.factor_t, spec.factor_s
    b, t, h, w, c = x.shape
    x = x[..., None].expand(b, t, h, w, c, spec.repeats)
    x = x.reshape(b, t, h, w, spec.out_channels, ft, fs, fs).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, t * ft, h * fs, w * fs, spec.out_channels)[:, ft - 1:]


def down_block(x, block):
    y = x
    for r in block.resnets:
        y = residual(y, r)
    if block.downsampler is not None:
        y = conv2d(y, block.downsampler.resample[1], (0, 1), stride=2)
        if block.downsampler.mode == "downsample3d":
            later = time_taps(y[:, :-2:2], y[:, 1:-1:2], y[:, 2::2], block.downsampler.time_conv)
            y = torch.cat([y[:, :1], later], 1)
    return y + average_down(x, block.avg_shortcut)


def up_block(x, block):
    y = x
    for r in block.resnets:
        y = residual(y, r)
    if block.upsampler is not None:
        if block.upsampler.mode == "upsample3d":
            tail = y[:, 1:]
            p = _history(tail, 2)
            pair = time_taps(p[:, :-2], p[:, 1:-1], tail, block.upsampler.time_conv)
            b, t, h, w, c = tail.shape
            pair = pair.reshape(b, t, h, w, 2, c).permute(0, 1, 4, 2, 3, 5).reshape(b, 2 * t, h, w, c)
            y = torch.cat([y[:, :1], pair], 1)
        b, t, h, w, c = y.shape
        y = y[:, :, :, None, :, None].expand(b, t, h, 2, w, 2, c).reshape(b, t, 2 * h, 2 * w, c)
        y = conv2d(y, block.upsampler.resample[1], (1, 1))
    return y + duplicate_up(x, block.avg_shortcut) if block.avg_shortcut is not None else y


def vae_encode(vae, video):
    """[B,T,H,W,3] in [-1,1] to mean and log variance [B,t,h,w,z], before normalisation."""
    e = vae.encoder
    b, t, h, w, c = video.shape
    x = video.reshape(b, t, h // 2, 2, w // 2, 2, c).permute(0, 1, 2, 4, 6, 5, 3).reshape(b, t, h // 2, w // 2, 4 * c)
    x = causal_conv(x, e.conv_in)
    for block in e.down_blocks:
        x = down_block(x, block)
    x = causal_conv(F.silu(rms(middle(x, e.mid_block), e.norm_out)), e.conv_out)
    return pointwise(x, vae.quant_conv).chunk(2, -1)


def vae_decode(vae, z):
    """[B,t,h,w,z] to [B,T,H,W,3], not clamped."""
    d = vae.decoder
    x = middle(causal_conv(pointwise(z, vae.post_quant_conv), d.conv_in), d.mid_block)
    for block in d.up_blocks:
        x = up_block(x, block)
    x = causal_conv(F.silu(rms(x, d.norm_out)), d.conv_out)
    b, t, h, w, c = x.shape
    return x.reshape(b, t, h, w, c // 4, 2, 2).permute(0, 1, 2, 6, 3, 5, 4).reshape(b, t, 2 * h, 2 * w, c // 4)


# ---------------------------------------------------------------------------- text encoder

def _buckets(n, device):
    """Relative position bucket of every (query, key) pair: 32 buckets, both directions, distance 128."""
    rel = torch.arange(n)[None, :] - torch.arange(n)[:, None]
    dist = rel.abs()
    far = 8 + (torch.log(dist.clamp_min(1).float() / 8) / math.log(16) * 8).long()
    return (torch.where(dist < 8, dist, far.clamp_max(15)) + 16 * (rel > 0)).to(device)


def text_encode(text, ids, buckets):
    """UMT5 encoder over ids [B,N]; rows past the tokens come out as zeros."""
    cfg = text.config
    b, n = ids.shape
    keep = ids > 0
    hidden_keys = torch.where(keep, 0.0, -1e9)[:, None, None, :]

    def norm(x, m):
        return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + cfg.layer_norm_epsilon) * m.weight

    x = F.embedding(ids, text.shared.weight)
    for block in text.encoder.block:
        a, f = block.layer[0], block.layer[1]
        s, d = a.SelfAttention, f.DenseReluDense
        u = norm(x, a.layer_norm)
        q, k, v = (F.linear(u, p.weight).reshape(b, n, cfg.num_heads, cfg.d_kv).transpose(1, 2)
                   for p in (s.q, s.k, s.v))
        bias = F.embedding(buckets, s.relative_attention_bias.weight).permute(2, 0, 1)[None] + hidden_keys
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        x = x + F.linear(y.transpose(1, 2).flatten(2), s.o.weight)
        u = norm(x, f.layer_norm)
        x = x + F.linear(F.gelu(F.linear(u, d.wi_0.weight), approximate="tanh") * F.linear(u, d.wi_1.weight),
                         d.wo.weight)
    return norm(x, text.encoder.final_layer_norm) * keep[..., None]


# ---------------------------------------------------------------------------- DiT

def rope_tables(dit, grid, device):
    """cos and sin [L, head_dim/2] for the token grid (frames, rows, columns)."""
    d = dit.config.attention_head_dim
    side = 2 * (d // 6)
    angles = []
    for axis, width in enumerate((d - 2 * side, side, side)):
        freq = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        a = torch.outer(torch.arange(grid[axis], dtype=torch.float64), freq)
        shape = [1, 1, 1, -1]
        shape[axis] = grid[axis]
        angles.append(a.reshape(shape).expand(*grid, -1))
    a = torch.cat(angles, -1).reshape(grid[0] * grid[1] * grid[2], -1)
    return a.cos().float().to(device), a.sin().float().to(device)


def _rms_norm(x, norm):
    f = x.float()
    return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + norm.eps) * norm.weight).to(x.dtype)


def _rotate(x, cos, sin):
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def _attention(attn, x, context, rope=None, mask=None):
    q, k = _rms_norm(attn.to_q(x), attn.norm_q), _rms_norm(attn.to_k(context), attn.norm_k)
    q, k, v = (u.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for u in (q, k, attn.to_v(context)))
    if rope is not None:
        q, k = _rotate(q, *rope), _rotate(k, *rope)
    if mask is not None:
        mask = mask.to(q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], -1)
    y = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=mask)
    return attn.to_out[0](y.transpose(1, 2).flatten(2))


def _spread(m, frames):
    """[B,2,K,dim] per distinct time to K tensors [B,T,1,dim]: the first for frame 0, the second for the rest."""
    m = torch.cat([m[:, :1], m[:, 1:].expand(-1, frames - 1, -1, -1)], 1)
    return m[:, :, :, None].unbind(2)


def _modulate(x, scale, shift, eps):
    y = F.layer_norm(x, x.shape[-1:], eps=eps).unflatten(1, (scale.shape[1], -1))
    return (y * (1 + scale) + shift).flatten(1, 2)


def _gate(x, y, g):
    return x + (y.float().unflatten(1, (g.shape[1], -1)) * g).flatten(1, 2)


def dit_block(block, x, e0, ctx, cos, sin, mask, frames, eps):
    sh_a, sc_a, g_a, sh_f, sc_f, g_f = _spread(block.scale_shift_table[None] + e0, frames)
    y = _modulate(x, sc_a, sh_a, eps)
    x = _gate(x, _attention(block.attn1, y, y, rope=(cos, sin)), g_a)
    y = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, eps)
    x = x + _attention(block.attn2, y, ctx, mask=mask).float()
    y = block.ffn.net[2](F.gelu(block.ffn.net[0].proj(_modulate(x, sc_f, sh_f, eps)), approximate="tanh"))
    return _gate(x, y, g_f)


def dit_forward(dit, x, times, context, rope, run_block=dit_block):
    """Velocity for latents x [B,C,T,h,w].

    times [B,2] holds the timestep of the first latent frame and that of the others. context [B,N,D]
    stands for 512 rows of which all from N-1 on are zero: the last row is counted 512-N+1 times.
    """
    cfg, ce = dit.config, dit.condition_embedder
    b, c, t, h, w = x.shape
    gh, gw, dim = h // 2, w // 2, cfg.num_attention_heads * cfg.attention_head_dim
    x = x.reshape(b, c, t, gh, 2, gw, 2).permute(0, 2, 3, 5, 1, 4, 6).reshape(b, t * gh * gw, 4 * c)
    x = F.linear(x, dit.patch_embedding.weight.flatten(1), dit.patch_embedding.bias).float()

    half = cfg.freq_dim // 2
    freq = torch.exp(-math.log(10000.0) * torch.arange(half, device=x.device, dtype=torch.float32) / half)
    arg = times.float()[..., None] * freq
    e = ce.time_embedder.linear_2(F.silu(ce.time_embedder.linear_1(torch.cat([arg.cos(), arg.sin()], -1)))).float()
    e0 = ce.time_proj(F.silu(e)).float().unflatten(-1, (6, dim))

    ctx = ce.text_embedder.linear_2(F.gelu(ce.text_embedder.linear_1(context), approximate="tanh"))
    n = context.shape[1]
    mask = torch.zeros(n, device=x.device)
    mask = torch.cat([mask[1:], mask[:1] + math.log(TEXT_LEN - n + 1)])[None, None, None]

    for block in dit.blocks:
        x = run_block(block, x, e0, ctx, *rope, mask, t, cfg.eps)

    shift, scale = _spread(dit.scale_shift_table[None] + e[:, :, None], t)
    x = dit.proj_out(_modulate(x, scale, shift, cfg.eps)).float()
    return x.reshape(b, t, gh, gw, 2, 2, c).permute(0, 6, 1, 2, 4, 3, 5).reshape(b, c, t, h, w)
