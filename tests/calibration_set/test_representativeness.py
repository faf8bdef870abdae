from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from assets.calibration_set.representativeness import against_null, measure, reference, representativeness

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=60)


@settings(deadline=None)
@given(LENGTHS, LENGTHS, LENGTHS)
def test_length_distances_match_the_definition_and_scipy(
    chosen: list[int], production: list[int], others: list[int]
) -> None:
    ours, theirs = np.array(chosen), np.array(production)
    everything = np.concatenate([ours, np.array(others)])
    found = measure(ours, np.zeros_like(ours), reference(theirs, np.zeros_like(theirs), everything, 1))
    gaps = [abs((ours <= n).mean() - (theirs <= n).mean()) for n in chosen + production]
    assert found["log_length_ks"] == pytest.approx(max(gaps), abs=1e-12)
    expected = stats.wasserstein_distance(np.log(ours), np.log(theirs))
    assert found["log_length_w1"] == pytest.approx(expected, abs=1e-9)
    beyond = sum(n for n in production if n > max(chosen)) / sum(production)
    assert found["tokens_beyond_longest"] == pytest.approx(beyond, abs=1e-12)
    assert found["domain_mix"] == 0


def test_domain_mix_is_the_share_of_tokens_that_would_have_to_move() -> None:
    production = reference(np.array([30, 70]), np.array([0, 1]), np.array([10]), 2)
    # 10 of 20 tokens in domain 0 where production has 30 %: 20 % would have to move
    assert measure(np.array([10, 10]), np.array([0, 1]), production)["domain_mix"] == pytest.approx(0.2)
    assert measure(np.array([10]), np.array([1]), production)["domain_mix"] == pytest.approx(0.3)


def test_percentile_and_ratio_by_hand() -> None:
    null = np.array([1.0, 2.0, 2.0, 3.0])
    assert against_null(2.0, null)["percentile"] == 50  # one below, two tied
    assert against_null(2.5, null)["percentile"] == 75
    assert against_null(3.0, null)["ratio"] == 1.5
    assert against_null(0.5, null)["percentile"] == 0
    assert against_null(1.0, np.zeros(4))["ratio"] is None


def population(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.lognormal(5, 1, n).astype(np.int64) + 1, rng.choice(np.array(["code", "prose"]), n, p=[0.3, 0.7])


def test_planted_defects_stand_out() -> None:
    pool, tuning = population(2000, 0), population(500, 1)

    def percentile(rows: np.ndarray, metric: str) -> float:
        return representativeness((pool[0][rows], pool[1][rows]), pool, tuning)["metrics"][metric]["percentile"]

    by_length = np.argsort(pool[0])
    prose = np.flatnonzero(pool[1] == "prose")[:64]
    assert percentile(by_length[:64], "log_length_ks") == 100
    assert percentile(by_length[:64], "log_length_w1") == 100
    assert percentile(by_length[:64], "tokens_beyond_longest") == 100
    assert percentile(prose, "domain_mix") >= 99


def test_a_random_set_is_no_further_off_than_random_draws_are() -> None:
    """Percentiles of 60 random sets spread over the whole range: their mean is 50, within 4 standard errors (3.7)."""
    pool, tuning = population(1500, 2), population(400, 3)
    found = []
    for seed in range(60):
        rows = np.random.default_rng(100 + seed).choice(1500, 48, replace=False)
        found.append(representativeness((pool[0][rows], pool[1][rows]), pool, tuning, draws=50)["metrics"])
    for metric in ("log_length_ks", "log_length_w1", "domain_mix"):
        assert abs(np.mean([f[metric]["percentile"] for f in found]) - 50) < 15


def test_sentences_say_what_is_wrong() -> None:
    pool = (np.array([100] * 50 + [1000] * 50), np.array(["a"] * 100))
    result = representativeness((np.array([100] * 10), np.array(["a"] * 10)), pool, pool)
    assert result["null"] == "200 random draws of 10 samples from the pool (100 samples)"
    assert any(s.startswith("90.9% of production tokens sit in samples longer") for s in result["sentences"])
    assert result["metrics"]["domain_mix"]["value"] == 0
    assert result["metrics"]["domain_mix"]["percentile"] == 50
    assert result["metrics"]["domain_mix"]["ratio"] is None


def test_without_a_tuning_split_nothing_is_claimed() -> None:
    nothing = (np.array([], np.int64), np.array([], np.str_))
    pool = population(10, 0)
    result = representativeness(pool, pool, nothing)
    assert result["metrics"] == {}
    assert "tuning split is empty" in result["sentences"][0]
