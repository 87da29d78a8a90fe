#!/usr/bin/env python3
"""Write a Wan2.2 checkpoint directory with random weights, at any scale.

The directory has the official layout (file names, tensor names, containers), so it exercises the
same loading code as the real thing: tiny ones are test fixtures, full-size ones measure speed and
memory without a download.  The weights are scaled so that activations stay near unit variance
through any number of layers, and every parameter (biases, norm weights, modulation) matters.

Needs numpy only.  Tensors are generated and written in slices; a 57 GB expert needs a few hundred
megabytes of memory.  For measuring, --fast --jobs 8 writes about as fast as the disk takes it.  The same seed, name and shape always give the same values, whatever the
sharding, so one expert can be rewritten with other shard sizes and still be the same model.

  make_checkpoint.py out/ --preset ti2v-5B --dtype bf16
  make_checkpoint.py out/ --preset tiny-ti2v --tokenizer spiece.model
  make_checkpoint.py out/ --preset t2v-A14B --layers 4 --only dit
"""
import argparse
import concurrent.futures
import copy
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib

import numpy as np

# --- presets ------------------------------------------------------------------------------------

DIT_5B = dict(model_type="ti2v", dim=3072, ffn=14336, heads=24, layers=30, in_dim=48, out_dim=48,
              freq_dim=256, text_dim=4096, text_len=512)
DIT_14B = dict(model_type="t2v", dim=5120, ffn=13824, heads=40, layers=40, in_dim=16, out_dim=16,
               freq_dim=256, text_dim=4096, text_len=512)
T5_XXL = dict(vocab=256384, dim=4096, attn=4096, ffn=10240, heads=64, layers=24, buckets=32)
# Head widths 24 and 16 split into rotary axes as (8,8,8) and (8,4,4): both shapes of the rule
# d-4*(d//6), 2*(d//6), 2*(d//6) are covered, the equal and the unequal split.
DIT_TINY_TI2V = dict(model_type="ti2v", dim=48, ffn=128, heads=2, layers=2, in_dim=48, out_dim=48,
                     freq_dim=64, text_dim=32, text_len=512)
DIT_TINY_A14B = dict(model_type="t2v", dim=48, ffn=96, heads=3, layers=2, in_dim=16, out_dim=16,
                     freq_dim=32, text_dim=32, text_len=512)
T5_TINY = dict(vocab=2048, dim=32, attn=32, ffn=48, heads=4, layers=2, buckets=32)


def preset(name):
    """dit, experts, vae kind, vae bases (encoder, decoder), latent channels, t5"""
    i2v = dict(model_type="i2v", in_dim=36)
    both = ("high_noise_model", "low_noise_model")
    return {
        "tiny-ti2v": (DIT_TINY_TI2V, ("",), "2.2", (4, 6), 48, T5_TINY),
        "tiny-t2v": (DIT_TINY_A14B, both, "2.1", (4, 4), 16, T5_TINY),
        "tiny-i2v": ({**DIT_TINY_A14B, **i2v}, both, "2.1", (4, 4), 16, T5_TINY),
        "ti2v-5B": (DIT_5B, ("",), "2.2", (160, 256), 48, T5_XXL),
        "t2v-A14B": (DIT_14B, both, "2.1", (96, 96), 16, T5_XXL),
        "i2v-A14B": ({**DIT_14B, **i2v}, both, "2.1", (96, 96), 16, T5_XXL),
    }[name]


PRESETS = ("tiny-ti2v", "tiny-t2v", "tiny-i2v", "ti2v-5B", "t2v-A14B", "i2v-A14B")

# --- tensor lists: (name, shape), in the module order of the official implementation ------------


def dit_tensors(c):
    d, f = c["dim"], c["ffn"]

    def lin(name, o, i):
        return [(name + ".weight", (o, i)), (name + ".bias", (o,))]

    out = [("patch_embedding.weight", (d, c["in_dim"], 1, 2, 2)), ("patch_embedding.bias", (d,))]
    out += lin("text_embedding.0", d, c["text_dim"]) + lin("text_embedding.2", d, d)
    out += lin("time_embedding.0", d, c["freq_dim"]) + lin("time_embedding.2", d, d)
    out += lin("time_projection.1", 6 * d, d)
    for n in range(c["layers"]):
        b = f"blocks.{n}."
        out.append((b + "modulation", (1, 6, d)))

        def attn(name):
            r = []
            for x in "qkvo":
                r += lin(f"{b}{name}.{x}", d, d)
            return r + [(f"{b}{name}.norm_q.weight", (d,)), (f"{b}{name}.norm_k.weight", (d,))]

        out += attn("self_attn")
        out += [(b + "norm3.weight", (d,)), (b + "norm3.bias", (d,))]
        out += attn("cross_attn")
        out += lin(b + "ffn.0", f, d) + lin(b + "ffn.2", d, f)
    out += [("head.modulation", (1, 2, d))] + lin("head.head", 4 * c["out_dim"], d)
    return out


def t5_tensors(c):
    d, a = c["dim"], c["attn"]
    out = [("token_embedding.weight", (c["vocab"], d))]
    for n in range(c["layers"]):
        b = f"blocks.{n}."
        out.append((b + "norm1.weight", (d,)))
        out += [(f"{b}attn.{x}.weight", (a, d)) for x in "qkv"] + [(b + "attn.o.weight", (d, a))]
        out.append((b + "norm2.weight", (d,)))
        out += [(b + "ffn.gate.0.weight", (c["ffn"], d)), (b + "ffn.fc1.weight", (c["ffn"], d)),
                (b + "ffn.fc2.weight", (d, c["ffn"]))]
        out.append((b + "pos_embedding.embedding.weight", (c["buckets"], c["heads"])))
    return out + [("norm.weight", (d,))]


def _conv(name, o, i, k):
    return [(name + ".weight", (o, i) + tuple(k)), (name + ".bias", (o,))]


def _res(name, i, o):
    r = [(name + ".residual.0.gamma", (i, 1, 1, 1))] + _conv(name + ".residual.2", o, i, (3, 3, 3))
    r += [(name + ".residual.3.gamma", (o, 1, 1, 1))] + _conv(name + ".residual.6", o, o, (3, 3, 3))
    return r + (_conv(name + ".shortcut", o, i, (1, 1, 1)) if i != o else [])


def _middle(name, c):
    a = name + ".1."
    return (_res(name + ".0", c, c) + [(a + "norm.gamma", (c, 1, 1))] +
            _conv(a + "to_qkv", 3 * c, c, (1, 1)) + _conv(a + "proj", c, c, (1, 1)) +
            _res(name + ".2", c, c))


def _head(name, c, o):
    return [(name + ".0.gamma", (c, 1, 1, 1))] + _conv(name + ".2", o, c, (3, 3, 3))


def vae_tensors(kind, bases, z):
    """kind "2.1": flat lists, the upsampler halves the width.  "2.2": nested lists, it does not."""
    nested = kind == "2.2"
    mult = (1, 2, 4, 4)
    pixel = 12 if nested else 3

    dims = [bases[0] * m for m in (1,) + mult]
    out = _conv("encoder.conv1", dims[0], pixel, (3, 3, 3))
    flat = 0
    for lv in range(4):
        i, o = dims[lv], dims[lv + 1]
        for r in range(3 if lv < 3 else 2):
            name = "encoder.downsamples." + (f"{lv}.downsamples.{r}" if nested else f"{flat}")
            flat += 1
            if r < 2:
                out += _res(name, i, o)
                i = o
            else:
                out += _conv(name + ".resample.1", o, o, (3, 3))
                if lv in (1, 2):
                    out += _conv(name + ".time_conv", o, o, (3, 1, 1))
    out += _middle("encoder.middle", dims[4]) + _head("encoder.head", dims[4], 2 * z)
    out += _conv("conv1", 2 * z, 2 * z, (1, 1, 1)) + _conv("conv2", z, z, (1, 1, 1))

    dims = [bases[1] * m for m in (mult[-1],) + mult[::-1]]
    out += _conv("decoder.conv1", dims[0], z, (3, 3, 3)) + _middle("decoder.middle", dims[0])
    flat = 0
    for lv in range(4):
        i, o = dims[lv], dims[lv + 1]
        if not nested and lv > 0:
            i //= 2
        for r in range(4 if lv < 3 else 3):
            name = "decoder.upsamples." + (f"{lv}.upsamples.{r}" if nested else f"{flat}")
            flat += 1
            if r < 3:
                out += _res(name, i, o)
                i = o
            else:
                out += _conv(name + ".resample.1", o if nested else o // 2, o, (3, 3))
                if lv in (0, 1):
                    out += _conv(name + ".time_conv", 2 * o, o, (3, 1, 1))
    return out + _head("decoder.head", dims[4], pixel)


# --- values -------------------------------------------------------------------------------------

SLICE = 1 << 22  # elements drawn at a time
REPEATED = 1 << 20  # elements drawn of a tensor whose values repeat (--fast)


def law(name, shape, head_dim=1):
    """(mean, standard deviation) of a tensor's entries"""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "gamma" or (leaf == "weight" and len(shape) == 1):
        return 1.0, 0.1
    if leaf == "bias":
        return 0.0, 0.1
    if leaf == "modulation":
        return 0.0, shape[-1] ** -0.5
    if name.endswith("pos_embedding.embedding.weight") or name == "token_embedding.weight":
        return 0.0, 1.0
    std = float(np.prod(shape[1:])) ** -0.5
    if name.endswith(".attn.q.weight"):  # UMT5 does not scale its scores: do it in the weights
        std *= head_dim ** -0.5
    if name == "decoder.head.2.weight":  # keep most decoded pixels inside [-1, 1]
        std *= 0.6
    return 0.0, std


def slices(name, shape, seed, head_dim=1, most=SLICE):
    """float32 slices of one tensor, of at most so many elements"""
    mean, std = law(name, shape, head_dim)
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    left = int(np.prod(shape))
    while left:
        n = min(left, most)
        block = rng.standard_normal(n, dtype=np.float32)
        block *= np.float32(std)
        block += np.float32(mean)
        yield block
        left -= n


def encode(x, dtype):
    if dtype == "f32":
        return x.astype("<f4", copy=False).tobytes()
    if dtype == "f16":
        return x.astype("<f2").tobytes()
    u = x.view(np.uint32)  # round to nearest even
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2").tobytes()


SIZE = {"f32": 4, "f16": 2, "bf16": 2}


class Source:
    """A list of tensors with their values, in one stored dtype"""

    def __init__(self, tensors, dtype, seed, head_dim=1, fast=False):
        self.tensors, self.dtype, self.seed = tensors, dtype, seed
        self.head_dim, self.fast = head_dim, fast

    def nbytes(self, shape):
        return int(np.prod(shape)) * SIZE[self.dtype]

    def chunks(self, name, shape):
        left = self.nbytes(shape)
        for s in slices(name, shape, self.seed, self.head_dim, REPEATED if self.fast else SLICE):
            block = encode(s, self.dtype)
            yield block
            left -= len(block)
            while self.fast and left:
                n = min(left, len(block))
                yield memoryview(block)[:n]
                left -= n
            if not left:
                return


# --- safetensors --------------------------------------------------------------------------------


def write_safetensors(path, src, tensors):
    tag = {"f32": "F32", "f16": "F16", "bf16": "BF16"}[src.dtype]
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        n = src.nbytes(shape)
        head[name] = {"dtype": tag, "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            for b in src.chunks(name, shape):
                f.write(b)


def write_sharded(folder, src, shard_bytes, run, stem="diffusion_pytorch_model"):
    """Greedy shards in tensor order, plus the index; one plain file if everything fits in one.
    run(function, *args) writes a file now or beside others."""
    shards, room = [[]], shard_bytes
    for t in src.tensors:
        n = src.nbytes(t[1])
        if shard_bytes and n > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(t)
        room -= n
    if len(shards) == 1:
        run(write_safetensors, f"{folder}/{stem}.safetensors", src, shards[0])
        return
    where = {}
    for k, part in enumerate(shards):
        file = f"{stem}-{k + 1:05d}-of-{len(shards):05d}.safetensors"
        run(write_safetensors, f"{folder}/{file}", src, part)
        where.update((name, file) for name, _ in part)
    total = sum(src.nbytes(s) for _, s in src.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    dump_json(f"{folder}/{stem}.safetensors.index.json", index)


# --- PyTorch .pth -------------------------------------------------------------------------------


class _Global:
    def __init__(self, module, name):
        self.module, self.name = module, name


class _Storage:
    def __init__(self, kind, key, count):
        self.kind, self.key, self.count = kind, key, count


class _Tensor:
    def __init__(self, storage, shape):
        self.storage, self.shape = storage, tuple(shape)


class _OrderedDict:
    def __init__(self, items):
        self.items = items


class _Pickler(pickle._Pickler):
    """Writes what torch.save writes for a state dict, without torch: the stand-ins above become
    global references, persistent storage ids and calls of torch._utils._rebuild_tensor_v2."""
    dispatch = copy.copy(pickle._Pickler.dispatch)
    ODICT = _Global("collections", "OrderedDict")
    REBUILD = _Global("torch._utils", "_rebuild_tensor_v2")

    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            return ("storage", obj.kind, obj.key, "cpu", obj.count)
        return None

    def _global(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    def _call(self, func, args, obj):
        self.save(func)
        self.save(args)
        self.write(pickle.REDUCE)
        self.memoize(obj)

    def _tensor(self, obj):
        stride, step = [], 1
        for n in reversed(obj.shape):
            stride.insert(0, step)
            step *= n
        hooks = _OrderedDict([])
        self._call(self.REBUILD, (obj.storage, 0, obj.shape, tuple(stride), False, hooks), obj)

    def _odict(self, obj):
        self._call(self.ODICT, (), obj)
        if obj.items:
            self.write(pickle.MARK)
            for key, value in obj.items:
                self.save(key)
                self.save(value)
            self.write(pickle.SETITEMS)

    dispatch[_Global] = _global
    dispatch[_Tensor] = _tensor
    dispatch[_OrderedDict] = _odict


class _Forward:
    """A file that cannot seek: zipfile then puts sizes and checksums behind the data and zeros in
    the local headers, as PyTorch's own writer does.  Readers have to use the central directory."""

    def __init__(self, file):
        self.file, self.at = file, 0

    def write(self, data):
        self.at += len(data)
        return self.file.write(data)

    def tell(self):
        return self.at

    def seek(self, *_):
        raise OSError("not seekable")

    def flush(self):
        self.file.flush()


def write_pth(path, src, root="archive"):
    kind = _Global("torch", {"f32": "FloatStorage", "f16": "HalfStorage",
                             "bf16": "BFloat16Storage"}[src.dtype])
    items = [(name, _Tensor(_Storage(kind, str(k), int(np.prod(shape))), shape))
             for k, (name, shape) in enumerate(src.tensors)]
    buf = io.BytesIO()
    _Pickler(buf, protocol=2).dump(_OrderedDict(items))

    with open(path, "wb") as out, zipfile.ZipFile(_Forward(out), "w", zipfile.ZIP_STORED) as z:

        def entry(name, size, chunks):
            big = size >= (1 << 32) - 1
            info = zipfile.ZipInfo(f"{root}/{name}", (1980, 0, 0, 0, 0, 0))
            info.file_size = size
            # torch aligns the data of every entry to 64 bytes with an "FB" extra field
            fixed = 30 + len(info.filename) + 4 + (20 if big else 0)
            pad = -(z.fp.tell() + fixed) % 64
            info.extra = struct.pack("<2sH", b"FB", pad) + b"Z" * pad
            with z.open(info, "w", force_zip64=big) as f:
                for b in chunks:
                    f.write(b)

        entry("data.pkl", len(buf.getvalue()), [buf.getvalue()])
        entry("byteorder", 6, [b"little"])
        for k, (name, shape) in enumerate(src.tensors):
            entry(f"data/{k}", src.nbytes(shape), src.chunks(name, shape))
        entry("version", 2, [b"3\n"])


# --- the directory ------------------------------------------------------------------------------


def dump_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def config_json(c):
    out = {"_class_name": "WanModel", "_diffusers_version": "0.33.0", "dim": c["dim"],
           "eps": 1e-06, "ffn_dim": c["ffn"], "freq_dim": c["freq_dim"], "in_dim": c["in_dim"],
           "model_type": c["model_type"], "num_heads": c["heads"], "num_layers": c["layers"],
           "out_dim": c["out_dim"], "text_len": c["text_len"]}
    if c["text_dim"] != 4096:  # the official files never name it: an absent key means 4096
        out["text_dim"] = c["text_dim"]
    return out


def write_tokenizer(folder, source):
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(source, f"{folder}/spiece.model")
    # UMT5 adds 300 sentinels after the pieces of spiece.model, <extra_id_0> the last of them
    marks = {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(300)],
             "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    for file, more in (("special_tokens_map", {}),
                       ("tokenizer_config", {"extra_ids": 300, "tokenizer_class": "T5Tokenizer"})):
        with open(f"{folder}/{file}.json", "w") as f:
            f.write(json.dumps({**marks, **more}) + "\n")


class Jobs:
    """Runs what it is given at once (jobs 1), or each in a process of its own, that many at a time"""

    def __init__(self, jobs):
        self.pool = concurrent.futures.ProcessPoolExecutor(jobs) if jobs > 1 else None
        self.waiting = []

    def run(self, function, *args):
        if self.pool:
            self.waiting.append(self.pool.submit(function, *args))
        else:
            function(*args)

    def finish(self):
        for w in self.waiting:
            w.result()
        if self.pool:
            self.pool.shutdown()


def link_expert(first, second):
    """The second expert's files are the first one's"""
    for file in os.listdir(first):
        if os.path.exists(f"{second}/{file}"):
            os.remove(f"{second}/{file}")
        os.link(f"{first}/{file}", f"{second}/{file}")


def write_checkpoint(out, dit, experts, vae, bases, z, t5, *, dtype="f32", text_dtype="bf16",
                     vae_dtype="f32", shards=(0,), seed=0, tokenizer=None, fast=False, same_experts=False,
                     only=("dit", "vae", "t5"), quiet=True, jobs=1):
    """shards: largest shard in bytes for each expert (0: one file), the last one repeated."""

    def say(text):
        if not quiet:
            print(text, flush=True)

    work = Jobs(jobs)
    os.makedirs(out, exist_ok=True)
    dump_json(f"{out}/configuration.json", {"framework": "Pytorch", "task": "text-to-video"})
    folders = [os.path.join(out, sub) if sub else out for sub in experts]
    for k, folder in enumerate(folders if "dit" in only else ()):
        os.makedirs(folder, exist_ok=True)
        if k and same_experts:
            continue
        say(f"{folder}: DiT, {sum(int(np.prod(s)) for _, s in dit_tensors(dit)):,} parameters")
        dump_json(f"{folder}/config.json", config_json(dit))
        src = Source(dit_tensors(dit), dtype, seed + 1000 * k, fast=fast)
        write_sharded(folder, src, shards[min(k, len(shards) - 1)], work.run)
    if "t5" in only:
        name = "models_t5_umt5-xxl-enc-bf16.pth"  # the official name, whatever the dtype
        say(f"{out}/{name}")
        src = Source(t5_tensors(t5), text_dtype, seed, t5["attn"] // t5["heads"], fast)
        work.run(write_pth, f"{out}/{name}", src)
    if "vae" in only:
        name = {"2.1": "Wan2.1_VAE.pth", "2.2": "Wan2.2_VAE.pth"}[vae]
        say(f"{out}/{name}")
        work.run(write_pth, f"{out}/{name}", Source(vae_tensors(vae, bases, z), vae_dtype, seed, fast=fast))
    if tokenizer:
        write_tokenizer(f"{out}/google/umt5-xxl", tokenizer)
    work.finish()
    if "dit" in only and same_experts and len(folders) == 2:
        link_expert(*folders)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("out")
    p.add_argument("--preset", choices=PRESETS, default="tiny-ti2v")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--dtype", choices=SIZE, default="f32", help="DiT")
    p.add_argument("--text-dtype", choices=SIZE, default="bf16")
    p.add_argument("--vae-dtype", choices=SIZE, default="f32")
    p.add_argument("--shard-bytes", type=int, default=10_000_000_000, help="0: one file")
    p.add_argument("--tokenizer", help="a spiece.model to copy")
    p.add_argument("--fast", action="store_true", help="repeat the first 1 Mi values of a tensor")
    p.add_argument("--same-experts", action="store_true", help="two names (hard links) for the files of one expert")
    p.add_argument("--jobs", type=int, default=1, help="files written at a time")
    p.add_argument("--only", choices=("dit", "vae", "t5"), nargs="+", default=("dit", "vae", "t5"))
    for key in DIT_5B:
        if key != "model_type":
            p.add_argument("--" + key.replace("_", "-"), type=int)
    p.add_argument("--vae-base", type=int)
    p.add_argument("--vae-decoder-base", type=int)
    for key in T5_XXL:
        p.add_argument("--t5-" + key, type=int)
    a = p.parse_args()

    dit, experts, vae, bases, z, t5 = preset(a.preset)
    dit = {k: v if getattr(a, k, None) is None else getattr(a, k) for k, v in dit.items()}
    t5 = {k: v if getattr(a, "t5_" + k) is None else getattr(a, "t5_" + k) for k, v in t5.items()}
    bases = (a.vae_base or bases[0], a.vae_decoder_base or a.vae_base or bases[1])
    if dit["dim"] % dit["heads"] or dit["dim"] // dit["heads"] % 2:
        sys.exit("the head width must be an even whole number")
    write_checkpoint(a.out, dit, experts, vae, bases, z, t5, dtype=a.dtype,
                     text_dtype=a.text_dtype, vae_dtype=a.vae_dtype, shards=(a.shard_bytes,),
                     seed=a.seed, tokenizer=a.tokenizer, fast=a.fast, same_experts=a.same_experts,
                     only=a.only, quiet=False, jobs=a.jobs)


if __name__ == "__main__":
    main()
