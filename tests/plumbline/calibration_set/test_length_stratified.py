from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbline.calibration_set.strategies.base import Piece, Pool, Selection, generator
from plumbline.calibration_set.strategies.length_stratified import select
from tests.helpers.calibration_pool import make_pool
from tests.helpers.tokenized_samples import BOS

EDGES = (64, 128, 256, 512)


def choose(pool: Pool, n: int, seed: int = 0, **options: Any) -> Selection:
    return select(pool, n, generator(seed, "length_stratified"), **{"buckets": EDGES, **options})


def described(pool: Pool, selection: Selection) -> list[tuple[str, Any]]:
    """What was chosen, by sample id, so that two orders of the pool can be compared."""
    names = pool.names(selection.indices)
    return [(name, (selection.reasons[i], selection.pieces.get(i))) for i, name in enumerate(names)]


LENGTHS = st.lists(st.integers(2, 900), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.sampled_from(["proportional", "equal"]), st.integers(0, 3), st.data())
def test_properties(lengths: list[int], quotas: str, seed: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(lengths)))
    pool = make_pool(lengths)
    selection = choose(pool, n, seed, quotas=quotas)
    assert len(selection.indices) == len(selection.reasons) == n
    assert len(set(selection.indices.tolist())) == n
    # each sample is used whole if it fits, else by a window of exactly the largest bucket
    for position, row in enumerate(selection.indices):
        pieces = selection.pieces.get(position, ())
        if pool.lengths[row] <= EDGES[-1]:
            assert not pieces
        else:
            ids = pool.input_ids([row])[0]
            tokens = np.concatenate([ids[piece.start : piece.stop] for piece in pieces])
            assert len(tokens) == EDGES[-1]
            assert tokens[0] == BOS
            assert tokens[1:].tolist() == list(range(tokens[1], tokens[1] + EDGES[-1] - 1))
    # the same pool in another order on disk, and the same call again
    shuffled = make_pool(lengths, data.draw(st.permutations(range(len(lengths)))))
    again = choose(shuffled, n, seed, quotas=quotas)
    assert described(pool, selection) == described(shuffled, again)
    # quotas, and what was chosen, bucket by bucket
    chosen = Counter(reason["bucket"] for reason in selection.reasons)
    for line in selection.notes["buckets"]:
        assert chosen[line["tokens"]] == line["chosen"]
        assert line["chosen"] >= min(line["quota"], line["pool"])
    assert sum(line["quota"] for line in selection.notes["buckets"]) == n
    fills = Counter((r["fills"], r["bucket"]) for r in selection.reasons if "fills" in r)
    assert fills == {(f["short"], f["from"]): f["samples"] for f in selection.notes["fills"]}


def test_a_sample_belongs_to_the_bucket_that_its_length_ends_in() -> None:
    pool = make_pool([2, 64, 65, 128, 129, 512, 513])
    selection = choose(pool, 7)
    of_length = {int(pool.lengths[row]): selection.reasons[i]["bucket"] for i, row in enumerate(selection.indices)}
    assert of_length == {
        2: "1-64", 64: "1-64", 65: "65-128", 128: "65-128", 129: "129-256", 512: "257-512", 513: "257-512",
    }  # fmt: skip


def test_proportional_quotas_keep_the_pools_mix_and_equal_ones_do_not() -> None:
    pool = make_pool([50] * 40 + [100] * 20 + [200] * 12 + [400] * 8)
    mix = Counter(r["bucket"] for r in choose(pool, 40).reasons)
    assert mix == {"1-64": 20, "65-128": 10, "129-256": 6, "257-512": 4}
    even = Counter(r["bucket"] for r in choose(pool, 32, quotas="equal").reasons)
    assert set(even.values()) == {8}


def test_an_empty_bucket_is_filled_from_its_neighbours_and_says_so() -> None:
    pool = make_pool([50] * 20 + [200] * 20 + [400] * 20)  # nothing in 65-128
    selection = choose(pool, 16, quotas="equal")
    fills = [(f["short"], f["from"], f["samples"]) for f in selection.notes["fills"]]
    assert sorted(fills) == [("65-128", "1-64", 2), ("65-128", "129-256", 2)]
    assert Counter(r.get("fills") for r in selection.reasons) == {None: 12, "65-128": 4}


def test_long_samples_are_windowed_at_seeded_offsets_and_keep_the_special_token() -> None:
    pool = make_pool([600] * 30)
    selection = choose(pool, 30, buckets=(100,))
    assert len(selection.pieces) == 30
    assert len({window.start for _, window in selection.pieces.values()}) > 15
    for position, (special, window) in selection.pieces.items():
        row = int(selection.indices[position])
        assert special == Piece(row, 0, 1)
        assert window.row == row and window.start >= 1 and window.stop <= 600 and window.stop - window.start == 99
    assert choose(pool, 30, buckets=(100,)).pieces == selection.pieces
    assert choose(pool, 30, seed=1, buckets=(100,)).pieces != selection.pieces


def test_every_offset_of_a_window_can_occur() -> None:
    pool = make_pool([12])
    starts = {choose(pool, 1, seed, buckets=(10,)).pieces[0][-1].start for seed in range(60)}
    assert starts == {1, 2, 3}


def test_without_special_tokens_a_window_begins_anywhere() -> None:
    pool = make_pool([12])
    column = pool.table.schema.get_field_index("n_special")
    bare = replace(pool, table=pool.table.set_column(column, "n_special", [[0]]))
    windows = {choose(bare, 1, seed, buckets=(10,)).pieces[0] for seed in range(60)}
    assert windows == {(Piece(0, start, start + 10),) for start in (0, 1, 2)}


def test_a_window_that_would_repeat_a_sample_moves_on_and_a_sample_without_any_is_replaced() -> None:
    """Three long samples with one content: 2 windows differ, so the third is replaced by the short sample."""
    pool = make_pool([11, 11, 11, 5])
    same = np.array([BOS, *([7] * 9), 8], np.int32)  # windows of 10: 1,7*9 and 1,7*8,8
    long = [name for name, n in zip(pool.sample_ids, pool.lengths, strict=True) if n == 11]
    tokens = {**pool.readers.input_ids(pool.sample_ids), **dict.fromkeys(long, same)}
    twins = replace(pool, readers=replace(pool.readers, input_ids=lambda names: {name: tokens[name] for name in names}))
    selection = choose(twins, 3, buckets=(4, 10))
    cut = [[t for piece in parts for t in same[piece.start : piece.stop]] for parts in selection.pieces.values()]
    assert sorted(cut) == [[BOS, *([7] * 9)], [BOS, *([7] * 8), 8]]
    assert sorted(twins.lengths[selection.indices]) == [5, 11, 11]
    assert len(choose(twins, 4, buckets=(4, 10)).indices) == 3  # fewer than asked: build_calibration_set refuses


@pytest.mark.parametrize("quotas", ["proportional", "equal"])
def test_all_lengths_equal_and_a_set_of_one(quotas: str) -> None:
    pool = make_pool([100] * 9)
    assert len(choose(pool, 9, quotas=quotas).indices) == 9
    single = choose(pool, 1, quotas=quotas)
    assert [r["bucket"] for r in single.reasons] == ["65-128"]
    assert single.notes["fills"] == []


def test_every_sample_of_a_bucket_is_equally_likely() -> None:
    """6 samples, 2 chosen, 600 seeds: each 200 times, within 5 standard deviations (11.5)."""
    pool = make_pool([100] * 6)
    counts = Counter(row for seed in range(600) for row in choose(pool, 2, seed).indices.tolist())
    assert all(abs(counts[row] - 200) < 58 for row in range(6))
