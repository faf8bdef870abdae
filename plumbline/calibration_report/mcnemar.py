"""McNemar's exact test: do two models answer different shares of the same items correctly?"""

from __future__ import annotations

from math import comb


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the hypothesis that an item on which two models differ favours either equally likely.

    Items that both or neither answer correctly carry no information. Of the n others, the number that only the first
    answers correctly is binomial with n and 1/2, so p = min(1, 2 P(X <= min(b, c))). Exact integers throughout.
    McNemar (1947), Psychometrika 12:153; the exact form as in Fagerland, Lydersen & Laake (2013), BMC Medical Research
    Methodology 13:91.

    Args:
        only_first, only_second: items that only the one model answers correctly.

    Raises:
        ValueError: a count is negative.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"found {only_first} and {only_second} items; expected counts of zero or more")
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)
