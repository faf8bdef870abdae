from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.calibration_set.strategies.base import Pool, Selection, generator
from plumbline.calibration_set.strategies.packed_windows import select
from tests.helpers.calibration_pool import make_pool, rows_of
from tests.helpers.tokenized_samples import BOS, sample, write_samples


def choose(pool: Pool, n: int, seed: int = 0, **options: Any) -> Selection:
    return select(pool, n, generator(seed, "packed_windows"), **options)


def tokens_of(pool: Pool, selection: Selection) -> list[list[int]]:
    ids = pool.input_ids(range(len(pool)))
    return [
        [token for piece in parts for token in ids[piece.row][piece.start : piece.stop].tolist()]
        for parts in selection.pieces.values()
    ]


def documents(sizes: list[list[int]]) -> list[dict[str, Any]]:
    """One document per entry, with samples of those lengths, numbered through."""
    rows: list[dict[str, Any]] = []
    for doc, lengths in enumerate(sizes):
        rows += [sample(len(rows) + i, length, doc=f"doc-{doc:03}") for i, length in enumerate(lengths)]
    return rows


def joined_and_cut(docs: list[list[dict[str, Any]]], length: int, special_tokens: str) -> Iterator[list[int]]:
    """The reference, as packing scripts write it: one long list, then slices."""
    bodies = [[token for row in doc for token in row["input_ids"][1:]] for doc in docs]
    if special_tokens == "per_document":
        text = [token for body in bodies for token in (BOS, *body)]
        head: list[int] = []
    else:
        text, head = [token for body in bodies for token in body], [BOS]
    room = length - len(head)
    for start in range(0, len(text) - room + 1, room):
        yield head + text[start : start + room]


SIZES = st.lists(st.lists(st.integers(2, 30), min_size=1, max_size=4), min_size=1, max_size=8)


@settings(deadline=None)
@given(SIZES, st.integers(2, 40), st.sampled_from(["per_document", "per_window"]), st.integers(1, 30))
def test_windows_are_slices_of_the_joined_stream(sizes: Any, length: int, special_tokens: str, n: int) -> None:
    rows = documents(sizes)
    pool = make_pool(rows=rows)
    selection = choose(pool, n, length=length, order="stream", special_tokens=special_tokens)
    docs = [[row for row in rows if row["doc_id"] == f"doc-{doc:03}"] for doc in range(len(sizes))]
    expected = list(joined_and_cut(docs, length, special_tokens))
    distinct = [window for i, window in enumerate(expected) if window not in expected[:i]]
    assert tokens_of(pool, selection) == distinct[:n]
    assert len(selection.indices) == len(selection.reasons) == len(selection.pieces)
    assert [selection.pieces[i][0].row for i in range(len(selection.indices))] == selection.indices.tolist()
    assert [reason["samples"] for reason in selection.reasons] == [
        len({piece.row for piece in parts}) for parts in selection.pieces.values()
    ]


@settings(deadline=None)
@given(SIZES, st.integers(0, 4), st.data())
def test_a_random_order_keeps_documents_together_and_does_not_depend_on_that_of_the_stream(
    sizes: Any, seed: int, data: st.DataObject
) -> None:
    rows = documents(sizes)
    total = sum(map(sum, sizes)) - len(rows) + len(sizes)  # one special token per document
    pool = make_pool(rows=rows)
    (whole,) = tokens_of(pool, choose(pool, 1, seed, length=total))
    order = [f"doc-{doc:03}" for doc in data.draw(st.permutations(range(len(sizes))))]
    shuffled = make_pool(rows=sorted(rows, key=lambda row: order.index(row["doc_id"])))
    assert tokens_of(shuffled, choose(shuffled, 1, seed, length=total)) == [whole]
    bodies = {(BOS, *(t for row in rows if row["doc_id"] == doc for t in row["input_ids"][1:])) for doc in order}
    heads = [i for i, token in enumerate(whole) if token == BOS]
    found = {tuple(whole[a:b]) for a, b in zip(heads, [*heads[1:], total], strict=True)}
    assert found == bodies


def test_every_document_is_equally_likely_to_come_first() -> None:
    """5 documents, 500 seeds: each 100 times, within 5 standard deviations (9)."""
    pool = make_pool([10] * 5)
    counts = np.bincount([choose(pool, 1, seed, length=10).indices[0] for seed in range(500)], minlength=5)
    assert (abs(counts - 100) < 45).all()


def test_windows_are_as_long_as_the_longest_sample_unless_told() -> None:
    pool = make_pool([10, 20, 33, 5])
    selection = choose(pool, 2)
    assert [len(tokens) for tokens in tokens_of(pool, selection)] == [33, 33]
    assert selection.notes["length"] == 33


def test_a_repeated_window_is_passed_over_and_fewer_are_given_where_tokens_run_out() -> None:
    pool = make_pool([5, 5, 5, 5])
    same = np.array([BOS, 7, 7, 7, 8], np.int32)
    twins = replace(pool, readers=replace(pool.readers, input_ids=lambda names: dict.fromkeys(names, same)))
    selection = choose(twins, 3, length=5)
    assert tokens_of(twins, selection) == [same.tolist()]
    assert selection.notes["repeated"] == 3
    assert choose(pool, 4, length=6).notes["repeated"] == 0
    assert len(choose(pool, 4, length=6).indices) == 3  # 20 tokens
    assert len(choose(pool, 4, length=21).indices) == 0


def test_only_the_windows_taken_are_read() -> None:
    read: list[int] = []
    pool = make_pool([10] * 400)

    def reader(names: Any) -> Any:
        read.append(len(names))
        return pool.readers.input_ids(names)

    watched = replace(pool, readers=replace(pool.readers, input_ids=reader))
    choose(watched, 4, length=25)
    assert read == [256, 10]  # 256 to learn what samples begin with, then 4 x 25 tokens


def test_a_window_has_to_hold_more_than_the_special_tokens() -> None:
    pool = make_pool([10] * 4)
    rows = [{**sample(i, 10), "n_special": 3, "input_ids": [BOS, 2, 3, *range(100 * i, 100 * i + 7)]} for i in range(4)]
    pool = make_pool(rows=rows)
    with pytest.raises(ValueError, match="found `length: 3`, expected more than the 3 special tokens.*params.yaml"):
        choose(pool, 1, length=3)
    assert [tokens[:3] for tokens in tokens_of(pool, choose(pool, 6, length=4, special_tokens="per_window"))] == [
        [BOS, 2, 3]
    ] * 6


def test_samples_without_special_tokens_head_no_window() -> None:
    rows = [{**sample(i, 10), "n_special": 0} for i in range(4)]
    pool = make_pool(rows=rows)
    joined = [token for row in rows for token in row["input_ids"]]
    for special_tokens in ("per_document", "per_window"):
        windows = tokens_of(pool, choose(pool, 4, length=8, order="stream", special_tokens=special_tokens))
        assert windows == [joined[start : start + 8] for start in (0, 8, 16, 24)]


# ---------------------------------------------------------------------------------------------------------------------
# The whole path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    rows = [sample(i, 20 + 3 * i, domain="prose" if i % 3 else "code") for i in range(30)]
    rows += [sample(100 + i, 30 + 5 * i, split="tuning") for i in range(8)]
    return write_samples(tmp_path / "samples", rows, shards=3)


@pytest.mark.parametrize("special_tokens", ["per_document", "per_window"])
def test_a_joined_set_names_all_its_documents_and_its_counts_add_up(
    samples: Path, choose: Callable[..., Path], special_tokens: str
) -> None:
    out = choose(samples, strategy="packed_windows", n=12, length=64, special_tokens=special_tokens)
    rows, manifest = rows_of(out), json.loads((out / "manifest.json").read_text())
    whole = {sample(i, 20 + 3 * i)["sample_id"]: sample(i, 20 + 3 * i) for i in range(30)}
    content = {token: row for row in whole.values() for token in row["input_ids"][1:]}
    for row in rows:
        of = [content[token] for token in row["input_ids"] if token != BOS]
        assert set(row["parents"]) >= {parent["sample_id"] for parent in of}
        assert set(row["doc_ids"]) >= {parent["doc_id"] for parent in of}
        assert len(row["doc_ids"]) == len(row["parents"]) == row["reason"]["samples"]
        assert row["n_tokens"] == 64
    assert any(len(row["doc_ids"]) > 1 for row in rows)
    counts = manifest["counts"]
    assert counts["used"] + counts["not_chosen"] + counts["filtered_by_domain"] == counts["pool_samples"] == 30
    assert counts["cut_or_joined"] == counts["selected"] == 12
    # tokens of the samples touched = tokens of theirs in the set, each once, + those left out
    touched = {parent for row in rows for parent in row["parents"]}
    distinct = {(parent, token) for row in rows for parent in row["parents"] for token in row["input_ids"]}
    inside = sum((name, token) in distinct for name in touched for token in whole[name]["input_ids"][1:])
    heads = sum(row["input_ids"].count(BOS) for row in rows)
    if special_tokens == "per_document":
        assert (
            manifest["tokens"]
            == inside + heads
            == sum(len(whole[n]["input_ids"]) for n in touched) - counts["tokens_left_out"]
        )
    else:
        begun = {row["parents"][0] for row in rows}  # those whose special token heads a window, some of them several
        assert (heads, manifest["tokens"]) == (12, inside + 12)
        assert sum(len(whole[n]["input_ids"]) for n in touched) - counts["tokens_left_out"] == inside + len(begun)
    assert manifest["documents"] == len({doc for row in rows for doc in row["doc_ids"]}) > 12


def test_more_windows_than_the_pool_has_tokens_for_are_refused(samples: Path, choose: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="asked for n = 30 samples, found 1[^0-9].*allow_fewer"):
        choose(samples, strategy="packed_windows", n=30, length=1000)
    assert len(rows_of(choose(samples, strategy="packed_windows", n=30, length=1000, allow_fewer=True))) == 1
