"""Near-duplicates against sets of tuples, text by text."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.deployed_model.overlap import N, NgramIndex, Overlap, near_duplicates, ngrams

LONG = np.arange(200, dtype=np.int32)


def brute(one: np.ndarray, other: np.ndarray) -> float:
    a, b = ({tuple(ids[i : i + N].tolist()) for i in range(len(ids) - N + 1)} for ids in (one, other))
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0


tokens = st.lists(st.integers(0, 2), max_size=40).map(lambda ids: np.array(ids, np.int32))


@settings(max_examples=60, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, max_size=4), st.integers(0, 30))
def test_the_share_is_that_of_the_sets_of_runs(samples: list, texts: list, piece: int) -> None:
    texts = [*texts, samples[0][piece:], np.concatenate([samples[-1], samples[0]])]
    index = NgramIndex(samples)
    for text in texts:
        expected = [brute(sample, text) for sample in samples]
        assert index.shared(text).tolist() == expected
    found = near_duplicates(samples, ((str(i), text) for i, text in enumerate(texts)), 0.5)
    expected = [(str(i), max(brute(s, text) for s in samples)) for i, text in enumerate(texts)]
    assert [(each.document, each.share) for each in found] == [(d, share) for d, share in expected if share >= 0.5]


def test_one_changed_token_in_two_hundred_is_near_and_a_rotation_by_halves_is_too() -> None:
    changed = LONG.copy()
    changed[100] = 7777
    [found] = near_duplicates([LONG[::-1].copy(), LONG], [("near", changed), ("far", LONG + 1000)], 0.8)
    assert found == Overlap("near", 1, (len(LONG) - N + 1 - N) / (len(LONG) - N + 1))
    assert near_duplicates([LONG], [("halves", np.roll(LONG, 100))], 0.8)
    assert near_duplicates([LONG], [("part", LONG[50:90])], 1.0) == [Overlap("part", 0, 1.0)]


def test_token_ids_at_the_ends_of_their_range_do_not_collide() -> None:
    ids = np.array([0, 1, 2**31 - 1] * 9, np.int32)
    assert len(ngrams(ids)) == 3
    assert len(ngrams(np.zeros(100, np.int32))) == 1
    assert not len(ngrams(ids[: N - 1])) and near_duplicates([ids[:5]], [("short", ids[:5])], 0.1) == []
