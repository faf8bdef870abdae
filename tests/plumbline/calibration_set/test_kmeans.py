"""k-means against scikit-learn's, against sums in integers, and on the pathologies."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.calibration_set.methods import kmeans as module
from plumbline.calibration_set.methods.kmeans import InMemory, assign, kmeans, lloyd, plus_plus
from tests.helpers.paths import PROJECT
from tests.helpers.points import kmeans_digest, mixture, rng


@pytest.mark.parametrize(("k", "parts"), [(5, 10), (10, 10), (40, 10), (3, 1)])
def test_inertia_is_that_of_scikit_learn_within_two_percent(k: int, parts: int) -> None:
    from sklearn.cluster import KMeans

    points = mixture(1500, parts=parts)
    ours = kmeans(InMemory(points), k, rng())
    theirs = KMeans(k, n_init=10, random_state=0).fit(points.astype(np.float64))
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=0.02)


def test_a_sample_of_the_points_and_one_pass_are_nearly_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 points per centroid instead of all 150: the inertia is within 3 % of that on all points."""
    points = InMemory(mixture(6000, parts=60))
    whole = kmeans(points, 40, rng())
    monkeypatch.setattr(module, "SAMPLE_PER_CENTROID", 50)
    part = kmeans(points, 40, rng())
    assert whole.inertia < part.inertia < 1.04 * whole.inertia


def test_the_same_centroids_give_the_assignment_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    points = mixture(2000).astype(np.float64)
    centroids = np.rint(points[:30] * 2.0**26) * 2.0**-26
    reference = KMeans(30, init=centroids, n_init=1, max_iter=1).fit(points)
    reference.cluster_centers_ = centroids
    with ThreadPoolExecutor(2) as threads:
        labels, squared, sums = assign(InMemory(points), centroids, threads)
    assert np.array_equal(labels, reference.predict(points))
    apart = np.square(points - centroids[labels]).sum(axis=1)
    np.testing.assert_allclose(squared, apart, atol=1e-12)
    for cluster in range(30):
        np.testing.assert_allclose(sums[cluster], points[labels == cluster].sum(axis=0), atol=1e-10)


@pytest.mark.parametrize("width", [7, 4096])
def test_sums_are_exact_so_no_order_of_adding_can_change_them(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: integers of any size."""
    monkeypatch.setattr(module, "BLOCK", width * 24)
    points = mixture(300)
    centroids = np.rint(rng().normal(0, 0.15, (9, 24)) * 2.0**26) * 2.0**-26
    with ThreadPoolExecutor(2) as threads:
        labels, squared, sums = assign(InMemory(points), centroids, threads)
    exact = [[Fraction(float(value)) for value in row] for row in points]
    of = [[Fraction(float(value)) for value in row] for row in centroids]
    for i, x in enumerate(exact):
        apart = [sum((a - b) ** 2 for a, b in zip(x, c, strict=True)) for c in of]
        assert labels[i] == apart.index(min(apart))
        assert squared[i] == pytest.approx(float(min(apart)), abs=2e-15)
    for cluster, column in ((0, 0), (3, 5), (8, 23)):
        total = sum((exact[i][column] for i in np.flatnonzero(labels == cluster)), Fraction(0))
        assert Fraction(float(sums[cluster, column])) == total


def test_the_result_is_a_fixed_point_with_means_as_centroids_and_the_largest_cluster_first() -> None:
    points = mixture(1200)
    found = kmeans(InMemory(points), 12, rng())
    x = points.astype(np.float64)
    for cluster in range(12):
        np.testing.assert_allclose(found.centroids[cluster], x[found.labels == cluster].mean(axis=0), atol=1e-8)
    assert np.array_equal(found.centroids * 2.0**26, np.rint(found.centroids * 2.0**26))  # the grid of exact sums
    assert found.sizes.tolist() == np.bincount(found.labels, minlength=12).tolist() == sorted(found.sizes)[::-1]
    apart = np.square(x - found.centroids[found.labels]).sum(axis=1)
    np.testing.assert_allclose(found.squared, apart, atol=1e-9)
    assert found.inertia == pytest.approx(apart.sum(), rel=1e-9)


def test_first_centroids_are_spread() -> None:
    """Ten far-off groups: greedy k-means++ hits each, which a uniform draw does in 0.04 % of cases."""
    points = mixture(500, spread=0.02)
    centres = plus_plus(points, 10, rng()).astype(np.float64)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2) + 9 * np.eye(10)
    assert apart.min() > 0.5


def test_an_empty_cluster_starts_again_at_the_point_that_is_worst_off() -> None:
    """Two groups and a far point; the third centroid begins where it is the nearest of none."""
    points = np.array([[0, 0.1], [0, 0.2], [0.5, 0.1], [0.5, 0.2], [0.9, 0.8]], np.float16)
    centroids = np.array([[0, 0.125], [0.5, 0.125], [-1, -0.5]])
    with ThreadPoolExecutor(1) as threads:
        _, moved = lloyd(InMemory(points), centroids, threads)
    np.testing.assert_allclose(moved, [[0, 0.15], [0.5, 0.15], [0.9, 0.8]], atol=1e-3)


POINTS = st.lists(st.lists(st.integers(-4, 4), min_size=2, max_size=2), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(POINTS, st.integers(1, 12), st.integers(0, 3))
def test_any_points_duplicates_and_zeros_included(rows: list[list[int]], k: int, seed: int) -> None:
    found = kmeans(InMemory.of(np.array(rows, np.float32)), k, rng(seed))
    assert found.sizes.sum() == len(rows) and len(found.sizes) == k
    assert np.isfinite(found.centroids).all()
    distinct = len({tuple(row) for row in rows})
    assert 1 <= (found.sizes > 0).sum() <= min(k, distinct)
    if k >= distinct:  # each point is a centroid then: no distance is left
        assert found.inertia == 0 and (found.sizes > 0).sum() == distinct
    assert found.sizes.tolist() == sorted(found.sizes.tolist(), reverse=True)
    same = {tuple(row): int(label) for row, label in zip(rows, found.labels, strict=True)}
    assert [same[tuple(row)] for row in rows] == found.labels.tolist()  # equal points, one cluster


@pytest.mark.parametrize("factor", [1e-3, 1.0, 7.3, 2.0**20])
def test_points_of_any_length_are_scaled_and_distances_are_theirs(factor: float) -> None:
    array = (factor * mixture(200).astype(np.float64)).astype(np.float32)
    points = InMemory.of(array)
    assert np.log2(points.scale) % 1 == 0
    assert 0.5 <= np.linalg.norm(points.points, axis=1).max() <= 1
    np.testing.assert_allclose(points.points * points.scale, array, atol=factor * 2e-7)
    found = kmeans(points, 5, rng())
    apart = [np.square(array[found.labels == c] - array[found.labels == c].mean(axis=0)).sum() for c in range(5)]
    assert found.inertia == pytest.approx(sum(map(float, apart)), rel=1e-4)


@pytest.mark.parametrize("bad", [2.0, np.nan, np.inf])
def test_points_that_are_no_embeddings_are_refused(bad: float) -> None:
    points = mixture(50)
    points[7, 0] = bad
    with pytest.raises(ValueError, match="found a point of length .*, expected embeddings of length 1"):
        kmeans(InMemory(points), 4, rng())


def test_threads_move_no_bit() -> None:
    """One BLAS thread and one worker, or two; both kernels that differ and blocks that end in another order."""
    code = (
        "import numpy as np, hashlib;"
        "from tests.helpers.points import kmeans_digest, mixture;"
        "print(kmeans_digest(mixture(20000, d=48, parts=30), 24))"
    )
    found = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
        )
        found.add(ran.stdout)
    assert len(found) == 1


def test_the_size_of_blocks_moves_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    points = mixture(3000)
    whole = kmeans_digest(points, 9)
    monkeypatch.setattr(module, "BLOCK", 24 * 100)
    assert kmeans_digest(points, 9) == whole
