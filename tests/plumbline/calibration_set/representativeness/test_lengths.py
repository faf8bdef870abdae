from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from plumbline.calibration_set.representativeness.lengths import Lengths
from tests.helpers.panel import plain_part

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=60)


@settings(deadline=None)
@given(LENGTHS, LENGTHS)
def test_length_distances_match_the_definition_and_scipy(chosen: list[int], production: list[int]) -> None:
    ours, theirs = np.array(chosen), np.array(production)
    aspect = Lengths.prepare(plain_part(production), plain_part(production))
    found = aspect.of_set(plain_part(chosen))
    gaps = [abs((ours <= n).mean() - (theirs <= n).mean()) for n in chosen + production]
    assert found["log_length_ks"] == pytest.approx(max(gaps), abs=1e-12)
    assert found["log_length_ks"] == pytest.approx(stats.ks_2samp(ours, theirs, method="asymp").statistic, abs=1e-12)
    expected = stats.wasserstein_distance(np.log(ours), np.log(theirs))
    assert found["log_length_w1"] == pytest.approx(expected, abs=1e-9)
    expected = stats.wasserstein_distance(np.log(ours), np.log(theirs), ours, theirs)
    assert found["token_length_w1"] == pytest.approx(expected, abs=1e-9)
    by_token = stats.ks_2samp(np.repeat(ours, ours), np.repeat(theirs, theirs), method="asymp").statistic
    assert found["token_length_ks"] == pytest.approx(by_token, abs=1e-12)
    beyond = sum(n for n in production if n > max(chosen)) / sum(production)
    assert found["tokens_beyond_longest"] == pytest.approx(beyond, abs=1e-12)


@settings(deadline=None)
@given(LENGTHS)
def test_a_set_with_production_s_lengths_is_at_no_distance(lengths: list[int]) -> None:
    found = Lengths.prepare(plain_part(lengths), plain_part(lengths)).of_set(plain_part(lengths[::-1]))
    assert max(found.values()) < 1e-12


def test_random_sets_are_measured_as_a_set_is() -> None:
    rng = np.random.default_rng(0)
    pool, production = (plain_part(rng.integers(2, 200, n).tolist()) for n in (50, 30))
    aspect = Lengths.prepare(pool, production)
    rows = rng.integers(0, aspect.size, (4, 9))
    found = aspect.of_draws(rows)
    for number, row in enumerate(rows):
        assert {name: found[name][number] for name in found} == aspect.of_set(pool.take(row))
