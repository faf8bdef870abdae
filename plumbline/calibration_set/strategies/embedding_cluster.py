"""Clusters of what samples are about, or of what the model makes of them, and representatives of each."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plumbline.calibration_set.methods.kmeans import Clusters, InMemory, Points, kmeans
from plumbline.calibration_set.methods.quotas import apportion, fill_nearest
from plumbline.calibration_set.methods.signed import signed_rows
from plumbline.calibration_set.strategies.base import Pool, Selection


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    features: Literal["embedding", "activations"] = "embedding",
    clusters: Annotated[int, Field(ge=1)] | None = None,
    quotas: Literal["equal", "proportional"] = "equal",
    pick: Literal["centroid", "random"] = "centroid",
) -> Selection:
    """Cluster the samples and take representatives of each cluster.

    Options:
        features: `embedding` of the text, or `activations`: the base model's own, averaged over the tokens of a sample
            site by site (samples are measured one by one, so there are no pads to leave out) and projected. Only
            samples with a stored signature are chosen from then, a uniform draw of the pool (`features.signatures`).
        clusters: how many; null: n, so that `equal` quotas take one sample of each.
        quotas: `equal` for every cluster, whatever its size: rare kinds of text weigh in as much as common ones; or
            `proportional` to size: the set has the pool's mix, and a cluster with less than half of an average
            share gives none, so take fewer clusters than samples.
        pick: the samples nearest to the `centroid` (typical ones, alike where a cluster gives several), or `random`
            ones of the cluster (as varied as the cluster is).

    A cluster that runs short is filled from the clusters whose centroids are nearest; notes and reasons say so.

    Optimises: the squared distance of the pool's samples to the nearest centroid.
    Cost: k-means on at most 256 samples per cluster, then O(N clusters d) once (kmeans.py). Embeddings are read in
    blocks, token ids never.
    Source: clusters = n, `equal`, `centroid` on `activations` is the recipe of COLA (arXiv 2510.10618), whose own code
    averages over pads; random within clusters is stratified sampling.
    """
    rows, points = _points(pool, n, features)
    k = min(n if clusters is None else clusters, len(points))
    clustering = kmeans(points, k, rng)
    quota = apportion(clustering.sizes, n, quotas)
    fills = fill_nearest(clustering.sizes, quota, partial(_from_centroid, clustering.centroids))
    order, rank = _ranked(clustering)
    first = rng.permutation(len(points)) if pick == "random" else rank
    chosen = _representatives(clustering, order, first, quota, fills)
    distance = np.sqrt(clustering.squared) * clustering.scale
    reasons: list[dict[str, Any]] = []
    for point, short in chosen:
        cluster = int(clustering.labels[point])
        reason: dict[str, Any] = {"cluster": cluster, "size": int(clustering.sizes[cluster])}
        reason |= {"distance": round(float(distance[point]), 4), "rank": int(rank[point])}
        reasons.append(reason if short is None else {**reason, "fills": short})
    notes = {
        "clustered": len(points),
        "mean_squared_distance": round(clustering.inertia / len(points), 6),
        "clusters": {"size": clustering.sizes.tolist(), "quota": quota.tolist()},
        "empty": int((clustering.sizes == 0).sum()),
        "fills": [{"short": a, "from": b, "samples": count} for (a, b), count in fills.items()],
    }
    return Selection(rows[[point for point, _ in chosen]], reasons, notes=notes)


def _points(pool: Pool, n: int, features: str) -> tuple[NDArray[np.int64], Points]:
    """The rows that can be chosen, and what is known about each."""
    if features == "embedding":
        return np.arange(len(pool)), pool.stored_embeddings
    rows = signed_rows(pool, n, "embedding_cluster (features: activations)")
    return rows, InMemory.of(pool.signatures(rows).pooled)


def _from_centroid(centroids: NDArray[np.float64], cluster: int) -> NDArray[np.float64]:
    """Squared distance of every centroid to that of `cluster`, float64 (k,); sums are exact as in kmeans.py."""
    squares = np.einsum("ij,ij->i", centroids, centroids)
    return np.asarray(squares - 2 * (centroids @ centroids[cluster]) + squares[cluster], dtype=np.float64)


def _ranked(clustering: Clusters) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The points cluster by cluster, the nearest to its centroid first, and the place of each within its cluster."""
    # lexsort is stable: of equals, the lower row is first
    order = np.lexsort((clustering.squared, clustering.labels)).astype(np.int64)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(clustering.sizes) - clustering.sizes, clustering.sizes)
    return order, rank


def _representatives(
    clustering: Clusters,
    order: NDArray[np.int64],
    first: NDArray[np.int64],
    quota: NDArray[np.int64],
    fills: dict[tuple[int, int], int],
) -> list[tuple[int, int | None]]:
    """The chosen points, each with the cluster that it fills: one of every cluster, then the second of every one ...

    So the beginning of the set covers the clusters, too.

    Args:
        order: the points, cluster by cluster.
        first: who goes first within a cluster: the one with the lowest number.
    """
    filled: dict[int, list[int]] = {}
    for (short, giver), count in fills.items():
        filled.setdefault(giver, []).extend([short] * count)
    chosen: list[tuple[int, int, int, int | None]] = []
    for cluster, members in enumerate(np.split(order, np.cumsum(clustering.sizes)[:-1])):
        members = members[np.argsort(first[members], kind="stable")].tolist()
        own = min(int(quota[cluster]), len(members))
        served = [*[None] * own, *filled.get(cluster, [])]
        chosen += [(place, cluster, members[place], short) for place, short in enumerate(served)]
    return [(point, short) for _, _, point, short in sorted(chosen, key=lambda entry: entry[:2])]
