"""Layout of text for a terminal."""

from __future__ import annotations

import textwrap

WIDTH = 100


def printable(line: str) -> str:
    """Replace control characters in a line by `?`."""
    return "".join(c if c.isprintable() else "?" for c in line)


def wrapped(text: str, indent: str) -> list[str]:
    """Wrap a paragraph to lines of at most `WIDTH` characters; returns at most five."""
    shown = textwrap.wrap(printable(text), WIDTH, subsequent_indent=indent, replace_whitespace=False)[:5]
    return shown or [""]
