"""Searches for the set of n items with the highest reward: REINFORCE, and the baselines it is compared with.

A search learns the reward of a set only by evaluating it, `budget` times. Items are 0 ... N - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.methods.plackett_luce import draw, entropy, score, top

Reward = Callable[[tuple[int, ...]], float]
"""Of a set of ascending items; higher is better."""

ELITE = 0.3
BATCH = 20
SMOOTHING = 0.4


@dataclass(frozen=True)
class Trial:
    """A set whose reward was evaluated."""

    items: tuple[int, ...]
    """Ascending."""
    reward: float


@dataclass(frozen=True, eq=False)
class Search:
    """The sets that a search evaluated, and those that it proposes."""

    trials: list[Trial]
    """In the order evaluated."""
    finalists: list[tuple[int, ...]]
    """At most two sets: the best one tried, then the mode of the final distribution (or the second best one tried).
    A reward that no search has seen decides between them."""


@dataclass(frozen=True)
class Settings:
    """Parameters of REINFORCE."""

    sets: int
    """K, the draws per update, at least 2."""
    steps: int
    """Updates; sets * steps rewards are evaluated."""
    learning_rate: float
    bonus: float
    """Weight of the entropy."""
    scale: float
    """The unit of rewards; it must not depend on the trials of this search."""


def reinforce(
    x: NDArray[np.float64],
    n: int,
    reward: Reward,
    rng: np.random.Generator,
    theta: NDArray[np.float64],
    settings: Settings,
) -> tuple[Search, NDArray[np.float64]]:
    """REINFORCE over Plackett-Luce with a leave-one-out baseline.

    Per step: A_1 ... A_K ~ PL(x theta), b_i = mean of R_j over j != i,
    theta += rate (sum_i (R_i - b_i) grad log PL(A_i) / (scale sqrt(n)) + bonus grad entropy).
    The baseline does not depend on A_i, so the expected step follows the gradient of the expected reward.

    Args:
        x: features (N, F), standardised.
        theta: the start, (F,).

    Returns:
        The search and the final theta.

    Source: Williams 1992; leave-one-out over draws without replacement: Kool, van Hoof, Welling 2019.
    """
    trials: list[Trial] = []
    for _ in range(settings.steps):
        drawn = [draw(x @ theta, n, rng) for _ in range(settings.sets)]
        R = np.array([reward(_ascending(A)) for A in drawn])
        trials += [Trial(_ascending(A), float(r)) for A, r in zip(drawn, R, strict=True)]
        gradient = step(x, theta, drawn, R) / (settings.scale * np.sqrt(n))
        theta = theta + settings.learning_rate * (gradient + settings.bonus * entropy(x, theta)[1])
    return Search(trials, _finalists(trials, _ascending(top(x @ theta, n)))), theta


def step(
    x: NDArray[np.float64], theta: NDArray[np.float64], drawn: list[NDArray[np.int64]], R: NDArray[np.float64]
) -> NDArray[np.float64]:
    """sum_i (R_i - b_i) grad log PL(A_i), float64 (F,): K times an unbiased estimate of the gradient of E[R]."""
    baseline = (R.sum() - R) / (len(R) - 1)
    total = np.zeros(x.shape[1])
    for A, advantage in zip(drawn, R - baseline, strict=True):
        total += advantage * score(x, theta, A)
    return total


def random_search(count: int, n: int, reward: Reward, rng: np.random.Generator, budget: int) -> Search:
    """Evaluate uniformly random sets."""
    trials = []
    for _ in range(budget):
        items = _ascending(rng.permutation(count)[:n])
        trials.append(Trial(items, reward(items)))
    return Search(trials, _finalists(trials))


def swap_search(count: int, n: int, reward: Reward, rng: np.random.Generator, budget: int) -> Search:
    """Local search: start at a random set, swap a random member for a random other item, and keep it if not worse."""
    order = rng.permutation(count)
    inside, outside = order[:n], order[n:]
    trials = [Trial(_ascending(inside), reward(_ascending(inside)))]
    best = trials[0].reward
    while len(trials) < budget:
        leaves, enters = int(rng.integers(n)), int(rng.integers(max(1, count - n)))
        changed = inside.copy()
        if count > n:
            changed[leaves] = outside[enters]
        items = _ascending(changed)
        trials.append(Trial(items, reward(items)))
        if trials[-1].reward >= best and count > n:
            best = trials[-1].reward
            outside[enters] = inside[leaves]
            inside = changed
    return Search(trials, _finalists(trials))


def cross_entropy(count: int, n: int, reward: Reward, rng: np.random.Generator, budget: int) -> Search:
    """Cross-entropy method: draw batches of sets from logits per item, and move the logits to the best of the batch.

    Source: Rubinstein 1999. Batch, elite and smoothing were the best of 18 settings on planted rewards at 40 and 200
    evaluations, so that this baseline is a strong one.
    """
    share = np.full(count, n / count)
    trials: list[Trial] = []
    while len(trials) < budget:
        batch = []
        for _ in range(min(BATCH, budget - len(trials))):
            items = _ascending(draw(_logits(share), n, rng))
            batch.append(Trial(items, reward(items)))
        trials += batch
        elite = sorted(batch, key=lambda trial: -trial.reward)[: max(1, round(ELITE * len(batch)))]
        taken = np.mean([np.isin(np.arange(count), trial.items) for trial in elite], axis=0)
        share = (1 - SMOOTHING) * share + SMOOTHING * taken
    return Search(trials, _finalists(trials, _ascending(top(share, n))))


def _logits(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits of the share of sets that an item should be in, bounded away from 0 and 1."""
    bounded = np.clip(share, 1e-3, 1 - 1e-3)
    logits: NDArray[np.float64] = np.log(bounded / (1 - bounded))
    return logits


def _finalists(trials: list[Trial], mode: tuple[int, ...] | None = None) -> list[tuple[int, ...]]:
    ranked = list(dict.fromkeys(trial.items for trial in sorted(trials, key=lambda trial: -trial.reward)))
    second = ranked[1:2] if mode is None else [mode]
    return list(dict.fromkeys([ranked[0], *second]))


def _ascending(items: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(sorted(items.tolist()))
