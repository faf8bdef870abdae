"""Greedy coverage of activation space: the cells of production's tokens, and the range of its channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from plumbline.sample_features.signatures import Signatures, SignatureSite

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Quantiles of the reference's per-sample |x| maxima that are a channel's thresholds. Values below the first are no
outliers and do not count: half of production's samples reach it, and so does nearly every set."""
CHUNK = 4_000_000
"""Pairs (sample, channel) processed at a time, which bounds memory for models of any width."""


def select(
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    *,
    outliers: Annotated[float, Field(ge=0, le=1)] = 0.5,
    weighting: Literal["token", "sequence"] = "token",
) -> Selection:
    """Choose the samples that together cover the largest part of the activation space that production uses.

    Options:
        outliers: weight of the outlier channels, 0 to 1; the rest is the weight of the cells.
        weighting: `token`: a sample fills cells by its tokens, as in the statistics of most quantizers; long samples
            fill more, so the set tends to long samples (the notes compare its tokens with those of random draws).
            `sequence`: every sample counts alike; it fills cells by shares of its tokens.

    Optimises: f = (1 - outliers) f_c + outliers f_o, both from 0 to 1, each the mean over sites, so all layers count.
    f_c = sum_k p_k min(1, c_k / tau_k): p_k is the share of production's tokens in cell k, c_k the tokens of the set
    in it, tau_k = max(1, n t p_k) the tokens of n samples of t tokens (production's mean) with production's shares.
    As long as every tau_k is over 1 and the set has n t tokens, f_c is 1 minus the total variation between the
    set's and production's shares. f_o is the share of production's range of |x| that the set reaches: see `ladder`.
    f is monotone and submodular, so lazy greedy reaches at least 1 - 1/e of the best n candidates; the notes have the
    bound that it reached (`at_least_of_best`). Ties go to the lowest sample id.
    Cost: no forward pass; the candidates are the samples whose signature is stored. O(m (S K + W)) for the first pick
    of m candidates with S K cells and W channels, less for each further one; one byte per candidate and channel.
    Source: outlier channels weighted by what clipping them would lose: after CoverCal, arXiv 2604.24008; the cells and
    the ladder are our own. Greedy: Nemhauser, Wolsey, Fisher 1978; the bound in the notes: Leskovec et al., KDD 2007.
    """
    rows = signed_rows(pool, n, "activation_coverage")
    split, reference = reference_signatures(pool, "activation_coverage")
    coverage = ActivationCoverage.of(pool.signatures(rows), reference, n, outliers, weighting)
    chosen, gains = lazy_greedy(coverage, np.arange(len(rows)), n)
    reasons = [{"gain": round(gain, 9), **step} for gain, step in zip(gains, coverage.history(chosen), strict=True)]
    lengths = pool.lengths[rows]
    draws = random_draws(rng, len(rows), n)
    ours, null = coverage.reached(chosen), np.stack([coverage.reached(draw) for draw in draws])
    left = np.sort(coverage.gains(np.setdiff1d(np.arange(len(rows)), chosen)))[::-1]
    best = min(1.0, float(ours[0] + left[:n].sum()))
    notes = {
        "prefilter": {"signed": len(rows), "of": len(pool)},
        "reference": {"split": split, "samples": len(reference)},
        "sites": len(reference.sites),
        "coverage": {name: beside_draws(ours[i], null[:, i]) for i, name in enumerate(("all", "cells", "outliers"))},
        "at_least_of_best": round(float(ours[0]) / best, 6) if best > 0 else 1.0,
        "tokens": beside_draws(float(lengths[chosen].sum()), np.array([float(lengths[d].sum()) for d in draws])),
    }
    return Selection(rows[chosen], reasons, notes=notes)


@dataclass(eq=False)
class ActivationCoverage:
    """The set function f over m candidates, and the set built so far (an `Objective` of greedy).

    Gains are rounded to 12 decimals (f is at most 1), so that the order of summation decides nothing.
    """

    amount: NDArray[np.float64]
    """Tokens of each candidate in each cell, (m, S K)."""
    demand: NDArray[np.float64]
    """tau, (S K,)."""
    share: NDArray[np.float64]
    """p_k / S, (S K,)."""
    level: NDArray[np.uint8]
    """Number of the channel's thresholds that each candidate reaches, (m, W)."""
    worth: NDArray[np.float64]
    """Value of reaching 0, 1, ... thresholds of a channel, (W, levels + 1), rising; the last column sums to 1, or to 0
    if no channel has any spread."""
    outliers: float
    """Weight of the outlier channels in f."""
    have: NDArray[np.float64] = field(init=False)
    """Tokens of the set per cell, (S K,)."""
    now: NDArray[np.uint8] = field(init=False)
    """Highest level of the set per channel, (W,)."""

    def __post_init__(self) -> None:
        self.have = np.zeros(len(self.demand))
        self.now = np.zeros(len(self.worth), dtype=np.uint8)

    @staticmethod
    def of(
        candidates: Signatures,
        reference: Signatures,
        n: int,
        outliers: float = 0.5,
        weighting: Literal["token", "sequence"] = "token",
    ) -> ActivationCoverage:
        """The coverage of the reference by sets of n of the candidates; for the options see `select`.

        Raises:
            ValueError: the two were measured at different sites.
        """
        require_same_sites(candidates, reference)
        mean = float(reference.tokens.mean())  # t
        amount, demand, share = _cells(candidates, reference, n * mean, mean, weighting)
        thresholds, worth = ladder(reference.absmax, reference.sites)
        return ActivationCoverage(amount, demand, share, _levels(candidates.absmax, thresholds), worth, outliers)

    def gains(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """f(A + row) - f(A) for each of `rows`, float64 (len(rows),)."""
        gains = np.empty(len(rows))
        size = max(1, CHUNK // max(self.amount.shape[1], self.level.shape[1], 1))
        for start in range(0, len(rows), size):
            here = rows[start : start + size]
            gains[start : start + size] = (1 - self.outliers) * self._gains_in_cells(here)
            gains[start : start + size] += self.outliers * self._gains_in_channels(here)
        return np.round(gains, 12)

    def add(self, row: int) -> None:
        """A becomes A + row."""
        self.have += self.amount[row]
        self.now = np.maximum(self.now, self.level[row])

    def reached(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """f, f_c and f_o of the set of candidates `rows`, each 0 to 1, (3,)."""
        have, now = self.amount[rows].sum(axis=0), self.level[rows].max(axis=0, initial=0)
        cells = float((self.share * np.minimum(1, have / self.demand)).sum())
        whole = self.worth[:, -1].sum()
        channels = float(np.take_along_axis(self.worth, now[:, None], axis=1).sum()) if whole > 0 else 1.0
        return np.array([(1 - self.outliers) * cells + self.outliers * channels, cells, channels])

    def history(self, rows: NDArray[np.int64]) -> list[dict[str, int]]:
        """The contribution of each of `rows`, added in that order to the empty set.

        Returns:
            Per row: `cells_filled`, the (site, cell) pairs that reach their target with it, and `channels_raised`, the
            (site, channel) pairs that reach a threshold for the first time.
        """
        have, now = np.zeros_like(self.have), np.zeros_like(self.now)
        steps = []
        for row in rows:
            full = have >= self.demand
            have = have + self.amount[row]
            filled = int(((have >= self.demand) & ~full & (self.share > 0)).sum())
            steps.append({"cells_filled": filled, "channels_raised": int((self.level[row] > now).sum())})
            now = np.maximum(now, self.level[row])
        return steps

    def _gains_in_cells(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        before = np.minimum(self.have, self.demand)
        after = np.minimum(self.have + self.amount[rows], self.demand)
        gains: NDArray[np.float64] = ((after - before) * (self.share / self.demand)).sum(axis=1)
        return gains

    def _gains_in_channels(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        first = np.arange(len(self.worth)) * self.worth.shape[1]  # of each channel's row in the flat table
        flat = self.worth.ravel()
        after = flat[first + np.maximum(self.level[rows], self.now)]
        gains: NDArray[np.float64] = (after - flat[first + self.now]).sum(axis=1)
        return gains


def _cells(
    candidates: Signatures,
    reference: Signatures,
    tokens: float,
    mean: float,
    weighting: Literal["token", "sequence"],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The amount, demand and share of `ActivationCoverage`.

    Args:
        tokens: of a set whose samples are as long as production's.
        mean: tokens of production's mean sample.
    """
    amount, of_reference = (signatures.cells.astype(np.float64) for signatures in (candidates, reference))
    if weighting == "sequence":
        amount *= (mean / candidates.tokens)[:, None, None]
        of_reference *= (mean / reference.tokens)[:, None, None]
    counts = of_reference.sum(axis=0)  # (S, K); every site sees every token
    p = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return (
        amount.reshape(len(amount), -1),
        np.maximum(1, tokens * p).ravel(),
        (p / len(p)).ravel(),
    )


def ladder(
    absmax: NDArray[np.float32], sites: Sequence[SignatureSite]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Thresholds of each channel, and the value of reaching each.

    A channel that is calibrated up to m loses, on average over the reference's samples s, the range max(a_s - m, 0)
    of their maxima a_s. That is the integral above m of the share of samples that reach t. The thresholds t_0 .. t_L
    are the quantiles `LEVELS` of a_s. The value of the step from t_(l-1) to t_l is the decrease of the loss:
    the mean of clip(a_s, t_(l-1), t_l) - t_(l-1). Steps are in the channel's own units, so the wide channels of a site
    count most, as clipping them costs most; the steps of every site sum to the same value.

    Args:
        absmax: of the reference, float32 (r, W).

    Returns:
        Thresholds t_1 .. t_L, float32 (L, W), rising (equal ones are reached together and worth nothing twice); worth,
        float64 (W, L + 1), see `ActivationCoverage`.
    """
    thresholds = np.empty((len(LEVELS), absmax.shape[1]), dtype=np.float32)
    worth = np.zeros((absmax.shape[1], len(LEVELS)))
    for site in sites:
        columns = slice(site.start, site.start + site.width)
        a = absmax[:, columns]
        thresholds[:, columns] = np.quantile(
            a, LEVELS, axis=0, method="inverted_cdf"
        )  # values that occur, so nothing is rounded
        low = thresholds[0, columns]
        for level, high in enumerate(thresholds[1:, columns], start=1):
            reached = np.clip(a, low, high).astype(np.float64) - low
            worth[columns, level] = worth[columns, level - 1] + reached.mean(axis=0)
            low = high
        total = worth[columns, -1].sum()
        if total > 0:
            worth[columns] /= total
    with_spread = sum(1 for site in sites if worth[site.start : site.start + site.width, -1].sum() > 0)
    return thresholds[1:], worth / max(with_spread, 1)


def _levels(absmax: NDArray[np.float32], thresholds: NDArray[np.float32]) -> NDArray[np.uint8]:
    """How many thresholds of its channel each |x| maximum reaches, (m, W)."""
    level = np.zeros(absmax.shape, dtype=np.uint8)
    for threshold in thresholds:
        level += absmax >= threshold
    return level
