"""Representativeness of the random sets: the figures of the ordinary stage, each measured once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.calibration_choice.build import build_calibration_choice
from plumbline.calibration_set.build import build_calibration_set
from plumbline.calibration_set.pool import Sources
from plumbline.evaluation.held_out import HeldOut
from plumbline.study import distances
from plumbline.study.draws import Cell, Plan
from plumbline.study.params import StudyParams
from plumbline.study.result_cache import ResultCache
from tests.helpers.sample_features import write_features
from tests.helpers.tokenized_samples import two_domains, write_samples

NOTHING = HeldOut([], [], [], [], {})


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    from plumbline.study.controls import Oracle

    monkeypatch.setattr(Oracle, "__init__", lambda self, samples, held_out: None)
    monkeypatch.setattr(Oracle, "lacks", lambda self, n: None)
    return Sources(
        write_samples(tmp_path / "samples", two_domains()), write_features(tmp_path / "features", two_domains())
    )


def params(**changed: Any) -> StudyParams:
    rules = {"first": {"strategy": "first_n"}, "random": {"strategy": "random"}}
    asked = {"rules": rules, "baseline": "first", "sizes": [6, 20], "draws": 5, "share": 1.0, "schemes": ["w4"]}
    return StudyParams.model_validate({**asked, "random_sets": 20, **changed})


def test_figures_are_those_of_the_calibration_set_and_are_measured_once(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, kept = Plan(params(), sources, NOTHING), ResultCache(tmp_path / "kept", {"code": "1"})
    found, why_not = distances.measure_distances(plan, kept)
    assert why_not is None and sorted(found) == [6, 20]
    assert {len(values) for of in found.values() for values in of.values()} == {20}

    build_calibration_choice("mine", {"strategy": "random", "n": 20, "seed": 7}, tmp_path)
    (tmp_path / "set").mkdir()
    build_calibration_set(tmp_path, sources, tmp_path / "set")
    ordinary = json.loads((tmp_path / "set/representativeness.json").read_text())["references"]["tuning"]["metrics"]
    assert {name: values[7] for name, values in found[20].items()} == {n: m["value"] for n, m in ordinary.items()}

    monkeypatch.setattr(distances, "_distances", lambda plan, cell: pytest.fail("measured again"))
    again, _ = distances.measure_distances(plan, kept)
    for n, of in found.items():
        for name, values in of.items():
            np.testing.assert_array_equal(again[n][name], values)


def test_draws_of_the_study_are_among_them(sources: Sources) -> None:
    plan = Plan(params(draws=22), sources, NOTHING)
    assert Cell(21, 6, "random") in plan.cells and Cell(22, 6, "random") not in plan.cells


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"random_sets": 0}, "random_sets is 0"),
        (
            {"rules": {"first": {"strategy": "first_n"}, "b": {"strategy": "length_stratified"}}},
            "no rule of the study is",
        ),
    ],
)
def test_without_random_sets_the_reason_is_given(sources: Sources, tmp_path: Path, changed: dict, why: str) -> None:
    found, said = distances.measure_distances(
        Plan(params(**changed), sources, NOTHING), ResultCache(tmp_path / "k", {})
    )
    assert found == {} and said is not None and said.startswith(why)
