"""Coverage of production's tokens against plain arithmetic, the best set of all, and apricot."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plumbline.calibration_set.strategies.base import Pool, Selection, generator
from plumbline.calibration_set.strategies.token_coverage import DRAWS, select
from tests.helpers.calibration_pool import make_pool, rows_of
from tests.helpers.tokenized_samples import sample, write_samples

Texts = list[list[int]]


def text(ids: Sequence[int], number: int, split: str = "pool") -> dict[str, Any]:
    """A sample with these tokens; `number` keeps the ids of equal texts apart."""
    row = sample(number, 2, split)
    return {**row, "input_ids": list(ids), "n_tokens": len(ids), "n_special": 0}


def pool_of(texts: Texts, reference: Texts, order: Sequence[int] | None = None) -> Pool:
    tuning = [text(ids, 1000 + i, "tuning") for i, ids in enumerate(reference)]
    return make_pool(rows=[text(ids, i) for i, ids in enumerate(texts)], tuning=tuning, order=order)


def chosen(pool: Pool, selection: Selection) -> Texts:
    return [ids.tolist() for ids in pool.input_ids(selection.indices)]


def kinds_of(ids: Sequence[int], ngram: int) -> Counter[Any]:
    return Counter(ids if ngram == 1 else pairwise(ids))


def coverage(texts: Sequence[Sequence[int]], reference: Texts, tau: int, ngram: int) -> Fraction:
    """The definition, in whole fractions."""
    p: Counter[Any] = sum((kinds_of(ids, ngram) for ids in reference), Counter())
    have: Counter[Any] = sum((kinds_of(ids, ngram) for ids in texts), Counter())
    covered = sum((p[v] * min(Fraction(1), Fraction(have[v], tau)) for v in p), Fraction(0))
    return covered / p.total() if p else Fraction(0)


TEXTS = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.data())
def test_every_pick_gains_most_and_the_bound_holds(texts: Texts, reference: Texts, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(texts)))
    tau, ngram = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 2]))
    per_token = data.draw(st.booleans())
    pool = pool_of(texts, reference)
    selection = select(pool, n, generator(data.draw(st.integers(0, 9)), "x"), tau=tau, ngram=ngram, per_token=per_token)
    assert len(set(selection.indices.tolist())) == n
    everything = [ids.tolist() for ids in pool.input_ids(range(len(pool)))]
    taken: list[int] = []
    for row, reason in zip(selection.indices.tolist(), selection.reasons, strict=True):
        before = coverage([everything[i] for i in taken], reference, tau, ngram)
        gains = {
            i: (coverage([everything[j] for j in [*taken, i]], reference, tau, ngram) - before)
            / (len(everything[i]) if per_token else 1)
            for i in range(len(pool))
            if i not in taken
        }
        assert gains[row] == max(gains.values())
        taken.append(row)
        reached = coverage([everything[i] for i in taken], reference, tau, ngram)
        assert math.isclose(reason["gain"], reached - before, abs_tol=1e-6)
        assert math.isclose(reason["covered"], reached, abs_tol=1e-6)
    assert math.isclose(selection.notes["objective"], reached, abs_tol=1e-6)
    mass = coverage([everything[i] for i in taken], reference, 1, ngram)
    assert math.isclose(selection.notes["mass"], mass, abs_tol=1e-6)
    if not per_token:
        best = max(coverage(some, reference, tau, ngram) for some in combinations(everything, n))
        assert reached >= (1 - 1 / math.e) * best


def test_the_picks_are_those_of_apricot() -> None:
    """apricot knows no weights: a kind that the reference has k times is k columns there."""
    from apricot import MaxCoverageSelection

    rng = np.random.default_rng(3)
    times = np.unique(rng.integers(1, 200, 40))  # all different, so that no two samples tie
    present = rng.random((60, len(times))) < 0.15
    texts = [[*np.flatnonzero(line).tolist(), 100 + i] for i, line in enumerate(present)]
    pool = pool_of(texts, [np.repeat(np.arange(len(times)), times).tolist()])
    selection = select(pool, 5, generator(0, "x"))
    x = np.repeat([np.isin(np.arange(len(times)), ids) for ids in pool.input_ids(range(60))], times, axis=1)
    reference = MaxCoverageSelection(5, optimizer="naive").fit(x.astype(float))
    assert selection.indices.tolist() == reference.ranking.tolist()
    gains = [reason["gain"] * times.sum() for reason in selection.reasons]
    np.testing.assert_allclose(gains, reference.gains, atol=1e-6 * times.sum())
    assert min(reference.gains) > 0


def test_reasons_name_what_is_new_by_weight() -> None:
    pool = pool_of([[6, 6, 5, 99], [5, 7, 99], [8]], [[6] * 6 + [5] * 3 + [7, 8]])
    selection = select(pool, 3, generator(0, "x"))
    first, *rest = selection.reasons
    assert chosen(pool, selection)[0] == [6, 6, 5, 99]
    assert first == {"gain": round(9 / 11, 6), "covered": round(9 / 11, 6), "new_kinds": 2, "newly_covered": [6, 5]}
    assert sorted(reason["newly_covered"] for reason in rest) == [[7], [8]]
    assert [reason["new_kinds"] for reason in rest] == [1, 1]
    notes = selection.notes
    assert notes["missing_mass"] == round(2 / 11, 6) and notes["kinds"] == 4 and notes["reference_tokens"] == 11
    assert notes["curve"] == {"1": round(9 / 11, 6), "2": round(10 / 11, 6), "3": 1.0}
    assert notes["exhausted_after"] is None and notes["tokens"] == 8


def test_pairs_are_pairs_of_one_sample() -> None:
    pool = pool_of([[1, 2, 3], [4, 1], [2**31 - 1, 2]], [[1, 2, 3, 2**31 - 1, 2]])
    selection = select(pool, 3, generator(0, "x"), ngram=2)
    assert chosen(pool, selection) == [[1, 2, 3], [2**31 - 1, 2], [4, 1]]
    assert [r["newly_covered"] for r in selection.reasons] == [[[1, 2], [2, 3]], [[2**31 - 1, 2]], []]
    assert selection.notes["kinds"] == 4 and selection.notes["objective"] == 0.75


def test_tau_wants_tokens_again_and_per_token_wants_them_short() -> None:
    texts = [[1, 1, 1, 1], [1, 2], [3]]
    reference = [[1] * 6 + [2] * 3 + [3]]
    first = {tau: chosen(*_one(texts, reference, tau=tau))[0] for tau in (1, 2, 4)}
    assert first == {1: [1, 2], 2: [1, 1, 1, 1], 4: [1, 1, 1, 1]}
    texts = [[1, 2, 9, 9], [1], [3]]
    assert chosen(*_one(texts, reference))[0] == [1, 2, 9, 9]
    assert chosen(*_one(texts, reference, per_token=True))[0] == [1]


def _one(texts: Texts, reference: Texts, **options: Any) -> tuple[Pool, Selection]:
    pool = pool_of(texts, reference)
    return pool, select(pool, 1, generator(0, "x"), **options)


def test_when_nothing_is_left_to_cover_the_rest_is_drawn() -> None:
    pool = pool_of([[1, 2], *([i] for i in range(50, 90))], [[1, 1, 2]])
    one, two = (select(pool, 20, generator(seed, "x")) for seed in (0, 1))
    for selection in (one, two):
        assert chosen(pool, selection)[0] == [1, 2] and selection.notes["exhausted_after"] == 1
        assert [reason["gain"] for reason in selection.reasons[1:]] == [0] * 19
    assert set(one.indices.tolist()) != set(two.indices.tolist()), "ties are broken by the seed, not by the name"
    assert one.indices.tolist() == select(pool, 20, generator(0, "x")).indices.tolist()
    nothing = pool_of([[7], [8], [9]], [[1]])
    selection = select(nothing, 3, generator(0, "x"))
    assert selection.notes["objective"] == 0 and selection.notes["exhausted_after"] == 0
    alone = select(pool_of([[1]], [[1]]), 1, generator(0, "x"), ngram=2)  # no pair anywhere
    assert alone.notes["objective"] == 0 and alone.notes["kinds"] == 0 and alone.notes["missing_mass"] == 0


def test_candidates_are_a_draw_of_the_pool_and_never_fewer_than_asked() -> None:
    texts = [[i] for i in range(200)]
    pool = pool_of(texts, [list(range(200))])
    few = select(pool, 10, generator(0, "x"), candidates=10)
    assert few.notes["candidates"] == 10 and few.notes["pool"] == 200
    assert len({tuple(select(pool, 1, generator(s, "x"), candidates=1).indices.tolist()) for s in range(20)}) > 10
    assert select(pool, 10, generator(0, "x"), candidates=3).notes["candidates"] == 10
    assert select(pool, 10, generator(0, "x")).notes["candidates"] == 200


def test_the_null_is_what_random_draws_get() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 40, rng.integers(1, 9)).tolist() for _ in range(30)]
    reference = [rng.integers(0, 40, 50).tolist()]
    notes = select(pool_of(texts, reference), 5, generator(0, "x"), tau=2).notes
    found = notes["random_draws"]
    draws = [[texts[i] for i in rng.choice(30, 5, replace=False)] for _ in range(2000)]
    assert found["draws"] == DRAWS
    for key, tau in (("objective", 2), ("mass", 1)):
        values = [float(coverage(some, reference, tau, 1)) for some in draws]
        assert abs(found[key] - np.median(values)) < 4 * np.std(values) / math.sqrt(DRAWS) * 1.25
        assert notes[key] > np.percentile(values, 95)
    lengths = [sum(map(len, some)) for some in draws]
    assert abs(found["tokens"] - np.median(lengths)) < 4 * np.std(lengths) / math.sqrt(DRAWS) * 1.25


@pytest.mark.parametrize("order", [range(29, -1, -1), np.random.default_rng(5).permutation(30)])
def test_the_order_on_disk_decides_nothing(order: Any) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 9, rng.integers(1, 5)).tolist() for _ in range(30)]
    one, two = (pool_of(texts, [list(range(9))], o) for o in (None, list(order)))
    first, second = (select(pool, 12, generator(4, "x")) for pool in (one, two))
    assert one.names(first.indices) == two.names(second.indices)
    assert first.reasons == second.reasons and first.notes == second.notes


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline.calibration_set.methods import token_counts
    from plumbline.calibration_set.strategies import token_coverage

    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 9, rng.integers(1, 5)).tolist() for _ in range(30)]
    pool = pool_of(texts, [rng.integers(0, 9, 5).tolist() for _ in range(20)])
    expected = select(pool, 12, generator(4, "x"), tau=2)
    monkeypatch.setattr(token_counts, "BLOCK", 7)
    monkeypatch.setattr(token_coverage, "BLOCK", 3)
    found = select(pool, 12, generator(4, "x"), tau=2)
    assert found.reasons == expected.reasons and found.notes == expected.notes
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_production_goes_before_tuning() -> None:
    rows = [text([1, 2], 0), text([3], 1)]
    tuning, production = [text([1, 2], 10, "tuning")], [text([3, 3], 11, "production")]
    for given_, first, name in ((production, [3], "production"), (None, [1, 2], "tuning")):
        pool = make_pool(rows=rows, tuning=tuning, production=given_)
        selection = select(pool, 1, generator(0, "x"))
        assert chosen(pool, selection) == [first] and selection.notes["reference"] == name


def test_without_a_reference_it_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"token_coverage needs .* set corpus.production or raise tokenize"):
        select(pool_of([[1]], []), 1, generator(0, "x"))


def test_through_the_choice(tmp_path: Path, choose: Any) -> None:
    lengths: NDArray[np.int64] = np.array([20, 30, 40, 25])
    rows = [sample(i, int(length)) for i, length in enumerate(lengths)]
    tuning = [{**sample(90, 5, "tuning"), "input_ids": [1, 1005, 3001, 3002, 77], "n_tokens": 5}]
    out = choose(write_samples(tmp_path / "s", rows + tuning), strategy="token_coverage", n=2, tau=1, candidates=100)
    found = rows_of(out)
    assert [row["n_tokens"] for row in found] == [40, 20] or [row["n_tokens"] for row in found] == [25, 20]
    assert found[0]["reason"]["newly_covered"] == [1, 3001, 3002]
    notes = json.loads((out / "manifest.json").read_text())["notes"]
    assert notes["reference"] == "tuning" and notes["mass"] == 0.8
