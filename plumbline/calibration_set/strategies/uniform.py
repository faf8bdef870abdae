"""Uniform random sampling: the baseline that every other strategy must beat."""

from __future__ import annotations

import numpy as np

from plumbline.calibration_set.strategies.base import Pool, Selection


def select(pool: Pool, n: int, rng: np.random.Generator) -> Selection:
    """Choose n samples uniformly at random, without replacement (registry name `random`).

    Optimises: nothing; it is unbiased: every statistic of the set has the pool's as its expectation.
    Cost: O(N); reads neither tokens nor embeddings.
    Source: simple random sampling. With the same seed, a smaller set is the beginning of a larger one, so a larger n
    adds samples and replaces none.
    """
    indices = rng.permutation(len(pool))[:n].astype(np.int64)
    return Selection(indices, [{"drawn": position} for position in range(len(indices))])
