#!/usr/bin/env python3
"""Judge clips of the demo model by what is in them.

    judge.py --self-test                           prove the judge on rendered truth, through a real MP4
    judge.py --prompt-file captions.json --dir D   judge D/<id>.mp4 for every caption
    judge.py --prompt-file captions.json --first-frames D   write D/<id>.png, the pictures for picture mode
    ... --first-frame-dir D2                       also require D/<id>.mp4 to open with D2/<id>.png
    ... --bars background=95,...                   percentages to demand (exit status 1 if one is missed)

Needs numpy and the ffmpeg command. It knows nothing of the model: it measures the colour of the
border, the colour, outline, path, size and rotation of what stands out from it, and compares the
measurements with the caption's labels. Every measure has a class and a rejection threshold, so an
empty or smeared clip fails instead of being assigned to the nearest class.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tools", "shapes"))
import dataset as D  # noqa: E402

ASPECTS = ("background", "colour", "shape", "motion")
DEFAULT_BARS = {"background": 95.0, "colour": 95.0, "shape": 90.0, "motion": 95.0, "all": 85.0}
PICTURE_BARS = {"motion": 90.0, "first_frame": 100.0}
FIRST_FRAME_PSNR = 25.0

COLOUR_TOLERANCE = 0.25      # Euclidean distance in [0,1]^3 beyond which a colour counts as none of ours
SHAPE_TOLERANCE = 0.09       # RMS deviation of the outline from the best template, in mean radii
MIN_AREA = 60                # pixels; anything smaller is not a shape
MOVE_MIN, MOVE_DRIFT = 0.35, 0.2     # travel along and across the named direction, in half picture widths
STAY_DRIFT = 0.17
GROW_MIN = 1.8               # ratio of last to first area
STEADY_RATIO = 1.35
SPIN_MIN, SPIN_REST = math.radians(100), math.radians(25)
SYMMETRY = (1, 4, 3, 5)      # rotational symmetry of each shape (the circle's is not used)
SECTORS = 60


# ---------------------------------------------------------------------------- video in and out

def read_video(path):
    """Decode a clip with ffmpeg: uint8 [T,H,W,3]."""
    probe = subprocess.run(["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries",
                            "stream=width,height", "-of", "csv=p=0", path], capture_output=True, text=True, check=True)
    w, h = (int(v) for v in probe.stdout.strip().split(",")[:2])
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                         capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, h, w, 3)


def write_video(path, frames, fps=D.FPS):
    """Encode uint8 [T,H,W,3] the way the engine does: H.264, crf 10, yuv420p."""
    h, w = frames.shape[1:3]
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r",
                    str(fps), "-i", "-", "-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv420p", path],
                   input=np.ascontiguousarray(frames).tobytes(), check=True)


def read_picture(path):
    return read_video(path)[0]


def write_picture(path, frame):
    h, w = frame.shape[:2]
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-i", "-",
                    "-frames:v", "1", path], input=np.ascontiguousarray(frame).tobytes(), check=True)


def psnr(a, b):
    mse = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 99.0 if mse == 0 else 10 * math.log10(255.0 ** 2 / mse)


# ---------------------------------------------------------------------------- measuring

def _palette(colour, palette):
    """Index of the nearest named colour, or -1 if none is near."""
    d = np.linalg.norm(np.asarray(list(palette.values())) - colour, axis=1)
    return int(d.argmin()) if d.min() < COLOUR_TOLERANCE else -1


def outline(alpha, cx, cy):
    """Mean-normalised radius by direction, from the area in each sector around the centroid."""
    h, w = alpha.shape
    fine = 2  # supersample so that thin sectors near the centre hold enough points
    a = np.repeat(np.repeat(alpha, fine, 0), fine, 1)
    y, x = np.mgrid[0:h * fine, 0:w * fine]
    x, y = (x + 0.5) / fine - 0.5 - cx, (y + 0.5) / fine - 0.5 - cy
    sector = ((np.arctan2(y, x) / (2 * math.pi) % 1.0) * SECTORS).astype(int) % SECTORS
    area = np.bincount(sector.ravel(), a.ravel(), SECTORS) / fine ** 2
    r = np.sqrt(np.maximum(area, 0) * SECTORS / math.pi)
    return r / max(r.mean(), 1e-6)


def _render(labels, uniform):
    tab = D.tables(np, lambda v: np.asarray(v, np.float32))
    labels = np.asarray(labels)
    return D.render(np, D.scene(np, labels, uniform.astype(np.float32), tab), tab)


_templates = {}


def shape_templates():
    """Outline of every shape at a middling size, measured by the same code that measures clips."""
    if not _templates:
        for s in range(len(D.SHAPES)):
            u = np.full((1, D.UNIFORMS), 0.5)
            clip = _render([(4, 0, s, D.STILL)], u)
            _templates[s] = outline(*measure_frame(clip[0, 0])[0:3])
    return _templates


def measure_frame(frame, bg=None, fg=None):
    """(coverage [H,W], cx, cy, area) of what stands out from the background of a float frame."""
    if bg is None:
        bg = border_colour(frame[None])
    diff = frame - bg
    if fg is None:
        fg = shape_colour(frame[None], bg)
    axis = fg - bg
    alpha = np.clip((diff @ axis) / max(float(axis @ axis), 1e-6), 0, 1)
    alpha = np.where(alpha < 0.2, 0, alpha)
    area = alpha.sum()
    y, x = np.mgrid[0:alpha.shape[0], 0:alpha.shape[1]]
    return alpha, (alpha * x).sum() / max(area, 1e-6), (alpha * y).sum() / max(area, 1e-6), area


def border_colour(frames):
    edge = np.concatenate([frames[:, :4].reshape(-1, 3), frames[:, -4:].reshape(-1, 3),
                           frames[:, :, :4].reshape(-1, 3), frames[:, :, -4:].reshape(-1, 3)])
    return np.median(edge, axis=0)


def shape_colour(frames, bg):
    """Median colour of the pixels that differ most from the background."""
    flat = frames.reshape(-1, 3)
    d = np.linalg.norm(flat - bg, axis=1)
    far = d > max(0.6 * np.quantile(d, 0.995), 0.15)
    return np.median(flat[far], axis=0) if far.sum() >= MIN_AREA else bg


def _turn(alphas, centres, order):
    """Unwrapped rotation over the clip, from the phase of the angular moment of the given order."""
    phases = []
    for a, (cx, cy) in zip(alphas, centres):
        y, x = np.mgrid[0:a.shape[0], 0:a.shape[1]]
        z = (x - cx) + 1j * (y - cy)
        phases.append(np.angle((a * z ** order).sum()))
    return float(np.sum(np.angle(np.exp(1j * np.diff(phases)))) / order)


def measure(frames):
    """What a clip shows: a dict of class indices and the numbers behind them. frames: uint8 [T,H,W,3]."""
    f = frames.astype(np.float64) / 255
    half = f.shape[2] / 2
    bg = border_colour(f)
    fg = shape_colour(f, bg)
    out = {"background": _palette(bg, D.BACKGROUNDS), "colour": _palette(fg, D.COLOURS), "shape": -1, "motion": -1}
    if np.linalg.norm(fg - bg) < 0.15:
        return out
    stats = [measure_frame(x, bg, fg) for x in f]
    area = np.array([s[3] for s in stats])
    if area.min() < MIN_AREA:
        return out
    centre = [(s[1], s[2]) for s in stats]

    votes = []
    for a, cx, cy, _ in stats[::2]:
        r = outline(a, cx, cy)
        rolls = np.stack([np.roll(r, k) for k in range(SECTORS)])
        votes.append([np.sqrt(((rolls - t) ** 2).mean(1)).min() for t in shape_templates().values()])
    error = np.median(votes, axis=0)
    out["outline_error"] = [round(float(e), 4) for e in error]
    shape = int(error.argmin())
    if error[shape] < SHAPE_TOLERANCE:
        out["shape"] = shape

    dx, dy = (centre[-1][0] - centre[0][0]) / half, (centre[-1][1] - centre[0][1]) / half
    ratio = area[-2:].mean() / area[:2].mean()
    turn = 0.0 if shape == 0 else _turn([s[0] for s in stats], centre, SYMMETRY[shape])
    out.update(dx=round(dx, 3), dy=round(dy, 3), ratio=round(float(ratio), 3), turn=round(math.degrees(turn), 1))
    out["motion"] = classify_motion(dx, dy, ratio, turn)
    return out


def classify_motion(dx, dy, ratio, turn):
    steady = 1 / STEADY_RATIO < ratio < STEADY_RATIO
    if steady and max(abs(dx), abs(dy)) > MOVE_MIN and min(abs(dx), abs(dy)) < MOVE_DRIFT:
        if abs(dx) > abs(dy):
            return D.LEFT if dx < 0 else D.RIGHT
        return D.UP if dy < 0 else D.DOWN
    if math.hypot(dx, dy) > STAY_DRIFT:
        return -1
    if ratio > GROW_MIN:
        return D.GROW
    if ratio < 1 / GROW_MIN:
        return D.SHRINK
    if not steady:
        return -1
    if abs(turn) > SPIN_MIN:
        return D.SPIN
    return D.STILL if abs(turn) < SPIN_REST else -1


def verdict(frames, labels):
    """{aspect: bool} plus the measurements, for label indices (colour, background, shape, motion)."""
    seen = measure(frames)
    want = dict(zip(("colour", "background", "shape", "motion"), labels))
    ok = {k: seen[k] == want[k] for k in ASPECTS}
    ok["all"] = all(ok.values())
    return ok, seen


# ---------------------------------------------------------------------------- captions

def load_captions(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)["captions"]


def labels_of(entry):
    return (D.COLOUR_NAMES.index(entry["colour"]), D.BACKGROUND_NAMES.index(entry["background"]),
            D.SHAPES.index(entry["shape"]), D.MOTIONS.index(entry["motion"]))


def make_captions():
    """The held-out captions: one phrasing for every combination that training never sees."""
    rows = []
    for combo in D.combinations():
        if D.held_out(combo) and D.judgeable(combo):
            c, b, s, m = D.names(combo)
            rows.append({"id": f"{len(rows):03d}", "prompt": D.caption(combo, 1000, plain=True), "colour": c,
                         "background": b, "shape": s, "motion": m})
    return {"about": "Captions whose combination of labels was held out of training; written by judge.py.",
            "frames": D.FRAMES, "size": D.SIZE, "fps": D.FPS, "captions": rows}


def truth_clip(labels, seed):
    """uint8 [T,H,W,3] of a rendered scene."""
    u = np.random.default_rng(seed).random((1, D.UNIFORMS))
    return (_render([labels], u)[0] * 255 + 0.5).astype(np.uint8)


# ---------------------------------------------------------------------------- commands

def report(title, results, bars):
    print(f"{title}: {len(results)} clips")
    missed = []
    for k, bar in bars.items():
        have = 100.0 * sum(r[k] for r in results) / max(len(results), 1)
        print(f"  {k:11s} {have:6.2f}%   (bar {bar:g}%)")
        if have < bar:
            missed.append(k)
    return missed


def judge_dir(args):
    captions = load_captions(args.prompt_file)
    pictures = args.first_frame_dir
    results, quality = [], []
    for e in captions:
        path = os.path.join(args.dir, e["id"] + ".mp4")
        if not os.path.exists(path):
            if not args.partial:
                print(f"missing: {path}")
                results.append({k: False for k in ASPECTS + ("all", "first_frame")})
            continue
        frames = read_video(path)
        ok, seen = verdict(frames, labels_of(e))
        if pictures:
            quality.append(psnr(frames[0], read_picture(os.path.join(pictures, e["id"] + ".png"))))
            ok["first_frame"] = quality[-1] >= FIRST_FRAME_PSNR
        if args.verbose and not ok["all"]:
            print(e["id"], e["prompt"], "->", [k for k in ok if not ok[k]], seen)
        results.append(ok)
    bars = dict(PICTURE_BARS if pictures else DEFAULT_BARS)
    for item in filter(None, (args.bars or "").split(",")):
        name, value = item.split("=")
        bars[name] = float(value)
    if quality:
        print(f"first frame PSNR: mean {np.mean(quality):.1f} dB, worst {min(quality):.1f} dB")
    missed = report("judged", results, bars)
    if missed or not results:
        print("MISSED:", ", ".join(missed) or "no clips")
        return 1
    return 0


def self_test(count):
    """Truth must pass, through the codec; every single wrong label and every broken clip must fail."""
    rng = np.random.default_rng(7)
    combos = [c for c in D.combinations() if D.judgeable(c)]
    picks = [combos[i] for i in rng.permutation(len(combos))[:count]]
    results, wrong = [], {k: [0, 0] for k in ASPECTS}
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "clip.mp4")
        for n, combo in enumerate(picks):
            clip = truth_clip(combo, 1000 + n)
            write_video(path, clip)
            frames = read_video(path)
            assert frames.shape == clip.shape, (frames.shape, clip.shape)
            ok, seen = verdict(frames, combo)
            if not ok["all"]:
                print("truth judged wrong:", D.names(combo), seen)
            results.append(ok)
            for axis, k in enumerate(("colour", "background", "shape", "motion")):
                sizes = (len(D.COLOURS), len(D.BACKGROUNDS), len(D.SHAPES), len(D.MOTIONS))
                other = list(combo)
                other[axis] = (combo[axis] + 1 + rng.integers(sizes[axis] - 1)) % sizes[axis]
                wrong[k][0] += not verdict(frames, other)[0][k]
                wrong[k][1] += 1
        picture = os.path.join(tmp, "picture.png")
        write_picture(picture, clip[0])
        assert psnr(read_picture(picture), clip[0]) == 99.0, "PNG must be lossless"
        assert psnr(frames[0], clip[0]) > 30, "the codec must not hide the first-frame bar"
    missed = report("truth", results, {k: 99.0 for k in ASPECTS + ("all",)})
    for k, (caught, total) in wrong.items():
        print(f"  wrong {k:11s} caught {caught}/{total}")
        if caught < total:
            missed.append("wrong " + k)
    combo = picks[0]
    clip = truth_clip(combo, 5)
    noise = rng.integers(0, 256, clip.shape).astype(np.uint8)
    flat = np.broadcast_to(clip[:, :1, :1], clip.shape)
    moving = truth_clip((0, 0, 1, D.RIGHT), 3)
    ghosts = (0.5 * moving + 0.5 * moving[::-1]).astype(np.uint8)
    for name, frames, labels in (("noise", noise, combo), ("an empty picture", flat, combo),
                                 ("a double exposure", ghosts, (0, 0, 1, D.RIGHT)),
                                 ("time reversed", moving[::-1], (0, 0, 1, D.RIGHT)),
                                 ("a frozen clip", np.repeat(moving[:1], len(moving), 0), (0, 0, 1, D.RIGHT))):
        if verdict(frames, labels)[0]["all"]:
            missed.append(name)
        else:
            print(f"  {name} fails, as it should")
    print("self-test", "FAILED: " + ", ".join(missed) if missed else "passed")
    return 1 if missed else 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--self-test", action="store_true")
    p.add_argument("--count", type=int, default=150, help="clips in the self-test")
    p.add_argument("--prompt-file", default=os.path.join(HERE, "captions.json"))
    p.add_argument("--dir", help="folder of <id>.mp4")
    p.add_argument("--first-frames", metavar="DIR", help="write the rendered first frame of every caption as PNG")
    p.add_argument("--first-frame-dir", metavar="DIR", help="picture mode: compare first frames with DIR/<id>.png")
    p.add_argument("--partial", action="store_true", help="judge only the clips that exist")
    p.add_argument("--bars", help="override bars, name=percent,...")
    p.add_argument("--verbose", action="store_true")
    p.add_argument("--write-captions", metavar="FILE")
    args = p.parse_args()
    if args.self_test:
        return self_test(args.count)
    if args.write_captions:
        with open(args.write_captions, "w", encoding="utf-8") as f:
            json.dump(make_captions(), f, indent=1)
            f.write("\n")
        return 0
    if args.first_frames:
        os.makedirs(args.first_frames, exist_ok=True)
        for e in load_captions(args.prompt_file):
            write_picture(os.path.join(args.first_frames, e["id"] + ".png"), truth_clip(labels_of(e), int(e["id"]))[0])
        return 0
    if not args.dir:
        p.error("one of --self-test, --dir, --first-frames, --write-captions is needed")
    return judge_dir(args)


if __name__ == "__main__":
    sys.exit(main())
