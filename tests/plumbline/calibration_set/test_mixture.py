"""Quotas by domain against Hamilton's rule done by hand, and the strategy within each domain."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from plumbline.calibration_set.strategies import Strategy, mixture
from plumbline.calibration_set.strategies.base import Piece, Pool, Selection, generator
from plumbline.calibration_set.strategies.mixture import apportion, select, split
from tests.helpers.calibration_pool import make_pool, rows_of
from tests.helpers.tokenized_samples import sample, write_samples

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20), min_size=1).map(
    lambda weights: {name: Fraction(weight) for name, weight in sorted(weights.items())}
)


def pool_of(counts: dict[str, int], tuning: dict[str, int] | None = None, length: int = 10, **options: Any) -> Pool:
    rows = [sample(100 * k + i, length, "pool", d) for k, (d, n) in enumerate(counts.items()) for i in range(n)]
    held = [
        sample(5000 + 100 * k + i, length, "tuning", d)
        for k, (d, n) in enumerate((tuning or {}).items())
        for i in range(n)
    ]
    return make_pool(rows=rows, tuning=held, **options)


def instead(patch: pytest.MonkeyPatch, function: Any) -> None:
    """Let `function` be the strategy within each domain, whatever its name."""
    strategy = Strategy(function.__name__, function, create_model("no_options"), "tests")
    patch.setattr(mixture, "get", lambda name: strategy)


def domains_of(pool: Pool, selection: Selection) -> Counter[str]:
    return Counter(pool.domains[row] for row in selection.indices)


@given(WEIGHTS, st.integers(0, 200))
def test_shares_are_hamiltons(weights: dict[str, Fraction], n: int) -> None:
    parts = apportion(weights, n)
    assert sum(parts.values()) == n
    total = sum(weights.values())
    exact = {name: n * weight / total for name, weight in weights.items()}
    for name, part in parts.items():
        assert floor(exact[name]) <= part <= ceil(exact[name])
    up = [exact[name] - floor(exact[name]) for name in parts if parts[name] > exact[name]]
    down = [exact[name] - floor(exact[name]) for name in parts if parts[name] < exact[name]]
    assert not up or not down or min(up) >= max(down), "the largest remainders are rounded up"


@given(WEIGHTS, st.integers(0, 200), st.data())
def test_what_one_lacks_the_others_give(weights: dict[str, Fraction], n: int, data: st.DataObject) -> None:
    have = {name: data.draw(st.integers(0, 60)) for name in weights}
    take = split(weights, n, have)
    assert sum(take.values()) == min(n, sum(have.values()))
    asked = apportion(weights, n)
    for name in weights:
        assert take[name] <= have[name]
        assert take[name] >= min(asked[name], have[name]), "filling another domain costs none its own quota"
    assert split(weights, n, dict.fromkeys(weights, 1000)) == asked


def test_an_empty_domain_costs_the_others_none_of_their_quotas() -> None:
    weights = {name: Fraction(weight) for name, weight in {"c": 7, "d": 7, "e": 7, "f": 11, "a": 17, "b": 2}.items()}
    quotas = apportion(weights, 5)
    for empty in weights:
        taken = split(weights, 5, {name: 0 if name == empty else 60 for name in weights})
        assert sum(taken.values()) == 5 and all(taken[name] >= quotas[name] for name in weights if name != empty)


def test_ties_go_to_the_larger_weight_then_to_the_name() -> None:
    assert apportion({"a": Fraction(1), "b": Fraction(3)}, 2) == {"a": 0, "b": 2}
    assert apportion({"b": Fraction(1), "a": Fraction(1), "c": Fraction(1)}, 4) == {"b": 1, "a": 2, "c": 1}


def test_quotas_are_met_and_the_reasons_say_so() -> None:
    pool = pool_of({"prose": 50, "code": 50, "law": 50})
    selection = select(pool, 10, generator(0, "x"), quotas={"prose": 0.7, "code": 0.3})
    assert domains_of(pool, selection) == {"prose": 7, "code": 3}
    for row, reason in zip(selection.indices, selection.reasons, strict=True):
        assert reason["domain"] == pool.domains[row] and set(reason["within"]) == {"drawn"}
    assert selection.notes == {
        "within": "random",
        "domains": {
            "code": {"weight": 0.3, "pool": 50, "quota": 3, "chosen": 3, "notes": {}},
            "prose": {"weight": 0.7, "pool": 50, "quota": 7, "chosen": 7, "notes": {}},
        },
    }
    other = select(pool, 10, generator(1, "x"), quotas={"code": 0.3, "prose": 0.7})
    assert set(other.indices.tolist()) != set(selection.indices.tolist())
    again = select(pool, 10, generator(0, "x"), quotas={"code": 3, "prose": 7})
    assert again.indices.tolist() == selection.indices.tolist()
    assert domains_of(pool, select(pool, 1, generator(0, "x"), quotas={"prose": 2, "code": 1})) == {"prose": 1}


def test_a_short_domain_is_filled_from_the_other_named_ones_only() -> None:
    pool = pool_of({"prose": 50, "code": 2, "law": 50, "mail": 50})
    selection = select(pool, 12, generator(0, "x"), quotas={"prose": 1, "code": 4, "law": 1})
    assert domains_of(pool, selection) == {"prose": 5, "code": 2, "law": 5}
    assert [(d["quota"], d["chosen"]) for d in selection.notes["domains"].values()] == [(8, 2), (2, 5), (2, 5)]
    assert domains_of(pool, select(pool, 60, generator(0, "x"), quotas={"code": 4, "law": 1})) == {"code": 2, "law": 50}


def test_an_inner_strategy_that_finds_too_few_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def half(pool: Pool, n: int, rng: Any) -> Selection:
        domain = pool.domains[0]
        asked.append((domain, n))
        found = min(n, 3) if domain == "a" else n
        return Selection(np.arange(found), [{}] * found)

    instead(monkeypatch, half)
    pool = pool_of({"a": 20, "b": 8, "c": 20})
    selection = select(pool, 24, generator(0, "x"), quotas={"a": 2, "b": 1, "c": 1})
    assert domains_of(pool, selection) == {"a": 3, "b": 8, "c": 13}
    assert asked[0] == ("a", 12) and asked[-1][1] in (8, 13) and len(asked) <= 6
    few = select(pool, 24, generator(0, "x"), quotas={"a": 2, "b": 1})
    assert domains_of(pool, few) == {"a": 3, "b": 8}, "then there are fewer"


def test_without_quotas_the_tokens_are_those_of_the_reference() -> None:
    """Code has 3/4 of the reference's tokens; its samples in the pool are thrice as long, so half are enough."""
    rows = [sample(i, 10, "pool", "prose") for i in range(40)] + [sample(100 + i, 30, "pool", "code") for i in range(9)]
    tuning = [sample(200 + i, 10, "tuning", "prose") for i in range(3)]
    tuning += [sample(300 + i, 45, "tuning", "code") for i in range(2)] + [sample(400, 40, "tuning", "law")]
    pool = make_pool(rows=rows, tuning=tuning)
    selection = select(pool, 12, generator(0, "x"))
    assert domains_of(pool, selection) == {"prose": 6, "code": 6}
    tokens = {d: sum(pool.lengths[r] for r in selection.indices if pool.domains[r] == d) for d in ("prose", "code")}
    assert tokens["code"] / sum(tokens.values()) == 0.75
    assert selection.notes["reference"] == "tuning"
    assert selection.notes["tokens_in_domains_the_pool_lacks"] == {"law": 0.25}
    production = [sample(500, 20, "production", "prose")]
    assert domains_of(pool, select(pool, 5, generator(0, "x")))["code"] > 0
    pool = make_pool(rows=rows, tuning=tuning, production=production)
    assert domains_of(pool, select(pool, 5, generator(0, "x"))) == {"prose": 5}


def test_the_inner_strategy_sees_its_domain_alone() -> None:
    """Each reference wants what a sample of the other domain has; the strategy must not see it."""
    rows = [{**sample(i, 4, "pool", d), "input_ids": ids} for i, (d, ids) in enumerate(
        [("a", [1, 2, 3, 4]), ("a", [7, 7, 7, 7]), ("b", [5, 6, 7, 8]), ("b", [1, 1, 2, 2])]
    )]  # fmt: skip
    tuning = [
        {**sample(50, 4, "tuning", "a"), "input_ids": [1, 2, 3, 4]},
        {**sample(51, 4, "tuning", "b"), "input_ids": [5, 6, 7, 8]},
    ]
    pool = make_pool(rows=rows, tuning=tuning)
    selection = select(pool, 2, generator(0, "x"), within="token_coverage")
    assert [ids.tolist() for ids in pool.input_ids(selection.indices)] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [reason["within"]["covered"] for reason in selection.reasons] == [1, 1]
    inner = [part["notes"]["reference_tokens"] for part in selection.notes["domains"].values()]
    assert inner == [4, 4]
    lone = make_pool(rows=rows, tuning=tuning[:1])  # nothing of b: its samples are held against all there is
    notes = select(lone, 2, generator(0, "x"), quotas={"a": 1, "b": 1}, within="token_coverage").notes
    assert notes["domains"]["b"]["notes"]["reference_samples"] == 1


def test_pieces_stay_with_their_samples() -> None:
    pool = make_pool(
        rows=[sample(i, 40, "pool", "prose") for i in range(5)] + [sample(9 + i, 40, "pool", "code") for i in range(5)]
    )
    selection = select(pool, 6, generator(0, "x"), quotas={"prose": 1, "code": 1}, within="length_stratified")
    assert not selection.pieces

    def cut(pool: Pool, n: int, rng: Any) -> Selection:
        return Selection(np.arange(n), [{}] * n, {i: (Piece(i, 0, 5), Piece(i, 7, 9)) for i in range(1, n)})

    with pytest.MonkeyPatch.context() as patch:
        instead(patch, cut)
        selection = select(pool, 6, generator(0, "x"), quotas={"prose": 1, "code": 1}, within="cut")
    assert sorted(selection.pieces) == [1, 2, 4, 5]
    for position, parts in selection.pieces.items():
        row = int(selection.indices[position])
        assert parts == (Piece(row, 0, 5), Piece(row, 7, 9))
        assert pool.domains[row] == selection.reasons[position]["domain"]


@pytest.mark.parametrize("within", ["random", "first_n", "length_stratified", "token_coverage"])
def test_other_strategies_choose_within(within: str) -> None:
    pool = pool_of({"prose": 20, "code": 20}, {"prose": 2, "code": 2})
    one, two = (select(pool, 8, generator(0, "x"), within=within) for _ in range(2))
    assert domains_of(pool, one) == {"prose": 4, "code": 4} and len(set(one.indices.tolist())) == 8
    assert one.indices.tolist() == two.indices.tolist() and one.reasons == two.reasons and one.notes == two.notes


def test_errors_say_what_to_do() -> None:
    pool = pool_of({"prose": 5}, {"code": 3})
    with pytest.raises(ValueError, match=r"no domain `pose`; did you mean `prose`\? \(it has prose\)"):
        select(pool, 2, generator(0, "x"), quotas={"pose": 1})
    with pytest.raises(
        ValueError, match="tuning has the domains code and the pool prose, none in common; set `domain`"
    ):
        select(pool, 2, generator(0, "x"))
    with pytest.raises(ValueError, match=r"mixture needs .* set corpus.production"):
        select(pool_of({"prose": 5}), 2, generator(0, "x"))


def test_samples_that_have_no_domain_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def writer(pool: Pool, n: int, rng: Any) -> Selection:
        return Selection(np.full(n, -1), [{}] * n, written={i: np.arange(5, dtype=np.int32) for i in range(n)})

    instead(monkeypatch, writer)
    with pytest.raises(ValueError, match=r"writer writes samples, which have no domain; name another strategy"):
        select(pool_of({"prose": 5}), 2, generator(0, "x"), quotas={"prose": 1})


def test_through_the_choice(tmp_path: Path, choose: Any) -> None:
    rows = [sample(i, 10 + i, "pool", "prose" if i % 2 else "code") for i in range(20)]
    samples = write_samples(tmp_path / "s", [*rows, *(sample(80 + i, 30, "tuning") for i in range(4))])
    out = choose(samples, strategy="mixture", n=6, quotas={"prose": 2, "code": 1}, within="length_stratified")
    found = rows_of(out)
    assert Counter(row["domain"] for row in found) == {"prose": 4, "code": 2}
    assert all(set(row["reason"]) == {"domain", "within"} and "bucket" in row["reason"]["within"] for row in found)
    assert json.loads((out / "manifest.json").read_text())["choice"]["quotas"] == {"prose": 2, "code": 1}
    with pytest.raises(ValueError, match="asked for n = 12 samples, found 10"):
        choose(samples, strategy="mixture", n=12, quotas={"prose": 1})
    assert len(rows_of(choose(samples, strategy="mixture", n=12, quotas={"prose": 1}, allow_fewer=True))) == 10
    for wrong, message in (
        ({"within": "mixture"}, "mixture does not choose within a domain"),
        ({"within": "self_generated"}, "self_generated does not choose within a domain"),
        ({"within": "randon"}, "no strategy is called `randon`; did you mean `random`"),
        ({"quotas": {}}, "at least 1"),
        ({"quotas": {"prose": 0}}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=rf"calibrations: mine.*{message}"):
            choose(samples, strategy="mixture", n=3, **wrong)
