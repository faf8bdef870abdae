"""A run whose process was killed is marked as failed, and only such a run."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from plumbline.graph.dead_runs import end_dead_runs

RUN = """
import sys
import dagster as dg

@dg.asset
def waits():
    print("started", flush=True)
    sys.stdin.read()

with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    dg.materialize([waits], instance=instance)
"""


@pytest.fixture
def history(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def test_only_runs_without_a_process_are_ended(history: dg.DagsterInstance, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin and process.stdout
    assert process.stdout.readline() == b"started\n"
    [run] = history.get_runs()
    assert run.status == dg.DagsterRunStatus.STARTED
    assert end_dead_runs(history) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert end_dead_runs(history) == [run.run_id]
    assert history.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert end_dead_runs(history) == []
