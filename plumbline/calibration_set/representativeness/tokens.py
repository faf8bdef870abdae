"""Tokens: does the set have production's vocabulary and token frequencies, and its first tokens?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.representativeness.metric import Metric
from plumbline.calibration_set.representativeness.part import Part, selection_matrix

SMALLEST_DOMAIN = 0.01
"""Least share of production's tokens for a domain to be measured by itself."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Distances between counts of token ids. They depend strongly on the number of tokens, since two fair samples of a
    long-tailed vocabulary differ much; only the comparison with the null is meaningful."""

    population: Any
    """csr_array (N, V), int64: counts per sample of the pool."""
    first: NDArray[np.int64]
    """First token of each sample of the pool where that is special, else -1, (N,)."""
    special_ids: NDArray[np.int64]
    share: NDArray[np.float64]
    """Production's share of each token id, (V,)."""
    of_domain: NDArray[np.float64]
    """The same within each domain that is large enough, (V, D)."""
    domains: tuple[str, ...]
    """Their names."""
    special: NDArray[np.float64]
    """`share` of the special tokens, 0 elsewhere, summing to 1; all 0 if production has none, (V,)."""
    begins: NDArray[np.float64]
    """Share of production's samples that begin with each special token, (V,)."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "token_jsd": Metric(
            "token distribution",
            "bits (Jensen-Shannon divergence, 0 to 1)",
            "Tokens: the distribution of token ids is {value:.3f} bits from production's (0: the same, 1: disjoint)",
        ),
        "missing_vocabulary": Metric(
            "vocabulary not seen",
            "share of production tokens",
            "{percent:.1f} % of production tokens are of ids that the set never shows",
        ),
        "missing_vocabulary_worst_domain": Metric(
            "vocabulary not seen (worst domain)",
            "share of a domain's production tokens",
            "In the domain that fares worst ({where}), {percent:.1f} % of production tokens are of ids that the set "
            "never shows",
        ),
        "missing_special": Metric(
            "special tokens not seen",
            "share of production's special tokens",
            "{percent:.1f} % of production's special tokens (beginning of text, turns of a chat) are of kinds that the "
            "set never shows",
        ),
        "special_beginning": Metric(
            "special token at the beginning",
            "share of samples (total variation)",
            "{percent:.1f} % of the samples would have to begin with another special token, or with one at all, to "
            "match production",
        ),
    }

    @classmethod
    def prepare(
        cls, population: Part, production: Part, special_ids: Collection[int], domains: Sequence[str]
    ) -> Tokens:
        size = max(population.counts.shape[1], production.counts.shape[1])
        every = _widened(production.counts, size)
        counts = np.asarray(every.sum(axis=0), dtype=np.float64)
        total = production.domain_tokens.sum(axis=0)
        large = np.flatnonzero(total >= SMALLEST_DOMAIN * total.sum())
        # a sample counts for its domains by their share of its tokens
        weight = production.domain_tokens[:, large] / np.maximum(production.lengths, 1)[:, None]
        of_domain = every.T @ weight
        special = np.zeros(size)
        ids = np.array([number for number in special_ids if number < size], dtype=np.int64)
        special[ids] = counts[ids]
        begins = np.bincount(production.first[np.isin(production.first, ids)], minlength=size) / len(production)
        return cls(
            _widened(population.counts, size),
            np.where(np.isin(population.first, ids), population.first, -1),
            ids,
            counts / counts.sum(),
            of_domain / np.maximum(of_domain.sum(axis=0), 1e-300),
            tuple(domains[int(number)] for number in large),
            special / max(special.sum(), 1e-300),
            begins,
        )

    @property
    def size(self) -> int:
        return int(self.population.shape[0])

    def of_set(self, chosen: Part) -> dict[str, float]:
        from scipy.sparse import csr_array

        counts = csr_array(np.asarray(chosen.counts.sum(axis=0), dtype=np.float64)[None])
        first = np.where(np.isin(chosen.first, self.special_ids), chosen.first, -1)
        distances = self._distances(counts, first[None])
        return {name: float(value[0]) for name, value in distances.items()}

    def of_draws(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return self._distances(selection_matrix(rows, self.population.shape[0]) @ self.population, self.first[rows])

    def where(self, chosen: Part) -> dict[str, str]:
        seen = np.asarray(chosen.counts.sum(axis=0)).ravel()[: len(self.share)] > 0
        missing = 1 - seen @ self.of_domain[: len(seen)]
        return {"missing_vocabulary_worst_domain": self.domains[int(np.argmax(np.round(missing, 9)))]}

    def _distances(self, counts: Any, first: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Distances of B sets, from counts, csr (B, any width), and first tokens (B, n).

        JSD(p, q) = 1/2 sum p log2(p / m) + 1/2 sum q log2(q / m), m = (p + q) / 2. An id that the set lacks adds q / 2,
        so a sum over the ids in the set is enough.
        """
        sets, ids, total = _rows_of(counts), counts.indices, np.asarray(counts.sum(axis=1)).ravel()
        present = counts.data > 0
        sets, ids, p = sets[present], ids[present], counts.data[present] / total[sets[present]]
        in_reference = ids < len(self.share)
        q = np.where(in_reference, self.share[np.where(in_reference, ids, 0)], 0.0)
        m = (p + q) / 2
        both = p * np.log2(p / m) + q * np.log2(np.where(q > 0, q, m) / m)
        missing = 1 - _sum(sets, q, len(total))
        at = ids[in_reference]
        seen_of_domain = [_sum(sets[in_reference], column[at], len(total)) for column in self.of_domain.T]
        special = _sum(sets[in_reference], self.special[at], len(total))
        return {
            "token_jsd": np.clip(_sum(sets, both, len(total)) / 2 + missing / 2, 0, 1),
            "missing_vocabulary": np.clip(missing, 0, 1),
            "missing_vocabulary_worst_domain": np.clip(1 - np.min(seen_of_domain, axis=0), 0, 1),
            "missing_special": np.clip(1 - special, 0, 1) * bool(self.special.any()),
            "special_beginning": np.array([self._beginning(row) for row in first]),
        }

    def _beginning(self, first: NDArray[np.int64]) -> float:
        """Total variation of the first token, all tokens that are not special counting as one."""
        share = np.bincount(first[first >= 0], minlength=len(self.begins)) / len(first)
        other = abs(share.sum() - self.begins.sum())
        return float((np.abs(share - self.begins).sum() + other) / 2)


def _widened(counts: Any, size: int) -> Any:
    from scipy.sparse import csr_array

    return csr_array((counts.data, counts.indices, counts.indptr), shape=(counts.shape[0], size))


def _rows_of(counts: Any) -> NDArray[np.int64]:
    return np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))


def _sum(sets: NDArray[np.int64], weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.bincount(sets, weights=weights, minlength=count).astype(np.float64)
