"""What a study could have seen, and how many draws would settle what it did not."""

from __future__ import annotations

import math

from scipy import stats

from plumbline.calibration_report.bootstrap import Resampled
from plumbline.study.resampling import Components

POWER = 0.8
MOST_DRAWS = 100_000
"""Beyond it the answer is that draws alone do not settle it."""


def detectable(result: Resampled, level: float, draws: int) -> float | None:
    """The smallest true relative difference that would have been called with probability `POWER`.

    A difference is called where the estimate exceeds the half width at `level`; the estimate exceeds it with
    probability 0.8 where the truth lies t_0.8 standard errors beyond (Bloom 1995, Evaluation Review 19:547). A standard
    deviation of few draws comes out too small on average; its mean for normal values, c4(B), puts that right.

    Args:
        level: 1 - alpha / m, with m tests in the family: the first step of Holm's correction, the hardest.
        draws: B; the spread is estimated from them, with B - 1 degrees of freedom.

    Returns:
        None where resamples without spread leave the half width open.
    """
    half = result.half_width(level)
    if not math.isfinite(half):
        return None
    c4 = math.sqrt(2 / (draws - 1)) * math.exp(math.lgamma(draws / 2) - math.lgamma((draws - 1) / 2))
    return (half + float(stats.t.ppf(POWER, draws - 1)) * result.standard_error) / c4


def draws_needed(parts: Components, difference: float, level: float) -> int | None:
    """Draws after which a true difference of this size would be called with probability `POWER`.

    The smallest B with (t_{(1 + level) / 2} + t_0.8)² (draw / B + document) <= difference², t of B - 1 degrees of
    freedom.

    Args:
        difference: relative, e.g. the one observed.
        level: as for `detectable`.

    Returns:
        None where no number of draws is enough: the documents alone leave it open (or there is no difference).
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
