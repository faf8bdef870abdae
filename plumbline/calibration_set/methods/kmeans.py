"""k-means over more points than fit into memory, with the same result on any machine and number of threads.

Every sum is exact. Points lie on a grid of 2^-24 (as float16 values do), centroids on a grid of 2^-26, and both are at
most `LONGEST` long. So products and their partial sums are integers below 2^53 in units of 2^-52, which float64 holds
exactly in any order of summation. Neither threads nor block size nor the order of the points changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from plumbline.progress import Bar

LONGEST = 1.25
"""Largest length of a point; embeddings have length 1, up to the rounding of float16."""
SAMPLE_PER_CENTROID = 256
"""Most points per centroid in Lloyd's iterations; more would hardly improve them."""
SEEDS_PER_CENTROID = 32
"""Most points per centroid from which k-means++ draws the first centroids."""
ITERATIONS = 50
TOLERANCE = 1e-3
"""Lloyd's iterations end when one lowers the inertia by less than this share."""
RESTARTS = 10
RESTARTED = 1 << 19
"""Points times centroids over all restarts: small problems get up to `RESTARTS`, large ones need none."""
BLOCK = 1 << 22
"""Numbers in one block of distances (points times k or d): 32 MB per thread."""


class Points(Protocol):
    """N points, in memory or on disk."""

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The points at `rows`, float (len(rows), d)."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Points in an array."""

    points: NDArray[Any]
    scale: float = 1.0
    """What the points were divided by."""

    @classmethod
    def of(cls, array: NDArray[np.floating]) -> InMemory:
        """Points of any length, (N, d), scaled by a power of two to length 1 at most; 2^-24 of that is their grid."""
        points = array.astype(np.float64)
        longest = math.sqrt(max((math.fsum(row) for row in points * points), default=0.0))
        scale = 2.0 ** math.ceil(math.log2(longest)) if longest else 1.0
        return cls(np.rint(points / scale * 2.0**24) * 2.0**-24, scale)

    def __len__(self) -> int:
        return len(self.points)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The points at `rows`, float (len(rows), d)."""
        return self.points[rows]


@dataclass(frozen=True, eq=False)
class Clusters:
    """N points in k clusters, largest first; of equals, the one with the first point first; empty ones last."""

    centroids: NDArray[np.float64]
    """(k, d): the mean of each cluster's points; for an empty cluster, its last position."""
    labels: NDArray[np.int64]
    """(N,): the cluster of each point."""
    squared: NDArray[np.float64]
    """(N,): squared distance of each point to its centroid."""
    sizes: NDArray[np.int64]
    """(k,): points per cluster."""
    scale: float = 1.0
    """What the points were divided by; distances times this are those of the original points."""

    @property
    def inertia(self) -> float:
        """Sum of the squared distances of the original points."""
        return math.fsum(self.squared) * self.scale**2


def kmeans(points: Points, k: int, rng: np.random.Generator) -> Clusters:
    """Cluster by Lloyd's algorithm on a uniform sample, then one pass of it over all points.

    Args:
        points: at least one, none longer than `LONGEST`.
        k: clusters; some stay empty if there are fewer distinct points.

    Cost: O(S k d) per iteration with S = min(N, SAMPLE_PER_CENTROID k), then O(N k d) once. Memory: the sample as
    stored, 24 bytes per point, and a few blocks per thread.
    Source: Lloyd 1982; greedy k-means++ (Arthur, Vassilvitskii 2007); 256 points per centroid as in faiss.
    """
    rows = _draw(rng, len(points), SAMPLE_PER_CENTROID * k)
    sample = InMemory(points.take(rows))
    tries = min(RESTARTS, max(1, RESTARTED // (len(rows) * k)))
    with _threads() as threads:
        best: tuple[float, NDArray[np.float64]] | None = None
        for _ in range(tries):
            seeds = _draw(rng, len(rows), SEEDS_PER_CENTROID * k)
            candidate = lloyd(sample, plus_plus(sample.take(seeds), k, rng), threads)
            if best is None or candidate[0] < best[0]:
                best = candidate
        assert best is not None
        labels, _, sums = assign(points, best[1], threads, progress=True)
        sizes = np.bincount(labels, minlength=k)
        centroids = _means(sums, sizes, best[1])
        order = np.lexsort((_first_of_each(labels, k), -sizes))
        labels = np.argsort(order)[labels]
        squared = distances(points, centroids[order], labels, threads)
    scale = points.scale if isinstance(points, InMemory) else 1.0
    return Clusters(centroids[order], labels, squared, sizes[order], scale)


def plus_plus(points: NDArray[Any], k: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Initial centroids by greedy k-means++: each is the best of 2 + ln k points drawn by squared distance."""
    x = _on_grid(points)
    xx = np.einsum("ij,ij->i", x, x)
    chosen = [int(rng.integers(len(x)))]
    nearest = np.maximum(xx - 2 * (x @ x[chosen[0]]) + xx[chosen[0]], 0)
    trials = 2 + int(math.log(k))
    for _ in range(1, k):
        mass = np.cumsum(nearest)
        drawn = np.minimum(np.searchsorted(mass, rng.random(trials) * mass[-1], side="right"), len(x) - 1)
        distances = np.minimum(np.maximum(xx[:, None] - 2 * (x @ x[drawn].T) + xx[drawn], 0), nearest[:, None])
        best = int(np.argmin(np.cumsum(distances, axis=0)[-1]))  # cumsum adds in order
        chosen.append(int(drawn[best]))
        nearest = distances[:, best]
    return x[chosen]


def lloyd(points: Points, centroids: NDArray[np.float64], threads: Executor) -> tuple[float, NDArray[np.float64]]:
    """Lloyd's iterations until they gain little: the inertia and the centroids."""
    inertia = math.inf
    for _ in range(ITERATIONS):
        labels, squared, sums = assign(points, centroids, threads)
        before, inertia = inertia, math.fsum(squared)
        if not inertia < before * (1 - TOLERANCE):
            break
        sizes = np.bincount(labels, minlength=len(centroids))
        centroids = _means(sums, sizes, centroids)
        empty = np.flatnonzero(sizes == 0)
        if len(empty):  # restart them at the points farthest from their centroids
            far = np.argsort(-squared, kind="stable")[: len(empty)]
            far = far[squared[far] > 0]
            centroids[empty[: len(far)]] = _on_grid(points.take(far))
    return inertia, centroids


def assign(
    points: Points, centroids: NDArray[np.float64], threads: Executor, progress: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Assign every point to the nearest centroid, the first of equals.

    Returns:
        labels, int64 (N,); squared distances, float64 (N,); the sum of each cluster's points, float64 (k, d).
    """
    labels = np.empty(len(points), dtype=np.int64)
    squared = np.empty(len(points))
    sums = np.zeros(centroids.shape)
    twice, squares = -2 * centroids.T, np.einsum("ij,ij->i", centroids, centroids)
    one_at_a_time = Lock()

    def block(rows: NDArray[np.int64]) -> None:
        x = _on_grid(points.take(rows))
        apart = x @ twice
        apart += squares
        nearest = apart.argmin(axis=1)
        labels[rows] = nearest
        squared[rows] = np.maximum(np.einsum("ij,ij->i", x, x) + apart[np.arange(len(x)), nearest], 0)
        order = np.argsort(nearest, kind="stable")
        first = np.flatnonzero(np.diff(nearest[order], prepend=-1))
        partial = np.add.reduceat(x[order], first, axis=0)
        with one_at_a_time:
            sums[nearest[order][first]] += partial

    _each_block(block, len(points), max(centroids.shape), threads, progress)
    return labels, squared, sums


def distances(
    points: Points, centroids: NDArray[np.float64], labels: NDArray[np.int64], threads: Executor
) -> NDArray[np.float64]:
    """Squared distance of every point to the centroid of its label, float64 (N,)."""
    squared = np.empty(len(points))

    def block(rows: NDArray[np.int64]) -> None:
        x, c = _on_grid(points.take(rows)), centroids[labels[rows]]
        apart = np.einsum("ij,ij->i", x, x) - 2 * np.einsum("ij,ij->i", x, c) + np.einsum("ij,ij->i", c, c)
        squared[rows] = np.maximum(apart, 0)

    _each_block(block, len(points), centroids.shape[1], threads, progress=False)
    return squared


def _each_block(
    work: Callable[[NDArray[np.int64]], None], n: int, width: int, threads: Executor, progress: bool
) -> None:
    size = max(1, BLOCK // width)
    blocks = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    if len(blocks) == 1:
        work(blocks[0])
        return
    quiet = None if progress and len(blocks) > 16 else True
    for _ in Bar(threads.map(work, blocks), desc="clustering", total=len(blocks), unit="block", disable=quiet):
        pass


@contextmanager
def _threads() -> Iterator[Executor]:
    """As many threads as BLAS would use; each works on its own block, with BLAS limited to one thread."""
    from threadpoolctl import ThreadpoolController

    blas = ThreadpoolController().select(user_api="blas")
    workers = max((library["num_threads"] for library in blas.info()), default=1)
    with blas.limit(limits=1), ThreadPoolExecutor(workers) as threads:
        yield threads


def _draw(rng: np.random.Generator, n: int, at_most: int) -> NDArray[np.int64]:
    return np.arange(n) if n <= at_most else np.sort(rng.choice(n, at_most, replace=False))


def _first_of_each(labels: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The first point of each cluster; for empty ones, the number of points."""
    first = np.full(k, len(labels))
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    return first


def _means(sums: NDArray[np.float64], sizes: NDArray[np.int64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means on the grid of centroids; the centroid of an empty cluster does not move."""
    means = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], before)
    return np.asarray(np.rint(means * 2.0**26) * 2.0**-26, dtype=np.float64)


def _on_grid(points: NDArray[Any]) -> NDArray[np.float64]:
    """The points as float64 on their grid; float16 is converted through float32, which is five times as fast.

    Raises:
        ValueError: a point is not finite, or too long for exact sums.
    """
    if points.dtype == np.float16:
        x = points.astype(np.float32).astype(np.float64)
    else:
        x = np.rint(points.astype(np.float64) * 2.0**24) * 2.0**-24
    longest = float(np.einsum("ij,ij->i", x, x).max(initial=0.0))
    if not longest <= LONGEST**2:
        raise ValueError(
            f"k-means: found a point of length {math.sqrt(longest):.3g}, expected embeddings of length 1; run "
            f"sample_features again"
        )
    return x
