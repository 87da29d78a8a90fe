"""What the end-to-end tests share: running `wan`, temporary folders, safetensors, relative error.

The command is found through the environment variable WAN. Tests are plain functions named test_*; main()
runs them all, prints what failed and exits with the number of failures."""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import traceback

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "parity" / "data"
CKPT = DATA / "ckpt"
WAN = os.path.abspath(os.environ.get("WAN", ROOT / "build" / "release" / "wan"))
# Tiny models finish each operation in microseconds: threads that spin while they wait would only fight for the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}


def wan(*args, code=0, timeout=300, **kw):
    """Run `wan`; code None accepts any exit code."""
    p = subprocess.run([WAN, *map(str, args)], capture_output=True, text=True, timeout=timeout, **kw)
    if code is not None and p.returncode != code:
        raise AssertionError(f"wan {' '.join(map(str, args))}\nexit {p.returncode}, expected {code}\n{p.stdout}{p.stderr}")
    return p


def generate(ckpt, *args, frames=9, steps=3, seed=5, size=None, **kw):
    size = size or ("96x64" if ckpt == "ti2v" else "48x32")
    return wan("generate", "-m", CKPT / ckpt, "-p", "a red ball", "-s", size, "-f", frames, "--steps", steps,
               "--seed", seed, "--progress", "none", "-t", "1", *args, **kw)


def read(path):
    raw = pathlib.Path(path).read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    out = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        out[name] = np.frombuffer(raw[8 + n + a:8 + n + b], DTYPES[t["dtype"]]).reshape(t["shape"])
    return out


def write(path, tensors):
    names = {v: k for k, v in DTYPES.items()}
    header, data = {}, b""
    for name, t in tensors.items():
        t = np.ascontiguousarray(t)
        header[name] = {"dtype": names[t.dtype.type], "shape": list(t.shape), "data_offsets": [len(data), len(data) + t.nbytes]}
        data += t.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def rel(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def cases(stage):
    return [c for c in json.loads((DATA / "MANIFEST.json").read_text())["cases"] if c["stage"] == stage]


def frames(path):
    """All frames of a video as u8 [F, H, W, 3]."""
    probe = json.loads(subprocess.check_output(
        ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "stream=width,height", "-of", "json", path]))
    w, h = probe["streams"][0]["width"], probe["streams"][0]["height"]
    raw = subprocess.check_output(["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
    return np.frombuffer(raw, np.uint8).reshape(-1, h, w, 3)


def main(module):
    failed = 0
    chosen = sys.argv[1:]
    tests = {k: v for k, v in module.items() if k.startswith("test_") and callable(v) and (not chosen or k in chosen)}
    for name, test in tests.items():
        folder = pathlib.Path(tempfile.mkdtemp(prefix="wan-e2e-"))
        try:
            test(folder)
            print(f"ok    {name}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(tests) - failed} of {len(tests)} passed")
    sys.exit(failed)
