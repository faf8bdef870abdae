"""Points around centres, and the digest of what k-means makes of them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.methods.kmeans import InMemory, kmeans


def mixture(n: int, d: int = 24, parts: int = 10, seed: int = 0, spread: float = 0.6) -> NDArray[np.float16]:
    """Points of length 1 around `parts` centres."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((parts, d))[rng.integers(0, parts, n)] + spread * rng.standard_normal((n, d))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


def rng(seed: int = 0) -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(seed)


def kmeans_digest(points: NDArray[Any], k: int) -> str:
    """The digest of everything that k-means returns, the generator seeded."""
    clusters = kmeans(InMemory(points), k, rng())
    parts = (clusters.centroids, clusters.labels, clusters.squared, clusters.sizes)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
