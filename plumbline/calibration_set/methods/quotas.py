"""Quotas of samples per bucket (or cluster), and how to fill buckets that have too few samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def apportion(available: NDArray[np.int64], n: int, kind: Literal["proportional", "equal"]) -> NDArray[np.int64]:
    """Split n over the buckets, whether or not they have enough samples.

    `proportional`: n times the bucket's share of the pool; `equal`: the same for every bucket, also for empty ones
    (their neighbours fill what they lack). Fractions are rounded by largest remainder; ties go to the bucket with more
    samples, then to the first.

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
    """Fill the buckets with too few samples from their neighbours on both sides, nearest first.

    At each distance 1, 2, ... every short bucket, in order, takes from the two buckets at that distance what they have
    beyond their own quota: half from each, and from the other what one side lacks. An odd sample comes from the side
    with more to spare (the lower one if equal). The nearer neighbours of all buckets are used before farther ones.

    Args:
        available: samples per bucket, int64 (k,).
        quota: samples asked of each, int64 (k,), summing to at most `available.sum()`.

    Returns:
        {(short bucket, giving bucket): samples}, in the order in which they were taken.
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
    """Fill the clusters with too few samples from the nearest ones with samples beyond their own quota.

    Args:
        available, quota: as for `fill`.
        distances: of a cluster to each of the k, float64 (k,).

    Returns:
        {(short cluster, giving cluster): samples}. Short clusters are filled in order; of equally near clusters, the
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
