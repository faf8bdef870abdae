"""A command waits for another run that holds a model, and says so; a dead run is no reason to wait."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from plumbline.graph.pool import heavy_runs, wait_for_others
from tests.helpers.started_run import started_run

LIMIT = "concurrency: {pools: {default_limit: 1, granularity: run}}\n"


def test_a_command_waits_until_the_other_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text(LIMIT)
    said: list[str] = []
    looks: list[int] = []
    with dg.DagsterInstance.get() as history, started_run(tmp_path) as process:
        [other] = heavy_runs(history)

        def sleep(_: float) -> None:
            looks.append(len(said))
            if len(looks) == 2:
                process.kill()
                process.wait()

        wait_for_others(history, "evaluation a", said.append, sleep)
        assert looks == [1, 1]
        assert said == [f"evaluation a waits for run {other.run_id[:8]} (__ephemeral_asset_job__), which holds a model"]
        assert heavy_runs(history) == []


def test_without_a_limit_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.get() as history, started_run(tmp_path):
        assert len(heavy_runs(history)) == 1
        wait_for_others(history, "evaluation a", pytest.fail, pytest.fail)
