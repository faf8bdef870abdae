"""Cutting documents: nothing is lost that is not counted, nothing appears that was not there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbline.tokenized_samples.params import TokenizeParams
from plumbline.tokenized_samples.windows import windows


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


POLICIES = st.builds(
    TokenizeParams,
    max_length=st.integers(6, 20),
    long_documents=st.sampled_from(["window", "truncate", "drop"]),
    min_tokens=st.integers(1, 6),
)


@given(st.integers(0, 70), st.integers(0, 3), st.integers(0, 2), POLICIES)
def test_every_token_is_in_a_sample_or_counted(n: int, n_prefix: int, n_suffix: int, params: TokenizeParams) -> None:
    content = np.arange(100, 100 + n, dtype=np.int32)
    prefix, suffix = np.arange(n_prefix, dtype=np.int32), np.arange(50, 50 + n_suffix, dtype=np.int32)
    found, lost = windows(content, prefix, suffix, params)
    pieces = []
    for i, window in enumerate(found):
        assert window.input_ids.dtype == np.int32 and window.index == i
        full = len(window.input_ids) - window.special == params.max_length - n_prefix - n_suffix
        assert (full or params.min_tokens <= len(window.input_ids)) and len(window.input_ids) <= params.max_length
        assert window.input_ids[:n_prefix].tolist() == prefix.tolist()
        piece = [t for t in window.input_ids.tolist() if t >= 100]
        assert window.special == len(window.input_ids) - len(piece) and piece
        assert piece == content[window.start : window.start + len(piece)].tolist()
        pieces += piece
    assert pieces == content[: len(pieces)].tolist(), "the samples, joined, are the document's beginning"
    assert n == len(pieces) + sum(tokens for _, tokens in lost.values())
    if params.long_documents == "window":
        assert set(lost) <= {"too_short"}
        room = params.max_length - n_prefix - n_suffix
        assert len(found) + lost.get("too_short", (0, 0))[0] == max(1, -(-n // room))
    if n_prefix + n + n_suffix <= params.max_length and found:
        assert found[0].input_ids.tolist() == [*prefix, *content, *suffix] and len(found) == 1


def test_windows_by_hand() -> None:
    params = TokenizeParams(max_length=5, min_tokens=3)
    found, lost = windows(np.arange(10, 18, dtype=np.int32), ids(1), ids(2), params)
    assert [w.input_ids.tolist() for w in found] == [[1, 10, 11, 12], [1, 13, 14, 15], [1, 16, 17, 2]]
    assert [(w.index, w.start, w.special) for w in found] == [(0, 0, 1), (1, 3, 1), (2, 6, 2)] and lost == {}
    found, lost = windows(np.arange(10, 17, dtype=np.int32), ids(1), ids(), TokenizeParams(max_length=4, min_tokens=3))
    assert [w.input_ids.tolist() for w in found] == [[1, 10, 11, 12], [1, 13, 14, 15]]
    assert lost == {"too_short": (1, 1)}


def test_truncate_and_drop_by_hand() -> None:
    content = np.arange(10, 18, dtype=np.int32)
    found, lost = windows(
        content, ids(1), ids(2), TokenizeParams(max_length=5, min_tokens=1, long_documents="truncate")
    )
    assert [w.input_ids.tolist() for w in found] == [[1, 10, 11, 12, 2]] and lost == {"truncated": (0, 5)}
    found, lost = windows(content, ids(1), ids(2), TokenizeParams(max_length=5, min_tokens=1, long_documents="drop"))
    assert found == [] and lost == {"too_long": (1, 8)}
    found, lost = windows(content, ids(1), ids(2), TokenizeParams(max_length=10, min_tokens=1, long_documents="drop"))
    assert len(found) == 1 and lost == {}


def test_a_document_without_content_is_no_sample() -> None:
    assert windows(ids(), ids(1), ids(), TokenizeParams(min_tokens=1)) == ([], {"too_short": (1, 0)})


def test_no_sample_could_be_long_enough() -> None:
    with pytest.raises(ValueError, match=r"min_tokens is 16 and max_length 8"):
        TokenizeParams(max_length=8)


def test_no_room_beside_the_special_tokens() -> None:
    with pytest.raises(ValueError, match=r"max_length is 2, but the tokenizer adds 2 special"):
        windows(ids(10), ids(1), ids(2), TokenizeParams(max_length=2, min_tokens=1))
