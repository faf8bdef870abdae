"""The trigram rival is a probability model, and the one that Kneser-Ney's formula gives."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.bundled_model.score import Trigram

VOCABULARY = 7
STREAMS = [np.array(s) for s in ([1, 2, 3, 1, 2, 4, 1, 2, 3], [5, 1, 2, 3, 3, 3], [2, 4, 2, 4, 1], [6, 1, 1, 2, 3])]


def reference(a: int, b: int, c: int) -> float:
    """P(c | a, b) by the textbook formula, with counters."""
    trigrams: Counter[tuple[int, int, int]] = Counter()
    for stream in STREAMS:
        padded = [0, 0, *stream.tolist()]
        trigrams.update(zip(padded, padded[1:], padded[2:], strict=False))
    bigrams = Counter((b, c) for _, b, c in trigrams)
    unigrams = Counter(c for _, c in bigrams)

    def discounted(counts: Counter, context: tuple, token: int, lower: float) -> float:
        n1, n2 = (sum(v == n for v in counts.values()) for n in (1, 2))
        d = n1 / (n1 + 2 * n2)
        total = sum(v for k, v in counts.items() if k[:-1] == context)
        if not total:
            return lower
        kinds = sum(k[:-1] == context for k in counts)
        return max(counts[*context, token] - d, 0) / total + d * kinds / total * lower

    one = (unigrams[c] + 1) / (sum(unigrams.values()) + VOCABULARY)
    return discounted(trigrams, (a, b), c, discounted(bigrams, (b,), c, one))


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [1, 2, 4, 1], [6, 6, 6], [5, 1, 2]])
def test_bits_are_those_of_the_formula(ids: list[int]) -> None:
    padded = [0, *ids]
    expected = sum(-np.log2(reference(*padded[i : i + 3])) for i in range(len(ids) - 1))
    assert Trigram(STREAMS, VOCABULARY).bits(np.array(ids)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("context", [(1, 2), (0, 0), (3, 6), (2, 4)])
def test_probabilities_of_every_next_token_sum_to_one(context: tuple[int, int]) -> None:
    assert sum(reference(*context, c) for c in range(VOCABULARY)) == pytest.approx(1)
