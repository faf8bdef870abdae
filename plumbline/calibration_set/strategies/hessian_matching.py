"""Hessian matching: a set whose second moments, which GPTQ and similar methods use, are close to production's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from plumbline.calibration_set.methods.greedy import lazy_greedy
from plumbline.calibration_set.methods.signed import (
    beside_draws,
    random_draws,
    reference_signatures,
    require_same_sites,
    signed_rows,
)
from plumbline.calibration_set.strategies.base import Pool, Selection
from plumbline.progress import Bar

if TYPE_CHECKING:
    from plumbline.sample_features.signatures import Signatures

CHUNK = 64
"""Candidates whose determinants are computed at a time: 64 × 16 sites × 32 × 32 numbers are 8 MB."""


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    d_optimal: Annotated[float, Field(ge=0, le=1)] = 0.0,
    weighting: Literal["token", "sequence"] = "token",
    damping: Annotated[float, Field(gt=0)] = 0.01,
) -> Selection:
    """Choose the samples whose mean second moment per site comes closest to production's.

    Options:
        d_optimal: share of the n picks that go to rare directions instead. 0 by default: on the bundled model a fifth
            increased the spectral error and hardly reduced `lacking`.
        weighting: `token`: every token counts alike, as in H = sum of x x^T over all tokens (GPTQ). `sequence`: every
            sequence counts alike, as its sum is divided by its own tokens (MaCa).
        damping: added to the diagonal of H* before it is inverted, as a share of its mean; GPTQ's 0.01 by default. A
            smaller value gives more weight to directions in which production hardly varies.

    Optimises: with H* production's second moment at a site (its sketch), W = (H* + lambda I)^(-1/2), z_s = W H_s W of
    sample s and z* = W H* W, near the identity: the mean over sites of ||z_A - z*||^2 / ||z*||^2 in Frobenius norm,
    z_A the mean over the set. After whitening, a direction counts by the set's relative deviation from production in
    it. Two parts. (1) D-optimal: the samples that add most to the sum over sites of log det(B + sum of z_s), which is
    monotone submodular, so lazy greedy applies; z_s in units of production's mean sample and B = (n - d) I, as if the
    n - d others matched production already. So common directions add little and rare ones much. (2) Herding: one after
    the other, the sample that brings z_A closest to z*. It starts from the picks of (1) and balances their bias, so it
    comes last. Ties go to the lowest sample id.
    Notes give the spectral error eps = max |eigenvalue of z_A - z*| per site: (1 - eps)(H* + lambda I) <= H_A + lambda
    I <= (1 + eps)(H* + lambda I), so in the sketched directions a rounding that is best for the set's damped H has at
    most (1 + eps) / (1 - eps) times the least loss under production's (an eps of 1 or more promises nothing). And
    `lacking`, -min eigenvalue: the largest share of production's moment that the set lacks in any direction. D-optimal
    picks are meant to lower it, and make other directions too strong, so compare both figures with and without them.
    Both are measured on the data of the search: that they are lower than for random draws shows that the search
    worked, not that a model quantized from the set will be better.
    Cost: no forward pass; the candidates are the m samples whose signature is stored. O(m S r^2) per pick with S sites
    and r directions, O(m S r^3) once; m S r^2 / 2 numbers of 8 bytes.
    Source: herding: Welling, ICML 2009, on second moments here; D-optimality: Fedorov 1972, as a set function Krause
    and Guestrin 2005. Sequence weights: MaCa, arXiv 2602.07465. The moments are GPTQ's, arXiv 2210.17323.
    """
    rows = signed_rows(pool, n, "hessian_matching")
    split, reference = reference_signatures(pool, "hessian_matching")
    moments = whiten(pool.signatures(rows), reference, weighting, damping)
    d = int(n * d_optimal + 0.5)
    chosen, reasons = _search(moments, n, d)
    draws = random_draws(rng, len(rows), n)
    lengths = pool.lengths[rows]
    notes = {
        "prefilter": {"signed": len(rows), "of": len(pool)},
        "reference": {"split": split, "samples": len(reference)},
        "sites": len(reference.sites),
        "d_optimal": d,
        "distance": beside_draws(moments.distance(chosen), np.array([moments.distance(draw) for draw in draws])),
        **_error_notes(moments, chosen, draws, [site.name for site in reference.sites]),
        "tokens": beside_draws(float(lengths[chosen].sum()), np.array([float(lengths[draw].sum()) for draw in draws])),
    }
    return Selection(rows[chosen], reasons, notes=notes)


def _search(moments: WhitenedMoments, n: int, d: int) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """The n candidates chosen, the first d of them D-optimal and the rest by herding, and the reason of each."""
    objective = LogDet(moments, start=max(n - d, 1))
    first, gains = lazy_greedy(objective, np.arange(len(moments.z) if d else 0), d)
    then, distances = herd(moments, first, n - d)
    reasons: list[dict[str, Any]] = [
        {"part": "d_optimal", "step": step, "log_det_gain": round(gain, 9)} for step, gain in enumerate(gains, start=1)
    ]
    reasons += [
        {"part": "herding", "step": step, "distance": round(distance, 9)}
        for step, distance in enumerate(distances, start=d + 1)
    ]
    return np.concatenate([first, then]), reasons


def _error_notes(
    moments: WhitenedMoments, chosen: NDArray[np.int64], draws: list[NDArray[np.int64]], sites: list[str]
) -> dict[str, Any]:
    """Spectral error and what the set lacks, per site, mean and largest, beside those of random draws."""
    ours, null = moments.errors(chosen), np.stack([moments.errors(draw) for draw in draws])  # (2, S), (draws, 2, S)
    return {
        name: {
            "mean": beside_draws(float(ours[i].mean()), null[:, i].mean(axis=1)),
            "max": beside_draws(float(ours[i].max()), null[:, i].max(axis=1)),
            "sites": {site: beside_draws(float(ours[i, k]), null[:, i, k]) for k, site in enumerate(sites)},
        }
        for i, name in enumerate(("spectral_error", "lacking"))
    }


@dataclass(frozen=True, eq=False)
class WhitenedMoments:
    """Whitened second moments of m candidates at S sites, and those of the reference.

    A symmetric r × r matrix is stored as its upper triangle, off-diagonal entries times sqrt 2, so that its Euclidean
    norm is the Frobenius norm of the matrix; D = r (r + 1) / 2.
    """

    z: NDArray[np.float64]
    """z_s = W H_s W, (m, S, D); H_s is the sum of x x^T over the sample's tokens, divided by the tokens of production's
    mean sample (`token`) or by its own (`sequence`)."""
    weight: NDArray[np.float64]
    """Weight of a candidate in mean samples, (m,): its tokens over production's mean, or 1 (`sequence`)."""
    target: NDArray[np.float64]
    """z*, (S, D); zero at a site where the reference has no activation."""

    @property
    def order(self) -> int:
        """r."""
        return (int(np.sqrt(8 * self.z.shape[2] + 1)) - 1) // 2

    def mean(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """z_A of the candidates `rows`, (S, D)."""
        mean: NDArray[np.float64] = self.z[rows].sum(axis=0) / self.weight[rows].sum()
        return mean

    def distance(self, rows: NDArray[np.int64]) -> float:
        """The mean over sites of ||z_A - z*||^2 / ||z*||^2."""
        return float((((self.mean(rows) - self.target) ** 2).sum(axis=1) / self.scale).mean())

    def errors(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Per site, the largest absolute eigenvalue of z_A - z*, and how far the least one is below 0, (2, S)."""
        eigenvalues = np.linalg.eigvalsh(unpacked(self.mean(rows) - self.target, self.order))
        return np.stack([np.abs(eigenvalues).max(axis=1), np.maximum(-eigenvalues.min(axis=1), 0)])

    @property
    def scale(self) -> NDArray[np.float64]:
        """||z*||^2 per site, 1 where that is 0, (S,)."""
        norm = (self.target**2).sum(axis=1)
        return np.where(norm > 0, norm, 1.0)


def whiten(
    candidates: Signatures,
    reference: Signatures,
    weighting: Literal["token", "sequence"] = "token",
    damping: float = 0.01,
) -> WhitenedMoments:
    """Whiten the candidates' sketched second moments by the reference's, in float64.

    Raises:
        ValueError: the two were measured at different sites.
    """
    require_same_sites(candidates, reference)
    if weighting == "token":
        unit = float(reference.tokens.mean())
        weight = candidates.tokens / unit
        per, per_reference = np.full(len(candidates), unit), np.full(len(reference), unit)
    else:
        weight = np.ones(len(candidates))
        per, per_reference = candidates.tokens.astype(np.float64), reference.tokens.astype(np.float64)
    m, sites, r, _ = candidates.sketch.shape
    z, target = np.empty((m, sites, r * (r + 1) // 2)), np.empty((sites, r * (r + 1) // 2))
    for site in range(sites):  # one site at a time, to bound the memory for full matrices
        h_star = np.mean(reference.sketch[:, site] / per_reference[:, None, None], axis=0)  # float64
        w = inverse_root(h_star, damping)
        target[site] = packed(w @ h_star @ w)
        z[:, site] = packed(w @ (candidates.sketch[:, site] / per[:, None, None]) @ w)
    return WhitenedMoments(z, weight, target)


def inverse_root(h: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """(H + lambda I)^(-1/2), lambda = damping times the mean of H's diagonal; zero if H is."""
    scale = float(np.trace(h)) / len(h)
    if scale <= 0:
        return np.zeros_like(h)
    values, vectors = np.linalg.eigh(h)
    root: NDArray[np.float64] = (vectors / np.sqrt(np.maximum(values, 0) + damping * scale)) @ vectors.T
    return root


def packed(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric (..., r, r) as their upper triangles (..., D), off-diagonal entries times sqrt 2."""
    r = matrices.shape[-1]
    i, j = np.triu_indices(r)
    entries: NDArray[np.float64] = matrices[..., i, j] * np.where(i == j, 1.0, np.sqrt(2))
    return entries


def unpacked(entries: NDArray[np.float64], r: int) -> NDArray[np.float64]:
    """The inverse of `packed`."""
    i, j = np.triu_indices(r)
    matrices = np.empty((*entries.shape[:-1], r, r))
    matrices[..., i, j] = matrices[..., j, i] = entries / np.where(i == j, 1.0, np.sqrt(2))
    return matrices


def herd(moments: WhitenedMoments, start: NDArray[np.int64], n: int) -> tuple[NDArray[np.int64], list[float]]:
    """Add n candidates to `start`, each the one that leaves the least distance (`WhitenedMoments.distance`).

    With u = sum over A of (z_s - w_s z*) and v_s the same of one candidate, the distance after adding it is
    ||u + v_s||^2 / (w_A + w_s)^2, so a step costs one product of the (m, S D) matrix of v with u.

    Returns:
        The candidates in the order chosen, int64 (n,), and the distance after each. Distances are compared at 12
        decimals, so that the order of summation changes no decision; ties go to the first.
    """
    root = np.sqrt(moments.scale * len(moments.scale))[:, None]  # of each site's norm and of the number of sites
    v = ((moments.z - moments.weight[:, None, None] * moments.target) / root).reshape(len(moments.z), -1)
    squares = np.einsum("md,md->m", v, v)
    taken = np.zeros(len(v), dtype=bool)
    taken[start] = True
    u, total = v[start].sum(axis=0), float(moments.weight[start].sum())
    chosen, distances = [], []
    for _ in Bar(range(n), desc="hessian_matching", unit="sample", leave=False):
        # not a matrix product, whose sums depend on the number of threads
        after = (np.einsum("d,d->", u, u) + 2 * np.einsum("md,d->m", v, u) + squares) / (total + moments.weight) ** 2
        after = np.where(taken, np.inf, np.round(after, 12))
        best = int(np.argmin(after))
        taken[best] = True
        u, total = u + v[best], total + float(moments.weight[best])
        chosen.append(best)
        distances.append(float(after[best]))
    return np.array(chosen, dtype=np.int64), distances


class LogDet:
    """f(A) = sum over sites of log det(B + sum over A of z_s) - log det B, B = `start` I (an `Objective` of greedy)."""

    def __init__(self, moments: WhitenedMoments, start: float) -> None:
        self._moments = moments
        self._now = np.broadcast_to(start * np.eye(moments.order), (moments.z.shape[1], moments.order, moments.order))

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each of `rows` adds to f, rounded to 9 decimals, float64 (len(rows),)."""
        gains = np.empty(len(rows))
        before = np.linalg.slogdet(self._now)[1]
        for begin in range(0, len(rows), CHUNK):
            z = unpacked(self._moments.z[rows[begin : begin + CHUNK]], self._moments.order)
            gains[begin : begin + CHUNK] = (np.linalg.slogdet(self._now + z)[1] - before).sum(axis=1)
        return np.round(gains, 9)

    def add(self, row: int) -> None:
        """A becomes A + row."""
        self._now = self._now + unpacked(self._moments.z[row], self._moments.order)
