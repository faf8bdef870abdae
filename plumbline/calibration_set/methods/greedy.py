"""Lazy greedy maximisation of a monotone submodular set function."""

from __future__ import annotations

import heapq
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from plumbline.progress import Bar

BATCH = 32
"""Stale gains recomputed together: faster for a vectorised objective, with the same result."""


class Objective(Protocol):
    """A set function f over rows, seen from the set A built so far (empty at first)."""

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """f(A + row) - f(A) for each of `rows`, float64 (len(rows),)."""
        ...

    def add(self, row: int) -> None:
        """A becomes A + row."""
        ...


def lazy_greedy(objective: Objective, candidates: NDArray[np.int64], n: int) -> tuple[NDArray[np.int64], list[float]]:
    """Choose n candidates, each the one that adds most; ties go to the first in `candidates`.

    For monotone submodular f the result is at least 1 - 1/e of the best set of n (Nemhauser, Wolsey, Fisher 1978).
    Gains only fall as A grows, so an earlier gain is an upper bound, and a candidate whose bound is below another's
    true gain need not be evaluated (Minoux 1978). If f is not submodular, the result differs from plain greedy.
    An objective should round gains that carry rounding errors, or equal candidates may come in either order.

    Args:
        candidates: rows, int64 (m,), each once.
        n: how many to choose; at most m.

    Returns:
        The rows in the order chosen, int64 (n,), and the gain of each when it was chosen.
    """
    first = objective.gains(candidates)
    heap = [(-float(gain), position) for position, gain in enumerate(first)]
    heapq.heapify(heap)
    fresh = np.zeros(len(candidates), dtype=np.int64)  # |A| when the gain was computed
    taken: list[int] = []
    gains: list[float] = []
    with Bar(total=n, desc="greedy", unit="sample", leave=False) as bar:
        while len(taken) < n and heap:
            stale: list[int] = []
            while heap and len(stale) < BATCH and fresh[heap[0][1]] < len(taken):
                stale.append(heapq.heappop(heap)[1])
            if stale:
                fresh[stale] = len(taken)
                for position, gain in zip(stale, objective.gains(candidates[stale]), strict=True):
                    heapq.heappush(heap, (-float(gain), position))
                continue
            negative, position = heapq.heappop(heap)
            objective.add(int(candidates[position]))
            taken.append(int(candidates[position]))
            gains.append(-negative)
            bar.update()
    return np.array(taken, dtype=np.int64), gains
