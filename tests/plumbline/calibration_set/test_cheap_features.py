from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from plumbline.calibration_set.methods import cheap_features as module
from plumbline.calibration_set.methods.cheap_features import cheap_features
from plumbline.calibration_set.strategies.base import Pool
from tests.helpers.calibration_pool import make_pool
from tests.helpers.tokenized_samples import sample


def a_pool(embeddings: Any, domains: int = 2) -> Pool:
    rows = [sample(number, 10 + 7 * number, domain=f"d{number % domains}") for number in range(len(embeddings))]
    return make_pool(
        rows=rows, embeddings={row["sample_id"]: e for row, e in zip(rows, embeddings, strict=True)}
    )  # fmt: skip


def drawn(count: int = 40) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(count, 6)) * [5, 4, 3, 1, 1, 1] / 20).astype(np.float16)


def test_columns_are_what_their_names_say() -> None:
    pool = a_pool(drawn())
    rows = np.array([3, 5, 8, 20, 21, 30, 31, 39])
    x, names = cheap_features(pool, rows, 3)
    assert names == ("log_length", "domain d0", "domain d1", "embedding 0", "embedding 1", "embedding 2")
    log = np.log(pool.lengths[rows])
    np.testing.assert_allclose(x[:, 0], (log - log.mean()) / log.std(), atol=1e-6)
    inside = np.array([pool.domains[row] == "d1" for row in rows])
    assert (x[inside, 2] > 0).all() and (x[~inside, 2] < 0).all()
    np.testing.assert_allclose(x.mean(0), 0, atol=2e-6)
    np.testing.assert_allclose(x.std(0), 1, atol=2e-6)
    e = pool.embeddings(rows).astype(np.float64)
    reference = PCA(3, svd_solver="full").fit(e)
    coordinates = reference.transform(e) * np.sign(
        reference.components_[range(3), np.abs(reference.components_).argmax(1)]
    )
    np.testing.assert_allclose(x[:, 3:], coordinates / coordinates.std(0), atol=2e-6)


def test_nothing_that_tells_apart_gives_zeros() -> None:
    rows = [sample(number, 10) for number in range(5)]
    pool = make_pool(rows=rows, embeddings={row["sample_id"]: np.full(4, 0.3) for row in rows})
    x, names = cheap_features(pool, np.arange(5), 8)
    assert x.shape == (5, 1 + 1 + 4) == (5, len(names)) and not x.any()
    one, _ = cheap_features(pool, np.array([2]), 8)
    assert not one.any()


def test_embeddings_are_not_read_unless_asked_for() -> None:
    pool = make_pool(rows=[sample(number, 10 + number) for number in range(5)])  # reading them would fail
    assert cheap_features(pool, np.arange(5), 0)[1] == ("log_length", "domain prose")


@pytest.mark.parametrize("block", [1, 7])
def test_large_pools_are_read_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = a_pool(drawn())
    whole, _ = cheap_features(pool, np.arange(40), 3)
    monkeypatch.setattr(module, "BLOCK", block)
    np.testing.assert_allclose(cheap_features(pool, np.arange(40), 3)[0], whole, atol=2e-6)
    monkeypatch.setattr(module, "FITTED", 20)
    fitted, _ = cheap_features(pool, np.arange(40), 3)
    assert fitted.shape == whole.shape and not np.allclose(fitted, whole, atol=1e-3)
    assert abs(np.corrcoef(fitted[:, 3], whole[:, 3])[0, 1]) > 0.8
