"""Hessian matching against dense matrices, brute force over every step, and planted directions."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plumbline.artifact import canonical_json
from plumbline.calibration_set.methods.greedy import lazy_greedy
from plumbline.calibration_set.select import choose as choose_by
from plumbline.calibration_set.strategies import get
from plumbline.calibration_set.strategies.base import Pool, Selection, generator
from plumbline.calibration_set.strategies.hessian_matching import (
    LogDet,
    WhitenedMoments,
    herd,
    inverse_root,
    packed,
    select,
    unpacked,
    whiten,
)
from plumbline.sample_features.signatures import Signatures, SignatureSite
from tests.helpers.calibration_pool import make_pool
from tests.helpers.tokenized_samples import sample

R = 4


def signatures(sketch: Any, tokens: Any = None) -> Signatures:
    """Signatures with the given sketches (N, S, r, r)."""
    sketch = np.asarray(sketch, np.float32)
    count, sites = sketch.shape[:2]
    return Signatures(
        tuple(f"{i:064x}" for i in range(count)),
        tuple(SignatureSite(f"site{i}", 1, i) for i in range(sites)),
        np.full(count, 10, np.int64) if tokens is None else np.asarray(tokens, np.int64),
        np.zeros((count, 2), np.float32),
        np.zeros((count, sites, 2), np.int32),
        np.zeros((count, sites), np.float32),
        sketch,
    )


def drawn(rng: np.random.Generator, count: int, sites: int = 2, r: int = R, tilt: float = 1.0) -> Signatures:
    """Samples of 2 to 40 tokens whose activations differ in covariance, with a spectrum that decays."""
    tokens = rng.integers(2, 41, count)
    sketch = np.empty((count, sites, r, r))
    for i in range(count):
        for site in range(sites):
            mix = rng.normal(size=(r, r)) * tilt + np.eye(r)
            y = rng.normal(size=(tokens[i], r)) @ mix * 3.0 ** -np.arange(r)
            sketch[i, site] = y.T @ y
    return signatures(sketch, tokens)


def dense_error(chosen: Signatures, reference: Signatures, site: int, weighting: str, damping: float) -> Any:
    """z_A - z* of one site as a full matrix, by scipy's matrix functions."""

    def mean(s: Signatures) -> NDArray[np.float64]:
        sketch = s.sketch[:, site].astype(np.float64)
        if weighting == "token":
            return sketch.sum(axis=0) / s.tokens.sum()
        return np.mean([x / t for x, t in zip(sketch, s.tokens, strict=True)], axis=0)

    h = mean(reference)
    w = scipy.linalg.fractional_matrix_power(h + damping * np.trace(h) / len(h) * np.eye(len(h)), -0.5)
    return w @ mean(chosen) @ w - w @ h @ w, w @ h @ w


@pytest.mark.parametrize("damping", [0.01, 0.5])
@pytest.mark.parametrize("weighting", ["token", "sequence"])
def test_distance_and_spectral_error_are_those_of_the_dense_matrices(weighting: Any, damping: float) -> None:
    rng = np.random.default_rng(0)
    candidates, reference = drawn(rng, 20), drawn(rng, 30)
    moments = whiten(candidates, reference, weighting, damping)
    for rows in (np.array([3]), np.array([1, 5, 7, 19]), np.arange(20)):
        off, near = zip(
            *(dense_error(candidates.take(rows), reference, site, weighting, damping) for site in range(2)), strict=True
        )
        eigenvalues = [np.linalg.eigvals(matrix).real for matrix in off]
        errors = moments.errors(rows)
        np.testing.assert_allclose(errors[0], [np.abs(values).max() for values in eigenvalues], rtol=1e-9)
        np.testing.assert_allclose(errors[1], [max(-values.min(), 0) for values in eigenvalues], rtol=1e-9, atol=1e-12)
        relative = [np.linalg.norm(a) ** 2 / np.linalg.norm(b) ** 2 for a, b in zip(off, near, strict=True)]
        assert moments.distance(rows) == pytest.approx(np.mean(relative), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["token", "sequence"]), st.sampled_from([1e-3, 1e-2, 1.0]))
def test_the_error_bounds_the_damped_hessians_as_promised(seed: int, weighting: Any, damping: float) -> None:
    """(1 - eps)(H* + l I) <= H_A + l I <= (1 + eps)(H* + l I), for vectors of all kinds, and eps is attained."""
    rng = np.random.default_rng(seed)
    candidates, reference = drawn(rng, 6, sites=1), drawn(rng, 20, sites=1)
    rows = np.arange(int(rng.integers(1, 7)))
    eps = whiten(candidates, reference, weighting, damping).errors(rows)[0][0]
    per = [s.tokens if weighting == "sequence" else np.full(len(s), s.tokens.mean()) for s in (candidates, reference)]
    h_a = (candidates.sketch[rows, 0] / per[0][rows, None, None]).sum(axis=0)
    h_a /= len(rows) if weighting == "sequence" else candidates.tokens[rows].sum() / candidates.tokens.mean()
    h = (reference.sketch[:, 0] / per[1][:, None, None]).mean(axis=0)
    loading = damping * np.trace(h) / R * np.eye(R)
    ratios = scipy.linalg.eigh(h_a + loading, h + loading, eigvals_only=True)
    assert np.abs(ratios - 1).max() == pytest.approx(eps, rel=1e-6, abs=1e-9)


def test_packing_keeps_the_norm_and_is_undone() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(3, 2, 5, 5))
    a = a + a.swapaxes(-1, -2)
    entries = packed(a)
    assert entries.shape == (3, 2, 15)
    np.testing.assert_allclose((entries**2).sum(axis=-1), (a**2).sum(axis=(-1, -2)))
    np.testing.assert_allclose(unpacked(entries, 5), a, rtol=1e-15)


def test_the_inverse_root_is_one() -> None:
    rng = np.random.default_rng(2)
    for rank in (5, 2, 1):
        x = rng.normal(size=(rank, 5))
        h = x.T @ x
        w = inverse_root(h, 0.01)
        np.testing.assert_allclose(w @ (h + 0.01 * np.trace(h) / 5 * np.eye(5)) @ w, np.eye(5), atol=1e-9)
    assert not inverse_root(np.zeros((3, 3)), 0.01).any()


def spelled_out(moments: WhitenedMoments, start: list[int], n: int) -> tuple[list[int], list[float]]:
    """Herding by trying every candidate at every step, in loops."""
    chosen, distances = list(start), []
    for _ in range(n):
        tried = []
        for candidate in range(len(moments.z)):
            if candidate in chosen:
                tried.append(np.inf)
                continue
            rows = [*chosen, candidate]
            total = sum(moments.weight[row] for row in rows)
            per_site = []
            for site in range(moments.z.shape[1]):
                mean = sum(moments.z[row, site] for row in rows) / total
                per_site.append(np.sum((mean - moments.target[site]) ** 2) / (np.sum(moments.target[site] ** 2) or 1))
            tried.append(round(float(np.mean(per_site)), 10))
        chosen.append(int(np.argmin(tried)))
        distances.append(min(tried))
    return chosen[len(start) :], distances


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["token", "sequence"]), st.data())
def test_every_step_of_herding_is_the_best_of_all(seed: int, weighting: Any, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    moments = whiten(drawn(rng, 9), drawn(rng, 9), weighting)
    start = data.draw(st.lists(st.integers(0, 8), max_size=3, unique=True))
    n = data.draw(st.integers(0, 9 - len(start)))
    rows, distances = herd(moments, np.array(start, dtype=np.int64), n)
    expected, values = spelled_out(moments, start, n)
    assert rows.tolist() == expected
    assert distances == pytest.approx(values, abs=1e-9)
    if n:
        assert distances[-1] == pytest.approx(moments.distance(np.array([*start, *rows])), abs=1e-11)


def test_rounding_errors_decide_no_tie() -> None:
    """The later candidate is closer by less than sums are exact to."""
    z = np.array([[[1.5, 0, 1.5]], [[1.5 - 1e-14, 0, 1.5]], [[3.0, 0, 1.5]]])
    assert herd(WhitenedMoments(z, np.ones(3), np.array([[1.0, 0, 1]])), np.array([], np.int64), 3)[0].tolist() == [
        0,
        1,
        2,
    ]


def test_a_set_with_too_much_of_everything_lacks_nothing() -> None:
    once, twice = (signatures(np.eye(R)[None, None] * 10 * times) for times in (1, 2))
    assert whiten(twice, once, damping=1e-9).errors(np.array([0])).tolist() == [[pytest.approx(1)], [0]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 12.0]))
def test_log_det_gains_are_differences_of_slogdet_and_submodular(seed: int, start: float) -> None:
    rng = np.random.default_rng(seed)
    moments = whiten(drawn(rng, 8), drawn(rng, 8))
    full = unpacked(moments.z, R)
    order = rng.permutation(8)

    def value(rows: NDArray[np.int64]) -> float:
        return float(sum(np.linalg.slogdet(start * np.eye(R) + full[rows, site].sum(axis=0))[1] for site in range(2)))

    objective = LogDet(moments, start)
    last = np.full(8, np.inf)
    for step, row in enumerate(order):
        gains = objective.gains(np.arange(8))
        expected = [value(np.append(order[:step], other)) - value(order[:step]) for other in range(8)]
        np.testing.assert_allclose(gains, expected, atol=2e-9)
        assert (gains >= -1e-9).all()
        assert (gains <= last + 2e-9).all()
        last = gains
        objective.add(int(row))


def test_d_optimal_picks_reach_their_share_of_the_best_determinant() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        moments = whiten(drawn(rng, 10), drawn(rng, 10))
        gains = lazy_greedy(LogDet(moments, 1.0), np.arange(10), 3)[1]
        full = unpacked(moments.z, R)
        best = max(
            sum(np.linalg.slogdet(np.eye(R) + full[list(rows), site].sum(axis=0))[1] for site in range(2))
            for rows in combinations(range(10), 3)
        )
        assert (1 - (1 - 1 / 3) ** 3) * best <= sum(gains) <= best + 1e-8


def pool_of(candidates: Signatures, reference: Signatures | None, unsigned: int = 0, order: Any = None) -> Pool:
    """A pool whose sorted rows have the candidates' signatures, and `unsigned` further samples without."""
    rows = [sample(i, int(tokens)) for i, tokens in enumerate(candidates.tokens)]
    rows.sort(key=lambda row: str(row["sample_id"]))
    candidates = candidates.take([row["input_ids"][1] // 1000 - 1 for row in rows])
    others = [] if reference is None else [sample(1000 + i, 5, "tuning") for i in range(len(reference))]
    parts = [(candidates, rows)] + ([] if reference is None else [(reference, others)])
    fields = ("tokens", "pooled", "cells", "absmax", "sketch")
    joined = Signatures(
        tuple(row["sample_id"] for _, part in parts for row in part),
        candidates.sites,
        *(np.concatenate([getattr(s, field) for s, _ in parts]) for field in fields),
    )
    rows = rows + [sample(5000 + i, 5) for i in range(unsigned)]
    return make_pool(rows=rows, order=order, tuning=others, signatures=joined)


def choose(pool: Pool, n: int, seed: int = 0, **options: Any) -> Selection:
    return select(pool, n, generator(seed, "hessian_matching"), **options)


def test_a_set_comes_closer_than_random_draws_and_says_so() -> None:
    rng = np.random.default_rng(4)
    pool = pool_of(drawn(rng, 60), drawn(rng, 60), unsigned=5)
    selection = choose(pool, 10, d_optimal=0.0)
    moments = whiten(pool.signatures(pool.signed), pool.tuning.signatures(pool.tuning.signed))
    at = np.searchsorted(pool.signed, selection.indices)
    notes = selection.notes
    assert notes["prefilter"] == {"signed": 60, "of": 65}
    assert notes["reference"] == {"split": "tuning", "samples": 60}
    assert notes["distance"]["value"] == pytest.approx(moments.distance(at), abs=1e-6)
    assert notes["distance"]["percentile"] == 0
    assert notes["distance"]["ratio"] < 0.5
    # the null is of 200 draws with the choice's own seed
    stream = generator(0, "hessian_matching")
    draws = [stream.choice(60, 10, replace=False) for _ in range(200)]
    for i, name in enumerate(("spectral_error", "lacking")):
        errors = np.array([moments.errors(draw)[i] for draw in draws])
        assert notes[name]["mean"]["value"] == pytest.approx(moments.errors(at)[i].mean(), abs=1e-6)
        assert notes[name]["max"]["value"] == pytest.approx(moments.errors(at)[i].max(), abs=1e-6)
        assert notes[name]["mean"]["null"]["median"] == pytest.approx(np.median(errors.mean(axis=1)), abs=1e-6)
        assert notes[name]["max"]["null"]["p95"] == pytest.approx(np.percentile(errors.max(axis=1), 95), abs=1e-6)
        assert list(notes[name]["sites"]) == ["site0", "site1"]
        assert notes[name]["sites"]["site1"]["null"]["median"] == pytest.approx(np.median(errors[:, 1]), abs=1e-6)
    assert notes["spectral_error"]["mean"]["percentile"] < 5
    assert notes["tokens"]["value"] == pool.lengths[selection.indices].sum()


def test_the_share_of_d_optimal_picks_comes_first_and_herding_starts_from_them() -> None:
    rng = np.random.default_rng(5)
    pool = pool_of(drawn(rng, 30), drawn(rng, 30))
    moments = whiten(pool.signatures(pool.signed), pool.tuning.signatures(pool.tuning.signed))
    selection = choose(pool, 10, d_optimal=0.2)
    assert [reason["part"] for reason in selection.reasons] == ["d_optimal"] * 2 + ["herding"] * 8
    assert [reason["step"] for reason in selection.reasons] == list(range(1, 11))
    first, gains = lazy_greedy(LogDet(moments, 8.0), np.arange(30), 2)
    then, distances = herd(moments, first, 8)
    assert selection.indices.tolist() == pool.signed[np.append(first, then)].tolist()
    assert [reason["log_det_gain"] for reason in selection.reasons[:2]] == pytest.approx(gains, abs=1e-9)
    assert [reason["distance"] for reason in selection.reasons[2:]] == pytest.approx(distances, abs=1e-9)
    for share, part in ((0.0, "herding"), (1.0, "d_optimal")):
        assert {reason["part"] for reason in choose(pool, 7, d_optimal=share).reasons} == {part}
    counts = {n: choose(pool, n, d_optimal=0.2).notes["d_optimal"] for n in (1, 2, 3, 8, 30)}
    assert counts == {1: 0, 2: 0, 3: 1, 8: 2, 30: 6}


def test_a_rare_direction_that_random_draws_miss_is_found() -> None:
    """3 of 150 samples move in the last direction; production moves there as rarely."""
    rng = np.random.default_rng(6)

    def planted(count: int, rare: list[int]) -> Signatures:
        y = rng.normal(size=(count, 50, R)) * [1, 1, 1, 1e-3]
        y[rare, :5, -1] = 3
        return signatures(np.einsum("nti,ntj->nij", y, y)[:, None], np.full(count, 50))

    candidates, reference = planted(150, [20, 77, 101]), planted(150, [3, 50, 149])
    pool = pool_of(candidates, reference)
    lonely = {int(row) for row in np.flatnonzero(pool.signatures(pool.signed).sketch[:, 0, -1, -1] > 1)}
    assert len(lonely) == 3

    def found(**options: Any) -> bool:
        return bool(lonely & set(choose(pool, 5, **options).indices.tolist()))

    assert found(d_optimal=0.2)
    draws = [set(np.random.default_rng(seed).permutation(150)[:5].tolist()) for seed in range(200)]
    assert np.mean([bool(lonely & draw) for draw in draws]) < 0.2
    notes = choose(pool, 5, d_optimal=0.2).notes
    assert notes["lacking"]["max"]["null"]["median"] > 0.5  # the typical draw lacks most of that direction
    assert notes["lacking"]["max"]["value"] < 0.3


def test_weighting_decides_whether_a_long_sample_outweighs_a_short_one() -> None:
    """One of 90 tokens in direction 0, one of 10 in direction 1: production is half and half by sequence."""
    e = np.zeros((2, 1, 2, 2))
    e[0, 0, 0, 0], e[1, 0, 1, 1] = 90, 10
    both = signatures(e, [90, 10])
    even = signatures(np.eye(2)[None, None] * 50, [100])
    for weighting, far in (("token", 2 * 0.4**2 / 0.5), ("sequence", 0.0)):
        moments = whiten(both, even, weighting, 1e-9)  # type: ignore[arg-type]
        assert moments.distance(np.arange(2)) == pytest.approx(far, abs=1e-6)


def test_pathologies() -> None:
    """n = 1, all samples equal, rank one, and sites without any activation: all sums stay finite, ties go by id."""
    rng = np.random.default_rng(7)
    same = signatures(np.repeat(np.eye(R)[None, None] * 10, 6, axis=0))
    nothing = signatures(np.zeros((6, 2, R, R)))
    x = rng.normal(size=(6, 1, R))
    rank_one = signatures(x[..., None] * x[..., None, :])
    silent_reference = signatures(np.zeros((6, 1, R, R)))
    for candidates, reference in (
        (same, same),
        (nothing, nothing),
        (rank_one, rank_one),
        (rank_one, silent_reference),
        (same, rank_one),
    ):
        pool = pool_of(candidates, reference)
        for n in (1, 3, 6):
            for share in (0.0, 0.2, 1.0):
                selection = choose(pool, n, d_optimal=share)
                assert len(set(selection.indices.tolist())) == n
                figures = [reason.get("distance", reason.get("log_det_gain")) for reason in selection.reasons]
                assert np.isfinite(figures).all()
                assert np.isfinite(selection.notes["spectral_error"]["max"]["value"])
                if candidates is same or reference is silent_reference:
                    assert selection.indices.tolist() == list(range(n))
    selection = choose(pool_of(same, same), 3)
    assert selection.notes["spectral_error"]["max"] == {
        "value": 0.0,
        "null": {"median": 0.0, "p05": 0.0, "p95": 0.0},
        "percentile": 50.0,
        "ratio": None,
    }


def test_the_same_call_gives_the_same_choice_at_any_number_of_threads() -> None:
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(8)
    pool = pool_of(drawn(rng, 80, r=32), drawn(rng, 80, r=32))
    results = []
    for count in (1, 2):
        with threadpool_limits(count):
            results.append(choose(pool, 12))
    assert results[0].indices.tolist() == results[1].indices.tolist()
    assert (results[0].reasons, results[0].notes) == (results[1].reasons, results[1].notes)


def test_the_order_on_disk_decides_nothing() -> None:
    rng = np.random.default_rng(10)
    candidates, reference = drawn(rng, 20), drawn(rng, 20)
    a, b = (pool_of(candidates, reference, order=order) for order in (range(20), rng.permutation(20)))
    assert a.stream.tolist() != b.stream.tolist()
    one, other = choose(a, 8), choose(b, 8)
    assert a.names(one.indices) == b.names(other.indices)
    assert (one.reasons, one.notes) == (other.reasons, other.notes)


def test_too_few_signatures_and_other_sites_say_what_to_do() -> None:
    some = drawn(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match=r"hessian_matching.*n = 5, found 3 of the 9 samples.*features\.signatures"):
        choose(pool_of(some, some, unsigned=6), 5)
    with pytest.raises(ValueError, match=r"tuning split, which holds 0 samples"):
        choose(pool_of(some, None), 2)
    with pytest.raises(ValueError, match="differ in their sites"):
        whiten(some, drawn(np.random.default_rng(0), 3, sites=1))


def test_it_keeps_the_contract_and_what_it_says_can_be_stored() -> None:
    rng = np.random.default_rng(9)
    pool = pool_of(drawn(rng, 20), drawn(rng, 20))
    asked = {"name": "mine", "strategy": "hessian_matching", "n": 4, "seed": 3, "domains": None, "allow_fewer": False}
    selection = choose_by(pool, get("hessian_matching"), asked, len(pool))
    assert selection.indices.tolist() == choose(pool, 4, seed=3).indices.tolist()
    for said in (selection.notes, *selection.reasons):
        assert json.loads(canonical_json(said)) == said


def test_options_are_checked() -> None:
    options = get("hessian_matching").options
    assert options().model_dump() == {"d_optimal": 0.0, "weighting": "token", "damping": 0.01}
    for wrong in ({"d_optimal": -0.1}, {"weighting": "length"}, {"damping": 0}):
        with pytest.raises(ValueError):
            options.model_validate(wrong)
