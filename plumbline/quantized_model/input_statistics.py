"""What quantizing reads of the statistics of a calibration set, as protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from plumbline.activation_stats.histogram import Histogram
from plumbline.activation_stats.params import StatisticsParams


class InputStatistics(Protocol):
    """What quantizing reads about one site: an input that some Linears share. `SiteStats` (activation_stats) has it."""

    @property
    def members(self) -> tuple[str, ...]: ...
    @property
    def width(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def sum(self) -> Tensor: ...
    @property
    def sum_abs(self) -> Tensor: ...
    @property
    def sum_sq(self) -> Tensor: ...
    @property
    def hessian(self) -> Tensor | None: ...
    @property
    def histogram(self) -> Histogram | None: ...
    @property
    def min(self) -> Tensor: ...
    @property
    def max(self) -> Tensor: ...


class Statistics(Protocol):
    """What quantizing reads of the statistics of a calibration set."""

    @property
    def sites(self) -> Mapping[str, InputStatistics]: ...
    @property
    def unreached(self) -> tuple[str, ...]: ...
    @property
    def settings(self) -> StatisticsParams: ...
