from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from plumbline.calibration_set.representativeness.classifier import RIDGE, Classifier, auc, in_words
from plumbline.calibration_set.representativeness.part import FOLDS, Part
from tests.helpers.panel import as_part, corpus, plain_part

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=20)


def name_of(token: int) -> str:
    return f"<{token}>"


@given(SCORES, SCORES)
def test_auc_matches_scikit_learn_with_ties(x: list[int], y: list[int]) -> None:
    expected = roc_auc_score([1] * len(x) + [0] * len(y), x + y)
    assert auc(np.array(x, float), np.array(y, float)) == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def parts() -> tuple[Part, Part]:
    return as_part(*corpus(240, 0)), as_part(*corpus(90, 1))


def test_every_fold_is_judged_by_a_discriminant_fitted_without_its_documents(parts: tuple[Part, Part]) -> None:
    pool, production = parts
    aspect = Classifier.prepare(pool, production, name_of)
    chosen = pool.take(np.arange(40))
    x, y = aspect.features.of(chosen), aspect.features.of(production)
    area = pairs = 0.0
    for fold in range(FOLDS):
        train = [x[chosen.fold != fold], y[production.fold != fold]]
        test = [x[chosen.fold == fold], y[production.fold == fold]]
        within = sum(np.cov(part.T, bias=True) * len(part) for part in train) / sum(map(len, train))
        inverse = np.linalg.inv(within + RIDGE * np.eye(x.shape[1]))
        direction = inverse @ (train[0].mean(axis=0) - train[1].mean(axis=0))
        labels = np.repeat([1, 0], [len(part) for part in test])
        weight = len(test[0]) * len(test[1])
        area += weight * roc_auc_score(labels, np.concatenate(test) @ direction)
        pairs += weight
    assert pairs
    assert aspect.of_set(chosen)["classifier_auc"] == pytest.approx(area / pairs, abs=1e-9)


def test_the_samples_of_a_document_share_a_fold(parts: tuple[Part, Part]) -> None:
    folds = parts[0].fold.reshape(-1, 3)  # three samples to a document
    assert (folds == folds[:, :1]).all()
    assert set(folds[:, 0]) == set(range(FOLDS))


def test_features_are_standardised_by_production_and_readable(parts: tuple[Part, Part]) -> None:
    pool, production = parts
    features = Classifier.prepare(pool, production, name_of).features
    z = features.of(production)
    assert z.mean(axis=0) == pytest.approx(np.zeros(z.shape[1]), abs=1e-9)
    assert z.std(axis=0) == pytest.approx(np.ones(z.shape[1]), abs=1e-9)
    assert features.names[:2] == ("length", "share of distinct tokens")
    raw = features.mean + features.scale * features.of(pool)
    assert raw[:, 0] == pytest.approx(np.log(pool.lengths))
    commonest = int(np.argmax(production.counts.sum(axis=0)))
    assert features.names[2] == f"share of <{commonest}>"
    assert raw[:, 2] == pytest.approx(pool.counts[:, [commonest]].toarray().ravel() / pool.lengths)


def test_what_gives_a_set_away_is_named(parts: tuple[Part, Part]) -> None:
    pool, production = parts
    aspect = Classifier.prepare(pool, production, name_of)
    rows = np.random.default_rng(0).integers(0, len(pool), (100, 30))
    short = pool.take(np.argsort(pool.lengths)[:30])
    found = aspect.give_aways(short, rows)
    assert {found[0]["feature"], found[1]["feature"]} == {"length", "share of <1>"}  # the one <1> at the beginning
    length = found[0] if found[0]["feature"] == "length" else found[1]
    assert length["percentile"] == 0
    assert "length (-" in in_words(found)
    null = np.array([aspect.features.of(pool.take(row))[:, 0].mean() for row in rows])
    mine = aspect.features.of(short)[:, 0].mean()
    assert length["z"] == pytest.approx((mine - null.mean()) / null.std(), rel=1e-6)


def test_random_sets_are_measured_as_a_set_is_and_single_samples_tell_nothing(parts: tuple[Part, Part]) -> None:
    pool, production = parts
    aspect = Classifier.prepare(pool, production, name_of)
    for n in (1, 20):
        rows = np.random.default_rng(n).integers(0, aspect.size, (4, n))
        found = aspect.of_draws(rows)["classifier_auc"]
        assert found == pytest.approx([aspect.of_set(pool.take(row))["classifier_auc"] for row in rows], abs=1e-12)
        assert n > 1 or (found == 0.5).all()


def test_without_embeddings_length_and_tokens_are_enough(parts: tuple[Part, Part]) -> None:
    ids, domain, documents, _ = corpus(90, 1)
    plain = as_part(ids, domain, documents, None)
    other = as_part(*corpus(240, 0)[:3], None)
    aspect = Classifier.prepare(other, plain, name_of)
    short = other.take(np.argsort(other.lengths)[:30])
    assert aspect.of_set(short)["classifier_auc"] > 0.7
    with_embeddings = Classifier.prepare(*parts, name_of)
    assert with_embeddings.of_set(short) == {}  # a set without them cannot be compared with one that has


def test_equal_samples_cannot_be_told_apart() -> None:
    same = plain_part([5] * 40, documents=[str(i) for i in range(40)], embeddings=np.ones((40, 3)))
    assert Classifier.prepare(same, same, name_of).of_set(same)["classifier_auc"] == 0.5
