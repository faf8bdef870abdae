"""Activations: does the set give the base model's layers the same ranges and second moments as production?

Quantizers read these statistics, so these metrics are the closest to the purpose of a set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.representativeness.metric import Metric
from plumbline.calibration_set.representativeness.part import Part

if TYPE_CHECKING:
    from plumbline.sample_features.signatures import Magnitudes, Signatures

DAMPING = 0.01
"""Share of the mean diagonal added to a second moment before it is inverted, as GPTQ does."""
REACH = 0.999
BLOCK = 64
"""Samples whose maxima are taken together, as a wide model has 100,000 channels and more."""


@dataclass(frozen=True, eq=False)
class Activations:
    """Compares activations at S sites with W channels in total.

    Per channel: the share of production's |x| beyond the set's largest. Per site: the set's sketched second moment
    against production's. Random sets are drawn from the samples of the pool whose signature is stored, a uniform draw
    of the pool; with replacement unless they are the whole pool (`null.random_rows`).
    """

    population: Signatures
    edges: NDArray[np.float64]
    """Of the buckets of |x|, (b + 1,), from 0 to inf."""
    upto: NDArray[np.int64]
    """(W, b): production's tokens in the buckets up to each."""
    high: NDArray[np.float64]
    """Lower edge of the bucket of production's 99.9th percentile of |x|, per channel, (W,). Within a bucket (4 %) the
    percentile is not known; with the lower edge, production itself reaches it."""
    production: NDArray[np.float64]
    """Production's second moment per token, damped, (S, r, r)."""
    whitener: NDArray[np.float64]
    """Its inverse square root, (S, r, r)."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "clip_rate": Metric(
            "activations beyond the calibrated range",
            "share of production activations, mean over channels and sites",
            "Activations: {percent:.3f} % of production's are beyond the largest that the set shows in their channel",
        ),
        "clip_rate_worst_site": Metric(
            "activations beyond the calibrated range (worst site)",
            "share of a site's production activations, mean over channels",
            "Activations: at the site that fares worst ({where}), {percent:.3f} % of production's are beyond the "
            "largest that the set shows in their channel",
        ),
        "peaks_not_reached": Metric(
            "channels whose peaks are not reached",
            "share of channels",
            "Activations: in {percent:.2f} % of the channels the set never reaches production's 99.9th percentile",
        ),
        "hessian_error": Metric(
            "second moments (mean over sites)",
            "relative spectral error",
            "Second moments of activations (the Hessian of rounding): off from production's by a relative {value:.3f} "
            "in the worst direction, mean over sites",
        ),
        "hessian_error_worst_site": Metric(
            "second moments (worst site)",
            "relative spectral error",
            "Second moments of activations: off from production's by a relative {value:.3f} in the worst direction of "
            "the worst site ({where})",
        ),
    }

    @classmethod
    def prepare(cls, population: Signatures, production: Signatures, magnitudes: Magnitudes) -> Activations:
        second = _per_token(production.sketch.sum(axis=0, dtype=np.float64), int(production.tokens.sum()))
        values, vectors = np.linalg.eigh(second)
        whitener = (vectors / np.sqrt(values)[:, None, :]) @ np.swapaxes(vectors, 1, 2)
        edges, upto = magnitudes.edges, np.cumsum(magnitudes.counts, axis=1)
        high = edges[np.maximum(np.searchsorted(edges, magnitudes.quantile(REACH), side="left") - 1, 0)]
        return cls(population, edges, upto, high, second, whitener)

    @property
    def size(self) -> int:
        return len(self.population)

    def of_set(self, chosen: Part) -> dict[str, float]:
        if chosen.signatures is None:
            return {}
        peaks, moments = self._of(chosen.signatures)
        return {
            **{name: float(value[0]) for name, value in self._ranges([peaks]).items()},
            **{name: float(value[0]) for name, value in self._moments(moments[None]).items()},
        }

    def of_draws(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        ranges = self._ranges(_largest(self.population.absmax, row) for row in rows)
        shape = self.population.sketch.shape[1:]
        sketches = self.population.sketch.reshape(self.size, -1)
        moments = []
        for row in rows:
            weight = np.bincount(row, minlength=self.size).astype(np.float32)
            present = np.flatnonzero(weight)
            total = (weight[present].astype(np.float64) @ sketches[present]).reshape(shape)
            moments.append(_per_token(total, int(self.population.tokens[row].sum())))
        return {**ranges, **self._moments(np.stack(moments))}

    def where(self, chosen: Part) -> dict[str, str]:
        """Name of the worst site."""
        if chosen.signatures is None:
            return {}
        peaks, moments = self._of(chosen.signatures)
        clipped, errors = self._by_site(self._share_above(peaks)), self._errors(moments[None])[0]
        names = [site.name for site in self.population.sites]
        return {
            "clip_rate_worst_site": names[int(np.argmax(np.round(clipped, 9)))],
            "hessian_error_worst_site": names[int(np.argmax(np.round(errors, 9)))],
        }

    def _of(self, chosen: Signatures) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        total = chosen.sketch.sum(axis=0, dtype=np.float64)
        return chosen.absmax.max(axis=0), _per_token(total, int(chosen.tokens.sum()))

    def _ranges(self, peaks: Iterable[NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
        mean, worst, missed = [], [], []
        for limit in peaks:
            by_site = self._by_site(self._share_above(limit))
            mean.append(by_site.mean())
            worst.append(by_site.max())
            missed.append(np.mean(limit < self.high))
        ranges = {"clip_rate": mean, "clip_rate_worst_site": worst, "peaks_not_reached": missed}
        return {name: np.array(values, dtype=np.float64) for name, values in ranges.items()}

    def _share_above(self, limit: NDArray[np.float32]) -> NDArray[np.float64]:
        """`Magnitudes.share_above` from precomputed sums, as it is called hundreds of times."""
        at = limit.astype(np.float64)
        bucket = np.clip(np.searchsorted(self.edges, at, side="right") - 1, 0, self.upto.shape[1] - 1)
        low, high = self.edges[bucket], self.edges[bucket + 1]
        channel = np.arange(len(at))
        upto = self.upto[channel, bucket]
        inside = upto - np.where(bucket > 0, self.upto[channel, np.maximum(bucket - 1, 0)], 0)
        endless = np.isinf(high)
        part = np.where(endless, 1.0, (np.where(endless, at, high) - at) / np.where(endless, 1.0, high - low))
        total = self.upto[:, -1]
        return np.asarray((total - upto + part * inside) / total, dtype=np.float64)

    def _by_site(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over the channels of each site, (S,)."""
        return np.array([values[site.start : site.start + site.width].mean() for site in self.population.sites])

    def _moments(self, moments: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        errors = self._errors(moments)
        return {"hessian_error": errors.mean(axis=1), "hessian_error_worst_site": errors.max(axis=1)}

    def _errors(self, moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """Relative spectral error of second moments H (B, S, r, r) against production's P, (B, S).

        The smallest e with (1 - e) P <= H <= (1 + e) P, which is the distance from 1 of the farthest eigenvalue of
        P^-1/2 H P^-1/2. If e < 1, the best rounding under H is within (1 + e) / (1 - e) of the best under P.
        """
        values = np.linalg.eigvalsh(self.whitener @ moments @ self.whitener)
        return np.asarray(np.abs(values - 1).max(axis=2), dtype=np.float64)


def _per_token(sketch: NDArray[np.float64], tokens: int) -> NDArray[np.float64]:
    """Damped second moments per token, (S, r, r), from sums over tokens."""
    moments = sketch / tokens
    diagonal = np.einsum("sii->s", moments) / moments.shape[-1]
    return moments + DAMPING * np.maximum(diagonal, 1e-30)[:, None, None] * np.eye(moments.shape[-1])


def _largest(absmax: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    largest = absmax[rows[:BLOCK]].max(axis=0)
    for start in range(BLOCK, len(rows), BLOCK):
        largest = np.maximum(largest, absmax[rows[start : start + BLOCK]].max(axis=0))
    return largest
