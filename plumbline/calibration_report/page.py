"""Rendering of pages: one file each, in one style, with all data escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plumbline.calibration_report.wording import base_model_in_words, count, join, nats, percent, signed


def environment(*folders: Path) -> Environment:
    """Jinja with the templates of `folders`, then those here: `page.html.j2` to extend, `macros.html.j2` to import.

    Filters: kl (three digits), percent and signed (of a share), join (a, b and c), count (with thin spaces),
    base_model (name, revision and digest).
    """
    jinja = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_held_together,
    )
    jinja.filters.update(
        kl=nats,
        percent=percent,
        signed=signed,
        join=join,
        base_model=base_model_in_words,
        count=count,
    )
    return jinja


def _held_together(value: Any) -> Any:
    """The text with no-break spaces before percent signs."""
    return value.replace(" %", "\u00a0%") if isinstance(value, str) else value
