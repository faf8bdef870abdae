"""Domains: does the set have production's mix of domains?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.representativeness.metric import Metric
from plumbline.calibration_set.representativeness.part import Part, selection_matrix


@dataclass(frozen=True, eq=False)
class Domains:
    """Total variation of the shares of tokens per domain. Tokens that the model wrote have no domain and are left out;
    a set of such tokens alone is not measured."""

    population: NDArray[np.int64]
    """Tokens per domain of each sample of the pool, (N, D)."""
    mix: NDArray[np.float64]
    """Production's share of tokens per domain, (D,)."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "domain_mix": Metric(
            "domain mix",
            "share of tokens (total variation)",
            "Domains: {percent:.1f} % of the set's tokens would have to change domain to match production's mix",
        )
    }

    @classmethod
    def prepare(cls, population: Part, production: Part) -> Domains:
        tokens = production.domain_tokens.sum(axis=0)
        return cls(population.domain_tokens, tokens / tokens.sum())

    @property
    def size(self) -> int:
        return len(self.population)

    def of_set(self, chosen: Part) -> dict[str, float]:
        tokens = chosen.domain_tokens.sum(axis=0)
        if not tokens.any():
            return {}
        return {"domain_mix": float(self._distance(tokens[None].astype(np.float64))[0])}

    def of_draws(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return {"domain_mix": self._distance(selection_matrix(rows, len(self.population)) @ self.population)}

    def where(self, chosen: Part) -> dict[str, str]:
        return {}

    def _distance(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        mix = tokens / tokens.sum(axis=1, keepdims=True)
        return np.asarray(np.abs(mix - self.mix).sum(axis=1) / 2, dtype=np.float64)
