#!/usr/bin/env python3
"""Prompt extension and vision-language inputs through the command, against the services that extend_server.py
plays: both protocols, the video's metadata, certificates, proxies; and that a key shows up nowhere."""
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np

import extend_server
from e2e import CKPT, DATA, WAN, frames, generate, main, read, wan

KEY = "sk-a-key-that-nobody-may-see"
TEXT = extend_server.TEXT.strip()
CLEAN = {k: v for k, v in os.environ.items()
         if not k.startswith(("DASH_", "WAN_EXTEND")) and not k.lower().endswith("_proxy") and k != "SSL_CERT_FILE"}
SERVER = extend_server.start()


def seen():
    with extend_server.Handler.lock:
        return list(extend_server.Handler.seen)


def extend(path, *args, code=0, env=None, **kw):
    """`wan extend` with the OpenAI protocol; the key must not be in anything it prints."""
    p = wan("extend", "--extend-url", f"{SERVER.url}/{path}", *args, code=code, timeout=60,
            env={**CLEAN, "WAN_EXTEND_KEY": KEY, **(env or {})}, **kw)
    assert KEY not in p.stdout + p.stderr, p
    return p


def test_text(folder):
    p = extend("ok/v1", "-p", "a red ball", "--lang", "en", "--seed", 7)
    assert p.stdout == TEXT + "\n" and p.stderr == "", p
    q = seen()[-1]
    assert q["path"] == "/ok/v1/chat/completions" and q["headers"]["Authorization"] == f"Bearer {KEY}"
    assert q["body"]["model"] == "Qwen/Qwen2.5-14B-Instruct" and q["body"]["seed"] == 7
    assert q["body"]["messages"][1] == {"role": "user", "content": "a red ball"}
    assert "60 to 200 words" in q["body"]["messages"][0]["content"]


def test_record(folder):
    (folder / "system.txt").write_text("Be brief. 短", encoding="utf-8")
    p = extend("ok", "-p", "x", "--json", "--extend-system", folder / "system.txt", "--extend-model", "QwenVL2.5_3B")
    record = json.loads(p.stdout)
    assert record["status"] is True and record["prompt"] == TEXT and record["system_prompt"] == "Be brief. 短"
    assert record["model"] == "Qwen/Qwen2.5-VL-3B-Instruct" and 0 <= record["seed"] < 2 ** 63
    assert json.loads(record["message"])["choices"][0]["message"]["content"] == extend_server.TEXT
    p = extend("refuse", "-p", "x", "--json", code=1)
    record = json.loads(p.stdout)
    assert record["status"] is False and record["prompt"] == "x" and "401" in record["message"]
    assert p.stderr.count("\n") == 1 and "HTTP status 401" in p.stderr


def test_dashscope(folder):
    env = {**CLEAN, "DASH_API_KEY": KEY, "DASH_API_URL": SERVER.url + "/ok/api/v1/"}
    p = wan("extend", "--extend-method", "dashscope", "-p", "a red ball", env=env)
    assert p.stdout == TEXT + "\n"
    assert seen()[-1]["path"] == "/ok/api/v1/services/aigc/text-generation/generation"
    p = wan("extend", "--extend-method", "dashscope", "-i", DATA / "picture_rgb.png", env=env)
    assert p.stdout == TEXT.replace("\n", "\\n") + "\n"
    q = seen()[-1]
    assert q["path"] == "/ok/api/v1/services/aigc/multimodal-generation/generation"
    content = q["body"]["input"]["messages"][1]["content"]
    assert content[0] == {"text": ""} and content[1]["image"].startswith("data:image/png;base64,")
    assert "没有文字" in q["body"]["input"]["messages"][0]["content"][0]["text"]
    assert q["body"]["model"] == "qwen-vl-max" and q["body"]["parameters"]["result_format"] == "message"
    p = wan("extend", "--extend-method", "dashscope", "-p", "x", code=1, env=CLEAN)
    assert "DASH_API_KEY" in p.stderr


def test_remote_picture(folder):
    extend("ok", "-p", "x", "-i", SERVER.url + "/move/2")
    url = seen()[-1]["body"]["messages"][1]["content"][0]["image_url"]["url"]
    got = wan("stage", "vision-image", "--image", url, "-o", folder / "o.safetensors", "--min-pixels", 784, env=CLEAN)
    assert read(folder / "o.safetensors")["image"].shape == (3, 392, 532)  # 40 x 30, at least 256 * 28 * 28 pixels
    p = extend("ok", "-p", "x", "-i", SERVER.url + "/loop", code=1)
    assert "redirects" in p.stderr, got


def test_usage(folder):
    assert "--task" in extend("ok", "-p", "x", "--task", "s2v-14B", code=2).stderr
    extend("ok", code=2)
    extend("ok", "-p", "x", "--lang", "fr", code=2)
    extend("ok", "-p", "x", "--extend-timeout", "0", code=2)
    (folder / "none").write_bytes(b"a\0b")
    extend("ok", "-p", "x", "--extend-system", folder / "none", code=1)
    assert "address" in wan("extend", "--extend-method", "openai", "-p", "x", code=1, env=CLEAN).stderr


def test_timeout_and_cancel(folder):
    start = time.time()
    p = extend("slow", "-p", "x", "--extend-timeout", "0.5", code=1)
    assert time.time() - start < 15 and "127.0.0.1" in p.stderr
    child = subprocess.Popen([WAN, "extend", "-p", "x", "--extend-url", SERVER.url + "/slow"], env=CLEAN,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=15)
    assert child.returncode == 130 and b"cancelled" in err, (child.returncode, err)


# ---- In wan generate ----

def settings(video):
    return json.loads(wan("info", "--settings", video).stdout)


def test_generate(folder):
    env = {**CLEAN, "WAN_EXTEND_KEY": KEY}
    p = generate("ti2v", "--use_prompt_extend", "--prompt_extend_target_lang", "en", "--extend-url", SERVER.url + "/ok",
                 "-o", folder / "a.mp4", env=env)
    assert "extended prompt: A long take." in p.stderr and KEY not in p.stdout + p.stderr
    assert seen()[-1]["body"]["seed"] == 5
    kept = settings(folder / "a.mp4")
    assert kept["prompt"] == TEXT and kept["original_prompt"] == "a red ball" and KEY not in json.dumps(kept)
    # The same video from the extended prompt, and from the first one's settings.
    generate("ti2v", "-p", TEXT, "-o", folder / "b.mp4")
    wan("generate", "-m", CKPT / "ti2v", "--replay", folder / "a.mp4", "-o", folder / "c.mp4", "--progress", "none")
    assert np.array_equal(frames(folder / "a.mp4"), frames(folder / "b.mp4"))
    assert np.array_equal(frames(folder / "a.mp4"), frames(folder / "c.mp4"))
    assert settings(folder / "c.mp4")["original_prompt"] == "a red ball"
    assert "original_prompt" not in settings(folder / "b.mp4")
    # Extending a replayed video extends what it was extended from.
    n = len(seen())
    wan("generate", "-m", CKPT / "ti2v", "--replay", folder / "a.mp4", "-o", folder / "d.mp4", "--progress", "none",
        "--extend", "--extend-url", SERVER.url + "/ok", env=env)
    assert [q["body"]["messages"][1]["content"] for q in seen()[n:]] == ["a red ball"]


def test_generate_with_picture(folder):
    generate("i2v", "--extend", "--extend-url", SERVER.url + "/ok", "-i", DATA / "picture_rgb.png", "-o",
             folder / "a.mp4", env=CLEAN)
    content = seen()[-1]["body"]["messages"][1]["content"]
    assert [c["type"] for c in content] == ["image_url", "text"] and content[1]["text"] == "a red ball"


def test_generate_goes_on_without(folder):
    p = generate("t2v", "--extend", "--extend-url", SERVER.url + "/refuse", "-o", folder / "a.mp4", env=CLEAN)
    assert p.stderr.count("could not be extended") == 1 and "HTTP status 401" in p.stderr
    assert settings(folder / "a.mp4")["prompt"] == "a red ball" and "original_prompt" not in settings(folder / "a.mp4")
    p = generate("t2v", "--extend", "--extend-required", "--extend-url", SERVER.url + "/refuse", "-o",
                 folder / "b.mp4", env=CLEAN, code=1)
    assert "HTTP status 401" in p.stderr and not (folder / "b.mp4").exists()


def test_resume_keeps_the_prompt(folder):
    """An interrupted run is resumed with the prompt in its checkpoint, without asking again."""
    state = folder / "state"
    args = ["generate", "-m", CKPT / "t2v", "-p", "a red ball", "-s", "48x32", "-f", "9", "--steps", "400", "--seed", "5",
            "--progress", "none", "--checkpoint", state, "-o", folder / "a.mp4", "--extend", "--extend-url"]
    child = subprocess.Popen([WAN, *map(str, args), SERVER.url + "/ok"], env=CLEAN, stderr=subprocess.PIPE)
    deadline = time.time() + 60
    while not state.exists() and time.time() < deadline and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 130 and state.exists()
    n = len(seen())
    wan(*args, SERVER.url + "/refuse", "--extend-required", env=CLEAN)
    assert len(seen()) == n and settings(folder / "a.mp4")["prompt"] == TEXT


# ---- Certificates and proxies ----

def certificate(folder, name):
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-days", "2", "-subj", "/CN=test",
                    "-addext", f"subjectAltName={name}"], check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_certificates(folder):
    """An unknown authority and a certificate for another host are refused, before anything is sent."""
    assert shutil.which("openssl"), "the openssl command makes this test's certificates"
    for name, trusted, fine in (("IP:127.0.0.1", True, True), ("IP:127.0.0.1", False, False),
                                ("DNS:other.example", True, False)):
        cert, key = certificate(folder, name)
        server = extend_server.start(cert, key)
        env = {**CLEAN, "WAN_EXTEND_KEY": KEY, **({"SSL_CERT_FILE": str(cert)} if trusted else {})}
        n, start = len(seen()), time.time()
        p = wan("extend", "-p", "x", "--extend-url", server.url + "/ok", env=env, code=None)
        if fine:
            assert p.returncode == 0 and p.stdout == TEXT + "\n", p
            # A redirect may not lead from https to http.
            out, port = folder / "o.safetensors", SERVER.server_address[1]
            wan("stage", "vision-image", "--image", server.url + "/picture", "-o", out, env=env)
            p = wan("stage", "vision-image", "--image", f"{server.url}/down/{port}", "-o", out, env=env, code=1)
            assert seen()[-1]["path"] == f"/down/{port}", p
        else:
            assert p.returncode == 1 and ("SSL" in p.stderr or "certificate" in p.stderr), p
            assert len(seen()) == n and time.time() - start < 15  # nothing arrived, no second attempt
        server.shutdown()


def test_proxy(folder):
    """The environment's proxy is asked for what is not in no_proxy."""
    env = {**CLEAN, "http_proxy": SERVER.url, "no_proxy": "other.example"}
    p = wan("extend", "-p", "x", "--extend-url", "http://service.invalid/ok/v1", env=env)
    assert p.stdout == TEXT + "\n"
    assert seen()[-1]["path"] == "http://service.invalid/ok/v1/chat/completions"


# ---- Vision-language inputs ----

def test_sizes(folder):
    assert wan("stage", "smart-resize", "-s", "1920x1080").stdout == "1932x1092\n"
    assert wan("stage", "smart-resize", "-s", "1920x1080", "--min-pixels", 200704, "--max-pixels",
               1003520).stdout == "1316x728\n"
    assert "200 times" in wan("stage", "smart-resize", "-s", "2601x13", code=1).stderr
    assert wan("stage", "smart-nframes", "--total-frames", 240, "--video-fps", 24).stdout == "20\n"
    assert wan("stage", "smart-nframes", "--total-frames", 240, "--video-fps", 24, "--frames", 7).stdout == "8\n"
    assert "only one" in wan("stage", "smart-nframes", "--total-frames", 240, "--video-fps", 24, "--frames", 8, "--fps",
                             1, code=1).stderr


def test_clip(folder):
    generate("ti2v", "-o", folder / "clip.mp4", "--fps", 8, frames=17)
    whole = frames(folder / "clip.mp4")
    out = folder / "o.safetensors"
    wan("stage", "vision-video", "--video", folder / "clip.mp4", "-s", "112x84", "-o", out)
    got = read(out)  # 17 frames at 8 a second, two a second: 4.25, at least 4
    assert got["index"].tolist() == [0, 5, 11, 16] and got["video"].shape == (4, 3, 84, 112)
    assert abs(float(got["fps"][0]) - 4 / 17 * 8) < 1e-5
    # The same picture, whoever resizes: the mean of each frame and channel stays.
    mean = whole[got["index"]].mean(axis=(1, 2))
    assert np.abs(got["video"].mean(axis=(2, 3)) - mean).max() < 2, (mean, got["video"].mean(axis=(2, 3)))
    assert np.array_equal(got["video"], np.round(got["video"])) and got["video"].min() >= 0 and got["video"].max() <= 255
    wan("stage", "vision-video", "--video", f"file://{folder}/clip.mp4", "--frames", 6, "--start", 0.5, "--end", 1.5, "-o", out)
    got = read(out)
    assert got["index"].tolist() == [4, 6, 7, 9, 10, 12], got["index"]
    # Frames below 128 * 28 * 28 pixels are enlarged.
    assert got["video"].shape[2] * got["video"].shape[3] >= 100352
    wan("stage", "vision-video", "--video", folder / "clip.mp4", "--frames", 40, "-o", out, code=1)


def test_frames_from_pictures(folder):
    out = folder / "o.safetensors"
    pictures = [DATA / "picture_rgb.png", f"file://{DATA}/picture_gray.png", DATA / "picture_palette.png"]
    args = [a for i, p in enumerate(pictures) for a in ("--frame-image", f"{i}:{p}")]
    wan("stage", "vision-video", *args, "-o", out)
    got = read(out)
    assert got["index"].tolist() == [0, 1, 2, 2] and np.array_equal(got["video"][2], got["video"][3])
    wan("stage", "vision-image", "--image", DATA / "picture_rgb.png", "-o", folder / "i.safetensors")
    assert np.array_equal(read(folder / "i.safetensors")["image"], got["video"][0])
    wan("stage", "vision-video", *args, "--frame-image", f"9:{pictures[0]}", "-o", out, code=1)
    wan("stage", "vision-video", "-o", out, code=1)


if __name__ == "__main__":
    main(globals())
