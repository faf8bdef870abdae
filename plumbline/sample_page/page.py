"""The page of one calibration set, or of two side by side."""

from __future__ import annotations

from pathlib import Path

from plumbline.calibration_report.page import environment
from plumbline.sample_page.comparison import compare
from plumbline.sample_page.shown import ShownSet

LONG = 600
"""Characters of a text that are shown without a click."""
PICTURES = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
"""Control characters -> their pictures: HTML forbids some, and a reader sees none."""
DIRECTIONS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")
"""Characters that turn the reading direction, with which a text could hide what it says."""


def render(shown: ShownSet, against: ShownSet | None = None) -> str:
    """The page as HTML, with all data escaped; its bytes depend on the sets alone.

    Args:
        against: a second set, to show side by side.
    """
    jinja = environment(Path(__file__).parent)
    jinja.filters["visible"] = visible
    return jinja.get_template("samples.html.j2").render(
        sets=[shown] if against is None else [shown, against],
        comparison=None if against is None else compare(shown, against),
        long=LONG,
    )


def visible(text: str) -> str:
    """A text with nothing in it that a browser would act on or hide, once it is escaped."""
    return text.translate(PICTURES | DIRECTIONS)
