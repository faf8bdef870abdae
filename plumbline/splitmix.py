"""The SplitMix64 generator of pseudo-random numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GAMMA = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(numbers: NDArray[np.uint64], seed: int = 0) -> NDArray[np.uint64]:
    """Return the `numbers`-th outputs of SplitMix64 (Steele, Lea, Flood 2014) started at `seed`, as uint64.

    Args:
        numbers: positions in the sequence, counted from 1; any shape.
        seed: below 2^64.
    """
    z = numbers * GAMMA + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
