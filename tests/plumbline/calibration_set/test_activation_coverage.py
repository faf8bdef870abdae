"""ActivationCoverage of activation space against its definition spelled out, and the best set of all."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plumbline.artifact import canonical_json
from plumbline.calibration_set.select import choose as choose_by
from plumbline.calibration_set.strategies import get
from plumbline.calibration_set.strategies.activation_coverage import LEVELS, ActivationCoverage, select
from plumbline.calibration_set.strategies.base import Pool, Selection, generator
from plumbline.sample_features.signatures import Signatures, SignatureSite
from tests.helpers.calibration_pool import make_pool
from tests.helpers.tokenized_samples import sample


def signatures(cells: Any, absmax: Any, widths: tuple[int, ...] = (), names: tuple[str, ...] = ()) -> Signatures:
    """Signatures with the given cells (N, S, K) and maxima (N, W); one site of all channels unless told."""
    cells, absmax = np.asarray(cells, np.int32), np.asarray(absmax, np.float32)
    widths = widths or (absmax.shape[1],) + (0,) * (cells.shape[1] - 1)
    starts = np.cumsum([0, *widths]).tolist()
    count = len(cells)
    return Signatures(
        names or tuple(f"{i:064x}" for i in range(count)),
        tuple(SignatureSite(f"site{i}", width, starts[i]) for i, width in enumerate(widths)),
        cells[:, 0].sum(axis=1).astype(np.int64),
        np.zeros((count, 2), np.float32),
        cells,
        absmax,
        np.zeros((count, len(widths), 2, 2), np.float32),
    )


def drawn(rng: np.random.Generator, count: int, sites: int = 2, cells: int = 5, width: int = 3) -> Signatures:
    """Samples of 1 to 60 tokens with heavy-tailed maxima."""
    tokens = rng.integers(1, 61, count)
    mixes = rng.dirichlet(np.full(cells, 0.3), (count, sites))
    return signatures(
        rng.multinomial(tokens[:, None], mixes),
        rng.choice([0.5, 1, 2, 8], (count, 1)) * rng.exponential(1, (count, sites * width)),
        (width,) * sites,
    )


def by_definition(
    chosen: Signatures, reference: Signatures, n: int, outliers: float, weighting: str
) -> tuple[float, float]:
    """f_c and f_o in loops; f_o as the range that clipping at the reached thresholds would lose, site by site."""
    mean = sum(reference.tokens.tolist()) / len(reference)
    cells: list[float] = []
    channels: list[float] = []
    for number, site in enumerate(reference.sites):
        total = 0.0
        for cell in range(reference.cells.shape[2]):
            if weighting == "token":
                p = reference.cells[:, number, cell].sum() / reference.tokens.sum()
                count = float(chosen.cells[:, number, cell].sum())
            else:
                p = float(np.mean(reference.cells[:, number, cell] / reference.tokens))
                count = mean * float(np.sum(chosen.cells[:, number, cell] / chosen.tokens))
            total += p * min(1, count / max(1, n * mean * p))
        cells.append(total)
        lost = spread = 0.0
        for channel in range(site.start, site.start + site.width):
            a = sorted(map(float, reference.absmax[:, channel]))
            steps = [a[math.ceil(q * len(a)) - 1] for q in LEVELS]
            most = max(map(float, chosen.absmax[:, channel]))
            reached = max([steps[0]] + [step for step in steps if most >= step])
            lost += sum(max(x - reached, 0) for x in a) / len(a)
            spread += sum(max(x - steps[0], 0) for x in a) / len(a)
        if spread > 0:
            channels.append(1 - lost / spread)
    return float(np.mean(cells)), float(np.mean(channels)) if channels else 1.0


WEIGHTINGS = st.sampled_from(["token", "sequence"])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0, 1), WEIGHTINGS, st.data())
def test_it_is_what_its_definition_says(
    seed: int, count: int, outliers: float, weighting: Any, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    candidates, reference = drawn(rng, count), drawn(rng, int(rng.integers(1, 30)))
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True)))
    coverage = ActivationCoverage.of(candidates, reference, n := data.draw(st.integers(1, 12)), outliers, weighting)
    f, cells, channels = coverage.reached(rows)
    assert (cells, channels) == pytest.approx(
        by_definition(candidates.take(rows), reference, n, outliers, weighting), abs=1e-9
    )
    assert f == pytest.approx((1 - outliers) * cells + outliers * channels, abs=1e-12)
    # the gains of greedy are the differences of that, at every step
    for step, row in enumerate(rows):
        expected = coverage.reached(rows[: step + 1])[0] - coverage.reached(rows[:step])[0]
        assert coverage.gains(rows[step : step + 1])[0] == pytest.approx(expected, abs=1e-11)
        coverage.add(int(row))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), WEIGHTINGS, st.data())
def test_monotone_submodular_order_free_and_never_more_than_one(
    seed: int, outliers: float, weighting: Any, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    coverage = ActivationCoverage.of(drawn(rng, 10), drawn(rng, 20), 4, outliers, weighting)
    rows = data.draw(st.permutations(range(10)))
    small, large = sorted([data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))])

    def value(of: list[int]) -> NDArray[np.float64]:
        return coverage.reached(np.array(of, dtype=np.int64))

    assert np.all(value(rows[:small]) <= value(rows[:large]) + 1e-12)
    assert np.all(value(rows) <= 1 + 1e-12)
    np.testing.assert_allclose(value(rows[:large]), value(sorted(rows[:large])), atol=1e-12)
    new = rows[9]
    gain_small = value([*rows[:small], new]) - value(rows[:small])
    gain_large = value([*rows[:large], new]) - value(rows[:large])
    assert np.all(gain_large <= gain_small + 1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(-9, 9), WEIGHTINGS)
def test_a_site_counts_the_same_whatever_the_scale_of_its_activations(seed: int, power: int, weighting: Any) -> None:
    rng = np.random.default_rng(seed)
    candidates, reference = drawn(rng, 12), drawn(rng, 20)
    louder = [signatures(s.cells, s.absmax * ([2.0**power] * 3 + [1] * 3), (3, 3)) for s in (candidates, reference)]
    a = ActivationCoverage.of(candidates, reference, 4, 0.5, weighting).gains(np.arange(12))
    b = ActivationCoverage.of(*louder, 4, 0.5, weighting).gains(np.arange(12))
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_covering_one_minus_total_variation() -> None:
    """The reading of f_c that the docstring gives, for sets with as many tokens as asked and no cell under one."""
    reference = signatures([[[40, 30, 30]], [[20, 50, 30]]], [[1.0], [2.0]])
    chosen = signatures([[[100, 0, 0]], [[10, 80, 10]]], [[1.0], [2.0]])
    p, q = np.array([60, 80, 60]) / 200, np.array([110, 80, 10]) / 200
    cells = ActivationCoverage.of(chosen, reference, 2).reached(np.arange(2))[1]
    assert cells == pytest.approx(1 - np.abs(p - q).sum() / 2)
    assert ActivationCoverage.of(reference, reference, 2).reached(np.arange(2)).tolist() == pytest.approx([1, 1, 1])


def test_a_cell_asks_for_one_token_at_least() -> None:
    """A cell with a quarter of a token per set: one token fills it, and a sequence that has half of one fills half."""
    reference = signatures([[[39, 1]]], [[1.0]])
    chosen = signatures([[[9, 1]], [[79, 1]]], [[1.0]] * 2)
    small = signatures([[[9, 1]]] + [[[10, 0]]] * 3, [[1.0]] * 4)
    in_token = ActivationCoverage.of(chosen, small, 1)
    assert in_token.demand.tolist() == [9.75, 1.0]  # n t p = 10 × 1/40 in the second
    in_token = ActivationCoverage.of(chosen, reference, 1, 0, "sequence")
    assert in_token.demand.tolist() == [39.0, 1.0]
    assert in_token.reached(np.array([1]))[1] == pytest.approx(39 / 40 + 1 / 40 * (40 / 80))


def test_a_site_where_all_samples_reach_alike_leaves_the_outliers_to_the_others() -> None:
    one_flat = signatures([[[4]] * 2] * 3, [[1.0, 1, 7], [1, 1, 7], [1, 3, 7]], (2, 1))
    coverage = ActivationCoverage.of(one_flat, one_flat, 1)
    assert [coverage.reached(np.array([row]))[2] for row in range(3)] == [0, 0, 1]


def test_sequence_weighting_ignores_length_and_token_weighting_does_not() -> None:
    short, long = [[[1, 3]]], [[[100, 300]]]
    both = signatures(short + long, [[1.0], [1.0]])
    reference = signatures(long + long, [[1.0], [2.0]])
    assert np.ptp(ActivationCoverage.of(both, reference, 2, 0, "sequence").gains(np.arange(2))) == 0
    assert ActivationCoverage.of(both, reference, 2, 0, "token").gains(np.arange(2)).tolist() == pytest.approx(
        [0.005, 0.5]
    )


@pytest.mark.parametrize("weighting", ["token", "sequence"])
@pytest.mark.parametrize("outliers", [0.0, 0.5, 1.0])
def test_greedy_reaches_its_share_of_the_best_set(weighting: Any, outliers: float) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        candidates, reference = drawn(rng, 11), drawn(rng, 25)
        pool = pool_of(candidates, reference)
        in_order = pool.signatures(pool.signed)
        for n in (1, 2, 4):
            coverage = ActivationCoverage.of(in_order, reference, n, outliers, weighting)
            start = coverage.reached(np.array([], np.int64))[0]  # 0 but where there is nothing to reach
            best = max(coverage.reached(np.array(rows))[0] for rows in combinations(range(11), n)) - start
            chosen = choose(pool, n, outliers=outliers, weighting=weighting)
            got = coverage.reached(chosen.indices)[0] - start
            assert (1 - (1 - 1 / n) ** n) * best - 1e-9 <= got <= best + 1e-9
            assert chosen.notes["at_least_of_best"] <= got / best + 1e-6  # what the notes promise is kept
            for row in chosen.indices:
                coverage.add(int(row))
            more = sorted(coverage.gains(np.setdiff1d(np.arange(11), chosen.indices)).tolist())[-n:]
            bound = min(1.0, float(coverage.reached(chosen.indices)[0]) + sum(more))
            assert chosen.notes["at_least_of_best"] == pytest.approx((got + start) / bound, abs=1e-6)
            assert chosen.notes["coverage"]["all"]["value"] == pytest.approx(got, abs=1e-6)
            assert sum(reason["gain"] for reason in chosen.reasons) == pytest.approx(got, abs=1e-7)


def pool_of(
    candidates: Signatures, reference: Signatures | None, unsigned: int = 0, production: bool = False, order: Any = None
) -> Pool:
    """A pool with those signatures (lengths as theirs), and `unsigned` further samples without."""
    rows = [sample(i, int(max(tokens, 2))) for i, tokens in enumerate(candidates.tokens)]
    names = sorted(row["sample_id"] for row in rows)  # the candidates' order is the pool's
    others = [] if reference is None else [sample(1000 + i, 5, "tuning") for i in range(len(reference))]
    parts = [(candidates, names)] + ([] if reference is None else [(reference, [r["sample_id"] for r in others])])
    fields = ("tokens", "pooled", "cells", "absmax", "sketch")
    joined = Signatures(
        tuple(name for _, part in parts for name in part),
        candidates.sites,
        *(np.concatenate([getattr(s, field) for s, _ in parts]) for field in fields),
    )
    rows += [sample(5000 + i, 5) for i in range(unsigned)]
    if production:
        return make_pool(rows=rows, production=others, tuning=[], signatures=joined)
    return make_pool(rows=rows, order=order, tuning=others, signatures=joined)


def choose(pool: Pool, n: int, seed: int = 0, **options: Any) -> Selection:
    return select(pool, n, generator(seed, "activation_coverage"), **options)


def test_every_pick_and_the_whole_are_explained() -> None:
    """Three samples, each in a cell of its own, the third the loudest: all numbers by hand."""
    candidates = signatures([[[8, 0, 0]], [[0, 4, 0]], [[0, 0, 4]]], [[1.0, 5], [1, 5], [3, 5]])
    reference = signatures([[[4, 0, 0]], [[4, 4, 4]]], [[1.0, 5], [3, 5]])
    pool = pool_of(candidates, reference, unsigned=4)
    selection = choose(pool, 2)
    # n = 2, t = 8, p = (1/2, 1/4, 1/4), tau = (8, 4, 4); the only spread is channel 0, from 1 to 3
    signed = pool.signed
    assert selection.indices.tolist() == signed[[2, 0]].tolist()
    assert selection.reasons == [
        {"gain": 0.625, "cells_filled": 1, "channels_raised": 1 + 1},
        {"gain": 0.25, "cells_filled": 1, "channels_raised": 0},
    ]
    notes = selection.notes
    assert notes["prefilter"] == {"signed": 3, "of": 7}
    assert notes["reference"] == {"split": "tuning", "samples": 2}
    assert notes["coverage"]["cells"]["value"] == 0.75
    assert notes["coverage"]["outliers"]["value"] == 1
    assert notes["at_least_of_best"] == 0.875  # the third would add 1/8: f = 1 cannot be excluded from the gains alone
    assert notes["coverage"]["all"]["percentile"] > 50
    assert notes["tokens"]["value"] == 12


def test_the_null_is_the_same_statistic_of_200_draws() -> None:
    rng = np.random.default_rng(3)
    candidates, reference = drawn(rng, 30), drawn(rng, 30)
    pool = pool_of(candidates, reference)
    notes = choose(pool, 5, seed=7).notes["coverage"]
    coverage = ActivationCoverage.of(pool.signatures(pool.signed), reference, 5)
    stream = generator(7, "activation_coverage")
    null = np.array([coverage.reached(stream.choice(30, 5, replace=False)) for _ in range(200)])
    for i, name in enumerate(("all", "cells", "outliers")):
        assert notes[name]["null"]["median"] == pytest.approx(np.median(null[:, i]), abs=1e-6)
        assert notes[name]["null"]["p95"] == pytest.approx(np.percentile(null[:, i], 95), abs=1e-6)
        below = np.mean(null[:, i] < notes[name]["value"] - 1e-6)
        assert 100 * below <= notes[name]["percentile"] + 1e-9 <= 100 * below + 5
        assert notes[name]["ratio"] == pytest.approx(notes[name]["value"] / np.median(null[:, i]), abs=1e-3)
    assert notes["all"]["percentile"] == 100


def test_the_weight_of_outliers_decides_between_a_full_and_a_loud_sample() -> None:
    candidates = signatures([[[5, 5]], [[10, 0]]], [[1.0], [9.0]])
    reference = signatures([[[5, 5]]] * 3, [[1.0], [1.0], [9.0]])
    pool = pool_of(candidates, reference)
    assert choose(pool, 1, outliers=0.0).indices.tolist() == [0]
    assert choose(pool, 1, outliers=1.0).indices.tolist() == [1]


def test_production_is_the_reference_where_there_is_one() -> None:
    candidates, reference = drawn(np.random.default_rng(0), 6), drawn(np.random.default_rng(1), 4)
    pool = pool_of(candidates, reference, production=True)
    assert choose(pool, 2).notes["reference"] == {"split": "production", "samples": 4}


def test_the_same_call_gives_the_same_choice_and_all_of_the_pool_is_every_sample_once() -> None:
    rng = np.random.default_rng(5)
    candidates, reference = drawn(rng, 25), drawn(rng, 25)
    pool = pool_of(candidates, reference)
    first, again = choose(pool, 25), choose(pool, 25)
    assert first.indices.tolist() == again.indices.tolist()
    assert (first.reasons, first.notes) == (again.reasons, again.notes)
    assert sorted(first.indices.tolist()) == list(range(25))
    assert first.notes["coverage"]["all"]["ratio"] == 1  # every draw of all is all
    assert first.notes["coverage"]["all"]["percentile"] == 50


def test_the_order_on_disk_decides_nothing() -> None:
    rng = np.random.default_rng(10)
    candidates, reference = drawn(rng, 20), drawn(rng, 20)
    a, b = (pool_of(candidates, reference, order=order) for order in (range(20), rng.permutation(20)))
    assert a.stream.tolist() != b.stream.tolist()
    one, other = choose(a, 8), choose(b, 8)
    assert a.names(one.indices) == b.names(other.indices)
    assert (one.reasons, one.notes) == (other.reasons, other.notes)


def test_all_samples_equal_all_silent_and_n_of_one() -> None:
    same = signatures([[[3, 1]]] * 6, np.full((6, 2), 2.0))
    silent = signatures([[[3, 1]]] * 6, np.zeros((6, 2)))
    for case in (same, silent):
        pool = pool_of(case, case)
        for n in (1, 6):
            selection = choose(pool, n)
            assert selection.indices.tolist() == pool.signed[:n].tolist()  # ties go to the lowest sample id
            assert selection.notes["coverage"]["outliers"]["value"] == 1  # nothing to reach, nothing missed
            assert selection.notes["coverage"]["all"]["percentile"] == 50


def test_too_few_signatures_and_an_empty_reference_say_what_to_do() -> None:
    some = drawn(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match=r"n = 5, found 3 of the 10 samples.*features\.signatures\.pool"):
        choose(pool_of(some, some, unsigned=7), 5)
    with pytest.raises(ValueError, match=r"tuning split, which holds 0 samples.*tokenize\.splits\.tuning"):
        choose(pool_of(some, None), 2)
    other = signatures(some.cells, some.absmax, (6, 0))
    with pytest.raises(ValueError, match="differ in their sites"):
        ActivationCoverage.of(some, other, 2)


def test_wide_models_are_worked_on_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    candidates, reference = drawn(rng, 20), drawn(rng, 20)
    whole = ActivationCoverage.of(candidates, reference, 5).gains(np.arange(20))
    monkeypatch.setattr("plumbline.calibration_set.strategies.activation_coverage.CHUNK", 7)
    assert ActivationCoverage.of(candidates, reference, 5).gains(np.arange(20)).tolist() == whole.tolist()


def test_it_keeps_the_contract_and_what_it_says_can_be_stored() -> None:
    rng = np.random.default_rng(9)
    pool = pool_of(drawn(rng, 20), drawn(rng, 20))
    asked = {
        "name": "mine",
        "strategy": "activation_coverage",
        "n": 4,
        "seed": 3,
        "domains": None,
        "allow_fewer": False,
    }
    selection = choose_by(pool, get("activation_coverage"), asked, len(pool))
    assert selection.indices.tolist() == choose(pool, 4, seed=3).indices.tolist()
    for said in (selection.notes, *selection.reasons):
        assert json.loads(canonical_json(said)) == said


def test_options_are_checked() -> None:
    options = get("activation_coverage").options
    assert options().model_dump() == {"outliers": 0.5, "weighting": "token"}
    for wrong in ({"outliers": 1.5}, {"weighting": "length"}, {"other": 1}):
        with pytest.raises(ValueError):
            options.model_validate(wrong)
