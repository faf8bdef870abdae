"""The real model's samples: articles are documents, and no document is on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.articles import Articles, articles, split

SETTINGS = Articles(Path("model"), Path("texts"), samples=4, length=8, documents=3, document_tokens=5)


def test_articles_begin_at_headings_of_the_first_level_and_short_ones_are_left_out() -> None:
    long = "word " * 500
    text = f" = One = \n\n{long}\n = = Section = = \n{long}\n = Two = \nshort\n = Three = \n{long}"
    first, third = articles(text)
    assert first.startswith("One = ") and "Section" in first and third.startswith("Three = ")


def test_windows_and_held_out_documents_come_from_different_articles() -> None:
    documents = [list(range(100 * row, 100 * row + 20)) for row in range(6)]
    windows, held_out, rows = split(documents, SETTINGS)
    assert len(windows) == 4 and len(held_out) == 3
    assert all(len(ids) == 8 and ids.dtype == np.int32 for ids in windows)
    assert [ids.tolist() for ids in held_out] == [documents[row][:5] for row in rows]
    assert not {int(ids[0]) // 100 for ids in windows} & set(rows)
    assert len({tuple(ids) for ids in windows}) == 4
    again = split(documents, SETTINGS)
    assert [ids.tolist() for ids in again[0]] == [ids.tolist() for ids in windows]


def test_too_few_articles_are_refused() -> None:
    with pytest.raises(ValueError, match="need 4"):
        split([list(range(20))] * 4, SETTINGS)
