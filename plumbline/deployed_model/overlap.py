"""Texts of the report split that a calibration set holds, too: whole, or nearly.

Near-duplicates are counted by runs of 13 tokens, as Brown et al. (2020, appendix C) look for training data in
benchmarks. A calibration set is small enough to index all its runs, so what MinHash would estimate is counted here, and
the other side is streamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plumbline.splitmix import splitmix64

RUN = 13
"""Tokens; a text shorter than this has no runs, and only an exact copy of it counts."""


class Overlap(NamedTuple):
    """A text that is nearly a calibration sample."""

    document: str
    sample: int
    """Position in the calibration set."""
    share: float
    """Of the distinct runs of the one that has fewer."""


def runs(ids: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Hashes of the distinct runs of RUN tokens, sorted, uint64 (k,).

    Each token becomes 64 random bits (splitmix64), a run a polynomial in them modulo 2^64: two
    runs of a corpus of 10^9 tokens share a hash by chance with probability below 0.03.
    """
    if len(ids) < RUN:
        return np.empty(0, np.uint64)
    z = splitmix64(ids.astype(np.uint64) + np.uint64(1))
    found = np.zeros(len(ids) - RUN + 1, np.uint64)
    for offset in range(RUN):
        found = found * np.uint64(0x5851F42D4C957F2D) + z[offset : offset + len(found)]
    return np.unique(found)


class Runs:
    """The runs of a calibration set, to be compared with one text after the other.

    Args:
        samples: token ids, int32 (n_i,).
    """

    def __init__(self, samples: Sequence[NDArray[np.int32]]) -> None:
        of_samples = [runs(ids) for ids in samples]
        self.sizes = np.array([len(found) for found in of_samples], np.int64)
        hashes = np.concatenate([np.empty(0, np.uint64), *of_samples])
        order = np.argsort(hashes, kind="stable")
        self.owners = np.repeat(np.arange(len(samples)), self.sizes)[order]
        self.hashes, self.starts = np.unique(hashes[order], return_index=True)
        self.ends = np.append(self.starts[1:], len(hashes))

    def shared(self, ids: NDArray[np.int32]) -> NDArray[np.float64]:
        """Of each calibration sample, how much it shares with a text, float64 (n,): runs in both / the fewer of the
        two's distinct runs; 0 where one of the two is too short to have any.
        """
        found = runs(ids)
        at = np.searchsorted(self.hashes, found)
        inside = at < len(self.hashes)
        at = at[inside][self.hashes[at[inside]] == found[inside]]
        counts = np.zeros(len(self.sizes), np.int64)
        for first, last in zip(self.starts[at], self.ends[at], strict=True):
            counts[self.owners[first:last]] += 1  # a sample owns a hash once
        fewer = np.minimum(self.sizes, len(found))
        return np.where(fewer > 0, counts / np.maximum(fewer, 1), 0.0)


def near_duplicates(
    samples: Sequence[NDArray[np.int32]], texts: Iterable[tuple[str, NDArray[np.int32]]], threshold: float
) -> list[Overlap]:
    """Texts that share at least `threshold` with a calibration sample, in their order, each with the nearest sample.

    Args:
        samples: the calibration set's token ids.
        texts: (document, token ids); several texts of a document (windows) are each compared.
    """
    index = Runs(samples)
    if not len(index.hashes):
        return []
    found = []
    for document, ids in texts:
        shared = index.shared(ids)
        nearest = int(shared.argmax())
        if shared[nearest] >= threshold:
            found.append(Overlap(document, nearest, float(shared[nearest])))
    return found
