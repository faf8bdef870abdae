"""The panel as a whole: planted defects are flagged, fair sets are not, and words and numbers agree."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import binom

from plumbline.calibration_set.representativeness.compare import summary
from plumbline.calibration_set.representativeness.null import LEVEL, family_wise
from plumbline.calibration_set.representativeness.panel import Panel
from plumbline.calibration_set.representativeness.part import Part
from tests.helpers.panel import as_part, corpus, panel_of, plain_part

N = 48


@pytest.fixture(scope="module")
def texts() -> tuple[list[np.ndarray], np.ndarray, list[str], np.ndarray]:
    return corpus(900, 0)


@pytest.fixture(scope="module")
def panel(texts: tuple[list[np.ndarray], np.ndarray, list[str], np.ndarray]) -> Panel:
    return panel_of(as_part(*texts), as_part(*corpus(240, 1)))


def fair_rows(panel: Panel, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(panel.population), N, replace=False)


def test_fair_sets_are_flagged_at_no_more_than_the_nominal_rate(panel: Panel) -> None:
    null = panel.null(N)
    flagged = 0
    for seed in range(100):
        values = panel.measure(panel.population.take(fair_rows(panel, seed)))
        flagged += family_wise(values, null)[0] <= LEVEL
    assert flagged <= binom.ppf(0.999, 100, LEVEL)


def test_a_set_that_misses_a_domain_is_flagged(panel: Panel) -> None:
    prose = np.flatnonzero(panel.population.domain_tokens[:, 1])[:N]
    found = panel.judge(panel.population.take(prose))
    assert found["p_value"] == pytest.approx(1 / 201)
    assert {"domain_mix", "token_jsd", "embedding_energy"} <= set(found["flagged"])
    assert found["sentences"][0] == found["metrics"][found["flagged"][0]]["sentence"]
    assert found["verdict"].startswith("Farther from the tuning split than random draws of its size (p = 0.005) in ")
    worst = [panel.metrics[name].label for name in found["flagged"][:3]]
    assert found["verdict"].endswith(f" in {', '.join(worst)} and {len(found['flagged']) - 3} more.")


def test_a_set_that_cuts_long_samples_is_flagged(panel: Panel, texts: tuple) -> None:
    ids, domain, documents, embeddings = texts
    rows = fair_rows(panel, 1000)
    cut = [ids[row][:40] for row in rows]
    found = panel.judge(as_part(cut, domain[rows], [documents[row] for row in rows], embeddings[rows]))
    assert {"log_length_ks", "log_length_w1", "token_length_ks", "tokens_beyond_longest"} <= set(found["flagged"])
    beyond = [sentence for sentence in found["sentences"] if "longer than any calibration sample" in sentence]
    lengths = panel.production.lengths
    percent = 100 * lengths[lengths > 40].sum() / lengths.sum()
    assert beyond[0].startswith(f"{percent:.1f} % of production tokens sit in ")


def test_a_set_of_another_tokenizer_is_flagged(panel: Panel) -> None:
    part = panel.population.take(fair_rows(panel, 1001))
    size = part.counts.shape[1]
    new = np.concatenate([[0, 1], 2 + np.random.default_rng(0).permutation(size - 2)])
    counts = csr_array((part.counts.data, new[part.counts.indices], part.counts.indptr), shape=part.counts.shape)
    found = panel.judge(replace(part, counts=counts))
    assert {"token_jsd", "missing_vocabulary", "classifier_auc"} <= set(found["flagged"])
    assert not {"log_length_ks", "domain_mix", "embedding_energy"} & set(found["flagged"])
    assert any("share of <" in sentence for sentence in found["sentences"] if "gives it away" in sentence)


def test_a_set_without_the_token_that_production_begins_with_is_flagged(panel: Panel, texts: tuple) -> None:
    ids, domain, documents, embeddings = texts
    rows = fair_rows(panel, 1002)
    bare = [ids[row][1:] for row in rows]
    found = panel.judge(as_part(bare, domain[rows], [documents[row] for row in rows], embeddings[rows]))
    assert {"special_beginning", "missing_special"} <= set(found["flagged"])
    assert found["metrics"]["special_beginning"]["value"] == found["metrics"]["missing_special"]["value"] == 1


def test_a_set_of_near_duplicates_is_flagged(panel: Panel, texts: tuple) -> None:
    ids, domain, documents, embeddings = texts
    rows = np.repeat(fair_rows(panel, 1003)[: N // 8], 8)
    rng = np.random.default_rng(0)
    near = [np.concatenate([ids[row][:-1], rng.integers(2, 300, 1)]).astype(np.int32) for row in rows]
    moved = embeddings[rows] + 0.01 * rng.normal(size=(N, embeddings.shape[1]))
    found = panel.judge(as_part(near, domain[rows], [documents[row] for row in rows], moved))
    assert {"token_jsd", "missing_vocabulary", "embedding_energy", "cluster_jsd"} <= set(found["flagged"])


def test_every_number_comes_with_its_null_and_the_whole_is_json(panel: Panel) -> None:
    found = panel.judge(panel.population.take(fair_rows(panel, 3)))
    assert found["null"] == f"200 random draws of {N} samples from the pool (900 samples)"
    assert found["reference_samples"] == 240
    assert set(found["metrics"]) == set(panel.metrics)
    for name, metric in found["metrics"].items():
        assert 0 <= metric["percentile"] <= 100
        null = panel.null(N)[name]
        assert metric["null"]["median"] == pytest.approx(np.median(null), rel=1e-8)
        assert metric["ratio"] is None or metric["ratio"] == pytest.approx(metric["value"] / np.median(null), rel=1e-6)
        assert f"{metric['percentile']:.0f} % of random draws of this size come closer" in metric["sentence"]
        assert 0 < metric["p"] <= 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_whole_pool_as_a_set_is_as_far_as_every_draw_of_it(panel: Panel) -> None:
    small = panel_of(panel.population.take(np.arange(60)), panel.production)
    found = small.judge(small.population)
    assert found["p_value"] == 1
    assert {metric["percentile"] for metric in found["metrics"].values()} == {50}


def test_a_set_of_one_sample_is_judged(panel: Panel) -> None:
    found = panel.judge(panel.population.take(np.array([5])))
    assert found["samples"] == 1
    assert found["p_value"] > LEVEL


def test_equal_samples_everywhere_differ_in_nothing() -> None:
    same = plain_part([5] * 30, embeddings=np.ones((30, 3)) / np.sqrt(3))
    found = panel_of(same, same).judge(same.take(np.arange(7)))
    assert found["p_value"] == 1
    assert found["flagged"] == []
    assert all(metric["value"] == pytest.approx(metric["null"]["median"]) for metric in found["metrics"].values())


def test_a_pool_looked_at_in_part_is_drawn_from_with_replacement(panel: Panel) -> None:
    part = panel_of(panel.population, panel.production, pool_samples=10**6)
    assert "900 of which are drawn from, with replacement" in part.judge(part.population.take(np.arange(9)))["null"]
    assert any(len(set(row)) < N for row in part.rows(N, part.aspects[0]).tolist())
    assert all(len(set(row)) == N for row in panel.rows(N, panel.aspects[0]).tolist())


def test_nulls_are_shared_by_sets_of_a_size_and_few_are_kept(panel: Panel) -> None:
    assert panel.null(N) is panel.null(N)
    for n in range(2, 9):
        panel.null(n)
    assert len(panel.nulls) <= 4


def test_what_is_not_measured_is_said(panel: Panel) -> None:
    plain = replace(panel.population, embeddings=None)
    why = {"embeddings": "there are none", "activations": "features.signatures is null"}
    found = panel_of(plain, panel.production, unmeasured=why).judge(plain.take(np.arange(9)))
    assert "embedding_energy" not in found["metrics"]
    assert "classifier_auc" in found["metrics"]
    assert found["sentences"][-2:] == [
        "Embeddings: not measured: there are none",
        "Activations: not measured: features.signatures is null",
    ]
    bare = replace(panel.population.take(np.arange(9)), embeddings=None)
    found = panel.judge(bare, {"embeddings": "the embedder has moved"})
    assert "classifier_auc" not in found["metrics"]
    assert found["sentences"][-1] == "Embeddings: not measured: the embedder has moved"


def test_the_production_sample_comes_first_where_there_is_one(panel: Panel) -> None:
    prose: Part = panel.population.take(np.flatnonzero(panel.population.domain_tokens[:, 1])[:N])
    against = {"production": replace(panel, name="production").judge(prose), "tuning": panel.judge(prose)}
    found = summary(against)
    assert found["primary"] == "production"
    assert found["sentences"][:2] == [against["production"]["verdict"], against["tuning"]["verdict"]]
    assert found["sentences"][2] == against["production"]["sentences"][0]
    first = against["tuning"]["metrics"][against["tuning"]["flagged"][0]]["sentence"]
    assert f"Against the tuning split: {first}" in found["sentences"]
