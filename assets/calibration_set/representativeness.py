"""How well a set represents production: distances to the tuning split, each beside what a random draw would get.

A raw distance says little: at the size of a calibration set, even a perfect draw is some way off. So every metric
comes with its null, the same statistic for same-size random draws from the pool, as percentile and ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assets.calibration_set.strategies.base import generator

DRAWS = 200

METRICS = {
    "domain_mix": (
        "share of tokens (total variation)",
        "Domains: {value:.1%} of the set's tokens would have to change domain to match production's mix",
    ),
    "log_length_ks": (
        "share of samples",
        "Sample lengths: the set's share of samples up to some length is off from production's by {value:.1%}",
    ),
    "log_length_w1": (
        "natural log of tokens",
        "Sample lengths: off from production's by a factor of {factor:.2f} on average",
    ),
    "tokens_beyond_longest": (
        "share of production tokens",
        "{value:.1%} of production tokens sit in samples longer than any calibration sample",
    ),
}
"""Name -> unit and sentence of each distance; 0 is no difference."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What stands for production, prepared once for many comparisons."""

    lengths: NDArray[np.int64]
    """Every length that occurs anywhere, ascending, int64 (g,)."""
    cdf: NDArray[np.float64]
    """Share of production's samples up to each of them, float64 (g,)."""
    beyond: NDArray[np.float64]
    """Share of production's tokens in samples longer than each of them, float64 (g,)."""
    mix: NDArray[np.float64]
    """Share of production's tokens per domain, float64 (domains,)."""


def representativeness(
    chosen: tuple[NDArray[np.int64], NDArray[np.str_]],
    pool: tuple[NDArray[np.int64], NDArray[np.str_]],
    tuning: tuple[NDArray[np.int64], NDArray[np.str_]],
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Compare a set with the tuning split, which stands for production and shares no document with the pool.

    Args:
        chosen, pool, tuning: lengths in tokens, int64 (n,), and domains, str (n,), of the samples of the set, of the
            whole pool (before any filter by domain: that filter is part of the choice) and of the tuning split.
        draws: random sets of the same number of samples, drawn from the pool without replacement.

    Returns:
        JSON-able. Per metric: value, unit, null (median, p05, p95), percentile (share of the draws that are closer
        to production, ties half), ratio (value / median of the null; None where that is 0), and a plain sentence.
    """
    head: dict[str, Any] = {"reference": "tuning", "reference_samples": len(tuning[0]), "samples": len(chosen[0])}
    head["null"] = f"{draws} random draws of {len(chosen[0])} samples from the pool ({len(pool[0])} samples)"
    if not len(tuning[0]):
        note = "not measured: the tuning split is empty; raise tokenize.splits.tuning in params.yaml or add documents"
        return {**head, "metrics": {}, "sentences": [note]}
    _, codes = np.unique(np.concatenate([chosen[1], pool[1], tuning[1]]), return_inverse=True)
    of_set, of_pool, of_tuning = np.split(codes, np.cumsum([len(chosen[1]), len(pool[1])]))
    production = reference(tuning[0], of_tuning, np.concatenate([chosen[0], pool[0]]), int(codes.max()) + 1)
    values = measure(chosen[0], of_set, production)
    rng = generator(0, "representativeness")  # the same draws for every choice of this size: their nulls agree
    rows = (rng.choice(len(pool[0]), min(len(chosen[0]), len(pool[0])), replace=False) for _ in range(draws))
    nulls = [measure(pool[0][row], of_pool[row], production) for row in rows]
    metrics: dict[str, Any] = {}
    for name, (unit, template) in METRICS.items():
        metrics[name] = {**against_null(values[name], np.array([null[name] for null in nulls])), "unit": unit}
        metrics[name]["sentence"] = _sentence(template, metrics[name])
    return {**head, "metrics": metrics, "sentences": [metric["sentence"] for metric in metrics.values()]}


def against_null(value: float, null: NDArray[np.float64]) -> dict[str, Any]:
    """Place a value among the same statistic of random draws, float64 (draws,)."""
    close = 1e-12  # equal up to the order of summation counts as a tie
    below = int(np.sum(null < value - close))
    ties = int(np.sum(np.abs(null - value) <= close))
    low, median, high = (float(number) for number in np.percentile(null, [5, 50, 95]))
    return {
        "value": value,
        "null": {"median": median, "p05": low, "p95": high},
        "percentile": 50 * (2 * below + ties) / len(null),
        "ratio": value / median if median > close else None,
    }


def reference(
    lengths: NDArray[np.int64], codes: NDArray[np.int64], other_lengths: NDArray[np.int64], domains: int
) -> Reference:
    """Prepare production: lengths in tokens and domain codes, int64 (m,), and the lengths it will be compared with."""
    grid = np.unique(np.concatenate([lengths, other_lengths]))
    samples = np.bincount(np.searchsorted(grid, lengths), minlength=len(grid))
    tokens = np.cumsum(samples * grid)
    cdf = np.cumsum(samples) / len(lengths)
    return Reference(grid, cdf, (tokens[-1] - tokens) / tokens[-1], _mix(lengths, codes, domains))


def measure(lengths: NDArray[np.int64], codes: NDArray[np.int64], production: Reference) -> dict[str, float]:
    """The distances of a set to production.

    Args:
        lengths, codes: tokens and domain code of each sample of the set, int64 (n,); no length may be missing from
            `production.lengths`.

    Returns:
        `log_length_ks`: Kolmogorov-Smirnov, max |F - G|, in [0, 1]. `log_length_w1`: Wasserstein-1, the integral of
        |F - G| over the natural log of the length (on logs, because a few very long samples rule the raw one).
        `tokens_beyond_longest`: share of production's tokens in samples longer than the longest of the set.
        `domain_mix`: total variation of the shares of tokens per domain, in [0, 1].
    """
    at = np.searchsorted(production.lengths, lengths)
    cdf = np.cumsum(np.bincount(at, minlength=len(production.lengths))) / len(lengths)
    gap = np.abs(cdf - production.cdf)
    return {
        "log_length_ks": float(gap.max()),
        "log_length_w1": float(np.sum(gap[:-1] * np.diff(np.log(production.lengths)))),
        "tokens_beyond_longest": float(production.beyond[at.max()]),
        "domain_mix": float(np.abs(_mix(lengths, codes, len(production.mix)) - production.mix).sum() / 2),
    }


def _mix(lengths: NDArray[np.int64], codes: NDArray[np.int64], domains: int) -> NDArray[np.float64]:
    tokens = np.bincount(codes, weights=lengths, minlength=domains)
    return np.asarray(tokens / lengths.sum(), dtype=np.float64)


def _sentence(template: str, metric: dict[str, Any]) -> str:
    said = template.format(value=metric["value"], factor=np.exp(metric["value"]))
    ratio = f", {metric['ratio']:.2g} times the typical random draw" if metric["ratio"] is not None else ""
    return f"{said}{ratio}; {metric['percentile']:.0f} % of random draws of this size come closer."
