"""An entry of the history of promotions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Kind = Literal["promoted", "rolled back"]


@dataclass(frozen=True)
class Promotion:
    """A move of the alias."""

    when: str
    """UTC, ISO 8601; empty if it is not on record."""
    version: str
    from_version: str | None
    """The previous champion; None: there was none, or it is not on record."""
    who: str
    why: str
    kind: str
    """`promoted` or `rolled back`."""
    model: str = ""
    """DVC hash of the promoted model's folder; empty if it is not on record."""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Promotion:
        """Parse an entry of the list, also one written by another version of Plumbline."""
        texts = {name: str(entry.get(name) or "") for name in ("from_version", "who", "why", "kind", "model")}
        kind, before = texts["kind"] or "promoted", texts["from_version"] or None
        when, version = _iso(entry.get("when")), str(entry["version"])
        return cls(when, version, before, texts["who"], texts["why"], kind, texts["model"])


def _iso(when: Any) -> str:
    """Convert a recorded time to ISO 8601: text unchanged, or a number of milliseconds or seconds since 1970."""
    if isinstance(when, int | float):
        with suppress(ValueError, OverflowError, OSError):
            moment = datetime.fromtimestamp(when / 1000 if when > 1e11 else when, UTC)
            return moment.isoformat(timespec="seconds")
    return str(when or "")
