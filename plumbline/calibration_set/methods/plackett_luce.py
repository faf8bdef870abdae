"""Plackett-Luce: a distribution over ordered draws without replacement, with the gradient that REINFORCE needs.

The first draw takes item s with probability proportional to exp(l_s), every further draw likewise among those left.
Plackett 1975; drawn by adding Gumbel noise to the logits and keeping the n largest (Kool, van Hoof, Welling 2019,
arXiv 1903.06059).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw(logits: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """n different items in the order drawn, int64 (n,), from logits (N,) by Gumbel-top-k.

    Always takes N numbers from `rng`, so later draws do not depend on n.
    """
    keys = logits + rng.gumbel(size=len(logits))
    return np.argsort(-keys, kind="stable")[:n].astype(np.int64)


def top(logits: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The n items with the largest logits in that order (the mode), ties by number, int64 (n,)."""
    return np.argsort(-logits, kind="stable")[:n].astype(np.int64)


def score(x: NDArray[np.float64], theta: NDArray[np.float64], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gradient with respect to theta of the log probability to draw these items in this order; logits are x theta.

    It is the sum over the draws of x_drawn - E[x] among the items left.

    Args:
        x: (N, F). theta: (F,). drawn: int64 (n,).

    Returns:
        float64 (F,).
    """
    logits = x @ theta
    weight = np.exp(logits - logits.max())
    left = np.ones(len(x), dtype=bool)
    gradient = np.zeros(x.shape[1])
    for item in drawn:
        p = _normalised(weight, logits, left)
        gradient += x[item] - p @ x
        left[item] = False
    return gradient


def _normalised(
    weight: NDArray[np.float64], logits: NDArray[np.float64], left: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Probabilities of the next draw, (N,), zero for items drawn before."""
    p = np.where(left, weight, 0.0)
    if p.sum() < 1e-200:  # all remaining logits are far below the largest, which was drawn
        p = np.where(left, np.exp(np.where(left, logits - logits[left].max(), 0.0)), 0.0)
    normalised: NDArray[np.float64] = p / p.sum()
    return normalised


def entropy(x: NDArray[np.float64], theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Entropy of the first draw in nats, and its gradient -Cov(x, log p) with respect to theta, float64 (F,).

    The entropy of the whole ordered draw has no closed form; the first draw's stands in for it.
    """
    logits = x @ theta
    log_p = logits - logits.max()
    log_p = log_p - np.log(np.exp(log_p).sum())
    p = np.exp(log_p)
    mean = p @ x
    return float(-(p @ log_p)), -((p * log_p) @ (x - mean))
