"""How many samples each bucket (or cluster) gives: quotas, and what to do when one runs short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def apportion(available: NDArray[np.int64], n: int, kind: Literal["proportional", "equal"]) -> NDArray[np.int64]:
    """Split n over the buckets, before asking whether they hold so many.

    `proportional`: n times the bucket's share of the pool; `equal`: the same for every bucket, also for empty ones
    (what they lack is filled from their neighbours). Fractions go by largest remainder; ties go to the bucket that
    holds more, then to the first.

    Args:
        available: samples per bucket, int64 (k,), not all zero.

    Returns:
        int64 (k,), summing to n. Proportional quotas never exceed `available` while n <= available.sum().

    Source: Hamilton's method of apportionment (largest remainder).
    """
    weight = available if kind == "proportional" else np.ones_like(available)
    whole, remainder = np.divmod(n * weight, weight.sum())  # integers: no rounding error decides who gets a sample
    order = np.lexsort((np.arange(len(weight)), -available, -remainder))
    whole[order[: n - int(whole.sum())]] += 1
    return whole


def fill(available: NDArray[np.int64], quota: NDArray[np.int64]) -> dict[tuple[int, int], int]:
    """Fill the buckets that run short from their neighbours, the nearest first, both sides.

    At each distance 1, 2, ... every short bucket, in order, takes from the bucket on either side at that distance
    what those have beyond their own quota: half from each, and what one side lacks from the other; an odd sample
    comes from the side with more to spare (the lower one when equal). The nearer neighbours of all buckets are used
    before the farther ones of any.

    Args:
        available: samples per bucket, int64 (k,).
        quota: samples asked of each, int64 (k,), summing to at most `available.sum()`.

    Returns:
        {(short bucket, bucket that gives): samples}, in the order in which they were given.
    """
    spare = [int(count) for count in np.maximum(available - quota, 0)]
    lacking = [int(count) for count in np.maximum(quota - available, 0)]
    fills: dict[tuple[int, int], int] = {}
    for distance in range(1, len(quota)):
        for short in range(len(quota)):
            sides = [side for side in (short - distance, short + distance) if 0 <= side < len(quota)]
            sides.sort(key=lambda side: (-spare[side], side))
            wanted = min(lacking[short], sum(spare[side] for side in sides))
            second = min(wanted // 2, spare[sides[1]]) if len(sides) == 2 else 0
            for side, taken in zip(sides, (wanted - second, second), strict=False):
                if taken:
                    fills[short, side] = taken
                    spare[side] -= taken
                    lacking[short] -= taken
    return fills


def fill_nearest(
    available: NDArray[np.int64], quota: NDArray[np.int64], distances: Callable[[int], NDArray[np.float64]]
) -> dict[tuple[int, int], int]:
    """Fill the clusters that run short from the nearest ones that have samples beyond their own quota.

    Args:
        available, quota: as for `fill`.
        distances: of a cluster to each of the k, float64 (k,).

    Returns:
        {(short cluster, cluster that gives): samples}. Short clusters are served in order; of givers equally near, the
        first gives first.
    """
    spare = np.maximum(available - quota, 0)
    fills: dict[tuple[int, int], int] = {}
    for short in np.flatnonzero(quota > available).tolist():
        lacking = int(quota[short] - available[short])
        for giver in np.argsort(distances(short), kind="stable").tolist():
            if not lacking:
                break
            if taken := min(lacking, int(spare[giver])):
                fills[short, giver] = taken
                spare[giver] -= taken
                lacking -= taken
    return fills
