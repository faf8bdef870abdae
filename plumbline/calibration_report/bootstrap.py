"""A paired bootstrap over documents, and Holm's correction, to test differences between calibration choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # scipy.stats has them, too, and takes half a second to import

CHUNK_BYTES = 64 * 2**20
"""Bound on the counts that are resampled at a time."""


@dataclass(frozen=True)
class Resampled:
    """A ratio of sums, its standard error, and its distribution when documents are resampled."""

    estimate: float
    standard_error: float
    t: np.ndarray
    """float64 (resamples,), sorted: |estimate* - estimate| / standard error* of each resample."""
    degrees_of_freedom: int | None = None
    """Of a standard error from few draws. Resamples of few draws underestimate the tails, so quantiles are then at
    least Student's."""

    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the true ratio is 0.

        The share of resamples that are further from the estimate, in standard errors, than the estimate is from 0; at
        least 1 / (resamples + 1) (Davison & Hinkley 1997, eq. 4.11).
        """
        if self.standard_error == 0:
            return 1.0 if self.estimate == 0 else 1 / (len(self.t) + 1)
        t = abs(self.estimate) / self.standard_error
        further = len(self.t) - np.searchsorted(self.t, t, side="left")
        share = float((1 + further) / (len(self.t) + 1))
        if self.degrees_of_freedom is None:
            return share
        return max(share, 2 * float(stdtr(self.degrees_of_freedom, -t)))

    def half_width(self, confidence: float) -> float:
        """Half of the symmetric interval: estimate ± this covers the true ratio with probability `confidence`.

        It is consistent with `p_value`: p > 1 - confidence if and only if the interval contains 0. It is infinite if
        too many resamples have no spread, which happens only if nearly all documents agree to the last bit.
        """
        rank = int(np.ceil(confidence * (len(self.t) + 1))) - 1
        if rank >= len(self.t):
            raise ValueError(
                f"{len(self.t)} resamples cannot give an interval of {100 * confidence:.4f} %; raise "
                f"`report.resamples` in params.yaml to at least {int(np.ceil(1 / (1 - confidence)))}"
            )
        if not self.standard_error:
            return 0.0
        quantile = float(self.t[rank])
        if self.degrees_of_freedom is not None:
            quantile = max(quantile, float(stdtrit(self.degrees_of_freedom, (1 + confidence) / 2)))
        return quantile * self.standard_error


def bootstrap_ratio(
    numerators: np.ndarray, tokens: np.ndarray, strata: np.ndarray, resamples: int, seed: int
) -> list[Resampled]:
    """Ratios sum(numerator) / sum(tokens) over documents, with their symmetric studentized bootstrap.

    Documents are drawn with replacement within their stratum, keeping its size, since the share of each domain is fixed
    by the evaluation. The same draws serve all K numerators. The standard error is computed per resample; otherwise,
    with a few dozen documents of very different length, intervals are too short, as percentile intervals are (Hall
    1988, Annals of Statistics 16:927; measured in tests/plumbline/calibration_report).

    Args:
        numerators: float64 (K, D), a sum per document, e.g. the difference of two choices' KL in nats.
        tokens: (D,), positive.
        strata: int (D,), 0 ... H - 1; each with two documents or more.
        resamples: B.
        seed: of numpy's PCG64.

    Returns:
        K results.

    Raises:
        ValueError: a stratum with fewer than two documents, a document without tokens, or shapes that do not fit.
    """
    numerators, tokens = np.asarray(numerators, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if numerators.ndim != 2 or not tokens.shape == strata.shape == numerators.shape[1:]:
        raise ValueError(
            f"numerators {numerators.shape}, tokens {tokens.shape}, strata {strata.shape}: not (K, D), (D,)"
        )
    sizes = np.bincount(strata)
    if not len(tokens) or sizes.min() < 2 or tokens.min() <= 0:
        raise ValueError(f"strata of {sizes.tolist()} documents; need two or more in each, none without tokens")
    # all sums are linear in the counts of documents, so a resample is one matrix product
    columns = [tokens, tokens**2]
    for numerator in numerators:
        columns += [numerator, numerator**2, numerator * tokens]
    terms = [np.stack(columns, axis=1)[strata == stratum] for stratum in range(len(sizes))]
    whole = np.stack([part.sum(axis=0, keepdims=True) for part in terms])
    (estimate,), (error,) = _ratios(whole, sizes)
    rng = np.random.Generator(np.random.PCG64(seed))
    chunk = max(1, CHUNK_BYTES // (16 * int(sizes.max())))
    deviations = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = np.stack([_draw(rng, rows, len(part)) @ part for part in terms])
        drawn_estimate, drawn_error = _ratios(drawn, sizes)
        distance = np.abs(drawn_estimate - estimate)
        with np.errstate(divide="ignore", invalid="ignore"):
            deviations.append(np.where(distance > 0, distance / drawn_error, 0.0))
    t = np.sort(np.concatenate(deviations), axis=0)
    return [Resampled(float(estimate[k]), float(error[k]), t[:, k]) for k in range(len(numerators))]


def _draw(rng: np.random.Generator, rows: int, documents: int) -> np.ndarray:
    """Counts of drawn documents, float64 (rows, documents); each row sums to `documents`."""
    drawn = rng.integers(0, documents, size=(rows, documents)) + documents * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * documents).reshape(rows, documents).astype(np.float64)


def _ratios(sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratio and its standard error, each (B, K), from sums (H, B, 2 + 3K) of t, t², and per numerator x, x², xt.

    With residuals e = x - r t:  se² = Σ_h D_h / (D_h - 1) · Σ (e - mean_h e)² / (Σ t)²
    (combined ratio estimate; Cochran 1977, Sampling Techniques, section 6.11)
    """
    t, tt = sums[..., 0:1], sums[..., 1:2]
    x, xx, xt = (sums[..., 2 + offset :: 3] for offset in range(3))
    total = t.sum(axis=0)
    ratio = x.sum(axis=0) / total
    count = sizes[:, None, None]
    squares = xx - 2 * ratio * xt + ratio**2 * tt - (x - ratio * t) ** 2 / count
    squares = np.where(squares < 1e-12 * xx, 0.0, squares)  # what cancellation leaves of an exact zero
    return ratio, np.sqrt((squares * count / (count - 1)).sum(axis=0)) / total


def strata_of(domains: Sequence[str], fewest: int) -> np.ndarray:
    """A stratum per domain, int64 (D,); domains of fewer than `fewest` documents share one.

    If these together have fewer than `fewest`, the smallest of the other domains joins them.
    """
    names, codes, counts = np.unique(np.asarray(domains), return_inverse=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    together = int((counts < fewest).sum())
    if 0 < counts[order[:together]].sum() < fewest:
        together += 1
    stratum = np.zeros(len(names), dtype=np.int64)
    stratum[order[together:]] = np.arange(len(names[together:])) + (1 if together else 0)
    return stratum[codes]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting all with p <= alpha has a family-wise error rate of at most alpha.

    Holm (1979), Scandinavian Journal of Statistics 6:65.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
