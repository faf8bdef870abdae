"""Short texts of different lengths."""

from __future__ import annotations

import numpy as np

WORDS = ("alpha", "beta(x)", "gamma = 3", "delta; epsilon", "zeta-eta", "theta", "iota: kappa", "lambda.mu")


def texts(start: int, count: int) -> list[str]:
    """Different texts of different lengths, some of them over one sample."""
    rng = np.random.default_rng(start)
    return [f"{start + i} " + " ".join(rng.choice(WORDS, rng.integers(2, 14))) for i in range(count)]
