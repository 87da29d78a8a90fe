#!/usr/bin/env python3
"""docs/CLI.md and --help name the same commands and the same flags."""
import re

from e2e import ROOT, main, wan

FLAG = re.compile(r"(?<![\w-])(--[a-z0-9][a-z0-9-]*|-[a-zA-Z](?=[,=\s`|]))")


def sections():
    """Text of each "## wan NAME" section."""
    parts = re.split(r"^## wan (\w+)\s*$", (ROOT / "docs" / "CLI.md").read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def commands():
    return re.findall(r"^  (\w+) ", wan("help").stdout, flags=re.M)


def test_commands(folder):
    assert sorted(sections()) == sorted(commands())


def option_flags(text):
    """Flags in the option column: table rows of the page, option lines of the help."""
    return {f for line in text.splitlines() for f in FLAG.findall(line)}


def test_flags(folder):
    for name, text in sections().items():
        if name in ("help", "version"):
            continue
        rows = "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
        lines = [line[:40] for line in wan("help", name).stdout.splitlines() if re.match(r"\s+-", line)]
        documented, offered = option_flags(rows), option_flags("\n".join(lines))
        assert documented == offered, (name, "only documented:", documented - offered, "only in --help:", offered - documented)


def test_help_of_each_command(folder):
    for name in commands():
        if name in ("help", "version"):
            continue
        assert wan("help", name).stdout == wan(name, "--help").stdout == wan(name, "-h").stdout


if __name__ == "__main__":
    main(globals())
