"""Near-duplicates of calibration samples among the texts of the report split.

Texts are compared by their 13-grams of tokens, as Brown et al. (2020, appendix C) search for training data in
benchmarks. An index holds all 13-grams of a calibration set, so overlaps are counted exactly, not estimated as with
MinHash. The texts are streamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plumbline.splitmix import splitmix64

N = 13
"""Tokens of an n-gram; a shorter text has none, so only an exact copy of it counts."""


class Overlap(NamedTuple):
    """A text that is a near-duplicate of a calibration sample."""

    document: str
    sample: int
    """Position in the calibration set."""
    share: float
    """Shared 13-grams over the distinct 13-grams of the one that has fewer."""


def ngrams(ids: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Hashes of the distinct 13-grams, sorted, uint64 (k,).

    Each token becomes 64 random bits (splitmix64), and an n-gram a polynomial in them modulo 2^64. The probability that
    any two 13-grams of a corpus of 10^9 tokens share a hash by chance is below 0.03.
    """
    if len(ids) < N:
        return np.empty(0, np.uint64)
    z = splitmix64(ids.astype(np.uint64) + np.uint64(1))
    hashes = np.zeros(len(ids) - N + 1, np.uint64)
    for offset in range(N):
        hashes = hashes * np.uint64(0x5851F42D4C957F2D) + z[offset : offset + len(hashes)]
    return np.unique(hashes)


class NgramIndex:
    """An index of the 13-grams of a calibration set, for comparison with single texts.

    Args:
        samples: token ids, int32 (n_i,).
    """

    def __init__(self, samples: Sequence[NDArray[np.int32]]) -> None:
        of_samples = [ngrams(ids) for ids in samples]
        self.sizes = np.array([len(hashes) for hashes in of_samples], np.int64)
        hashes = np.concatenate([np.empty(0, np.uint64), *of_samples])
        order = np.argsort(hashes, kind="stable")
        self.owners = np.repeat(np.arange(len(samples)), self.sizes)[order]
        self.hashes, self.starts = np.unique(hashes[order], return_index=True)
        self.ends = np.append(self.starts[1:], len(hashes))

    def shared(self, ids: NDArray[np.int32]) -> NDArray[np.float64]:
        """The overlap of each calibration sample with a text, float64 (n,).

        Shared 13-grams over the distinct 13-grams of the one that has fewer; 0 if one of the two has none.
        """
        hashes = ngrams(ids)
        at = np.searchsorted(self.hashes, hashes)
        inside = at < len(self.hashes)
        at = at[inside][self.hashes[at[inside]] == hashes[inside]]
        counts = np.zeros(len(self.sizes), np.int64)
        for first, last in zip(self.starts[at], self.ends[at], strict=True):
            counts[self.owners[first:last]] += 1  # the hashes of a sample are distinct
        fewer = np.minimum(self.sizes, len(hashes))
        return np.where(fewer > 0, counts / np.maximum(fewer, 1), 0.0)


def near_duplicates(
    samples: Sequence[NDArray[np.int32]], texts: Iterable[tuple[str, NDArray[np.int32]]], threshold: float
) -> list[Overlap]:
    """Texts whose overlap with a calibration sample is at least `threshold`, in order, each with the nearest sample.

    Args:
        samples: the calibration set's token ids.
        texts: (document, token ids); several texts of a document (windows) are compared separately.
    """
    index = NgramIndex(samples)
    if not len(index.hashes):
        return []
    overlaps = []
    for document, ids in texts:
        shared = index.shared(ids)
        nearest = int(shared.argmax())
        if shared[nearest] >= threshold:
            overlaps.append(Overlap(document, nearest, float(shared[nearest])))
    return overlaps
