#!/usr/bin/env python3
"""Write the seeds of the fuzzers into corpus/NAME.

Only the standard library is needed: the pickles are made by Python's own pickler from stand-ins that
carry the names torch.save() writes. Run it again after changing it; the output is the same every time.
"""
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

HERE = Path(__file__).parent / "corpus"


def write(kind, name, data):
    path = HERE / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def safetensors(tensors, metadata=None):
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(at)


def make_safetensors():
    write("safetensors", "empty", safetensors({}))
    write("safetensors", "official", safetensors({
        "patch_embedding.weight": ("F32", [2, 1, 1, 2, 2], 32),
        "blocks.0.modulation": ("BF16", [1, 6, 2], 24),
        "head.head.bias": ("F16", [4], 8)}, {"format": "pt"}))
    write("safetensors", "diffusers", safetensors({
        "condition_embedder.time_proj.weight": ("BF16", [12, 2], 48),
        "blocks.0.attn1.to_out.0.weight": ("F8_E4M3", [2, 2], 4),
        "scale_shift_table": ("F64", [1, 2, 2], 32)}))
    write("safetensors", "mlx", safetensors({
        "blocks.0.ffn.layer_0.weight": ("F32", [2, 2], 16), "head_modulation": ("F32", [1, 2, 2], 16)}))
    write("safetensors", "vae", safetensors({
        "encoder.down_blocks.0.resnets.1.norm1.gamma": ("F32", [2, 1, 1, 1], 8),
        "decoder.up_blocks.1.upsampler.time_conv.bias": ("F32", [4], 16)}))
    write("safetensors", "umt5", safetensors({
        "shared.weight": ("BF16", [4, 2], 16), "encoder.embed_tokens.weight": ("BF16", [4, 2], 16),
        "encoder.block.0.layer.0.SelfAttention.q.weight": ("BF16", [2, 2], 8), "spiece_model": ("U8", [3], 3)}))
    write("safetensors", "scalar", safetensors({"scaled_fp8": ("I64", [], 8), "zero": ("I32", [0, 7], 0)}))


def make_index():
    def index(weights):
        return json.dumps({"metadata": {"total_size": 32}, "weight_map": weights})
    write("index", "both", index({"a": "model-1.safetensors", "b": "model-2.safetensors"}))
    write("index", "one", index({"a": "model-1.safetensors"}))
    write("index", "swapped", index({"a": "model-2.safetensors", "b": "model-1.safetensors"}))
    write("index", "path", index({"a": "../model-1.safetensors"}))
    write("index", "absent", index({"a": "model-3.safetensors"}))


def make_config():
    official = {"_class_name": "WanModel", "dim": 3072, "eps": 1e-06, "ffn_dim": 14336, "freq_dim": 256,
                "in_dim": 48, "model_type": "ti2v", "num_heads": 24, "num_layers": 30, "out_dim": 48,
                "text_len": 512, "patch_size": [1, 2, 2], "window_size": [-1, -1], "qk_norm": True}
    diffusers = {"_class_name": "WanTransformer3DModel", "added_kv_proj_dim": None, "attention_head_dim": 128,
                 "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": 13824, "freq_dim": 256, "image_dim": None,
                 "in_channels": 16, "num_attention_heads": 40, "num_layers": 40, "out_channels": 16,
                 "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "text_dim": 4096}
    write("config", "official", json.dumps(official, indent=2))
    write("config", "diffusers", json.dumps(diffusers, indent=2))
    write("config", "s2v", json.dumps({"model_type": "s2v"}))
    write("config", "empty", "{}")


class Storage:
    def __init__(self, kind, key, count):
        self.kind, self.key, self.count = kind, key, count


class Rebuilt:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def torch_names():
    """Modules whose members pickle under the names that PyTorch's have."""
    found = {}
    for module, names in {"torch": ["FloatStorage", "BFloat16Storage", "HalfStorage", "float8_e4m3fn"],
                          "torch.storage": ["UntypedStorage"],
                          "torch._utils": ["_rebuild_tensor_v2", "_rebuild_tensor_v3",
                                           "_rebuild_parameter"]}.items():
        made = types.ModuleType(module)
        for name in names:
            kind = type(name, (), {"__module__": module, "__qualname__": name})
            setattr(made, name, kind)
            found[name] = kind
        sys.modules[module] = made
    return found


def dumps(value, protocol):
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                return "storage", obj.kind, obj.key, "cpu", obj.count
            return None
    out = io.BytesIO()
    Pickler(out, protocol).dump(value)
    return out.getvalue()


def archive(pkl, storages, name="archive"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
        entries = {"data.pkl": pkl, "byteorder": b"little", "version": b"3\n"}
        entries.update({f"data/{k}": v for k, v in storages.items()})
        for entry, data in entries.items():
            z.writestr(zipfile.ZipInfo(f"{name}/{entry}"), data)
    return out.getvalue()


def make_pth():
    t = torch_names()

    def tensor(kind, key, count, offset, size, stride):
        return Rebuilt(t["_rebuild_tensor_v2"], Storage(t[kind], key, count), offset, size, stride, False,
                       OrderedDict())
    plain = OrderedDict([("conv1.weight", tensor("FloatStorage", "0", 4, 0, (2, 2), (2, 1))),
                         ("conv1.bias", tensor("BFloat16Storage", "1", 4, 2, (2,), (1,)))])
    f8 = Rebuilt(t["_rebuild_tensor_v3"], Storage(t["UntypedStorage"], "0", 16), 0, (4, 4), (4, 1), False,
                 OrderedDict(), t["float8_e4m3fn"])
    wrapped = {"epoch": 3, "lr": 0.5, "note": ["x", None, (1, 2, 3, 4)],
               "state_dict": {"w": Rebuilt(t["_rebuild_parameter"], plain["conv1.weight"], True, OrderedDict())}}
    data = {"0": bytes(16), "1": bytes(8)}
    for protocol in (2, 4, 5):
        write("pth", f"pickle-{protocol}", dumps(plain, protocol))
        write("pth", f"pickle-wrapped-{protocol}", dumps(wrapped, protocol))
    write("pth", "plain", archive(dumps(plain, 2), data))
    write("pth", "wrapped", archive(dumps(wrapped, 4), data))
    write("pth", "float8", archive(dumps({"w": f8}, 2), data))
    write("pth", "system", archive(b"cos\nsystem\n(X\2\0\0\0idtR.", data))


def make_clean():
    write("clean", "plain", "A cat  walks on the beach, in the style of Hokusai.")
    write("clean", "entities", "fish &amp;amp; chips &lt;b&gt; &#x1F600; &#65; &eacute")
    write("clean", "mojibake", "The cafÃ© was â€œclosedâ€\x9d. schÃ¶n")
    write("clean", "chinese", "一只猫在沙滩上，阳光明媚　慢动作")
    write("clean", "forms", "ﬁne ①②③ ＡＢＣ e\u0301 \u200b\ufeff \x1b[31mred\x1b[0m")
    write("clean", "broken", b"ok \xff\xfe \xc3( \xed\xa0\x80 \xf4\x90\x80\x80")


def field(number, value):
    """One protocol-buffer field: bytes, a float (fixed 32 bits) or an int (varint below 128)."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2, len(value)]) + value
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return bytes([number << 3, value])


def make_spiece():
    normal, unknown, control, byte = 1, 2, 3, 6
    special = [("<pad>", control), ("</s>", control), ("<unk>", unknown), ("<0x41>", byte)]
    words = [(w, normal) for w in ("▁", "▁a", "cat", "c", "a", "t", "▁cat", "猫")]
    pieces = b"".join(field(1, field(1, text.encode()) + field(2, -float(i)) + field(3, kind))
                      for i, (text, kind) in enumerate(special + words))
    trainer = field(2, field(3, 1))  # a unigram model
    normalizer = field(3, field(1, b"identity") + field(3, 1) + field(4, 1) + field(5, 1))
    write("spiece", "unigram", pieces + trainer + normalizer)
    write("spiece", "pieces", pieces)
    write("spiece", "empty", trainer + normalizer)


def make_picture():
    for path in sorted((HERE / "../../parity/data").glob("picture_*")):
        if path.stat().st_size <= 4096 and path.suffix != ".json":
            write("picture", path.name, path.read_bytes())


def make_response():
    """Answers of both protocols, errors, and a data URL's characters."""
    message = {"role": "assistant", "content": "A cat.\n猫 \x1b[0m"}
    write("response", "openai", json.dumps({"choices": [{"index": 0, "message": message}]}))
    write("response", "openai-parts", json.dumps({"choices": [{"message": {"content": [
        {"type": "text", "text": "<think>hm</think> A"}, {"type": "image"}, {"text": " cat"}]}}]}))
    write("response", "dashscope", json.dumps({"output": {"choices": [{"message": message}]}}, ensure_ascii=False))
    write("response", "dashscope-parts", json.dumps({"output": {"choices": [{"message": {"content": [
        {"text": "a cat that is longer than what is kept 猫猫猫猫"}]}}]}}, ensure_ascii=False))
    write("response", "error-openai", json.dumps({"error": {"message": "wrong\u009bkey", "code": 401}}))
    write("response", "error-dashscope", json.dumps({"code": "InvalidApiKey", "message": "no"}))
    write("response", "base64", "iVBORw0KGgo=\n")
    write("response", "address", "https://me:pa@ss@host:1/v1?key=secret#x")


make_safetensors()
make_response()
make_clean()
make_spiece()
make_picture()
make_index()
make_config()
make_pth()
