"""The bootstrap against a plain loop, against its own promises, and on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from plumbline.calibration_report import bootstrap
from plumbline.calibration_report.bootstrap import Resampled, bootstrap_ratio, holm, strata_of


def data(seed: int, documents: int, strata: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 2000, documents)
    numerators = tokens * (0.01 * rng.standard_t(5, (3, documents)) + [[0.0], [0.02], [1.0]])
    return numerators, tokens, np.arange(documents) % strata


def error_by_definition(x: np.ndarray, t: np.ndarray, strata: np.ndarray) -> float:
    residual = x - x.sum() / t.sum() * t
    total = 0.0
    for stratum in set(strata.tolist()):
        part = residual[strata == stratum]
        total += len(part) * part.var(ddof=1)
    return float(np.sqrt(total) / t.sum())


@pytest.mark.parametrize("strata", [1, 3])
def test_equals_a_loop_over_resamples(strata: int) -> None:
    numerators, tokens, stratum = data(0, 31, strata)
    found = bootstrap_ratio(numerators, tokens, stratum, 200, seed=7)
    for k, x in enumerate(numerators):
        assert found[k].estimate == pytest.approx(x.sum() / tokens.sum())
        assert found[k].standard_error == pytest.approx(error_by_definition(x, tokens, stratum))
    rng = np.random.Generator(np.random.PCG64(7))
    sizes = np.bincount(stratum)
    drawn = [rng.integers(0, size, (200, size)) for size in sizes]
    members = [np.flatnonzero(stratum == h) for h in range(strata)]
    for k, x in enumerate(numerators):
        t = []
        for b in range(200):
            rows = np.concatenate([member[draw[b]] for member, draw in zip(members, drawn, strict=True)])
            ratio = x[rows].sum() / tokens[rows].sum()
            error = error_by_definition(x[rows], tokens[rows], stratum[rows])
            t.append(abs(ratio - found[k].estimate) / error)
        np.testing.assert_allclose(found[k].t, np.sort(t), rtol=1e-6)


def test_the_same_draws_serve_all_numerators() -> None:
    numerators, tokens, stratum = data(1, 25)
    together = bootstrap_ratio(numerators, tokens, stratum, 100, 3)
    for k in range(3):
        (alone,) = bootstrap_ratio(numerators[k : k + 1], tokens, stratum, 100, 3)
        np.testing.assert_allclose(alone.t, together[k].t, rtol=1e-9)


def test_every_resample_counts_once_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    numerators, tokens, stratum = data(2, 20)
    whole = bootstrap_ratio(numerators, tokens, stratum, 101, 0)
    monkeypatch.setattr(bootstrap, "CHUNK_BYTES", 16 * 20 * 7)
    parts = bootstrap_ratio(numerators, tokens, stratum, 101, 0)
    assert len(parts[0].t) == 101
    np.testing.assert_allclose(parts[0].t, whole[0].t, rtol=1e-9)  # one stratum: the stream of draws is the same


@given(
    t=st.lists(st.floats(0, 10), min_size=19, max_size=400),
    ratio=st.floats(0.01, 12),
    confidence=st.sampled_from([0.6, 0.9, 0.95]),
    degrees_of_freedom=st.none() | st.integers(1, 30),
)
def test_p_value_and_interval_agree(
    t: list[float], ratio: float, confidence: float, degrees_of_freedom: int | None
) -> None:
    one = Resampled(ratio, 1.0, np.sort(t), degrees_of_freedom)
    excludes_zero = one.estimate > one.half_width(confidence)
    assert (one.p_value() <= 1 - confidence + 1e-12) == excludes_zero


@pytest.mark.parametrize("documents", [8, 54])
def test_intervals_cover_the_truth_as_often_as_they_say(documents: int) -> None:
    """Heavy tails, lengths from 20 to 1024, two domains with opposite effects whose shares are fixed. 600 studies: the
    share covered has a standard deviation of 0.9 points. Percentile intervals cover 84 % at 8 documents."""
    rng = np.random.default_rng(0)
    stratum = np.arange(2 * documents) % 2
    covered = 0
    for study in range(600):
        tokens = np.minimum(1024, np.exp(rng.normal(6.5, 1, 2 * documents))).clip(20)
        effect = np.where(stratum == 0, 0.28, -0.11) + 0.15 * rng.standard_t(4, 2 * documents)
        (one,) = bootstrap_ratio((effect * tokens)[None], tokens, stratum, 299, study)
        covered += abs(one.estimate - 0.085) <= one.half_width(0.95)
    assert 0.92 <= covered / 600 <= 0.98


def test_no_difference_is_called_different_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    called = 0
    for study in range(600):
        tokens = rng.integers(20, 1024, 40)
        x = tokens * rng.standard_t(4, 40)
        (one,) = bootstrap_ratio(x[None], tokens, np.zeros(40, dtype=int), 299, study)
        called += one.p_value() <= 0.05
    assert 0.02 <= called / 600 <= 0.08


def test_an_exact_zero_is_no_difference() -> None:
    tokens = np.arange(1, 11)
    (one,) = bootstrap_ratio(np.zeros((1, 10)), tokens, np.zeros(10, dtype=int), 99, 0)
    assert one.estimate == one.standard_error == one.half_width(0.95) == 0 and one.p_value() == 1


def test_a_difference_in_one_document_alone_is_not_called() -> None:
    x = np.zeros((1, 10))
    x[0, 3] = 1.0
    (one,) = bootstrap_ratio(x, np.full(10, 100), np.zeros(10, dtype=int), 999, 0)
    assert one.p_value() > 0.3 and one.half_width(0.95) == np.inf


def test_refuses_what_it_cannot_resample() -> None:
    with pytest.raises(ValueError, match="two or more"):
        bootstrap_ratio(np.ones((1, 3)), np.ones(3), np.array([0, 0, 1]), 99, 0)
    with pytest.raises(ValueError, match="none without tokens"):
        bootstrap_ratio(np.ones((1, 3)), np.array([1, 0, 2]), np.zeros(3, dtype=int), 99, 0)
    with pytest.raises(ValueError, match="raise `report.resamples`"):
        Resampled(1.0, 1.0, np.arange(10.0)).half_width(0.99)


def test_few_draws_are_judged_no_milder_than_by_a_t_test() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1, 1, 10)
    t, p = stats.ttest_1samp(x, 0)
    error = x.std(ddof=1) / np.sqrt(10)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    optimistic = Resampled(x.mean(), error, np.linspace(0, 1.5, 999), 9)
    assert optimistic.p_value() == pytest.approx(p) and p > 0.001
    assert optimistic.half_width(0.95) == pytest.approx((high - low) / 2)
    wary = Resampled(x.mean(), error, np.linspace(0, 3 * t, 999), 9)
    assert wary.p_value() == pytest.approx(2 / 3, abs=0.002) and wary.half_width(0.95) > optimistic.half_width(0.95)


def test_holm() -> None:
    # the example of Holm's procedure worked by hand: 4 p, 3 p, 2 p, 1 p of the sorted values, made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == [] and holm([0.2]) == [0.2]


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=12))
def test_holm_rejects_what_its_definition_rejects(p: list[float]) -> None:
    alpha = 0.05
    ordered = sorted(range(len(p)), key=lambda i: p[i])
    rejected = set()
    for rank, index in enumerate(ordered):
        if p[index] * (len(p) - rank) > alpha:
            break
        rejected.add(index)
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= alpha} == rejected


def test_small_domains_share_a_stratum() -> None:
    domains = ["a"] * 10 + ["b"] * 9 + ["c"] * 5 + ["d"] * 4
    assert strata_of(domains, 8).tolist() == [2] * 10 + [1] * 9 + [0] * 9
    lonely = ["a"] * 10 + ["b"] * 9 + ["c"] * 2  # c alone is too few, so the smallest other joins it
    assert strata_of(lonely, 8).tolist() == [1] * 10 + [0] * 11
    assert strata_of(["a"] * 3 + ["b"] * 2, 8).tolist() == [0] * 5
    assert strata_of(["x", "y"] * 8, 8).tolist() == [0, 1] * 8
