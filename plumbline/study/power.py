"""The smallest difference that a study could detect, and the draws needed to detect the one observed."""

from __future__ import annotations

import math

from scipy import stats

from plumbline.calibration_report.bootstrap import Resampled
from plumbline.study.resampling import Components

POWER = 0.8
MOST_DRAWS = 100_000
"""Beyond this number, no number of draws is reported."""


def detectable(result: Resampled, level: float, draws: int) -> float | None:
    """The smallest true relative difference that is significant with probability `POWER`.

    A difference is significant if the estimate exceeds the half width at `level`. That has probability 0.8 if the true
    difference is t_0.8 standard errors beyond it (Bloom 1995, Evaluation Review 19:547). The standard deviation of few
    draws is too small on average; dividing by its mean for normal values, c4(B), corrects that.

    Args:
        level: 1 - alpha / m, with m tests in the family: the first step of Holm's correction, the hardest.
        draws: B; the spread is estimated from them, with B - 1 degrees of freedom.

    Returns:
        None if resamples without spread make the half width infinite.
    """
    half = result.half_width(level)
    if not math.isfinite(half):
        return None
    c4 = math.sqrt(2 / (draws - 1)) * math.exp(math.lgamma(draws / 2) - math.lgamma((draws - 1) / 2))
    return (half + float(stats.t.ppf(POWER, draws - 1)) * result.standard_error) / c4


def draws_needed(parts: Components, difference: float, level: float) -> int | None:
    """The number of draws at which a true difference of this size is significant with probability `POWER`.

    The smallest B with (t_{(1 + level) / 2} + t_0.8)² (draw / B + document) <= difference², t of B - 1 degrees of
    freedom.

    Args:
        difference: relative, e.g. the one observed.
        level: as for `detectable`.

    Returns:
        None if no number of draws is enough, because of the variance of documents (or there is no difference).
    """

    def enough(draws: int) -> bool:
        quantiles = stats.t.ppf([(1 + level) / 2, POWER], draws - 1)
        return bool(quantiles.sum() ** 2 * (parts.draw / draws + parts.document) <= difference**2)

    low, high = 1, 2
    while not enough(high):
        if high >= MOST_DRAWS:
            return None
        low, high = high, min(2 * high, MOST_DRAWS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
