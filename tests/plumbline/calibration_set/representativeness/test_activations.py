from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh

from plumbline.calibration_set.representativeness.activations import DAMPING, Activations
from plumbline.sample_features.signatures import Magnitudes, Signatures, SignatureSite
from tests.helpers.panel import plain_part

WIDTHS = (3, 5)
SITES = (SignatureSite("first", 3, 0), SignatureSite("second", 5, 3))
R = 4
PROBES = [np.random.default_rng(i).normal(size=(width, R)) / 2 for i, width in enumerate(WIDTHS)]
EDGES = np.array([0, *2.0 ** np.arange(-8, 8.25, 0.25), np.inf])

Activation = list[np.ndarray]
"""Per site, (tokens, width)."""


def activations(rng: np.random.Generator, scale: float = 1.0) -> Activation:
    tokens = int(rng.integers(2, 9))
    return [scale * rng.standard_t(4, size=(tokens, width)) * np.arange(1, width + 1) for width in WIDTHS]


def signatures(samples: list[Activation]) -> Signatures:
    y = [[x @ probe for x, probe in zip(sample, PROBES, strict=True)] for sample in samples]
    return Signatures(
        tuple(str(i) for i in range(len(samples))),
        SITES,
        np.array([len(sample[0]) for sample in samples]),
        np.zeros((len(samples), 1), np.float32),
        np.zeros((len(samples), 2, 1), np.int32),
        np.array([np.concatenate([np.abs(x).max(axis=0) for x in sample]) for sample in samples], np.float32),
        np.array([[part.T @ part for part in sample] for sample in y], np.float32),
    )


def magnitudes(samples: list[Activation]) -> Magnitudes:
    x = np.concatenate([np.concatenate(sample, axis=1) for sample in samples])
    return Magnitudes(EDGES, np.stack([np.histogram(np.abs(column), EDGES)[0] for column in x.T]))


@pytest.fixture
def production() -> list[Activation]:
    rng = np.random.default_rng(0)
    return [activations(rng) for _ in range(300)]


@pytest.fixture
def pool() -> list[Activation]:
    rng = np.random.default_rng(1)
    return [activations(rng, 0.8) for _ in range(60)]


@pytest.fixture
def aspect(pool: list[Activation], production: list[Activation]) -> Activations:
    return Activations.prepare(signatures(pool), signatures(production), magnitudes(production))


def chosen(samples: list[Activation]) -> object:
    return plain_part([3] * len(samples), signatures=signatures(samples))


def test_clip_rate_is_the_share_of_production_beyond_the_set_s_maxima(
    aspect: Activations, pool: list[Activation], production: list[Activation]
) -> None:
    found = aspect.of_set(chosen(pool[:4]))
    x = np.concatenate([np.concatenate(sample, axis=1) for sample in production])
    limit = np.max([np.abs(np.concatenate(sample, axis=1)).max(axis=0) for sample in pool[:4]], axis=0)
    exact = (np.abs(x) > limit).mean(axis=0)
    in_buckets = magnitudes(production).share_above(limit.astype(np.float32))
    assert in_buckets == pytest.approx(exact, abs=0.02)  # a bucket is a quarter of an octave here
    by_site = [in_buckets[:3].mean(), in_buckets[3:].mean()]
    assert found["clip_rate"] == pytest.approx(np.mean(by_site), abs=1e-12)
    assert found["clip_rate_worst_site"] == pytest.approx(max(by_site), abs=1e-12)
    assert aspect.where(chosen(pool[:4]))["clip_rate_worst_site"] == ("first", "second")[int(np.argmax(by_site))]


def test_peaks_are_reached_where_the_set_s_maximum_is_in_the_bucket_of_production_s_percentile_or_beyond(
    aspect: Activations, pool: list[Activation], production: list[Activation]
) -> None:
    limit = signatures(pool).absmax.max(axis=0)
    x = np.abs(np.concatenate([np.concatenate(sample, axis=1) for sample in production]))
    exact = np.quantile(x, 0.999, axis=0, method="inverted_cdf")
    begins = EDGES[np.searchsorted(EDGES, exact, side="right") - 1]
    found = aspect.of_set(chosen(pool))["peaks_not_reached"]
    assert found == np.mean(limit < begins)
    assert found > 0
    assert aspect.of_set(chosen(production))["peaks_not_reached"] == 0


def test_hessian_error_matches_dense_float64_algebra(
    aspect: Activations, pool: list[Activation], production: list[Activation]
) -> None:
    errors = []
    for site, probe in enumerate(PROBES):

        def second(samples: list[Activation], site: int = site, probe: np.ndarray = probe) -> np.ndarray:
            y = np.concatenate([sample[site] @ probe for sample in samples])
            moment = y.T @ y / len(y)
            return moment + DAMPING * np.trace(moment) / R * np.eye(R)

        values = eigh(second(pool[:10]), second(production), eigvals_only=True)
        errors.append(np.abs(values - 1).max())
    found = aspect.of_set(chosen(pool[:10]))
    assert found["hessian_error"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found["hessian_error_worst_site"] == pytest.approx(max(errors), rel=1e-4)
    assert aspect.of_set(chosen(production))["hessian_error"] == pytest.approx(0, abs=1e-6)


def test_more_samples_never_clip_more_and_their_order_is_nothing(aspect: Activations, pool: list[Activation]) -> None:
    before = 1.0
    for n in (1, 5, 20, 60):
        found = aspect.of_set(chosen(pool[:n]))
        assert found == pytest.approx(aspect.of_set(chosen(pool[:n][::-1])), rel=1e-6)
        assert found["clip_rate"] <= before
        before = found["clip_rate"]


@pytest.mark.parametrize("n", [1, 7, 130])
def test_random_sets_are_measured_as_a_set_is(aspect: Activations, pool: list[Activation], n: int) -> None:
    rows = np.random.default_rng(n).integers(0, aspect.size, (3, n))  # with repeats, and over one block of maxima
    found = aspect.of_draws(rows)
    for number, row in enumerate(rows):
        one = aspect.of_set(plain_part([3] * n, signatures=signatures(pool).take(row)))
        assert {name: found[name][number] for name in found} == pytest.approx(one, rel=1e-9)


def test_a_limit_in_the_first_and_in_the_last_bucket(pool: list[Activation], production: list[Activation]) -> None:
    of = magnitudes(production)
    aspect = Activations.prepare(signatures(pool), signatures(production), of)
    for limit in (0.0, 1e-9, 0.3, 1e9):
        limits = np.full(8, limit, np.float32)
        assert aspect._share_above(limits) == pytest.approx(of.share_above(limits), abs=1e-12)


def test_a_set_without_signatures_is_not_measured(aspect: Activations) -> None:
    assert aspect.of_set(plain_part([3])) == {}
    assert aspect.where(plain_part([3])) == {}
