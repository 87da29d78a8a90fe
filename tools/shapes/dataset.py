"""The world of the demo model: one coloured shape doing one thing on a plain background.

Everything here is a pure function of labels and uniform random numbers, written against the small
set of names that numpy and torch share (`xp`), so the training script renders on a GPU and the
judge in tests/e2e renders the same truth with numpy alone.

Labels are index rows (colour, background, shape, motion). A share of all combinations is held out
of training by a hash of the names (`held_out`); the judge asks for exactly those.
"""
import math
import random
import zlib

SIZE, FRAMES, FPS = 128, 17, 12

COLOURS = {
    "red": (0.90, 0.13, 0.13), "green": (0.15, 0.78, 0.20), "blue": (0.16, 0.32, 0.95),
    "yellow": (0.96, 0.90, 0.15), "white": (0.96, 0.96, 0.96), "purple": (0.62, 0.18, 0.85),
    "orange": (0.98, 0.52, 0.08), "cyan": (0.15, 0.85, 0.92),
}
BACKGROUNDS = {
    "black": (0.03, 0.03, 0.03), "gray": (0.45, 0.45, 0.45), "navy": (0.05, 0.08, 0.32),
    "maroon": (0.35, 0.05, 0.10), "teal": (0.02, 0.33, 0.36), "olive": (0.33, 0.33, 0.05),
}
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "spin", "still")
LEFT, RIGHT, UP, DOWN, GROW, SHRINK, SPIN, STILL = range(8)

COLOUR_NAMES, BACKGROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)
HELD_OUT_PERCENT = 16
COLOUR_JITTER = 0.03
UNIFORMS = 14  # random numbers one clip consumes

# Farthest point of each shape from its centre, in units of its radius r.
_REACH = (1.0, 0.88 * math.sqrt(2), 1.2, 1.3)
_STAR_INNER = 0.58
_EDGE_PIXELS = 2.0


# ---------------------------------------------------------------------------- combinations

def combinations():
    """Every (colour, background, shape, motion) index row, in a fixed order."""
    return [(c, b, s, m) for c in range(len(COLOURS)) for b in range(len(BACKGROUNDS))
            for s in range(len(SHAPES)) for m in range(len(MOTIONS))]


def names(combo):
    c, b, s, m = combo
    return COLOUR_NAMES[c], BACKGROUND_NAMES[b], SHAPES[s], MOTIONS[m]


def held_out(combo):
    """True for the combinations that training never sees."""
    return zlib.crc32("/".join(names(combo)).encode()) % 100 < HELD_OUT_PERCENT


def judgeable(combo):
    """A spinning circle cannot be told from a resting one."""
    return not (combo[2] == 0 and combo[3] == SPIN)


# ---------------------------------------------------------------------------- captions

_MOTION_WORDS = (
    (("moving left", "moving to the left", "sliding left", "going left", "drifting to the left"),
     ("moves left", "moves to the left", "slides left", "goes left", "drifts to the left")),
    (("moving right", "moving to the right", "sliding right", "going right", "drifting to the right"),
     ("moves right", "moves to the right", "slides right", "goes right", "drifts to the right")),
    (("moving up", "moving upwards", "rising", "going up", "floating up"),
     ("moves up", "moves upwards", "rises", "goes up", "floats up")),
    (("moving down", "moving downwards", "falling", "going down", "sinking"),
     ("moves down", "moves downwards", "falls", "goes down", "sinks")),
    (("growing", "getting bigger", "growing larger", "becoming bigger"),
     ("grows", "gets bigger", "grows larger", "becomes bigger")),
    (("shrinking", "getting smaller", "becoming smaller"),
     ("shrinks", "gets smaller", "becomes smaller")),
    (("spinning", "rotating", "turning around", "spinning in place"),
     ("spins", "rotates", "turns around", "spins in place")),
    (("standing still", "resting", "staying still", "not moving"),
     ("stands still", "rests", "stays still", "does not move")),
)
_ALSO = {"gray": ("grey",), "purple": ("violet",), "circle": ("disc",), "navy": ("dark blue",)}
_PLACES = ("on a {b} background", "on a {b} background", "against a {b} background", "on {b}",
           "over a {b} background", "in front of a {b} background")
_OPENERS = ("a video of ", "a clip of ", "an animation of ", "a simple animation of ", "a short video showing ")
STRAY_WORDS = ("please", "nice", "simple", "smooth", "beautiful", "bright", "clean", "calm", "slowly", "quickly",
               "small", "big", "video", "scene", "flat", "soft", "high", "quality", "style", "minimal", "cinematic",
               "camera", "static", "shape", "geometric", "colourful", "cartoon", "plain", "dark", "light")


def _pick(rng, word):
    other = _ALSO.get(word)
    return rng.choice(other) if other and rng.random() < 0.15 else word


def caption(combo, variant, plain=False):
    """One of many phrasings of a combination; `plain` leaves out openers and stray words."""
    c, b, s, m = names(combo)
    rng = random.Random(f"{c} {b} {s} {m} {variant}")
    c, b, s = _pick(rng, c), _pick(rng, b), _pick(rng, s)
    ing, verb = (rng.choice(forms) for forms in _MOTION_WORDS[combo[3]])
    article = rng.choice(("a", "a", "a", "the", "one"))
    if article == "a" and c[0] in "aeiou":
        article = "an"
    place = rng.choice(_PLACES).format(b=b)
    if b[0] in "aeiou":
        place = place.replace(" a " + b, " an " + b)
    text = rng.choice((f"{article} {c} {s} {ing} {place}", f"{article} {c} {s} {ing} {place}",
                       f"{article} {c} {s} {verb} {place}", f"{c} {s} {verb}, {b} background",
                       f"{c} {s} {ing}, {b} background", f"{article} {c} {s} {place}, {ing}",
                       f"{b} background, {article} {c} {s} {verb}",
                       f"{article} {c} {s} that {verb} {place}"))
    if not plain:
        if rng.random() < 0.15:
            text = rng.choice(_OPENERS) + text
        if rng.random() < 0.15:
            stray = rng.choice(STRAY_WORDS)
            text = rng.choice((f"{stray}, {text}", f"{text}, {stray}", f"{text} {stray}"))
    if rng.random() < 0.25:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.2:
        text += "."
    return text


# ---------------------------------------------------------------------------- scenes

def scene(xp, labels, uniform, tables):
    """Turn label rows [B,4] and uniforms [B,UNIFORMS] into a dict of [B] and [B,3] scene values.

    `tables` comes from `tables(xp)`: the palettes and per-class constants as arrays.
    Positions are in [-1,1] with y down; the whole path stays inside the picture.
    """
    u = [uniform[:, i] for i in range(UNIFORMS)]
    shape, motion = labels[:, 2], labels[:, 3]
    step, grows, shrinks, spins = (tables[k][motion] for k in ("step", "grow", "shrink", "spin"))
    steady = 0.27 + 0.11 * u[0]
    small = 0.18 + 0.06 * u[0]
    large = small * (1.75 + 0.25 * u[1])
    changes = grows + shrinks
    r0 = steady * (1 - changes) + grows * small + shrinks * large
    r1 = steady * (1 - changes) + grows * large + shrinks * small

    room = 1.0 - 0.04 - tables["reach"][shape] * xp.maximum(r0, r1)
    travel = xp.minimum(0.55 + 0.25 * u[2], 1.9 * room)
    out = {}
    for axis, rnd in ((0, u[3]), (1, u[4])):
        d = step[:, axis]
        moves = xp.abs(d)
        rest = (2 * rnd - 1) * xp.clip(room, 0.0, 0.55)
        along = d * (-room + rnd * (2 * room - travel))
        start = rest * (1 - moves) + along * moves
        out["xy"[axis] + "0"], out["xy"[axis] + "1"] = start, start + d * travel
    tilt = (2 * u[5] - 1) * 0.22
    out.update(r0=r0, r1=r1, a0=tilt, a1=tilt + spins * (3.6 + 0.9 * u[6]), shape=shape)
    jitter = xp.stack(u[7:13], 1) * 2 - 1
    out["fg"] = xp.clip(tables["colour"][labels[:, 0]] + COLOUR_JITTER * jitter[:, :3], 0.0, 1.0)
    out["bg"] = xp.clip(tables["background"][labels[:, 1]] + COLOUR_JITTER * jitter[:, 3:], 0.0, 1.0)
    return out


def tables(xp, asarray):
    """Palettes and per-class constants; `asarray` builds a float array of `xp` on the right device."""
    onehot = lambda k: asarray([1.0 if i == k else 0.0 for i in range(len(MOTIONS))])
    step = [[-1, 0], [1, 0], [0, -1], [0, 1]] + [[0, 0]] * 4
    ramp = [(i + 0.5) / SIZE * 2 - 1 for i in range(SIZE)]
    return {
        "colour": asarray(list(COLOURS.values())), "background": asarray(list(BACKGROUNDS.values())),
        "step": asarray(step), "grow": onehot(GROW), "shrink": onehot(SHRINK), "spin": onehot(SPIN),
        "reach": asarray(list(_REACH)), "ramp": asarray(ramp),
        "time": asarray([i / (FRAMES - 1) for i in range(FRAMES)]),
    }


def _distance(xp, shape, x, y, r):
    """Signed distance (negative inside) to every kind of shape, the wanted one selected. Arrays [B,T,H,W]."""
    circle = xp.sqrt(x * x + y * y) - r
    square = xp.maximum(xp.abs(x), xp.abs(y)) - 0.88 * r
    half = math.sqrt(3) / 2
    triangle = xp.maximum(y, half * xp.abs(x) - 0.5 * y) - 0.6 * r
    # A star is one edge, folded ten times around the centre: from the tip (angle 0, up) to the notch.
    sector = 2 * math.pi / 5
    angle = xp.abs(xp.remainder(xp.arctan2(x, -y) + sector / 2, sector) - sector / 2)
    rho = xp.sqrt(x * x + y * y)
    tip = _REACH[3]
    nx, ny = _STAR_INNER * math.sin(sector / 2), tip - _STAR_INNER * math.cos(sector / 2)
    norm = math.hypot(nx, ny)
    star = ((rho * xp.cos(angle) - tip * r) * nx + rho * xp.sin(angle) * ny) / norm
    pick = shape[:, None, None, None]
    return xp.where(pick == 0, circle, xp.where(pick == 1, square, xp.where(pick == 2, triangle, star)))


def render(xp, s, tables):
    """Scenes to video: [B,T,H,W,3] in [0,1]."""
    t = tables["time"][None, :]
    mix = lambda a, b: (s[a][:, None] * (1 - t) + s[b][:, None] * t)[:, :, None, None]
    x = tables["ramp"][None, None, None, :] - mix("x0", "x1")
    y = tables["ramp"][None, None, :, None] - mix("y0", "y1")
    angle = mix("a0", "a1")
    ca, sa = xp.cos(angle), xp.sin(angle)
    d = _distance(xp, s["shape"], ca * x + sa * y, ca * y - sa * x, mix("r0", "r1"))
    alpha = xp.clip(0.5 - d * (SIZE / 2) / _EDGE_PIXELS, 0.0, 1.0)[..., None]
    return alpha * s["fg"][:, None, None, None, :] + (1 - alpha) * s["bg"][:, None, None, None, :]
