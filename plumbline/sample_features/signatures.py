"""Activation signatures: compact summaries of the base model's activations on a sample.

A signature depends on the sample, the base model and the settings alone, so it is computed once per sample id. Its
reference values (centres, scales, cells, directions) are a `Probe`, made from the base model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 4
"""Buckets of `Magnitudes` are 2^-4 of an octave wide, between 2^-20 and 2^20."""


@dataclass(frozen=True)
class SignatureSite:
    """An input of quantizable layers: that of `name` and of the layers that share it."""

    name: str
    width: int
    start: int
    """Its channels are columns `start` to `start + width` of `absmax`."""


@dataclass(frozen=True, eq=False)
class Signatures:
    """N samples at S sites with W channels in total. Of a set, `absmax` is the maximum and the rest are sums."""

    sample_ids: tuple[str, ...]
    sites: tuple[SignatureSite, ...]
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
    """Concatenate signatures of several groups of samples that were measured with the same probe."""
    return Signatures(
        tuple(name for part in parts for name in part.sample_ids),
        parts[0].sites,
        *(np.concatenate([getattr(part, name) for part in parts]) for name in PER_SAMPLE),
    )


PER_SAMPLE = ("tokens", "pooled", "cells", "absmax", "sketch")


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """Magnitudes of the activations of a split per channel: exact counts in buckets of |x|."""

    edges: NDArray[np.float64]
    """(B + 1,), ascending from 0 to inf."""
    counts: NDArray[np.int64]
    """(W, B): tokens with edges[b] <= |x| < edges[b + 1]."""
    largest: NDArray[np.float32] | None = None
    """(W,): the largest |x| per channel, or None. The last bucket with a token ends there; otherwise, in a channel that
    is often near its upper bound, tokens would be counted above it."""

    def share_above(self, limit: NDArray[np.float32]) -> NDArray[np.float64]:
        """Share of tokens with |x| above `limit` (W,), per channel, (W,); within a bucket linear in |x|.

        The error is less than the tokens of one bucket. Tokens in an unbounded bucket count as above any limit in it.

        Raises:
            ValueError: not one limit of at least 0 per channel.
        """
        at = np.asarray(limit, dtype=np.float64)
        if at.shape != self.counts.shape[:1] or not (at >= 0).all():
            raise ValueError(f"found limits {at.shape}, expected {len(self.counts)} of at least 0, one per channel")
        bucket = np.clip(np.searchsorted(self.edges, at, side="right") - 1, 0, self.counts.shape[1] - 1)
        low, high = self._ends(bucket)
        upto = np.cumsum(self.counts, axis=1)
        channel = np.arange(len(at))
        beyond = np.maximum(high - at, 0.0)
        # an infinite end gives inf / inf, a bucket whose largest value is its start 0 / 0
        part = np.divide(beyond, high - low, out=np.where(np.isinf(high), 1.0, 0.0), where=_widths(low, high))
        shares: NDArray[np.float64] = (
            upto[:, -1] - upto[channel, bucket] + part * self.counts[channel, bucket]
        ) / upto[:, -1]
        return shares

    def quantile(self, q: float) -> NDArray[np.float64]:
        """The q-quantile of |x| per channel, (W,): a share q of the tokens is at most that large.

        Interpolated linearly in the bucket of the ceil(q N)-th smallest; the start of an unbounded bucket.

        Raises:
            ValueError: q outside [0, 1].
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, found {q}")
        upto = np.cumsum(self.counts, axis=1)
        rank = q * upto[:, -1]
        least = np.maximum(rank * (1 - 1e-12), 1e-9)  # 0.07 * 100 is above 7, and rank 0 is the first token's bucket
        bucket = (upto < least[:, None]).sum(axis=1)
        low, high = self._ends(bucket)
        channel = np.arange(len(bucket))
        count = self.counts[channel, bucket]
        part = np.minimum((rank - (upto[channel, bucket] - count)) / count, 1.0)
        values: NDArray[np.float64] = low + part * np.where(np.isinf(high), 0.0, high - low)
        return values

    def _ends(self, bucket: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper end of each channel's bucket."""
        low, high = self.edges[bucket], self.edges[bucket + 1]
        if self.largest is not None:
            high = np.maximum(low, np.minimum(high, self.largest))
        return low, high


def _widths(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (high > low) & ~np.isinf(high)
