"""Random draws as the null distribution of every metric, and the family-wise test of the whole panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.strategies.base import generator

DRAWS = 400
"""Random sets per null. With 200, the flag rate of fair sets of one size is 5 % ± 2.2 %, with 400 ± 1.6 %."""
LEVEL = 0.05
"""Family-wise error rate: a fair random draw is flagged by any metric in at most this share of cases."""


def random_rows(population: int, n: int, replace: bool, draws: int = DRAWS) -> NDArray[np.int64]:
    """Rows of `draws` random sets, int64 (draws, n), drawn sample by sample as the strategy `random` does.

    Windows of a document may be drawn together or not, as in a fair set, so the null includes that variance. The draws
    are the same for every choice of this size, so that nulls can be shared.

    Args:
        population: number of rows to draw from.
        replace: draw with replacement. Needed if the population is a part of what a fair set is drawn from: without
            replacement, sets of half of it would be too alike, and a fair set would be flagged.
    """
    rng = generator(0, "representativeness")
    return np.stack([rng.choice(population, n, replace=replace) for _ in range(draws)]).astype(np.int64)


def against_null(value: float, null: NDArray[np.float64]) -> dict[str, Any]:
    """Compare a value with the same statistic of random draws, float64 (draws,).

    Returns:
        value, null (median, p05, p95), percentile (share of the draws that are closer to production, ties half) and
        ratio (value / median of the null; None where that is 0).
    """
    close = _close(value, null)
    below = int(np.sum(null < value - close))
    ties = int(np.sum(np.abs(null - value) <= close))
    low, median, high = (rounded(number) for number in np.percentile(null, [5, 50, 95]))
    return {
        "value": rounded(value),
        "null": {"median": median, "p05": low, "p95": high},
        "percentile": rounded(50 * (2 * below + ties) / len(null)),
        "ratio": rounded(value / median) if median > close else None,
    }


def family_wise(
    values: Mapping[str, float], nulls: Mapping[str, NDArray[np.float64]]
) -> tuple[float, dict[str, tuple[float, float]]]:
    """Test whether a set is farther from production than random draws, over all metrics at once.

    Every metric is studentised, t = (x - mean) / sd over the B draws and the set together, and the largest t of the set
    is ranked among the largest t of each draw. All B + 1 are treated alike, so a set that is drawn like the others has
    each rank with equal probability, whatever the dependence of the metrics.

    Args:
        values: metric -> value of the set; larger is farther. nulls: metric -> values of the draws, float64 (B,), in
            one order of draws.

    Returns:
        p, the share of the B + 1 whose largest t reaches the set's; and per metric its t, and p adjusted for the
        number of metrics: the share whose largest t reaches this one.

    Source: Westfall and Young, Resampling-Based Multiple Testing (1993), single-step max-T.
    """
    if not values:
        return 1.0, {}
    x = np.column_stack([np.append(nulls[name], values[name]) for name in values])
    t = x - x.mean(axis=0)
    spread = t.std(axis=0)
    scale = np.abs(x).max(axis=0)
    t = np.divide(t, spread, out=np.zeros_like(t), where=spread > 1e-9 * np.maximum(scale, 1e-3))
    largest = t.max(axis=1)
    adjusted = np.mean(largest[:, None] >= t[-1] - 1e-9, axis=0)
    pairs = zip(t[-1].tolist(), adjusted.tolist(), strict=True)
    return float(adjusted.min()), dict(zip(values, pairs, strict=True))


def rounded(number: float) -> float:
    """The number to nine digits, since threads and processors change the last bits."""
    return float(f"{number:.9g}")


def _close(value: float, null: NDArray[np.float64]) -> float:
    return 1e-9 * max(abs(value), float(np.abs(null).max()), 1e-3)
