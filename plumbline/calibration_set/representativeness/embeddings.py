"""Embeddings: does the set have production's topics?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.representativeness.metric import Metric
from plumbline.calibration_set.representativeness.part import Part

REFERENCE = 2048
"""Most samples of production to compare with: the first ones, a uniform draw."""
CLUSTERS = 32
SAMPLES_PER_CLUSTER = 8
"""Least average number of production's samples per cluster; otherwise there are fewer clusters."""


@dataclass(frozen=True, eq=False)
class EmbeddingDistances:
    """Energy distance, and the histogram over production's clusters."""

    population: NDArray[np.float64]
    """(N, d)."""
    production: NDArray[np.float64]
    """(m, d)."""
    across: NDArray[np.float64]
    """Mean distance of each sample of the pool to production's, (N,)."""
    within: float
    """Mean distance between two of production's samples, including each with itself."""
    centres: NDArray[np.float64]
    """(k, d)."""
    cluster: NDArray[np.int64]
    """Of each sample of the pool, (N,)."""
    histogram: NDArray[np.float64]
    """Production's share per cluster, (k,)."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "embedding_energy": Metric(
            "topics (energy distance)",
            "energy distance of embeddings",
            "Topics: the energy distance between the set's embeddings and production's is {value:.4f} (0: the same)",
        ),
        "cluster_jsd": Metric(
            "topics (clusters)",
            "bits (Jensen-Shannon divergence, 0 to 1)",
            "Topics: the set's shares of production's clusters are {value:.3f} bits from production's",
        ),
    }

    @classmethod
    def prepare(cls, population: Part, production: Part) -> EmbeddingDistances:
        assert population.embeddings is not None
        assert production.embeddings is not None
        reference = production.embeddings[:REFERENCE]
        k = int(np.clip(len(reference) // SAMPLES_PER_CLUSTER, 1, CLUSTERS))
        centres = _k_means(reference, k)
        return cls(
            population.embeddings,
            reference,
            _mean_distances(population.embeddings, reference),
            float(_mean_distances(reference, reference).mean()),
            centres,
            _nearest(population.embeddings, centres),
            np.bincount(_nearest(production.embeddings, centres), minlength=k) / len(production),
        )

    @property
    def size(self) -> int:
        return len(self.population)

    def of_set(self, chosen: Part) -> dict[str, float]:
        if chosen.embeddings is None:
            return {}
        across = float(_mean_distances(chosen.embeddings, self.production).mean())
        clusters = np.bincount(_nearest(chosen.embeddings, self.centres), minlength=len(self.centres))
        return {
            "embedding_energy": self._energy(across, chosen.embeddings),
            "cluster_jsd": float(_jsd(clusters[None] / len(chosen), self.histogram)[0]),
        }

    def of_draws(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        energy = [self._energy(float(self.across[row].mean()), self.population[row]) for row in rows]
        k = len(self.centres)
        clusters = np.stack([np.bincount(self.cluster[row], minlength=k) for row in rows]) / rows.shape[1]
        return {"embedding_energy": np.array(energy), "cluster_jsd": _jsd(clusters, self.histogram)}

    def where(self, chosen: Part) -> dict[str, str]:
        return {}

    def _energy(self, across: float, chosen: NDArray[np.float64]) -> float:
        """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, 0 only for equal distributions.

        It has no bandwidth to choose (Székely and Rizzo, Energy statistics, 2013).
        """
        return max(0.0, 2 * across - float(_mean_distances(chosen, chosen).mean()) - self.within)


def _mean_distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean Euclidean distance of each row of x (n, d) to the rows of y (m, d), (n,)."""
    of_y = np.einsum("ij,ij->i", y, y)
    means = np.empty(len(x))
    for start in range(0, len(x), 1024):  # in blocks, so that no N x m matrix is in memory
        block = x[start : start + 1024]
        # float64, as the error of a float32 product is as large as the distance of near-duplicates
        squared = np.einsum("ij,ij->i", block, block)[:, None] + of_y - 2 * (block @ y.T)
        means[start : start + 1024] = np.sqrt(np.where(squared > 1e-12, squared, 0.0)).mean(axis=1)
    return means


def _nearest(x: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """The nearest centre of each row, the first of equals, int64 (n,)."""
    squared = np.einsum("ij,ij->i", centres, centres) - 2 * (x @ centres.T)
    return np.argmin(np.round(squared, 9), axis=1).astype(np.int64)  # rounded: the same ties on every machine


def _k_means(x: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():  # threads would change the order of sums
        warnings.simplefilter("ignore", ConvergenceWarning)  # with fewer distinct points than clusters some stay empty
        centres: NDArray[np.float64] = KMeans(k, n_init=4, random_state=0).fit(x).cluster_centers_
    return centres


def _jsd(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence in bits of each row of p (B, k) to q (k,), (B,)."""
    m = (p + q) / 2
    of_p = np.where(p > 0, p * np.log2(np.where(p > 0, p, 1) / np.where(m > 0, m, 1)), 0)
    of_q = np.where(q > 0, q * np.log2(np.where(q > 0, q, 1) / np.where(m > 0, m, 1)), 0)
    return np.asarray(np.clip((of_p + of_q).sum(axis=1) / 2, 0, 1), dtype=np.float64)
