"""Cells of a study measured by other processes: the same results, and none measured twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from plumbline.execution.params import ExecutionParams
from plumbline.study import measuring
from plumbline.study.build import build_study, evaluated
from plumbline.study.draws import Plan
from plumbline.study.measuring import UNCALIBRATED, measure_cells, missing_cells
from plumbline.study.result_cache import ResultCache
from tests.helpers.study import SCHEMES, SETTINGS, Small


def test_some_cells_give_what_all_give_and_the_rest_is_missing(small: Small, tmp_path: Path) -> None:
    params = small.params(sizes=[2])
    schemes = {name: SCHEMES[name] for name in params.schemes}
    plan = Plan(params, small.sources, evaluated(small.sources.samples, params))
    every = measure_cells(plan, schemes, SETTINGS, ResultCache(tmp_path / "all", {}))
    cache, some = ResultCache(tmp_path / "some", {}), [UNCALIBRATED, plan.cells[1], plan.cells[-1]]
    assert missing_cells(plan, schemes, cache) == [UNCALIBRATED, *plan.cells]
    found = measure_cells(plan, schemes, SETTINGS, cache, some)
    assert {cell for cell, _ in found} == {*some}
    assert all(result.kl.tobytes() == every[key].kl.tobytes() for key, result in found.items())
    assert missing_cells(plan, schemes, cache) == [cell for cell in plan.cells if cell not in some]


@pytest.mark.integration
def test_two_processes_measure_the_study_of_one(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, names = small.params(sizes=[2]), ("documents.parquet", "verdict.json")
    schemes = {name: SCHEMES[name] for name in params.schemes}
    for out in ("one", "two"):
        (tmp_path / out).mkdir()
    build_study(params, schemes, SETTINGS, small.sources, tmp_path / "a", {}, tmp_path / "one")
    monkeypatch.setattr(measuring, "_Evaluator", None)  # this process would fail if it measured
    execution = ExecutionParams(workers=2)
    build_study(params, schemes, SETTINGS, small.sources, tmp_path / "b", {}, tmp_path / "two", execution=execution)
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
