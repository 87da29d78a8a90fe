#!/usr/bin/env python3
"""`wan extend` against llama.cpp's server (PyPI package xllamacpp) with a tiny model of random weights: what it
writes is nonsense, how it is asked and how it answers is real. Needs the packages of requirements.txt, no network.

    tools/extend_peer/run.py [WAN]       the command, default build/release/wan
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import xllamacpp

ROOT = pathlib.Path(__file__).resolve().parents[2]
WAN = sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "release" / "wan"
WIDTH, LAYERS, HEADS, INNER = 64, 2, 4, 128
WORDS = "a the red ball rolls down hill slowly in warm evening light camera follows grass wind wide shot"
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant:"


def make_model(path):
    """A llama of random weights; words and single bytes are its vocabulary."""
    pieces = [(b"<unk>", 2), (b"<s>", 3), (b"</s>", 3)] + [(b"<0x%02X>" % i, 6) for i in range(256)]
    pieces += [(("▁" + w).encode(), 1) for w in WORDS.split()]
    pieces += [(bytes([c]), 1) for c in range(32, 127)]
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(4096)
    w.add_embedding_length(WIDTH)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(INNER)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(WIDTH // HEADS)
    w.add_vocab_size(len(pieces))
    w.add_tokenizer_model("llama")
    w.add_token_list([p for p, _ in pieces])
    w.add_token_types([k for _, k in pieces])
    w.add_token_scores([-float(i) for i in range(len(pieces))])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)

    def random(name, *shape):
        w.add_tensor(name, (rng.standard_normal(shape) * 0.3).astype(np.float32))

    random("token_embd.weight", len(pieces), WIDTH)
    for i in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            random(f"blk.{i}.{name}.weight", WIDTH, WIDTH)
        random(f"blk.{i}.ffn_gate.weight", INNER, WIDTH)
        random(f"blk.{i}.ffn_up.weight", INNER, WIDTH)
        random(f"blk.{i}.ffn_down.weight", WIDTH, INNER)
    w.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    out = (rng.standard_normal((len(pieces), WIDTH)) * 0.3).astype(np.float32)
    out[:259] *= 0.01  # bytes and control pieces are unlikely
    w.add_tensor("output.weight", out)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def extend(url, *args, code=0):
    p = subprocess.run([WAN, "extend", "--extend-url", url, *args], capture_output=True, text=True, timeout=120)
    assert p.returncode == code, p
    return p


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/tiny.gguf"
        make_model(path)
        p = xllamacpp.CommonParams()
        p.model.path, p.port, p.n_ctx, p.n_parallel, p.warmup = path, 0, 4096, 1, False
        server = xllamacpp.Server(p)
        url = server.listening_address + "/v1"
        record = json.loads(extend(url, "-p", "a red ball", "--lang", "en", "--seed", "5", "--json").stdout)
        answer = json.loads(record["message"])
        assert record["status"] and record["prompt"] and answer["usage"]["completion_tokens"] <= 512, record
        same = json.loads(extend(url, "-p", "a red ball", "--lang", "en", "--seed", "5", "--json").stdout)
        other = json.loads(extend(url, "-p", "a red ball", "--lang", "en", "--seed", "6", "--json").stdout)
        assert same["prompt"] == record["prompt"] != other["prompt"]
        refused = extend(url, "-p", "x", "-i", ROOT / "tests/parity/data/picture_rgb.png", code=1)
        assert "image input is not supported" in refused.stderr, refused
        assert "404" in extend(server.listening_address + "/nowhere", "-p", "x", code=1).stderr
    print(f"llama.cpp's server: {answer['usage']['completion_tokens']} tokens, the same for the same seed; errors understood")


if __name__ == "__main__":
    main()
