from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from plumbline.calibration_set.methods.plackett_luce import entropy
from plumbline.calibration_set.methods.set_search import (
    Search,
    Settings,
    cross_entropy,
    random_search,
    reinforce,
    step,
    swap_search,
)


@pytest.mark.parametrize("K", [2, 3])
def test_the_leave_one_out_step_is_unbiased(K: int) -> None:
    """Its expectation, over every possible outcome, is K times the exact gradient of the expected reward."""
    rng = np.random.default_rng(1)
    x, theta, value = rng.normal(size=(4, 2)), rng.normal(size=2), rng.normal(size=(4, 4)) + 100
    every = [np.array(drawn) for drawn in permutations(range(4), 2)]
    reward = [value[min(A), max(A)] for A in every]  # of the set, not of the order; not additive
    weight_of = np.exp(x @ theta)
    probability = [np.prod(weight_of[A]) / weight_of.sum() / (weight_of.sum() - weight_of[A[0]]) for A in every]
    expected = np.zeros(2)
    for outcome in product(range(len(every)), repeat=K):
        weight = np.prod([probability[i] for i in outcome])
        expected += weight * step(x, theta, [every[i] for i in outcome], np.array([reward[i] for i in outcome]))

    t = torch.tensor(theta, requires_grad=True)
    logits = torch.tensor(x) @ t
    total = torch.zeros((), dtype=torch.float64)
    for (first, second), r in zip(permutations(range(4), 2), reward, strict=True):
        left = [item for item in range(4) if item != first]
        log_p = logits[first] - torch.logsumexp(logits, 0) + logits[second] - torch.logsumexp(logits[left], 0)
        total = total + r * torch.exp(log_p)
    total.backward()
    np.testing.assert_allclose(expected, K * t.grad.numpy(), rtol=1e-9)


class Planted:
    """A set's reward is the sum of its items' worth, which the features tell exactly; the optimum is the top n."""

    def __init__(self, seed: int, count: int = 60, n: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(count, 6))
        self.worth = self.x @ np.array([1.0, -1, 0.5, 0, 0, 0])
        self.n, self.count, self.asked = n, count, 0
        self.best = float(np.sort(self.worth)[-n:].sum())

    def reward(self, items: tuple[int, ...]) -> float:
        assert list(items) == sorted(set(items)) and len(items) == self.n
        self.asked += 1
        return float(self.worth[list(items)].sum())

    def share(self, search: Search) -> float:
        """Of the best possible, counted from the worth of an average set."""
        middle = self.n * self.worth.mean()
        found = max(float(self.worth[list(items)].sum()) for items in search.finalists)
        return (found - middle) / (self.best - middle)


def learned(planted: Planted, seed: int = 0, bonus: float = 0.01, steps: int = 25) -> tuple[Search, np.ndarray]:
    settings = Settings(sets=4, steps=steps, learning_rate=0.05, bonus=bonus, scale=float(np.std(planted.worth)))
    start = np.zeros(planted.x.shape[1])
    return reinforce(planted.x, planted.n, planted.reward, np.random.default_rng(seed), start, settings)


def test_the_policy_learns_a_planted_reward() -> None:
    shares, drawn = [], []
    for seed in range(8):
        planted = Planted(seed)
        search, theta = learned(planted, seed)
        assert planted.asked == len(search.trials) == 100
        shares.append(planted.share(search))
        middle = planted.n * planted.worth.mean()
        drawn.append(np.mean([trial.reward for trial in search.trials[-20:]]) - middle > 0.4 * (planted.best - middle))
        assert theta[0] > abs(theta[3:]).max() and theta[1] < -abs(theta[3:]).max()
    assert np.mean(shares) > 0.93 and all(drawn)
    at_random = [p.share(random_search(60, 8, p.reward, np.random.default_rng(0), 100)) for p in map(Planted, range(8))]
    assert np.mean(at_random) < 0.65


def test_the_entropy_bonus_keeps_the_policy_undecided() -> None:
    planted = Planted(0)
    low, high = (entropy(planted.x, learned(planted, bonus=bonus)[1])[0] for bonus in (0.0, 20.0))
    assert high > low + 0.5


@pytest.mark.parametrize("search", [swap_search, cross_entropy, random_search])
@pytest.mark.parametrize("budget", [1, 7, 80])
def test_rivals_ask_as_often_as_they_may(search: object, budget: int) -> None:
    planted = Planted(2)
    result = search(planted.count, planted.n, planted.reward, np.random.default_rng(5), budget)  # type: ignore[operator]
    assert planted.asked == len(result.trials) == budget
    assert 1 <= len(result.finalists) <= 2
    best = max(result.trials, key=lambda trial: trial.reward)
    assert result.finalists[0] == best.items


@pytest.mark.parametrize("search", [swap_search, cross_entropy])
def test_rivals_beat_random_sets(search: object) -> None:
    def mean(method: object) -> float:
        planted = [Planted(seed) for seed in range(8)]
        return float(
            np.mean(
                [p.share(method(p.count, p.n, p.reward, np.random.default_rng(1), 200)) for p in planted]  # type: ignore[operator]
            )
        )

    assert mean(search) > mean(random_search) + 0.2


def test_swap_search_exchanges_one_member_of_the_best_set() -> None:
    planted = Planted(3)
    trials = swap_search(planted.count, planted.n, planted.reward, np.random.default_rng(2), 60).trials
    best = trials[0]
    for trial in trials[1:]:
        assert len(set(best.items) & set(trial.items)) == planted.n - 1
        best = max(best, trial, key=lambda one: one.reward)
    assert best.reward > trials[0].reward


def test_nothing_to_exchange() -> None:
    trials = swap_search(3, 3, lambda items: 0.0, np.random.default_rng(0), 4).trials
    assert [trial.items for trial in trials] == [(0, 1, 2)] * 4


def test_same_seed_same_search() -> None:
    first, second = learned(Planted(4), seed=9), learned(Planted(4), seed=9)
    assert first[0] == second[0] or first[0].trials == second[0].trials
    assert first[1].tobytes() == second[1].tobytes()
    assert first[0].trials != learned(Planted(4), seed=10)[0].trials
