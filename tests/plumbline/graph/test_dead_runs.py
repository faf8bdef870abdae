"""A run whose process was killed is marked as failed, and only such a run."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.events import EngineEventData
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test

from plumbline.graph.dead_runs import end_dead_runs
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
    # The same run, in a history that machines share: it is of no code location, and may live on another machine.
    assert end_dead_runs(history, shared_home(tmp_path), "plumbline") == []
    assert end_dead_runs(history, tmp_path) == [run.run_id]
    ended = history.get_run_by_id(run.run_id)
    assert ended is not None and ended.status == dg.DagsterRunStatus.FAILURE
    assert end_dead_runs(history, tmp_path) == []


def shared_home(folder: Path, **settings: object) -> Path:
    """A folder whose dagster.yaml names a database that machines share."""
    home = folder / "shared"
    home.mkdir(exist_ok=True)
    storage = {"storage": {"postgres": {"postgres_url": "postgresql://db"}}}
    (home / "dagster.yaml").write_text(yaml.safe_dump({**storage, **settings}))
    return home


def start(history: dg.DagsterInstance, location: str, pid: int, logged: float) -> str:
    """The id of a run of a code location that logged this process id at this time."""
    origin = RemoteJobOrigin(
        RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin(host="h", port=1, location_name=location), "repository"),
        "job",
    )
    run = create_run_for_test(history, job_name="job", remote_job_origin=origin, status=dg.DagsterRunStatus.STARTED)
    event = dg.DagsterEvent(
        "ENGINE_EVENT",
        "job",
        message="started",
        event_specific_data=EngineEventData({"pid": dg.MetadataValue.text(str(pid))}),
    )
    history.handle_new_event(
        dg.EventLogEntry(None, "info", "started", run.run_id, logged, job_name="job", dagster_event=event)
    )
    return run.run_id


def test_a_shared_history_ends_the_runs_of_this_code_location(history: dg.DagsterInstance, tmp_path: Path) -> None:
    """Also where another process has the id by now, as after a restart of the container."""
    now, mine = time.time(), os.getpid()
    gone = subprocess.Popen(["true"])
    gone.wait()
    lives = start(history, "plumbline", mine, now)
    dead = start(history, "plumbline", gone.pid, now)
    given_anew = start(history, "plumbline", mine, psutil.Process().create_time() - 60)
    elsewhere = start(history, "another", gone.pid, now)
    home = shared_home(tmp_path)
    assert end_dead_runs(history, home) == []  # a process that belongs to no code location
    assert end_dead_runs(history, shared_home(tmp_path, run_launcher={"module": "m", "class": "C"}), "plumbline") == []
    assert set(end_dead_runs(history, shared_home(tmp_path), "plumbline")) == {dead, given_anew}
    states = {run.run_id: run.status.value for run in history.get_runs()}
    assert (states[lives], states[elsewhere]) == ("STARTED", "STARTED")


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
def test_dagster_yaml_says_where_the_history_is(
    settings: str | None, local: bool, history: dg.DagsterInstance, tmp_path: Path
) -> None:
    """A process of no code location ends runs of a local history only."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = start(history, "plumbline", gone.pid, time.time())
    home = tmp_path / "home"
    home.mkdir()
    if settings is not None:
        (home / "dagster.yaml").write_text(settings)
    assert end_dead_runs(history, home) == ([dead] if local else [])
