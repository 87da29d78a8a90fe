#!/usr/bin/env python3
"""Who may include whom (docs/ARCHITECTURE.md). Reads every #include "..." below src/ and fails on an arrow
that the plan does not have, on a model file that names a backend, and on a file that is too long.

Usage: tools/check_layers.py [ROOT]"""
import pathlib
import re
import sys

# room -> rooms whose headers it may include (its own is always allowed)
MAY = {
    "core": set(),
    "backend": {"core"},
    "weights": {"core", "backend"},
    "text": {"core", "backend", "weights"},
    "dit": {"core", "backend", "weights"},
    "vae": {"core", "backend", "weights"},
    "sampler": {"core"},
    "media": {"core"},
    "prompt": {"core", "media"},
    "pipeline": {"core", "backend", "weights", "text", "dit", "vae", "sampler", "media", "prompt"},
    "api": {"core", "backend", "weights", "text", "dit", "vae", "sampler", "media", "prompt", "pipeline"},
    "cli": set(),
    "server": set(),
}
BACKEND_HEADERS = {"backend/backend.h", "backend/dry.h", "backend/profile.h", "backend/registry.h"}
BACKEND_SHARED = BACKEND_HEADERS | {"backend/device.h"}  # between backends only
LINES_MAX = 700  # tables and generated data live in folders named tables/
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def check(path, root):
    rel = path.relative_to(root / "src")
    room, text = rel.parts[0], path.read_text(encoding="utf-8")
    if room not in MAY:
        yield f"{rel}: {room} is not a room of the plan"
        return
    if "tables" not in rel.parts and len(text.splitlines()) > LINES_MAX:
        yield f"{rel}: {len(text.splitlines())} lines, more than {LINES_MAX}: is it two files?"
    for quote, name in INCLUDE.findall(text):
        parts = pathlib.PurePosixPath(name).parts
        if quote == "<" or name.startswith("wan/"):
            if room in {"cli", "server"} or name.startswith("wan/") or parts[0] not in MAY:
                continue
        if len(parts) < 2:
            yield f'{rel}: includes "{name}" without its room; write it relative to src/'
            continue
        other = parts[0]
        if other == room:
            # A backend knows the seam and itself, never its neighbour.
            if room == "backend" and len(rel.parts) > 2 and name not in BACKEND_SHARED and parts[1] != rel.parts[1]:
                yield f'{rel}: includes "{name}" of another backend'
            if room == "backend" and len(rel.parts) == 2 and len(parts) > 2 and rel.name != "registry.c":
                yield f'{rel}: names a backend ("{name}"); only registry.c may'
            continue
        if other not in MAY[room]:
            yield f'{rel}: includes "{name}"; {room} may include {", ".join(sorted(MAY[room])) or "nothing else"}'
        elif other == "backend" and name not in BACKEND_HEADERS:
            yield f'{rel}: includes "{name}", the inside of a backend'


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    files = [p for p in sorted((root / "src").rglob("*")) if p.suffix in {".c", ".h", ".cpp", ".cu", ".cuh"}]
    faults = [f for p in files for f in check(p, root)]
    for fault in faults:
        print(fault)
    print(f"layering: {len(files)} files, {len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
