"""The uncertainty of a difference between two rules under resampling of both draws and documents.

y[draw, document] of two rules over the same draws (sub-pools) and documents has crossed random effects. The draws are
few and matter most, unlike in the bootstrap over documents alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plumbline.calibration_report.bootstrap import Resampled

CHUNK = 500
"""Resamples worked on at a time."""


def crossed_bootstrap(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], strata: np.ndarray, resamples: int, seed: int
) -> list[Resampled]:
    """Relative differences sum(rival) / sum(baseline) - 1, with their symmetric studentized bootstrap.

    A resample draws with replacement among the draws and, independently, among the documents of each stratum. It uses
    the values of the chosen draws on the chosen documents for both rules, and serves all pairs (the pigeonhole
    bootstrap: Owen 2007, Annals of Applied Statistics 1:386). Its spread alone makes intervals from ten draws too
    short, so distances are divided by the standard error of the resample, and a quantile is at least that of Student's
    t with B - 1 degrees of freedom: without that, equal rules differed significantly in 7 % of cases instead of 5
    (benchmarks/false_alarms.py).

    Args:
        pairs: (baseline, rival) each float64 (B, D): KL of a document, summed over its tokens; positive sums.
        strata: int (D,), 0 ... H - 1; each with two documents or more.
        resamples: R.
        seed: of numpy's PCG64.

    Returns:
        A result per pair.

    Raises:
        ValueError: fewer than two draws, a stratum with fewer than two documents, or shapes that do not fit.
    """
    shapes = {array.shape for pair in pairs for array in pair}
    sizes = np.bincount(strata)
    if len(shapes) != 1 or len(strata) != next(iter(shapes))[1]:
        raise ValueError(f"values {sorted(shapes)} and strata {strata.shape}: not (B, D) throughout and (D,)")
    draws, documents = next(iter(shapes))
    if draws < 2 or sizes.min() < 2:
        raise ValueError(f"{draws} draws and strata of {sizes.tolist()} documents; need two or more of each")
    rng = np.random.Generator(np.random.PCG64(seed))
    once = np.ones((1, draws)), np.ones((1, documents))
    whole = [_ratio(rival, base, *once, strata, sizes) for base, rival in pairs]
    distances: list[list[np.ndarray]] = [[] for _ in pairs]
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        w = _counts(rng, rows, np.zeros(draws, dtype=np.int64))
        v = _counts(rng, rows, strata)
        for pair_distances, (base, rival), (estimate, _) in zip(distances, pairs, whole, strict=True):
            drawn, error = _ratio(rival, base, w, v, strata, sizes)
            distance = np.abs(drawn - estimate)
            with np.errstate(divide="ignore", invalid="ignore"):
                pair_distances.append(np.where(distance > 0, distance / error, 0.0))
    return [
        Resampled(float(estimate[0]) - 1, float(error[0]), np.sort(np.concatenate(pair_distances)), draws - 1)
        for (estimate, error), pair_distances in zip(whole, distances, strict=True)
    ]


def _counts(rng: np.random.Generator, rows: int, strata: np.ndarray) -> np.ndarray:
    """Number of times each item is drawn, float64 (rows, items); each stratum keeps its size."""
    counts = np.zeros((rows, len(strata)))
    for stratum in range(int(strata.max()) + 1):
        members = np.flatnonzero(strata == stratum)
        drawn = members[rng.integers(0, len(members), size=(rows, len(members)))]
        np.add.at(counts, (np.arange(rows)[:, None], drawn), 1.0)
    return counts


def _ratio(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, v: np.ndarray, strata: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """r = sum(x) / sum(y) and its standard error, each (R,), with draws counted w (R, B) and documents v (R, D).

    se² sum(y)² = V_draw + V_document - V_both, of `_sums`: the residual variance is in both of the first two terms, so
    it is subtracted once (Cameron, Gelbach & Miller 2011, Journal of Business & Economic Statistics 29:238). It is at
    least the larger of the first two, since the difference of noisy terms may fall below it.
    """
    r, total, by_draw, by_document, both = _sums(x, y, w, v, strata, sizes)
    variance = np.maximum(by_draw + by_document - both, np.maximum(by_draw, by_document))
    exact = 1e-12 * (w @ x**2 * v).sum(axis=1)  # smaller values are zero up to cancellation
    return r, np.sqrt(np.where(variance < exact, 0.0, variance)) / total


def _sums(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, v: np.ndarray, strata: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """r = sum(x) / sum(y), sum(y), V_draw, V_document and V_both, each (R,), with counts as in `_ratio`.

    With residuals e = x - r y, the terms are the sums of squares of the residuals' totals per draw, of their totals per
    document, and of the residuals themselves.
    """
    draws = x.shape[0]
    per_draw_x, per_draw_y = v @ x.T, v @ y.T  # (R, B)
    per_doc_x, per_doc_y = w @ x, w @ y  # (R, D)
    total = (w * per_draw_y).sum(axis=1)
    r = (w * per_draw_x).sum(axis=1) / total
    column = r[:, None]
    by_draw = draws / (draws - 1) * (w * (per_draw_x - column * per_draw_y) ** 2).sum(axis=1)
    c = per_doc_x - column * per_doc_y
    squares = w @ x**2 - 2 * column * (w @ (x * y)) + column**2 * (w @ y**2)
    by_document, both = np.zeros(len(w)), np.zeros(len(w))
    for stratum, size in enumerate(sizes):
        inside = strata == stratum
        s0, s1 = v[:, inside], (v[:, inside] * c[:, inside]).sum(axis=1)
        by_document += size / (size - 1) * ((s0 * c[:, inside] ** 2).sum(axis=1) - s1**2 / size)
        cells = draws * size
        both += cells / (cells - 1) * ((s0 * squares[:, inside]).sum(axis=1) - s1**2 / cells)
    return r, total, by_draw, by_document, both


@dataclass(frozen=True)
class Components:
    """Variance components of a relative difference: variance(B draws) = draw / B + document."""

    draw: float
    """The part of draws and of their interaction with documents; it falls with more draws."""
    document: float
    """The part of documents alone; it falls only with more documents."""


def components(baseline: np.ndarray, rival: np.ndarray, strata: np.ndarray) -> Components:
    """Variance components of sum(rival) / sum(baseline) - 1 under the crossed model of `crossed_bootstrap`.

    The residual e = a_draw s_document + c_document + d_both, where s is the document's share of the baseline's sum. The
    squared totals per draw hold a and d, and their mean falls as 1 / B; the squared totals per document hold c and d,
    of which d, estimated from what is left of e without draw and document on (B - 1)(D - 1) degrees of freedom, falls
    as 1 / B and c does not (two-way analysis of variance by the method of moments; Searle, Casella & McCulloch 1992,
    Variance Components, section 4.3).

    Args:
        baseline, rival, strata: as there, (B, D), (B, D), (D,).
    """
    draws, documents = baseline.shape
    once = np.ones((1, draws)), np.ones((1, documents))
    r, total, by_draw, by_document, _ = (
        float(term[0]) for term in _sums(rival, baseline, *once, strata, np.bincount(strata))
    )
    e = rival - r * baseline
    left = e - e.sum(axis=1, keepdims=True) * (baseline.sum(axis=0) / total) - e.mean(axis=0)
    both = draws * documents / ((draws - 1) * (documents - 1)) * float((left**2).sum())
    return Components(draws * by_draw / total**2, max(0.0, by_document - both) / total**2)


@dataclass(frozen=True)
class Ratio:
    """A ratio with its interval."""

    estimate: float
    low: float
    high: float


def spread_ratio(baseline: np.ndarray, rival: np.ndarray, confidence: float) -> Ratio | None:
    """Ratio of the standard deviations over draws, rival over baseline, with its interval.

    Exact for paired normal values, which the two rules' means over a sub-pool nearly are: two variances are equal if
    and only if sum and difference are uncorrelated (Pitman 1939, Morgan 1939, both Biometrika 31). For the squared
    ratio F and the correlation ρ of the pairs the interval is F (K ± sqrt(K² - 1)), K = 1 + 2 t² (1 - ρ²) / (B - 2).

    Args:
        baseline, rival: float64 (B,), B >= 3, the mean KL of each draw.
        confidence: of the interval.

    Returns:
        None if one of the two does not vary.
    """
    from scipy.stats import t as student

    draws = len(baseline)
    covariance = np.cov(np.stack([baseline, rival]))
    if not covariance[0, 0] > 0 or not covariance[1, 1] > 0:
        return None
    squared = covariance[1, 1] / covariance[0, 0]
    rho2 = min(1.0, covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1]))
    quantile = student.ppf((1 + confidence) / 2, draws - 2)
    k = 1 + 2 * quantile**2 * (1 - rho2) / (draws - 2)
    wide = k + np.sqrt(max(0.0, k**2 - 1))
    return Ratio(*(float(np.sqrt(value)) for value in (squared, squared / wide, squared * wide)))
