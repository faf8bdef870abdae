"""What a chat's assistant wrote goes along into the calibration set: whole samples, joined and cut ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.activation_stats.masks import mask_of
from plumbline.tokenized_samples.assistant import cut, joined_spans
from tests.helpers.calibration_pool import rows_of
from tests.helpers.tokenized_samples import sample, write_samples

Masks = list[bool] | None


def spans_of(mask: list[bool]) -> list[int]:
    return np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int))).tolist()


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, dict[int, bool]]:
    """Samples, every third without spans; and for each token whether it counts."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    counts: dict[int, bool] = {}
    for number in range(24):
        row = sample(number, int(rng.integers(20, 60)))
        mask = [True] * row["n_tokens"] if number % 3 == 0 else (rng.random(row["n_tokens"]) < 0.4).tolist()
        row["assistant_spans"] = None if number % 3 == 0 else spans_of(mask)
        counts |= dict(zip(row["input_ids"][1:], mask[1:], strict=True))  # all but the shared BOS
        rows.append(row)
    rows += [sample(100 + number, 30, split="tuning") for number in range(4)]
    return write_samples(tmp_path / "samples", rows, shards=2), counts


@pytest.mark.parametrize(
    "options", [{"strategy": "random", "n": 12}, {"strategy": "packed_windows", "n": 8, "length": 50}]
)
def test_every_token_of_the_set_counts_as_it_did_in_its_document(
    corpus: tuple[Path, dict[int, bool]], choose: Callable[..., Path], options: dict[str, Any]
) -> None:
    samples, counts = corpus
    seen = 0
    for row in rows_of(choose(samples, **options)):
        spans = row["assistant_spans"]
        mask = [True] * row["n_tokens"] if spans is None else mask_of(spans, row["n_tokens"]).tolist()
        for token, counted in zip(row["input_ids"], mask, strict=True):
            if token != 1:
                assert counts[token] == counted
                seen += not counted
    assert seen > 50


def test_a_set_without_chats_has_no_spans(choose: Callable[..., Path], tmp_path: Path) -> None:
    rows = [sample(number, 30) for number in range(9)] + [sample(50, 30, split="tuning")]
    samples = write_samples(tmp_path / "plain", rows)
    for options in ({"strategy": "random", "n": 5}, {"strategy": "packed_windows", "n": 3, "length": 64}):
        assert {row["assistant_spans"] for row in rows_of(choose(samples, **options))} == {None}


masks = st.one_of(st.none(), st.lists(st.booleans(), min_size=1, max_size=12))


@given(st.lists(st.tuples(masks, st.integers(0, 11), st.integers(1, 12)), min_size=1, max_size=5))
def test_joining_pieces_is_joining_masks(pieces: list[tuple[Masks, int, int]]) -> None:
    parts, expected = [], []
    for mask, start, length in pieces:
        size = 12 if mask is None else len(mask)
        start = min(start, size - 1)
        stop = min(start + length, size)
        parts.append((None if mask is None else np.array(spans_of(mask), np.int32), start, stop))
        expected += [True] * (stop - start) if mask is None else mask[start:stop]
    found = joined_spans(parts)
    if all(mask is None for mask, _, _ in pieces):
        assert found is None
    else:
        assert found is not None and found.dtype == np.int32
        assert found.tolist() == spans_of(expected)
        assert mask_of(found.tolist(), len(expected)).tolist() == expected


def test_spans_that_do_not_fit_are_refused() -> None:
    for spans in ([0], [3, 2], [0, 9], [-1, 2], [0, 2, 2, 3]):
        with pytest.raises(ValueError, match="do not fit 5 tokens"):
            mask_of(spans, 5)
    assert mask_of([], 2).tolist() == [False, False] and cut(np.array([1, 4], np.int32), 4, 9).tolist() == []
