"""Counts of tokens, or of pairs of neighbouring tokens, in samples, and their frequencies in a reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plumbline.calibration_set.strategies.base import Pool, Samples
from plumbline.progress import Bar

BLOCK = 32_768
"""Samples whose token ids are in memory at once; each block is a pass over the shards."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The kinds that occur in a reference: tokens, or pairs of neighbouring tokens."""

    codes: NDArray[np.int64]
    """Ascending, int64 (V,): the token id, or first id * 2^32 + second id of a pair."""
    occurrences: NDArray[np.int64]
    """Occurrences of each in the reference, int64 (V,)."""
    ngram: int

    def show(self, kind: int) -> int | list[int]:
        """The token id, or the pair of ids, at place `kind`."""
        code = int(self.codes[kind])
        return code if self.ngram == 1 else [code >> 32, code & 0xFFFFFFFF]


@dataclass(frozen=True, eq=False)
class Counts:
    """Sparse counts of m samples: sample i has `times[j]` of `kinds[j]` for j from `starts[i]` to `starts[i + 1]`."""

    starts: NDArray[np.int64]
    """int64 (m + 1,)."""
    kinds: NDArray[np.int32]
    """Place in the vocabulary, int32."""
    times: NDArray[np.int32]

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Kinds and times of the samples `rows`, concatenated, and the entries per sample, int64 (len(rows),)."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(sizes)
        at = np.arange(int(sizes.sum())) + np.repeat(self.starts[rows] - (ends - sizes), sizes)
        return self.kinds[at], self.times[at], sizes

    def total(self, rows: NDArray[np.int64], kinds: int) -> NDArray[np.int64]:
        """How often each kind occurs in the samples `rows` together, int64 (kinds,)."""
        kinds_of_entries, times, _ = self.of(rows)
        return np.bincount(kinds_of_entries, times, kinds).astype(np.int64)  # whole numbers below 2^53: exact


def reference_of(pool: Pool, strategy: str) -> tuple[Samples, str]:
    """The samples a set should represent, and their name in notes: `production` or `tuning`.

    Raises:
        ValueError: there are none.
    """
    if not len(pool.reference):
        raise ValueError(
            f"strategy {strategy} needs texts to represent, but the tuning split is empty and there is no production "
            f"sample; set corpus.production or raise tokenize.splits.tuning in params.yaml"
        )
    return pool.reference, pool.reference_name


def vocabulary(samples: Samples, ngram: int) -> Vocabulary:
    """The kinds in `samples`, and how often each occurs."""
    codes, occurrences = np.empty(0, np.int64), np.empty(0, np.int64)
    for ids in _token_ids(samples, np.arange(len(samples)), "reference tokens"):
        block_codes, times = np.unique(np.concatenate([_codes(one, ngram) for one in ids]), return_counts=True)
        merged, place = np.unique(np.concatenate([codes, block_codes]), return_inverse=True)
        summed = np.zeros(len(merged), np.int64)
        np.add.at(summed, place, np.concatenate([occurrences, times]))
        codes, occurrences = merged, summed
    return Vocabulary(codes, occurrences, ngram)


def token_counts(samples: Samples, rows: NDArray[np.int64], words: Vocabulary, cap: int) -> Counts:
    """How often each kind of the vocabulary occurs in the samples `rows`; more than `cap` counts as `cap`.

    Kinds outside the vocabulary are left out. Memory: 8 bytes per kind and sample, and the token ids of BLOCK samples.
    """
    sizes: list[int] = []
    kinds: list[NDArray[np.int32]] = []
    times: list[NDArray[np.int32]] = []
    for ids in _token_ids(samples, rows, "candidates' tokens"):
        for one in ids:
            codes, often = np.unique(_codes(one, words.ngram), return_counts=True)
            place = np.searchsorted(words.codes, codes)
            in_vocabulary = place < len(words.codes)
            in_vocabulary[in_vocabulary] = words.codes[place[in_vocabulary]] == codes[in_vocabulary]
            kinds.append(place[in_vocabulary].astype(np.int32))
            times.append(np.minimum(often[in_vocabulary], cap).astype(np.int32))
            sizes.append(int(in_vocabulary.sum()))
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    none = [np.empty(0, np.int32)]
    return Counts(starts, np.concatenate(none + kinds), np.concatenate(none + times))


def _codes(ids: NDArray[np.int32], ngram: int) -> NDArray[np.int64]:
    wide = ids.astype(np.int64)
    return wide if ngram == 1 else (wide[:-1] << 32) + wide[1:]


def _token_ids(samples: Samples, rows: NDArray[np.int64], what: str) -> Iterator[list[NDArray[np.int32]]]:
    with Bar(total=len(rows), desc=what, unit=" samples") as progress:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            yield samples.input_ids(block)
            progress.update(len(block))
