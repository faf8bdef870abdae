from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from plumbline.calibration_set.representativeness.null import against_null, family_wise, random_rows, rounded


def test_percentile_and_ratio_by_hand() -> None:
    null = np.array([1.0, 2.0, 2.0, 3.0])
    assert against_null(2.0, null)["percentile"] == 50  # one below, two tied
    assert against_null(2.5, null)["percentile"] == 75
    assert against_null(3.0, null)["ratio"] == 1.5
    assert against_null(0.5, null)["percentile"] == 0
    assert against_null(1.0, np.zeros(4))["ratio"] is None
    assert against_null(2.0 + 1e-12, null)["percentile"] == 50  # equal but for the order of summation
    assert against_null(2.0, null)["null"] == {"median": 2, "p05": pytest.approx(1.15), "p95": pytest.approx(2.85)}


def test_random_sets_are_drawn_as_the_strategy_draws_and_are_the_same_each_time() -> None:
    rows = random_rows(50, 20, replace=False, draws=30)
    assert rows.shape == (30, 20)
    assert all(len(set(row)) == 20 for row in rows.tolist())
    assert np.array_equal(rows, random_rows(50, 20, replace=False, draws=30))
    assert any(len(set(row)) < 20 for row in random_rows(50, 20, replace=True, draws=30).tolist())


def test_max_t_by_hand() -> None:
    nulls = {"a": np.array([0.0, 1.0, 2.0]), "b": np.array([5.0, 5.0, 5.0])}
    p, each = family_wise({"a": 3.0, "b": 5.0}, nulls)
    t = (np.arange(4) - 1.5) / np.sqrt(1.25)
    assert each["a"] == (pytest.approx(t[3]), 0.25)
    assert each["b"] == (0.0, 1.0)  # b is the same everywhere, and no largest t is below 0
    assert p == 0.25
    assert family_wise({}, {}) == (1.0, {})


def test_of_exchangeable_sets_at_most_the_nominal_share_is_flagged_whatever_the_metrics_are() -> None:
    """Each row in turn is the set, the others are the draws: at most 5 % of 200 may have p <= 0.05, and do."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(200, 4))
    x = np.column_stack(
        [base, base[:, 0] + 0.1 * base[:, 1], np.exp(2 * base[:, 2]), np.maximum(base[:, 3], 1), np.zeros(200)]
    )
    p = []
    for row in range(200):
        others = np.delete(x, row, axis=0)
        names = [str(column) for column in range(x.shape[1])]
        values = dict(zip(names, x[row].tolist(), strict=True))
        p.append(family_wise(values, dict(zip(names, others.T, strict=True)))[0])
    assert np.mean(np.array(p) <= 0.05) == 0.05
    assert np.mean(np.array(p) <= 0.2) == 0.2


def test_a_set_that_is_far_in_one_of_many_metrics_is_flagged_there_alone() -> None:
    rng = np.random.default_rng(1)
    nulls = {str(i): rng.normal(size=400) for i in range(20)}
    values = {str(i): 0.0 for i in range(20)} | {"7": 6.0}
    p, each = family_wise(values, nulls)
    assert p == pytest.approx(1 / 401)
    assert [name for name, (_, adjusted) in each.items() if adjusted <= 0.05] == ["7"]


def test_closer_than_random_is_no_offence() -> None:
    null = np.random.default_rng(2).normal(10, 1, size=400)
    p, _ = family_wise({"a": 0.0}, {"a": null})
    assert p == 1


def test_a_step_from_a_constant_null_is_flagged() -> None:
    assert family_wise({"a": 0.2}, {"a": np.zeros(400)})[0] == pytest.approx(1 / 401)


def test_fresh_draws_are_flagged_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(3)

    def draw(n: int) -> np.ndarray:
        z = rng.normal(size=(n, 3))
        return np.column_stack([z, np.abs(z).max(axis=1), z.sum(axis=1) ** 2])

    flagged = 0
    for _ in range(400):
        null, one = draw(99), draw(1)[0]
        names = [str(i) for i in range(5)]
        p, _ = family_wise(dict(zip(names, one.tolist(), strict=True)), dict(zip(names, null.T, strict=True)))
        flagged += p <= 0.05
    assert binom.ppf(0.001, 400, 0.05) <= flagged <= binom.ppf(0.999, 400, 0.05)


def test_rounding_keeps_nine_digits() -> None:
    assert rounded(1 / 3) == 0.333333333
    assert rounded(123456.7891234) == 123456.789
