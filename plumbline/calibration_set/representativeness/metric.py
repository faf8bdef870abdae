"""The interface of an aspect of representativeness: metrics of a set, and of many random sets at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.representativeness.part import Part


@dataclass(frozen=True)
class Metric:
    """A distance to production: larger is farther."""

    label: str
    """A few words, for plots and headlines."""
    unit: str
    sentence: str
    """Format string with {value}, {percent} (100 times that), {factor} (e to the power of it) and {where}."""
    zero: float = 0.0
    """The value for equal distributions."""


class Aspect(Protocol):
    """One side of representativeness, prepared once for a production sample and a pool."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics by name."""

    @property
    def size(self) -> int:
        """Number of samples of the pool from which random sets are drawn."""

    def of_set(self, chosen: Part) -> dict[str, float]:
        """The distance of a set to production by name of the metric, without those that cannot be measured."""

    def of_draws(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """The same for random sets of rows (B, n) below `size`; each (B,)."""

    def where(self, chosen: Part) -> dict[str, str]:
        """By name of the metric, the place of the worst value, for metrics that are a maximum over places."""
