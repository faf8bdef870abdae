from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from plumbline.calibration_set.methods.plackett_luce import draw, entropy, score, top

LOGITS = np.array([0.3, -1.2, 2.0, 0.0, 0.7])


def by_definition(logits: np.ndarray, ordered: tuple[int, ...]) -> float:
    weights, probability = np.exp(logits), 1.0
    for place, item in enumerate(ordered):
        gone = list(ordered[:place])
        probability *= weights[item] / (weights.sum() - weights[gone].sum())
    return probability


@pytest.mark.parametrize("n", [1, 2])
def test_gumbel_top_k_draws_with_these_probabilities(n: int) -> None:
    rng = np.random.default_rng(3)
    every = list(permutations(range(5), n))
    place = {drawn: number for number, drawn in enumerate(every)}
    counts = np.zeros(len(every))
    for _ in range(20000):
        counts[place[tuple(draw(LOGITS, n, rng).tolist())]] += 1
    expected = 20000 * np.array([by_definition(LOGITS, drawn) for drawn in every])
    assert expected.min() > 5
    assert chisquare(counts, expected).pvalue > 0.01


def torch_log_probability(logits: torch.Tensor, drawn: list[int]) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    left = list(range(len(logits)))
    for item in drawn:
        total = total + logits[item] - torch.logsumexp(logits[left], 0)
        left.remove(item)
    return total


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.data())
def test_score_is_the_gradient(count: int, width: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    n = data.draw(st.integers(1, count))
    x, theta = rng.normal(size=(count, width)), 3 * rng.normal(size=width)
    drawn = rng.permutation(count)[:n]
    t = torch.tensor(theta, requires_grad=True)
    value = torch_log_probability(torch.tensor(x) @ t, drawn.tolist())
    value.backward()
    np.testing.assert_allclose(score(x, theta, drawn), t.grad.numpy(), atol=1e-10)


def test_logits_far_apart_stay_finite() -> None:
    x = np.array([[1000.0], [0.0], [-1.0], [-1.0]])
    theta = np.ones(1)
    drawn = np.array([0, 2, 1])
    # after the first draw: -1 against softmax(0, -1, -1), then 0 against softmax(0, -1)
    e = np.exp(-1)
    expected = (-1 + 2 * e / (1 + 2 * e)) + e / (1 + e)
    np.testing.assert_allclose(score(x, theta, drawn), [expected], rtol=1e-12)


def test_entropy_and_its_gradient() -> None:
    rng = np.random.default_rng(0)
    x, theta = rng.normal(size=(6, 3)), rng.normal(size=3)
    value, gradient = entropy(x, theta)
    p = np.exp(x @ theta) / np.exp(x @ theta).sum()
    assert value == pytest.approx(-(p * np.log(p)).sum(), rel=1e-12)
    for axis in range(3):
        h = np.eye(3)[axis] * 1e-5
        assert gradient[axis] == pytest.approx((entropy(x, theta + h)[0] - entropy(x, theta - h)[0]) / 2e-5, abs=1e-8)


def test_the_mode_breaks_ties_by_number() -> None:
    assert top(np.array([1.0, 5.0, 1.0, 5.0]), 3).tolist() == [1, 3, 0]
