"""Rank correlation against scipy, planted and absent."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plumbline.study.correlation import correlate, spearman

SETS = 24


def test_spearman_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (20, SETS)), rng.standard_normal((20, SETS))
    np.testing.assert_allclose(spearman(x, y), [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def measured(strength: float, seed: int) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    distances, kl = {}, {}
    for n in (8, 32):
        truth = rng.standard_normal(SETS)
        distances[n] = {
            "lengths": strength * truth + rng.standard_normal(SETS) + 100 / n,
            "tokens": rng.standard_normal(SETS),
            "still": np.ones(SETS),
        }
        for scheme in ("w4", "w3"):
            kl[scheme, n] = 0.1 / n * np.exp(0.05 * (truth if scheme == "w4" else rng.standard_normal(SETS)))
    return distances, kl


def test_a_planted_relation_is_found_under_its_scheme_alone() -> None:
    found = correlate(*measured(2.0, 1), ["w4", "w3"], 0.95, 999, 0)
    w4, w3 = found
    assert w4["metrics"][0]["metric"] == "lengths" and w4["metrics"][0]["predicts"]
    assert {entry["metric"] for entry in w4["metrics"]} == {"lengths", "tokens"}  # what does not vary is left out
    assert w4["metrics"][0]["low"] < w4["metrics"][0]["rho"] < w4["metrics"][0]["high"]
    assert w4["sentence"].startswith("w4: divergence goes with lengths (+0.")
    assert not any(entry["predicts"] for entry in w3["metrics"])
    assert w3["sentence"].startswith("w3: no, no metric of representativeness predicts divergence")


def test_the_figure_is_the_mean_within_sizes_and_not_across() -> None:
    """Both fall with the size, which is no relation between sets of one size."""
    distances, kl = measured(0.0, 2)
    found = correlate(distances, kl, ["w4"], 0.95, 999, 0)[0]
    (entry,) = [e for e in found["metrics"] if e["metric"] == "lengths"]
    by_size = [stats.spearmanr(distances[n]["lengths"], kl["w4", n]).statistic for n in (8, 32)]
    assert [e["rho"] for e in entry["by_size"]] == pytest.approx(by_size)
    assert entry["rho"] == pytest.approx(np.mean(by_size)) and not entry["predicts"]
    pooled = stats.spearmanr(
        np.concatenate([distances[n]["lengths"] for n in (8, 32)]), np.concatenate([kl["w4", n] for n in (8, 32)])
    )
    assert pooled.statistic > 0.5


def test_without_a_relation_hardly_anything_is_called() -> None:
    """60 studies of 4 metrics; the chance of more than 9 false alarms at 5 % per study is below 0.1 %."""
    false = 0
    for seed in range(60):
        found = correlate(*measured(0.0, 100 + seed), ["w4", "w3"], 0.95, 399, 0)
        false += any(entry["predicts"] for answer in found for entry in answer["metrics"])
    assert false <= 9


def test_detectable_is_what_is_found_four_times_in_five() -> None:
    least = correlate(*measured(0.0, 3), ["w4"], 0.95, 399, 0)[0]["detectable"]
    assert 0.4 < least < 0.6
    rng = np.random.default_rng(4)
    rho = 2 * np.sin(np.pi * least / 6)  # Pearson's of normal values with this Spearman's
    called = 0
    for seed in range(150):
        distances, kl = {}, {}
        for n in (8, 32):
            x = rng.standard_normal(SETS)
            distances[n] = {"a": x, "b": rng.standard_normal(SETS)}
            kl["w4", n] = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(SETS)
        found = correlate(distances, kl, ["w4"], 0.95, 399, seed)[0]
        called += next(e["predicts"] for e in found["metrics"] if e["metric"] == "a")
    assert 0.7 <= called / 150 <= 0.92


def test_models_that_do_not_differ_give_nothing_to_predict() -> None:
    distances, kl = measured(0.0, 5)
    kl = {key: np.ones(SETS) for key in kl}
    found = correlate(distances, kl, ["w4"], 0.95, 99, 0)[0]
    assert found["metrics"] == [] and "nothing to predict" in found["sentence"]


@pytest.mark.filterwarnings("error")
def test_a_metric_that_only_one_set_moves_is_judged_without_resamples_that_lack_it() -> None:
    distances, kl = measured(0.0, 3)
    for n in distances:
        distances[n]["rare"] = np.eye(1, SETS)[0]  # a third of the resamples at a size do not vary
    (found,) = correlate(distances, kl, ["w4"], 0.95, 499, 0)
    rare = next(entry for entry in found["metrics"] if entry["metric"] == "rare")
    assert -1 <= rare["low"] <= rare["rho"] <= rare["high"] <= 1 and not rare["predicts"]
