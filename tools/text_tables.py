#!/usr/bin/env python3
"""Write the tables of src/text/tables/ from Python's standard library and from ftfy.

Needs ftfy 6.3.1 (by Robyn Speer, Apache-2.0), whose character classes are read from the installed
package: the engine's cleaning has to agree with that version.  Run from the repository's root:

  python3 tools/text_tables.py
"""
import codecs
import html.entities
import re
import sys

import ftfy
import ftfy.bad_codecs  # noqa: F401  (registers the sloppy code pages)
from ftfy import badness, chardata

OUT = "src/text/tables/"
PAGES = ["latin-1", "sloppy-windows-1252", "sloppy-windows-1251", "sloppy-windows-1250",
         "sloppy-windows-1253", "sloppy-windows-1254", "sloppy-windows-1257", "iso-8859-2",
         "macroman", "cp437"]
CLASSES = ["common", "c1", "bad", "law", "currency", "start_punctuation", "end_punctuation",
           "numeric", "kaomoji", "upper_accented", "lower_accented", "upper_common",
           "lower_common", "box"]
CLUES = ["utf8_first_of_2", "utf8_first_of_3", "utf8_first_of_4", "utf8_continuation",
         "utf8_continuation_strict"]


def write(name, what, lines):
    with open(OUT + name, "w", encoding="ascii") as f:
        f.write(f"/* {name}: {what}. Written by tools/text_tables.py. */\n")
        f.write("\n".join(lines) + "\n")


def points(text, room):
    """The code points of text as a C initialiser with `room` places"""
    assert 0 < len(text) <= room, text
    return "{" + ", ".join(f"0x{ord(c):x}" for c in text) + "}"


def entities():
    rows = sorted((name.encode(), value) for name, value in html.entities.html5.items())
    write("entities.inc", "HTML 5 character references: name, code points; sorted by name",
          [f'{{"{name.decode()}", {points(value, 3)}}},' for name, value in rows])
    upper = {}
    for name, value in html.entities.html5.items():
        if name.endswith(";") and name == name.lower():
            if chardata.HTML_ENTITIES.get("&" + name.upper()) == value.upper() \
                    and name.upper() not in html.entities.html5:
                upper[name.upper()] = value.upper()
    assert len(upper) + sum(n.endswith(";") for n in html.entities.html5) == len(chardata.HTML_ENTITIES)
    write("entities_upper.inc", "names that ftfy also reads in capitals; sorted by name",
          [f'{{"{name}", {points(value, 3)}}},' for name, value in sorted(upper.items())])


def pages():
    assert chardata.CHARMAP_ENCODINGS == PAGES
    lines = []
    for page in PAGES:
        sloppy = page.startswith("sloppy")
        pairs = [(ord(bytes([b]).decode(page)), b) for b in range(0x80, 0x100)]
        if sloppy:  # the replacement character stands for byte 1A
            pairs.append((0xfffd, 0x1a))
        pairs.sort()
        lines.append(f'{{"{page}", {int(sloppy)}, {len(pairs)}, {{')
        for i in range(0, len(pairs), 8):
            lines.append("  " + " ".join(f"{{0x{c:04x}, 0x{b:02x}}}," for c, b in pairs[i:i + 8]))
        lines.append("}},")
    write("code_pages.inc", "one-byte encodings in the order of trial: name, sloppy, pairs of "
          "(character, byte) for bytes from 80; sorted by character", lines)
    c1 = [ord(bytes([b]).decode("sloppy-windows-1252")) for b in range(0x80, 0xa0)]
    write("c1.inc", "windows-1252 for bytes 80 to 9f, undefined ones unchanged",
          ["  " + " ".join(f"0x{c:04x}," for c in c1[i:i + 8]) for i in range(0, 32, 8)])
    undefined = [b for b in range(0x80, 0xa0) if codecs.decode(bytes([b]), "cp1252", "replace") == "\ufffd"]
    assert undefined == [0x81, 0x8d, 0x8f, 0x90, 0x9d] and c1[1] == 0x81


def classes():
    names = CLASSES + CLUES
    sets = [badness.MOJIBAKE_CATEGORIES[n] for n in CLASSES] + [chardata.UTF8_CLUES[n] for n in CLUES]
    tests = [re.compile("[" + s + "]") for s in sets]
    runs = []
    for c in range(0x110000):
        mask = sum(1 << i for i, t in enumerate(tests) if t.match(chr(c)))
        if not mask:
            continue
        if runs and runs[-1][1] == c - 1 and runs[-1][2] == mask:
            runs[-1][1] = c
        else:
            runs.append([c, c, mask])
    write("char_classes.inc", "first, last, classes; sorted",
          [f"{{0x{a:04x}, 0x{b:04x}, 0x{m:05x}}}," for a, b, m in runs])
    with open(OUT + "char_classes.h", "w", encoding="ascii") as f:
        f.write("/* char_classes.h: bits of char_classes.inc. Written by tools/text_tables.py. */\n"
                "#ifndef WAN_TEXT_CHAR_CLASSES_H\n#define WAN_TEXT_CHAR_CLASSES_H\n\nenum {\n")
        for i, n in enumerate(names):
            f.write(f"  CC_{n.upper()} = 1 << {i},\n")
        f.write("};\n\n#endif\n")


def replacements():
    rows = {**chardata.LIGATURES, **chardata.WIDTH_MAP}
    write("replacements.inc", "ligatures taken apart, full and half widths made plain; sorted",
          [f"{{0x{c:04x}, {points(s, 3)}}}," for c, s in sorted(rows.items())])


if __name__ == "__main__":
    if ftfy.__version__ != "6.3.1":
        sys.exit(f"ftfy 6.3.1 is needed, this is {ftfy.__version__}")
    entities()
    pages()
    classes()
    replacements()
