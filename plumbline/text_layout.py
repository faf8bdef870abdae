"""Text for a terminal."""

from __future__ import annotations

import textwrap

WIDTH = 100


def printable(line: str) -> str:
    """A line without control characters."""
    return "".join(c if c.isprintable() else "?" for c in line)


def wrapped(text: str, indent: str) -> list[str]:
    """A paragraph as lines of the screen's width, five at most."""
    shown = textwrap.wrap(printable(text), WIDTH, subsequent_indent=indent, replace_whitespace=False)[:5]
    return shown or [""]
