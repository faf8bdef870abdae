"""Statistics that stay on disk: a site is read when it is asked for, and nothing keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import SiteStats
from plumbline.activation_stats.store import open_tensors, read_header, read_sites
from plumbline.base_model.names import Names
from plumbline.histogram import Histogram


@dataclass(frozen=True, eq=False)
class SiteOutline:
    """What header.json says of a site. Its tensors are on the meta device: they say what is stored, not its values."""

    members: tuple[str, ...]
    width: int
    tokens: int
    hessian: Tensor | None
    histogram: Histogram | None
    sum: Tensor
    sum_abs: Tensor
    sum_sq: Tensor
    min: Tensor
    max: Tensor


@dataclass(frozen=True, eq=False)
class Outline:
    """Statistics without their values, enough for every check that comes before the work."""

    sites: Mapping[str, SiteOutline]
    unreached: tuple[str, ...]
    settings: StatisticsParams


class StoredStatistics:
    """The statistics in a folder."""

    def __init__(self, folder: Path) -> None:
        """Read the headers. Raises as `store.load`."""
        self.folder, self.header = folder, read_header(folder)
        self.tensors = open_tensors(folder)
        self.settings = StatisticsParams.model_validate(self.header["settings"])
        self.unreached: tuple[str, ...] = tuple(self.header["unreached"])
        self.sites: Mapping[str, SiteStats] = _Sites(self, self.header["sites"])

    def outline(self) -> Outline:
        """The same without values."""
        sites = {name: _outlined(row, self.settings) for name, row in self.header["sites"].items()}
        return Outline(sites, self.unreached, self.settings)

    def part(self, wanted: Names) -> SomeSites:
        """Those whose sites `wanted` selects by name."""
        return SomeSites(_Sites(self, [name for name in self.sites if wanted(name)]), self.unreached, self.settings)


@dataclass(frozen=True, eq=False)
class SomeSites:
    """Some of the sites in a folder."""

    sites: Mapping[str, SiteStats]
    unreached: tuple[str, ...]
    settings: StatisticsParams


class _Sites(Mapping[str, SiteStats]):
    """Sites by name; every access reads the site from disk."""

    def __init__(self, stored: StoredStatistics, names: Iterable[str]) -> None:
        self._stored, self._names = stored, dict.fromkeys(names)

    def __getitem__(self, name: str) -> SiteStats:
        stored = self._stored
        if name not in self._names:
            raise KeyError(name)
        return read_sites(stored.folder, stored.tensors, stored.header, stored.settings, [name])[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _outlined(row: Mapping[str, Any], settings: StatisticsParams) -> SiteOutline:
    width = int(row["width"])
    with torch.device("meta"):
        totals = torch.empty(width, dtype=torch.float64)
        hessian = torch.empty(width, width, dtype=torch.float64) if row["hessian"] else None
        counts = torch.empty(width, 0, dtype=torch.int64)
    histogram = Histogram(counts, row["first_bucket"], settings.mantissa_bits, row["dtype"])
    return SiteOutline(tuple(row["members"]), width, row["tokens"], hessian, histogram, *[totals] * 5)
