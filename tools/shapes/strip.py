"""Lay clips out as a picture, one row a clip, five frames each: python3 strip.py OUT.png CLIP.mp4..."""
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "e2e"))
import judge  # noqa: E402


def main(out, clips, columns=2, gap=4):
    rows = []
    for path in clips:
        v = judge.read_video(path)
        rows.append(np.concatenate([v[round(i * (len(v) - 1) / 4)] for i in range(5)], 1))
    rows += [np.full_like(rows[0], 255)] * (-len(rows) % columns)
    line = np.full((gap, rows[0].shape[1], 3), 255, np.uint8)
    per = len(rows) // columns
    cols = []
    for c in range(columns):
        parts = [p for r in rows[c * per:(c + 1) * per] for p in (r, line)][:-1]
        cols += [np.concatenate(parts, 0), None]
    space = np.full((cols[0].shape[0], 3 * gap, 3), 255, np.uint8)
    judge.write_picture(out, np.concatenate([space if c is None else c for c in cols[:-1]], 1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
