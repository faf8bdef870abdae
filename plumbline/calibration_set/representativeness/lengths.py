"""Lengths: does the set have production's distribution of sample lengths?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.representativeness.metric import Metric
from plumbline.calibration_set.representativeness.part import Part


@dataclass(frozen=True, eq=False)
class Lengths:
    """Distances between distributions of the length of a sample, in tokens, on a logarithmic scale."""

    population: NDArray[np.int64]
    """Lengths of the pool, (N,)."""
    support: NDArray[np.int64]
    """The distinct lengths in production, ascending, (g,)."""
    samples: NDArray[np.float64]
    """Share of production's samples up to each of them, (g,)."""
    tokens: NDArray[np.float64]
    """Share of production's tokens in samples up to each of them, (g,)."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "log_length_ks": Metric(
            "sample lengths (largest gap)",
            "share of samples",
            "Sample lengths: the set's share of samples up to some length is off from production's by {percent:.1f} %",
        ),
        "log_length_w1": Metric(
            "sample lengths (average)",
            "natural log of tokens",
            "Sample lengths: off from production's by a factor of {factor:.2f} on average",
        ),
        "token_length_ks": Metric(
            "lengths by token (largest gap)",
            "share of tokens",
            "Lengths by token: the set's share of tokens in samples up to some length is off from production's by "
            "{percent:.1f} %",
        ),
        "token_length_w1": Metric(
            "lengths by token (average)",
            "natural log of tokens",
            "Lengths by token: the sample that a token sits in is off from production's by a factor of {factor:.2f} "
            "on average",
        ),
        "tokens_beyond_longest": Metric(
            "tokens beyond the longest sample",
            "share of production tokens",
            "{percent:.1f} % of production tokens sit in samples longer than any calibration sample",
        ),
    }

    @classmethod
    def prepare(cls, population: Part, production: Part) -> Lengths:
        support, count = np.unique(production.lengths, return_counts=True)
        return cls(
            population.lengths,
            support,
            np.cumsum(count) / count.sum(),
            np.cumsum(count * support) / (count * support).sum(),
        )

    @property
    def size(self) -> int:
        return len(self.population)

    def of_set(self, chosen: Part) -> dict[str, float]:
        return self._distances(chosen.lengths)

    def of_draws(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        distances = [self._distances(self.population[row]) for row in rows]
        return {name: np.array([one[name] for one in distances]) for name in self.metrics}

    def where(self, chosen: Part) -> dict[str, str]:
        return {}

    def _distances(self, lengths: NDArray[np.int64]) -> dict[str, float]:
        """Distances of lengths (n,) to production's.

        Kolmogorov-Smirnov, max |F - G|, and Wasserstein-1, the integral of |F - G| over the natural log of the length
        (without the log, a few very long samples would dominate). Both unweighted, and with each sample weighted by its
        tokens, as in a Hessian. Then the share of production's tokens in samples longer than the set's longest.
        """
        ascending = np.sort(lengths)
        grid = np.union1d(ascending, self.support)
        at = np.searchsorted(ascending, grid, side="right")
        place = np.searchsorted(self.support, grid, side="right")
        step = np.diff(np.log(grid))
        samples = np.abs(at / len(lengths) - np.append(0, self.samples)[place])
        cumulated = np.append(0, np.cumsum(ascending))
        tokens = np.abs(cumulated[at] / cumulated[-1] - np.append(0, self.tokens)[place])
        longest = np.searchsorted(self.support, ascending[-1], side="right")
        return {
            "log_length_ks": float(samples.max()),
            "log_length_w1": float(samples[:-1] @ step),
            "token_length_ks": float(tokens.max()),
            "token_length_w1": float(tokens[:-1] @ step),
            "tokens_beyond_longest": float(1 - np.append(0, self.tokens)[longest]),
        }
