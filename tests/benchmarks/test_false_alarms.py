"""False alarms and power on synthetic sets with the structure of measured ones: draw × document, both random."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from benchmarks.false_alarms import (
    Collection,
    called,
    collection_of,
    critical,
    effect_found_with,
    groups,
    interval,
    planted,
    power,
    trials,
)
from plumbline.calibration_report.bootstrap import Resampled, strata_of
from plumbline.study.resampling import crossed_bootstrap

DRAWS, RESAMPLES = 6, 199


@pytest.fixture(scope="module")
def collection() -> Collection:
    """60 sets on 24 documents of two domains: a set moves all documents by 3 %, and each by itself by 5 % more."""
    rng = np.random.default_rng(3)
    level = 0.05 * np.exp(rng.normal(6.3, 0.9, 24))
    of_set, of_both = 0.03 * rng.standard_normal((60, 1)), 0.05 * rng.standard_t(5, (60, 24))
    return Collection(level * (1 + of_set + of_both), ["code", "prose"] * 12)


@pytest.fixture(scope="module")
def found(collection: Collection) -> list[Resampled]:
    return trials(collection, DRAWS, 120, RESAMPLES, seed=0)


def test_random_against_random_is_called_at_no_more_than_the_nominal_rate(found: list[Resampled]) -> None:
    """120 comparisons: at a true rate of 5 %, 13 or more are called once in a hundred."""
    assert stats.binom.sf(12, 120, 0.05) < 0.01
    count = called(found, 0.0, 0.05)
    assert 0 < count <= 12 and interval(count, 120)[0] <= 0.05


@pytest.mark.parametrize("wanted", [0.5, 0.9])
def test_planted_effects_are_found_as_often_as_computed(
    collection: Collection, found: list[Resampled], wanted: float
) -> None:
    """120 comparisons that share sets: a share has a standard deviation of some 5 points."""
    limit = critical(found, 0.05)
    effect = effect_found_with(collection, DRAWS, limit, wanted)
    assert power(collection, DRAWS, effect, limit) == pytest.approx(wanted, abs=1e-6)
    assert called(found, effect, 0.05) / 120 == pytest.approx(wanted, abs=0.15)
    smaller = -effect / (1 + 2 * effect)  # as many standard errors, which are those of the smaller group
    assert power(collection, DRAWS, smaller, limit) == pytest.approx(wanted, abs=1e-3)
    assert called(found, smaller, 0.05) / 120 == pytest.approx(wanted, abs=0.15)


def test_planting_an_effect_is_comparing_scaled_sets(collection: Collection) -> None:
    strata = strata_of(collection.domains, 8)
    one, other = groups(collection, DRAWS, np.random.default_rng(0))
    (plain,) = crossed_bootstrap([(one, other)], strata, RESAMPLES, 4)
    (scaled,) = crossed_bootstrap([(one, 1.1 * other)], strata, RESAMPLES, 4)
    expected = planted(plain, 0.1)
    assert scaled.estimate == pytest.approx(expected.estimate)
    assert scaled.standard_error == pytest.approx(expected.standard_error)
    np.testing.assert_allclose(scaled.t, expected.t, rtol=1e-6)
    assert scaled.p_value() == expected.p_value()


def test_power_is_that_of_simulated_t_tests(collection: Collection) -> None:
    totals = collection.kl.sum(axis=1)
    sd = totals.std(ddof=1) / totals.mean()
    rng = np.random.default_rng(0)
    effect, limit = 0.05, float(stats.t.ppf(0.975, DRAWS - 1))
    noise = sd * (rng.standard_normal((20_000, DRAWS)) - rng.standard_normal((20_000, DRAWS)))
    differences = effect + (1 + effect) * noise
    share = (stats.ttest_1samp(differences, 0, axis=1).pvalue <= 0.05).mean()
    assert power(collection, DRAWS, effect, limit) == pytest.approx(share, abs=0.012)
    assert power(collection, DRAWS, 0.0, limit) == pytest.approx(0.05)


def test_groups_share_no_set(collection: Collection) -> None:
    numbered = Collection(np.arange(60.0)[:, None] * np.ones(24), collection.domains)
    seen = set()
    for seed in range(20):
        one, other = groups(numbered, 30, np.random.default_rng(seed))
        assert sorted([*one[:, 0], *other[:, 0]]) == list(range(60))
        seen.add(tuple(one[:, 0]))
    assert len(seen) == 20
    with pytest.raises(ValueError, match="60 sets, but two groups of 31 need 62"):
        groups(numbered, 31, np.random.default_rng(0))


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    low, high = interval(7, 200)
    assert low == pytest.approx(stats.beta.ppf(0.025, 7, 194)) and high == pytest.approx(stats.beta.ppf(0.975, 8, 193))


def test_documents_without_a_predicted_token_are_left_out() -> None:
    tables = [
        pa.table({"domain": ["a", "b", "a"], "n_tokens": [5, 0, 2], "kl_sum": [value, 0.0, 2 * value]})
        for value in (1.0, 3.0)
    ]
    found = collection_of(tables)
    assert found.domains == ["a", "a"] and found.kl.tolist() == [[1.0, 2.0], [3.0, 6.0]]
