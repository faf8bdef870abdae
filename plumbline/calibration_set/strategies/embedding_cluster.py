"""Clusters of embeddings or of activations, and representatives of each cluster."""

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
        features: `embedding` of the text, or `activations` of the base model, averaged over the tokens of a sample
            per site (samples are measured one at a time, so there is no padding) and projected. With `activations`,
            the candidates are the samples with a stored signature, a uniform draw of the pool (`features.signatures`).
        clusters: number of clusters; null: n, so that `equal` quotas take one sample of each.
        quotas: `equal` for every cluster: rare kinds of text count as much as common ones; or `proportional` to size:
            the set has the pool's mix. A cluster with less than half of an average share then gets no sample, so use
            fewer clusters than samples.
        pick: the samples nearest to the `centroid` (typical, and similar to each other), or `random` ones of the
            cluster (as varied as the cluster).

    The clusters with the nearest centroids fill a cluster with too few samples; notes and reasons list the fills.

    Optimises: the squared distance of the pool's samples to the nearest centroid.
    Cost: k-means on at most 256 samples per cluster, then O(N clusters d) once (kmeans.py). Reads embeddings in
    blocks, and no token ids.
    Source: clusters = n, `equal`, `centroid` on `activations` is the recipe of COLA (arXiv 2510.10618), whose
    code averages over padding; random within clusters is stratified sampling.
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
    """The candidate rows, and the point of each to cluster."""
    if features == "embedding":
        return np.arange(len(pool)), pool.stored_embeddings
    rows = signed_rows(pool, n, "embedding_cluster (features: activations)")
    return rows, InMemory.of(pool.signatures(rows).pooled)


def _from_centroid(centroids: NDArray[np.float64], cluster: int) -> NDArray[np.float64]:
    """Squared distance of every centroid to that of `cluster`, float64 (k,); sums are exact as in kmeans.py."""
    squares = np.einsum("ij,ij->i", centroids, centroids)
    return np.asarray(squares - 2 * (centroids @ centroids[cluster]) + squares[cluster], dtype=np.float64)


def _ranked(clustering: Clusters) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The points cluster by cluster, nearest to the centroid first, and the rank of each within its cluster."""
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
    """The chosen points, each with the cluster that it fills: the first of every cluster, then the second of each ...

    In this order, the beginning of the set covers the clusters, too.

    Args:
        order: the points, cluster by cluster.
        first: priority of a point within its cluster, lowest first.
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
