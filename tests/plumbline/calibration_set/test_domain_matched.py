"""Herding against brute force, each part of the distance against its definition, and a planted domain found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from plumbline.calibration_set.strategies import domain_matched
from plumbline.calibration_set.strategies.base import Pool, generator
from plumbline.calibration_set.strategies.domain_matched import DRAWS, Weights, hellinger, herd, select
from tests.helpers.calibration_pool import make_pool, rows_of
from tests.helpers.tokenized_samples import sample, write_samples

LENGTH = Weights(length=1, tokens=0, embedding=0)
TOKENS = Weights(length=0, tokens=1, embedding=0)
EMBEDDING = Weights(length=0, tokens=0, embedding=1)


def row(number: int, ids: Any, split: str = "pool", domain: str = "prose") -> dict[str, Any]:
    one = sample(number, 2, split, domain)
    return {**one, "input_ids": [int(i) for i in ids], "n_tokens": len(ids), "n_special": 0}


def unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def of_lengths(pool: list[int], reference: list[int]) -> Pool:
    rows = [row(i, [1] * length) for i, length in enumerate(pool)]
    return make_pool(rows=rows, tuning=[row(500 + i, [1] * length, "tuning") for i, length in enumerate(reference)])


def of_embeddings(pool: NDArray[np.float64], reference: NDArray[np.float64]) -> Pool:
    rows = [row(i, [1]) for i in range(len(pool))]
    tuning = [row(500 + i, [1], "tuning") for i in range(len(reference))]
    names = [one["sample_id"] for one in rows + tuning]
    return make_pool(rows=rows, tuning=tuning, embeddings=dict(zip(names, [*pool, *reference], strict=True)))


@settings(max_examples=200, deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(1, 8), st.integers(0, 3)), elements=st.integers(-3, 3)), st.data())
def test_every_step_is_the_best_there_is(whole: NDArray[np.int64], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(whole)))
    taken = herd(whole.astype(np.float64), n).tolist()
    assert len(set(taken)) == n
    for step, best in enumerate(taken):
        squares = {
            i: int(((whole[taken[:step]].sum(axis=0) + whole[i]) ** 2).sum())
            for i in range(len(whole))
            if i not in taken[:step]
        }
        assert best == min(squares, key=lambda i: (squares[i], i)), "the first of the best"


def test_the_distance_in_length_is_cramers(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import energy_distance

    rng = np.random.default_rng(0)
    pool, reference = rng.integers(2, 30, 40).tolist(), rng.integers(10, 22, 15).tolist()
    mine = of_lengths(pool, reference)
    selection = select(mine, 6, generator(0, "x"), weights=LENGTH)

    def cramer(lengths: Any) -> float:  # the energy distance is twice the integral, under a root
        return float(energy_distance(np.log(lengths), np.log(reference)) ** 2) / 2

    typical = np.mean([cramer([length]) for length in pool])
    value = cramer(mine.lengths[selection.indices]) / typical
    assert math.isclose(selection.notes["distance"]["length"]["value"], value, rel_tol=0.1), "as far as edges resolve"
    monkeypatch.setattr(domain_matched, "QUANTILES", 1000)  # every length is an edge
    selection = select(mine, 6, generator(0, "x"), weights=LENGTH)
    for n, reason in enumerate(selection.reasons, start=1):
        value = cramer(mine.lengths[selection.indices[:n]]) / typical
        assert math.isclose(reason["distance"], value, abs_tol=2e-5)
    found = selection.notes["distance"]
    assert found["length"] == found["all"] and found["length"]["value"] == selection.reasons[-1]["distance"]
    draws = [cramer(rng.choice(pool, 6, replace=False)) / typical for _ in range(2000)]
    sigma = 1.25 * np.std(draws) / math.sqrt(DRAWS)
    assert abs(found["length"]["random_median"] - np.median(draws)) < 4 * sigma
    assert found["length"]["percentile"] == 0 and selection.notes["random_draws"] == DRAWS


def test_the_distance_in_tokens_is_hellingers() -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 2**31 - 1, 10).repeat(rng.integers(1, 3)) for _ in range(20)]
    reference = [rng.choice(texts[i], 8) for i in range(5)]

    def roots(ids: Any) -> NDArray[np.float64]:
        shares = np.zeros(256)
        for i in ids:
            shares[((int(i) * 2654435761) % 2**32) // 2**24] += 1 / len(ids)
        return np.sqrt(shares)

    np.testing.assert_allclose(hellinger(np.array(texts[0], np.int32)), roots(texts[0]), atol=1e-6)
    tuning = [row(500 + i, ids, "tuning") for i, ids in enumerate(reference)]
    pool = make_pool(rows=[row(i, ids) for i, ids in enumerate(texts)], tuning=tuning)
    selection = select(pool, 4, generator(0, "x"), weights=TOKENS)
    x, mean = np.array([roots(ids) for ids in pool.input_ids(range(20))]), np.mean([*map(roots, reference)], axis=0)
    typical = ((x - mean) ** 2).sum(axis=1).mean()
    value = ((x[selection.indices].mean(axis=0) - mean) ** 2).sum() / typical
    assert math.isclose(selection.notes["distance"]["tokens"]["value"], value, abs_tol=1e-4)
    assert set(selection.notes["distance"]) == {"all", "tokens"}


def test_the_features_of_the_embedding_are_those_of_gaussian_kernels() -> None:
    rng = np.random.default_rng(2)
    e = unit(rng.standard_normal((60, 6))).astype(np.float16)
    pool = of_embeddings(e[:40].astype(np.float64), e[40:].astype(np.float64))
    two = domain_matched.Two(pool, np.arange(40), pool.reference, np.arange(20))
    x = np.concatenate([pool.embeddings(), pool.reference.embeddings()]).astype(np.float64)
    apart = np.linalg.norm(x[:, None] - x, axis=2)
    width = np.median(apart[np.triu_indices(60, 1)])
    expected = np.mean([np.exp(-((apart / (s * width)) ** 2) / 2) for s in (0.5, 1, 2)], axis=0)
    found = []
    for seed in range(30):
        z = np.concatenate(domain_matched.embedding_features(two, 6, np.random.default_rng(seed)))
        found.append(z @ z.T)
    assert np.abs(np.mean(found, axis=0) - expected).max() < 0.06
    assert np.abs(np.mean(found, axis=0) - expected).mean() < 0.015


def test_two_clusters_are_not_met_by_one_between_them() -> None:
    """Their mean embedding is the same; only features of the whole distribution tell them apart."""
    rng = np.random.default_rng(3)
    left, right, between = np.array([1.0, 0.6, 0]), np.array([-1.0, 0.6, 0]), np.array([0.0, 1.0, 0])
    pool = np.concatenate([unit(c + 0.05 * rng.standard_normal((20, 3))) for c in (left, right, between)])
    reference = np.concatenate([unit(c + 0.05 * rng.standard_normal((20, 3))) for c in (left, right)])
    mine = of_embeddings(pool, reference)
    chosen = mine.embeddings(select(mine, 10, generator(0, "x"), weights=EMBEDDING).indices).astype(np.float64)
    assert sorted(np.sign(np.round(chosen[:, 0])).tolist()) == [-1] * 5 + [1] * 5


def planted(order: list[int] | None = None, **options: Any) -> Pool:
    """150 samples of one domain and 30 of another, which is production's: shorter, other tokens, other direction."""
    rng = np.random.default_rng(4)
    directions = unit(rng.standard_normal((2, 16)))
    rows, embeddings = [], {}
    for number in range(230):
        ours = number >= 150
        ids = rng.integers(*((3000, 3030) if ours else (0, 30)), rng.integers(*((10, 20) if ours else (40, 80))))
        split = "production" if number >= 180 else "pool"
        rows.append(row(number, ids, split, "code" if ours else "prose"))
        embeddings[rows[-1]["sample_id"]] = unit(directions[int(ours)] + 0.1 * rng.standard_normal(16))
    tuning = [row(900, [1, 2, 3], "tuning")]
    return make_pool(
        order=order, rows=rows[:180], production=rows[180:], tuning=tuning, embeddings=embeddings, **options
    )


@pytest.mark.parametrize("weights", [Weights(), LENGTH, TOKENS, EMBEDDING])
def test_the_domain_of_production_is_found(weights: Weights) -> None:
    pool = planted()
    selection = select(pool, 20, generator(0, "x"), weights=weights)
    domains = [pool.domains[i] for i in selection.indices]
    assert domains.count("code") >= 19
    found = selection.notes["distance"]
    assert selection.notes["reference"] == "production" and selection.notes["reference_samples"] == 50
    for part in found:
        assert found[part]["percentile"] == 0 and found[part]["value"] < 0.2 * found[part]["random_median"]
    total = sum(found[part]["value"] for part in found if part != "all")
    assert math.isclose(found["all"]["value"], total, abs_tol=1e-5)
    assert [reason["step"] for reason in selection.reasons] == list(range(20))
    assert selection.reasons[0]["closer_in"] is None
    assert {reason["closer_in"] for reason in selection.reasons[1:]} <= {None, *found} - {"all"}


def test_weights_shift_what_is_met() -> None:
    """Lengths and tokens of the reference are never together in the pool: the weights say which counts."""
    rows = [row(i, [7] * 50) for i in range(20)] + [row(i, [9] * 5) for i in range(20, 40)]
    pool = make_pool(rows=rows, tuning=[row(90, [9] * 50, "tuning")])
    for length, tokens, expected in ((5, 1, 50), (1, 5, 5)):
        weights = Weights(length=length, tokens=tokens, embedding=0)
        selection = select(pool, 3, generator(0, "x"), weights=weights)
        assert pool.lengths[selection.indices].tolist() == [expected] * 3
        distance = selection.notes["distance"]
        whole, other = ("tokens", "length") if length > tokens else ("length", "tokens")
        assert distance[other]["value"] == 0 and math.isclose(distance[whole]["value"], 1 / 6 * 2, abs_tol=1e-4)


def test_pathologies() -> None:
    same = np.tile(unit(np.ones(4)), (9, 1))
    pool = of_embeddings(same[:6], same[6:])
    for n in (1, 6):
        selection = select(pool, n, generator(0, "x"))
        assert len(set(selection.indices.tolist())) == n
        assert selection.notes["distance"]["all"] == {"value": 0, "random_median": 0, "percentile": 0}
    one, two = (select(pool, 3, generator(seed, "x")).indices.tolist() for seed in (0, 3))
    assert one != two, "among equals, the seed decides"
    zero = of_embeddings(np.concatenate([np.zeros((3, 4)), np.eye(4)]), np.zeros((1, 4)))
    selection = select(zero, 3, generator(0, "x"), weights=EMBEDDING)
    assert not zero.embeddings(selection.indices).any()
    assert math.isfinite(selection.notes["distance"]["all"]["random_median"])
    single = select(of_lengths([5, 9], [9]), 1, generator(0, "x"), weights=LENGTH)
    assert single.reasons[0]["distance"] == 0
    with pytest.raises(ValueError, match=r"domain_matched needs .* set corpus.production"):
        select(of_lengths([5], []), 1, generator(0, "x"), weights=LENGTH)


def test_candidates_bound_both_sides_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = planted()
    few = select(pool, 4, generator(0, "x"), candidates=30)
    assert few.notes["candidates"] == 30 and few.notes["reference_samples"] == 30 and few.notes["pool"] == 180
    assert select(pool, 40, generator(0, "x"), candidates=30).notes["candidates"] == 40
    expected = select(pool, 8, generator(1, "x"))
    monkeypatch.setattr(domain_matched, "BLOCK", 7)
    found = select(pool, 8, generator(1, "x"))
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert found.reasons == expected.reasons and found.notes == expected.notes


def test_the_order_on_disk_decides_nothing() -> None:
    one, two = planted(), planted(np.random.default_rng(5).permutation(180).tolist())
    first, second = (select(pool, 12, generator(4, "x")) for pool in (one, two))
    assert one.names(first.indices) == two.names(second.indices)
    assert first.reasons == second.reasons and first.notes == second.notes


def test_through_the_choice_without_embeddings(tmp_path: Path, choose: Any) -> None:
    rows = [sample(i, 10 + i) for i in range(30)]
    samples = write_samples(tmp_path / "s", [*rows, *(sample(80 + i, 30, "tuning") for i in range(4))])
    weights = {"length": 1, "embedding": 0, "tokens": 0}
    out = choose(samples, strategy="domain_matched", n=3, weights=weights)
    assert sorted(one["n_tokens"] for one in rows_of(out)) == [29, 30, 31]
    for wrong, message in (
        ({"length": 0, "embedding": 0, "tokens": 0}, "must be above 0"),
        ({"length": -1}, "greater than or equal to 0"),
        ({"lengths": 1}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=rf"calibrations: mine: weights.*{message}"):
            choose(samples, strategy="domain_matched", n=3, weights=wrong)
    with pytest.raises(ValueError, match="needs embeddings"):
        choose(samples, strategy="domain_matched", n=3)
