"""The baseline that every other strategy has to beat."""

from __future__ import annotations

import numpy as np

from plumbline.calibration_set.strategies.base import Pool, Selection


def select(pool: Pool, n: int, rng: np.random.Generator) -> Selection:
    """Choose n samples uniformly at random, without replacement (registry name `random`).

    Optimises: nothing; it is unbiased: every statistic of the set has the pool's as its expectation.
    Cost: O(N), no token and no embedding is read.
    Source: simple random sampling. With one seed, a smaller set is the beginning of a larger one, so growing n adds
    samples and replaces none.
    """
    indices = rng.permutation(len(pool))[:n].astype(np.int64)
    return Selection(indices, [{"drawn": position} for position in range(len(indices))])
