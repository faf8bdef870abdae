"""New production texts are measured once; past the limits one run calibrates anew, and says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from orchestration import sensors
from plumbline.graph import drift, sensor_ticks
from plumbline.tracking import registry
from plumbline.tracking.model_version import CALIBRATION, EVALUATION, MODEL, ModelVersion
from tests.helpers.paths import PROJECT

TAGS = {"pair": "random-64-w4a16-gptq", MODEL: "model-md5", EVALUATION: "evaluation-md5", CALIBRATION: "set-md5"}
CHAMPION = ModelVersion("plumbline", "3", tags=TAGS)


class Models:
    """A registry with one champion, or none."""

    def __init__(self) -> None:
        self.now: ModelVersion | None = CHAMPION

    def champion(self) -> ModelVersion | None:
        return self.now


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["corpus"]["production"] = {"kind": "directory", "path": "traffic"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "traffic").mkdir(), (tmp_path / ".plumbline").mkdir()
    found = Models()
    monkeypatch.setattr(sensor_ticks, "workspace_root", lambda: tmp_path)
    monkeypatch.setattr(registry, "open_registry", lambda _: found)
    return found


def test_measure_once_then_recalibrate_once_with_the_reason(models: Models, tmp_path: Path) -> None:
    cursor: str | None = None
    instance = dg.DagsterInstance.ephemeral()
    launched: dict[str, tuple[str, dict[str, str]]] = {}

    def tick() -> list[str]:
        nonlocal cursor
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        answer = sensors.drift_sensor(context)
        requests = (answer.run_requests or []) if isinstance(answer, dg.SensorResult) else []
        new = [r for r in requests if r.run_key not in launched]
        launched.update({str(r.run_key): (str(r.job_name), dict(r.tags)) for r in new})
        cursor = (answer.cursor if isinstance(answer, dg.SensorResult) else None) or context.cursor
        return [str(r.job_name) for r in new]

    def measured(**found: Any) -> None:
        of = drift.subject(tmp_path, models)  # type: ignore[arg-type]
        assert isinstance(of, drift.DriftSubject)
        content = {"key": of.key, "drifted": False, "sentence": "All as it was.", "metrics": {}, **found}
        (tmp_path / drift.RESULT).write_text(json.dumps(content))

    assert tick() == []
    (tmp_path / "traffic/monday.txt").write_text("as ever")
    assert [tick() for _ in range(3)] == [[], ["measure_drift"], []]
    measured()
    assert tick() == []
    (tmp_path / "traffic/tuesday.txt").write_text("something else")
    assert [tick() for _ in range(2)] == [[], ["measure_drift"]]
    measured(drifted=True, sentence="Production has moved in lengths.", metrics={"lengths": {}, "tokens": {}})
    assert [tick() for _ in range(3)] == [["ingest"], [], []]
    [tags] = [tags for job, tags in launched.values() if job == "ingest"]
    assert tags["plumbline/trigger"] == "drift" and tags["plumbline/drift"] == "lengths,tokens"
    assert tags["plumbline/reason"] == "Production has moved in lengths."

    (tmp_path / "traffic/wednesday.txt").write_text("the same else")
    assert [tick() for _ in range(2)] == [[], ["measure_drift"]]
    measured(drifted=True, sentence="As yesterday.", metrics={"tokens": {}, "lengths": {}})
    assert tick() == []  # this champion was calibrated anew for this
    measured(drifted=True, sentence="And more.", metrics={"tokens": {}, "lengths": {}, "domains": {}})
    assert tick() == ["ingest"]
    models.now = None
    assert tick() == []
