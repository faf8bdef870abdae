from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist, jensenshannon

from plumbline.calibration_set.representativeness.embeddings import EmbeddingDistances
from tests.helpers.panel import plain_part


def embedded(x: Any) -> Any:
    return plain_part([3] * len(x), embeddings=x)


def energy(x: np.ndarray, y: np.ndarray) -> float:
    """By brute force, over all pairs."""
    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


POINTS = arrays(np.float64, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(-1, 1, width=16))


@settings(deadline=None, max_examples=15)
@given(POINTS, POINTS)
def test_energy_distance_matches_brute_force(x: np.ndarray, y: np.ndarray) -> None:
    found = EmbeddingDistances.prepare(embedded(y), embedded(y)).of_set(embedded(x))
    assert found["embedding_energy"] == pytest.approx(
        max(0, energy(x, y)), abs=1e-5
    )  # distances below 1e-6 count as none
    assert 0 <= found["cluster_jsd"] <= 1
    again = EmbeddingDistances.prepare(embedded(y), embedded(y)).of_set(embedded(x[::-1]))
    assert again == pytest.approx(found, abs=1e-12)


def test_clusters_are_those_of_production_and_their_histograms_are_compared() -> None:
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(4)
    production = np.concatenate([centres[i] + 0.01 * rng.normal(size=(8 * (i + 1), 4)) for i in range(4)])
    aspect = EmbeddingDistances.prepare(embedded(production), embedded(production))
    assert len(aspect.centres) == 10  # 80 samples, eight to a cluster
    chosen = centres[[0, 0, 3]] + 0.01
    mine = np.bincount(cdist(chosen, aspect.centres).argmin(axis=1), minlength=10)
    theirs = np.bincount(cdist(production, aspect.centres).argmin(axis=1), minlength=10)
    assert aspect.histogram == pytest.approx(theirs / 80)
    found = aspect.of_set(embedded(chosen))["cluster_jsd"]
    assert found == pytest.approx(jensenshannon(mine, theirs, base=2) ** 2, abs=1e-9)
    assert aspect.of_set(embedded(production))["cluster_jsd"] == pytest.approx(0, abs=1e-12)
    assert aspect.of_set(embedded(-centres[[0]]))["cluster_jsd"] > 0.5


def test_random_sets_are_measured_as_a_set_is_in_blocks_too() -> None:
    rng = np.random.default_rng(1)
    pool, production = embedded(rng.normal(size=(1500, 5))), embedded(rng.normal(size=(40, 5)))
    aspect = EmbeddingDistances.prepare(pool, production)
    rows = rng.integers(0, aspect.size, (3, 1100))  # over one block, and with repeats
    found = aspect.of_draws(rows)
    for number, row in enumerate(rows):
        assert {name: found[name][number] for name in found} == pytest.approx(aspect.of_set(pool.take(row)), abs=1e-9)


def test_duplicates_and_a_single_sample_have_distances() -> None:
    same = np.ones((6, 3)) / np.sqrt(3)
    aspect = EmbeddingDistances.prepare(embedded(same), embedded(same))
    assert aspect.of_set(embedded(same[:1])) == pytest.approx({"embedding_energy": 0, "cluster_jsd": 0}, abs=1e-7)
    assert aspect.of_set(plain_part([3])) == {}  # a set without embeddings
