"""A run whose process was killed is marked as failed, and only such a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from plumbline.graph.dead_runs import end_dead_runs, history_is_local
from tests.helpers.started_run import started_run


@pytest.fixture
def history(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def test_only_runs_without_a_process_are_ended(history: dg.DagsterInstance, tmp_path: Path) -> None:
    with started_run(tmp_path) as process:
        [run] = history.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        assert end_dead_runs(history, tmp_path) == []
        process.kill()
        process.wait()
    shared = tmp_path / "shared"  # the same run, in a history that machines share: its process may live on another one
    shared.mkdir()
    (shared / "dagster.yaml").write_text(yaml.safe_dump({"storage": {"postgres": {"postgres_url": "postgresql://db"}}}))
    assert end_dead_runs(history, shared) == []
    assert end_dead_runs(history, tmp_path) == [run.run_id]
    ended = history.get_run_by_id(run.run_id)
    assert ended is not None and ended.status == dg.DagsterRunStatus.FAILURE
    assert end_dead_runs(history, tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "local"),
    [
        (None, True),
        ("", True),
        ("storage: {sqlite: {base_dir: elsewhere}}", True),
        ("storage: {postgres: {postgres_url: postgresql://db}}", False),
        ("run_storage: {module: dagster_postgres, class: PostgresRunStorage}", False),
    ],
)
def test_dagster_yaml_says_where_the_history_is(settings: str | None, local: bool, tmp_path: Path) -> None:
    if settings is not None:
        (tmp_path / "dagster.yaml").write_text(settings)
    assert history_is_local(tmp_path) is local
