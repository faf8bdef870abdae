from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from plumbline.calibration_set.representativeness.tokens import Tokens
from tests.helpers.panel import plain_part

IDS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(IDS, IDS)
def test_token_distances_match_scipy_and_the_definition(chosen: list[list[int]], production: list[list[int]]) -> None:
    reference = plain_part([], [i % 2 for i in range(len(production))], ids=production)
    aspect = Tokens.prepare(reference, reference, [0, 1], ["a", "b"])
    found = aspect.of_set(plain_part([], ids=chosen))
    p, q = (np.bincount(np.concatenate(ids), minlength=13).astype(float) for ids in (chosen, production))
    assert found["token_jsd"] == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-9)
    missing = sum(q[i] for i in range(13) if not p[i]) / q.sum()
    assert found["missing_vocabulary"] == pytest.approx(missing, abs=1e-12)
    worst = 0.0
    for domain in (0, 1):
        mine = [i for row in production[domain::2] for i in row]
        if len(mine) >= 0.01 * q.sum():
            worst = max(worst, np.mean([not p[i] for i in mine]))
    assert found["missing_vocabulary_worst_domain"] == pytest.approx(worst, abs=1e-12)
    special = q[:2].sum()
    lost = sum(q[i] for i in (0, 1) if not p[i]) / special if special else 0
    assert found["missing_special"] == pytest.approx(lost, abs=1e-12)
    starts = [np.array([row[0] if row[0] < 2 else 2 for row in ids]) for ids in (chosen, production)]
    shares = [np.bincount(start, minlength=3) / len(start) for start in starts]
    assert found["special_beginning"] == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2, abs=1e-12)


def test_ids_that_production_never_shows_count_as_distance_and_nothing_else() -> None:
    production = plain_part([], ids=[[1, 2, 3]])
    aspect = Tokens.prepare(production, production, [1], ["a", "b"])
    assert aspect.of_set(plain_part([], ids=[[900, 901]]))["token_jsd"] == pytest.approx(1)
    half = aspect.of_set(plain_part([], ids=[[1, 2, 3, 900, 901, 902]]))
    assert half["token_jsd"] == pytest.approx(jensenshannon([1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], base=2) ** 2)
    assert half["missing_vocabulary"] == pytest.approx(0)
    assert half["special_beginning"] == 0


def test_the_worst_domain_is_named_and_a_tiny_one_is_passed_over() -> None:
    production = plain_part([], [0, 1], ids=[[5] * 500, [6]])
    aspect = Tokens.prepare(production, production, [], ["large", "tiny"])
    chosen = plain_part([], ids=[[5]])
    assert aspect.of_set(chosen)["missing_vocabulary_worst_domain"] == 0
    assert aspect.where(chosen) == {"missing_vocabulary_worst_domain": "large"}
    both = Tokens.prepare(production, plain_part([], [0, 1], ids=[[5] * 50, [6] * 9]), [], ["large", "small"])
    assert both.of_set(chosen)["missing_vocabulary_worst_domain"] == 1
    assert both.where(chosen) == {"missing_vocabulary_worst_domain": "small"}


def test_random_sets_are_measured_as_a_set_is() -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 40, rng.integers(1, 30)).tolist() for _ in range(40)]
    pool = plain_part([], rng.integers(0, 2, 40).tolist(), ids=ids)
    production = plain_part([], ids=[rng.integers(5, 60, 20).tolist() for _ in range(20)])
    aspect = Tokens.prepare(pool, production, [0, 7], ["a", "b"])
    rows = rng.integers(0, aspect.size, (5, 6))  # a row may come twice
    found = aspect.of_draws(rows)
    for number, row in enumerate(rows):
        assert {name: found[name][number] for name in found} == pytest.approx(aspect.of_set(pool.take(row)), abs=1e-12)
