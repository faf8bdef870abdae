"""Activation signatures: what the base model computes for a sample, small enough to keep for many samples.

A signature depends on the sample, the base model and the settings alone, so it is computed once per sample id. What
it is measured against (centres, scales, cells, directions) is a `Probe`, made from the base model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 4
"""Buckets of `Magnitudes` are 2^-4 of an octave wide, between 2^-20 and 2^20."""


@dataclass(frozen=True)
class Site:
    """An activation that quantizable layers read: the input of `name` and of the layers that share it."""

    name: str
    width: int
    start: int
    """Its channels are columns `start` to `start + width` of `absmax`."""


@dataclass(frozen=True, eq=False)
class Signatures:
    """N samples at S sites with W channels in total. Everything adds up over samples except `absmax` (maximum)."""

    sample_ids: tuple[str, ...]
    sites: tuple[Site, ...]
    tokens: NDArray[np.int64]
    """Tokens per sample, (N,)."""
    pooled: NDArray[np.float32]
    """(N, P): mean over the tokens per site, of length 1 per site, joined, randomly projected (COLA, 2510.10618)."""
    cells: NDArray[np.int32]
    """(N, S, K): tokens per cell of activation space; a site's cells partition it, so they sum to `tokens`."""
    absmax: NDArray[np.float32]
    """(N, W): largest |x| per channel."""
    sketch: NDArray[np.float32]
    """(N, S, r, r): sum over tokens of y y^T with y = R^T D^-1 x: D the probe's scale per channel, R (width, r) with
    independent normal entries of variance 1 / r."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Signatures:
        """The signatures at `rows`, in that order."""
        at = np.asarray(rows, dtype=np.int64)
        return Signatures(
            tuple(self.sample_ids[row] for row in at),
            self.sites,
            self.tokens[at],
            self.pooled[at],
            self.cells[at],
            self.absmax[at],
            self.sketch[at],
        )

    def by_id(self, sample_ids: Sequence[str]) -> Signatures:
        """The signatures of the named samples, in that order."""
        row = {name: place for place, name in enumerate(self.sample_ids)}
        return self.take([row[name] for name in sample_ids])


def joined(parts: Sequence[Signatures]) -> Signatures:
    """Signatures of several groups of samples, measured against one probe, as one."""
    return Signatures(
        tuple(name for part in parts for name in part.sample_ids),
        parts[0].sites,
        *(np.concatenate([getattr(part, name) for part in parts]) for name in PER_SAMPLE),
    )


PER_SAMPLE = ("tokens", "pooled", "cells", "absmax", "sketch")


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """How large the activations of a split are, channel by channel: exact counts in buckets of |x|."""

    edges: NDArray[np.float64]
    """(B + 1,), ascending from 0 to inf."""
    counts: NDArray[np.int64]
    """(W, B): tokens with edges[b] <= |x| < edges[b + 1]."""

    def share_above(self, limit: NDArray[np.float32]) -> NDArray[np.float64]:
        """Share of tokens with |x| above `limit` (W,), per channel, (W,); within a bucket linear in |x|.

        It is exact at an edge, and off by less than one bucket's tokens elsewhere. The last bucket has no end: what is
        in it counts as above any limit.
        """
        at = np.asarray(limit, dtype=np.float64)
        if at.shape != self.counts.shape[:1] or not (at >= 0).all():
            raise ValueError(
                f"expected {len(self.counts)} limits of at least 0, found {at.shape}; give one per channel"
            )
        bucket = np.clip(np.searchsorted(self.edges, at, side="right") - 1, 0, self.counts.shape[1] - 1)
        low, high = self.edges[bucket], self.edges[bucket + 1]
        part = np.where(np.isinf(high), 1.0, (high - at) / (high - low))
        channel = np.arange(len(at))
        upto = np.cumsum(self.counts, axis=1)
        above = upto[:, -1] - upto[channel, bucket] + part * self.counts[channel, bucket]
        shares: NDArray[np.float64] = above / upto[:, -1]
        return shares

    def quantile(self, q: float) -> NDArray[np.float64]:
        """The q-quantile of |x| per channel, (W,): the smallest value that a share q of the tokens does not exceed.

        Within the bucket of the exact one, in which it is placed linearly; the start of the last, which has no end.

        Raises:
            ValueError: q outside [0, 1].
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, found {q}")
        upto = np.cumsum(self.counts, axis=1)
        # At least half a token: the smallest value sits in the first bucket that holds one. The allowance is for
        # 0.07 * 100 being above 7.
        rank = np.maximum(q * upto[:, -1] * (1 - 1e-12), 0.5)
        bucket = (upto < rank[:, None]).sum(axis=1)
        channel = np.arange(len(bucket))
        low, high, count = self.edges[bucket], self.edges[bucket + 1], self.counts[channel, bucket]
        part = (rank - (upto[channel, bucket] - count)) / count
        with np.errstate(invalid="ignore"):
            values: NDArray[np.float64] = np.where(np.isinf(high), low, low + part * (high - low))
        return values
