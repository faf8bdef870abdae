"""The crossed bootstrap against a plain loop, and on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plumbline.study import resampling
from plumbline.study.resampling import crossed_bootstrap, spread_ratio
from tests.helpers.study import simulated_study


def by_definition(x: np.ndarray, y: np.ndarray, strata: np.ndarray) -> tuple[float, float]:
    """Ratio and standard error, with loops; x and y may hold a draw or a document several times."""
    draws = len(x)
    r = x.sum() / y.sum()
    e = x - r * y
    by_draw = draws / (draws - 1) * sum(e[b].sum() ** 2 for b in range(draws))
    by_document = both = 0.0
    for stratum in np.unique(strata):
        part = e[:, strata == stratum]
        size = part.shape[1]
        totals = part.sum(axis=0)
        by_document += size / (size - 1) * ((totals - totals.mean()) ** 2).sum()
        cells = draws * size
        both += cells / (cells - 1) * ((part - part.mean()) ** 2).sum()
    return r, float(np.sqrt(max(by_draw + by_document - both, by_draw, by_document))) / y.sum()


def test_equals_a_loop_over_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    baseline, rival, strata = simulated_study(rng, 6, 14, 0.03, 0.05, 0.05)
    (found,) = crossed_bootstrap([(baseline, rival)], strata, 60, seed=3)
    ratio, error = by_definition(rival, baseline, strata)
    assert found.estimate == pytest.approx(ratio - 1) and found.standard_error == pytest.approx(error)

    again = np.random.Generator(np.random.PCG64(3))
    w = resampling._counts(again, 60, np.zeros(6, dtype=np.int64)).astype(int)
    v = resampling._counts(again, 60, strata).astype(int)
    assert (w.sum(axis=1) == 6).all() and (v[:, strata == 0].sum(axis=1) == 7).all()
    t = []
    for b in range(60):
        rows, columns = np.repeat(np.arange(6), w[b]), np.repeat(np.arange(14), v[b])
        drawn = np.ix_(rows, columns)
        r, e = by_definition(rival[drawn], baseline[drawn], strata[columns])
        t.append(abs(r - ratio) / e)
    np.testing.assert_allclose(found.t, np.sort(t), rtol=1e-7)

    monkeypatch.setattr(resampling, "CHUNK", 7)
    assert len(crossed_bootstrap([(baseline, rival)], strata, 60, seed=3)[0].t) == 60


def test_the_same_resamples_serve_all_pairs() -> None:
    rng = np.random.default_rng(1)
    baseline, rival, strata = simulated_study(rng, 5, 12, 0.03, 0.0, 0.05)
    pairs = [(baseline, rival), (baseline, 2 * rival)]
    together = crossed_bootstrap(pairs, strata, 50, 0)
    (alone,) = crossed_bootstrap(pairs[1:], strata, 50, 0)
    np.testing.assert_allclose(together[1].t, alone.t)
    np.testing.assert_allclose(together[0].t, alone.t, rtol=1e-6)  # a factor common to the rival changes no t


@pytest.mark.parametrize(
    ("draws", "sds"),
    [(10, (0.03, 0.0, 0.02)), (10, (0.03, 0.05, 0.05)), (10, (0.0, 0.05, 0.05)), (5, (0.03, 0.05, 0.05))],
)
def test_intervals_cover_the_truth_as_often_as_they_say(draws: int, sds: tuple[float, float, float]) -> None:
    """Equal rules, so this is the rate of false alarms, too. 300 studies: the share covered has a standard deviation
    of 1.3 points."""
    rng = np.random.default_rng(2)
    covered = false = 0
    for seed in range(300):
        baseline, rival, strata = simulated_study(rng, draws, 24, *sds)
        (one,) = crossed_bootstrap([(baseline, rival)], strata, 199, seed)
        covered += abs(one.estimate) <= one.half_width(0.95)
        false += one.p_value() <= 0.05
    assert 0.915 <= covered / 300 <= 0.985
    assert false == 300 - covered


def test_an_exact_tie_is_no_difference() -> None:
    values = np.random.default_rng(3).gamma(4, 1.0, (5, 8))
    (one,) = crossed_bootstrap([(values, values)], np.zeros(8, dtype=int), 99, 0)
    assert one.estimate == one.standard_error == 0 and one.p_value() == 1


def test_a_constant_factor_is_certain() -> None:
    values = np.random.default_rng(4).gamma(4, 1.0, (5, 8))
    (one,) = crossed_bootstrap([(values, 0.9 * values)], np.zeros(8, dtype=int), 199, 0)
    assert one.estimate == pytest.approx(-0.1) and one.standard_error < 1e-6 and one.p_value() == 1 / 200


def test_refuses_what_it_cannot_resample() -> None:
    one = np.ones((1, 4))
    with pytest.raises(ValueError, match="1 draws"):
        crossed_bootstrap([(one, one)], np.zeros(4, dtype=int), 99, 0)
    with pytest.raises(ValueError, match="two or more"):
        crossed_bootstrap([(np.ones((3, 3)), np.ones((3, 3)))], np.array([0, 0, 1]), 99, 0)
    with pytest.raises(ValueError, match=r"not \(B, D\)"):
        crossed_bootstrap([(np.ones((3, 4)), np.ones((3, 3)))], np.zeros(4, dtype=int), 99, 0)


def test_spread_ratio_excludes_one_exactly_where_pitman_and_morgan_reject() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        a = rng.standard_normal(10)
        b = 0.5 * a + rng.uniform(0.3, 3) * rng.standard_normal(10)
        found = spread_ratio(a, b, 0.95)
        assert found is not None and found.estimate == pytest.approx(b.std(ddof=1) / a.std(ddof=1))
        rejected = stats.pearsonr(a + b, a - b).pvalue < 0.05
        assert (not found.low <= 1 <= found.high) == rejected


def test_spread_ratio_covers_the_truth() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(2000):
        shared = rng.standard_normal(10)
        found = spread_ratio(shared + rng.standard_normal(10), 0.5 * (shared + rng.standard_normal(10)), 0.95)
        assert found is not None
        covered += found.low <= 0.5 <= found.high
    assert 0.938 <= covered / 2000 <= 0.962


def test_spread_ratio_of_what_does_not_vary() -> None:
    assert spread_ratio(np.ones(5), np.arange(5.0), 0.95) is None
