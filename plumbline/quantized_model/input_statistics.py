"""Protocols of the statistics that quantization reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from plumbline.activation_stats.params import StatisticsParams
from plumbline.histogram import Histogram


class InputStatistics(Protocol):
    """Statistics of a site, an input that some Linears share; implemented by `activation_stats.sketch.SiteStats`."""

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
    """Statistics of a calibration set."""

    @property
    def sites(self) -> Mapping[str, InputStatistics]: ...
    @property
    def unreached(self) -> tuple[str, ...]: ...
    @property
    def settings(self) -> StatisticsParams: ...
