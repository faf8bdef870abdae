"""Greedy maximisation against plain greedy, apricot, and the best set of all."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plumbline.calibration_set.methods.greedy import lazy_greedy


class Coverage:
    """Weighted coverage: f(A) = sum over columns of weight * min(demand, sum over A of amount). Counts its calls."""

    def __init__(self, amount: NDArray[np.float64], weight: NDArray[np.float64], demand: float = 1) -> None:
        self.amount, self.weight, self.demand = amount, weight, demand
        self.have = np.zeros(amount.shape[1])
        self.asked = 0

    def value(self, rows: NDArray[np.int64] | list[int]) -> float:
        return float(np.minimum(self.amount[list(rows)].sum(axis=0), self.demand) @ self.weight)

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        self.asked += len(rows)
        after = np.minimum(self.have + self.amount[rows], self.demand)
        return (after - np.minimum(self.have, self.demand)) @ self.weight

    def add(self, row: int) -> None:
        self.have = self.have + self.amount[row]


class FacilityLocation:
    """f(A) = sum over points of the largest similarity to a member of A."""

    def __init__(self, similarity: NDArray[np.float64]) -> None:
        self.similarity = similarity
        self.best = np.zeros(similarity.shape[1])

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.maximum(self.similarity[rows] - self.best, 0).sum(axis=1)

    def add(self, row: int) -> None:
        self.best = np.maximum(self.best, self.similarity[row])


def plain_greedy(objective: Coverage, candidates: NDArray[np.int64], n: int) -> tuple[list[int], list[float]]:
    taken: list[int] = []
    gains: list[float] = []
    for _ in range(n):
        left = [row for row in candidates.tolist() if row not in taken]
        found = objective.gains(np.array(left))
        best = int(np.argmax(found))  # the first of several
        objective.add(left[best])
        taken.append(left[best])
        gains.append(float(found[best]))
    return taken, gains


@st.composite
def coverages(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Small whole numbers: many ties, and no rounding."""
    rows, columns = draw(st.integers(1, 50)), draw(st.integers(1, 6))
    amount = draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns))
    weight = draw(st.lists(st.integers(0, 4), min_size=columns, max_size=columns))
    return np.reshape(amount, (rows, columns)).astype(float), np.array(weight, float), float(draw(st.integers(1, 5)))


@settings(max_examples=200, deadline=None)
@given(coverages(), st.data())
def test_lazy_greedy_takes_what_plain_greedy_takes(
    case: tuple[NDArray[np.float64], NDArray[np.float64], float], data: st.DataObject
) -> None:
    amount, weight, demand = case
    candidates = np.array(data.draw(st.permutations(range(len(amount)))), dtype=np.int64)
    n = data.draw(st.integers(0, len(amount)))
    rows, gains = lazy_greedy(Coverage(amount, weight, demand), candidates, n)
    assert (rows.tolist(), gains) == plain_greedy(Coverage(amount, weight, demand), candidates, n)
    assert rows.dtype == np.int64


def test_lazy_greedy_asks_for_fewer_gains_than_plain_greedy() -> None:
    rng = np.random.default_rng(0)
    amount = (rng.random((2000, 40)) < 0.1) * rng.random((2000, 40))
    lazy, plain = (Coverage(amount, np.ones(40)) for _ in range(2))
    candidates = np.arange(2000)
    assert lazy_greedy(lazy, candidates, 60)[0].tolist() == plain_greedy(plain, candidates, 60)[0]
    assert plain.asked == sum(2000 - step for step in range(60))
    assert lazy.asked < plain.asked / 5


def test_it_ranks_as_apricot_does() -> None:
    """Gains are distinct, so that the order of ties, which apricot does not promise, plays no part.

    Apricot compiles at every fit, so two cases have to do.
    """
    from apricot import FacilityLocationSelection, MaxCoverageSelection

    rng = np.random.default_rng(0)
    similarity = rng.random((60, 60))
    similarity = (similarity + similarity.T) / 2
    theirs = FacilityLocationSelection(30, metric="precomputed", optimizer="lazy").fit(similarity)
    rows, gains = lazy_greedy(FacilityLocation(similarity), np.arange(60), 30)
    assert rows.tolist() == theirs.ranking.tolist()
    np.testing.assert_allclose(gains, theirs.gains, rtol=1e-12)

    amount = (rng.random((60, 50)) < 0.2) * rng.random((60, 50))
    cover = MaxCoverageSelection(15, threshold=1.2, optimizer="naive").fit(amount)
    rows, gains = lazy_greedy(Coverage(amount, np.ones(50), 1.2), np.arange(60), 15)
    assert rows.tolist() == cover.ranking.tolist()
    np.testing.assert_allclose(gains, cover.gains, rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(coverages(), st.data())
def test_it_reaches_the_share_of_the_best_set_that_theory_grants(
    case: tuple[NDArray[np.float64], NDArray[np.float64], float], data: st.DataObject
) -> None:
    amount, weight, demand = case[0][:9], case[1], case[2]
    n = data.draw(st.integers(1, min(4, len(amount))))
    objective = Coverage(amount, weight, demand)
    rows, gains = lazy_greedy(Coverage(amount, weight, demand), np.arange(len(amount)), n)
    best = max(objective.value(list(rows)) for rows in combinations(range(len(amount)), n))
    assert objective.value(rows) == sum(gains)
    assert (1 - (1 - 1 / n) ** n) * best <= sum(gains) <= best


def test_no_candidates_and_nothing_asked() -> None:
    nothing = np.array([], dtype=np.int64)
    for candidates, n in ((nothing, 0), (nothing, 2), (np.arange(3), 0)):
        rows, gains = lazy_greedy(Coverage(np.ones((3, 2)), np.ones(2)), candidates, n)
        assert rows.tolist() == gains == []
        assert rows.dtype == np.int64
