"""What DVC put in place is reported to Dagster once, and not while a run reports by itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from orchestration.sensors import dvc_sensor
from plumbline.graph.definitions import load_definitions
from plumbline.params import load_params
from tests.helpers.paths import PROJECT

CHOICE, *_ = load_params(PROJECT).calibrations


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace with the project's definitions and no dvc.lock."""
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    monkeypatch.setenv("PLUMBLINE_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))  # load_definitions adds the workspace
    load_definitions.cache_clear()
    yield tmp_path
    load_definitions.cache_clear()


class Ticks:
    """Ticks the sensor on an instance as the daemon does, with the cursor that it left."""

    def __init__(self) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: str | None = None

    def tick(self) -> str:
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        answer = dvc_sensor(context)
        assert isinstance(answer, dg.SkipReason)
        self.cursor = context.cursor
        return answer.skip_message or ""

    def content(self, asset: str, partition: str | None = None) -> str | None:
        """The data version that Dagster knows."""
        record = self.instance.get_latest_data_version_record(dg.AssetKey(asset), partition_key=partition)
        return (record.event_log_entry.tags or {}).get("dagster/data_version") if record else None


def write_lock(root: Path, **contents: str) -> None:
    """A dvc.lock with one output per stage; `calibration_choice` is that of CHOICE."""
    stages: dict[str, Any] = {}
    for asset, md5 in contents.items():
        partitioned = asset == "calibration_choice"
        name, path = (f"{asset}@{CHOICE}", f"data/{asset}/{CHOICE}") if partitioned else (asset, f"data/{asset}")
        stages[name] = {"cmd": "", "deps": [], "params": {}, "outs": [{"path": path, "md5": md5}]}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def test_what_dvc_made_is_reported_once(root: Path) -> None:
    ticks = Ticks()
    assert ticks.tick() == "dvc.lock has not changed"  # there is none
    write_lock(root, raw_corpus="corpus.dir", calibration_choice="choice.dir")
    assert "reported 2 artifacts that DVC made" in ticks.tick()
    assert ticks.content("raw_corpus") == "corpus.dir"
    assert ticks.content("calibration_choice", CHOICE) == "choice.dir"
    assert ticks.tick() == "dvc.lock has not changed"


def test_only_what_changed_is_reported(root: Path) -> None:
    ticks = Ticks()
    write_lock(root, raw_corpus="corpus.dir", calibration_choice="choice.dir")
    ticks.tick()
    write_lock(root, raw_corpus="a grown corpus.dir", calibration_choice="choice.dir")
    assert ticks.tick() == "reported 1 artifacts that DVC made: ['raw_corpus']"
    assert ticks.content("raw_corpus") == "a grown corpus.dir"
    ticks.cursor = None  # a daemon that starts anew looks again, and finds nothing new
    assert ticks.tick() == "Dagster has every artifact in dvc.lock"


def test_a_run_in_progress_reports_by_itself(root: Path) -> None:
    ticks = Ticks()
    write_lock(root, raw_corpus="corpus.dir")
    run = dg.DagsterRun(job_name="ingest", status=dg.DagsterRunStatus.STARTED)
    ticks.instance.add_run(run)
    assert ticks.tick() == "1 runs in progress; they report their own output"
    assert ticks.content("raw_corpus") is None
    ticks.instance.delete_run(run.run_id)
    assert "reported 1 artifacts" in ticks.tick()  # the look before has left no mark
