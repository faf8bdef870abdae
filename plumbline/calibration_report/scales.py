"""Positions, axis ticks, colours and length bins of the report's plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About `about` multiples of 1, 2 or 5 times a power of ten within [low, high]; low < high."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def around_zero(values: Sequence[float | None]) -> tuple[float, float]:
    """An interval that contains zero and all values, with a margin of a twentieth on both sides."""
    numbers = [0.0, *(value for value in values if value is not None)]
    low, high = min(numbers), max(numbers)
    room = (high - low) / 20 or 0.01
    return low - room, high + room


def position(value: float, low: float, high: float) -> str:
    """Position of `value` between low and high in CSS and SVG notation: "37.5%"."""
    return f"{100 * (value - low) / (high - low):.2f}%"


def full_colour(changes: Iterable[float]) -> float:
    """The relative change with the full colour on a heat map: the largest one, within 2 to 25 %."""
    return min(0.25, max([0.02, *(abs(change) for change in changes)]))


def heat(change: float | None, full: float) -> dict[str, Any]:
    """Colour of a cell, `better` or `worse`, and its strength in percent, at most 45 to keep text legible."""
    change = change or 0.0
    return {"colour": "worse" if change > 0 else "better", "strength": round(45 * min(1.0, abs(change) / full))}


def length_bins(lengths: Sequence[np.ndarray]) -> list[int]:
    """Upper ends of power-of-two bins that cover all lengths of several sets."""
    shortest, longest = min(int(part.min()) for part in lengths), max(int(part.max()) for part in lengths)
    first, last = math.ceil(math.log2(shortest)), math.ceil(math.log2(longest))
    return [2**exponent for exponent in range(first, max(first, last) + 1)]


def shares(lengths: np.ndarray, bins: Sequence[int]) -> list[float]:
    """Share of `lengths` in each bin (previous end, end]."""
    return [float(x) for x in np.bincount(np.searchsorted(bins, lengths), minlength=len(bins)) / len(lengths)]
