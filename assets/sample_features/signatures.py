"""Activation signatures: what the base model computes for a sample, small enough to keep for many samples.

A signature depends on the sample, the base model and the settings alone, so it is computed once per sample id. What
it is measured against (centres, scales, cells, directions) is a `Probe`, made from the base model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """How large the activations of a split are, channel by channel: exact counts in buckets of |x|."""

    edges: NDArray[np.float64]
    """(B + 1,), ascending from 0 to inf."""
    counts: NDArray[np.int64]
    """(W, B): tokens with edges[b] <= |x| < edges[b + 1]."""

    def share_above(self, limit: NDArray[np.float32]) -> NDArray[np.float64]:
        """Share of tokens with |x| above `limit` (W,), per channel, (W,); within a bucket linear in |x|."""
        raise NotImplementedError

    def quantile(self, q: float) -> NDArray[np.float64]:
        """The q-quantile of |x| per channel, (W,)."""
        raise NotImplementedError
