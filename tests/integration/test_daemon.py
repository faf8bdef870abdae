"""A new file in the inbox leads to one run, exactly once, also when the daemon is killed and restarted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import Workspace

pytestmark = pytest.mark.integration

INBOX_RUNS = """
import dagster as dg
from orchestration.workspace import instance
with instance() as history:
    runs = history.get_runs(dg.RunsFilter(tags={"plumbline/trigger": "inbox"}))
    print([run.status.value for run in runs])
"""


def inbox_runs(workspace: Workspace) -> list[str]:
    output = workspace.command(sys.executable, "-c", INBOX_RUNS).stdout
    return eval(output.strip().splitlines()[-1])  # a list of words that the line above printed


class Daemon:
    """Dagster's daemon on a workspace, as `make ui` starts it."""

    def __init__(self, workspace: Workspace, log: Path) -> None:
        self.workspace, self.log = workspace, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "dagster._daemon", "run", "-m", "orchestration.definitions"]
        environment = self.workspace.environment
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.workspace.root, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def until(self, wanted: list[str], seconds: float = 240) -> list[str]:
        """Ask until the inbox runs are as wanted; returns what they are in the end."""
        deadline = time.monotonic() + seconds
        while (found := inbox_runs(self.workspace)) != wanted and time.monotonic() < deadline:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
        return found


def ticks(workspace: Workspace) -> int:
    code = """
from orchestration.workspace import instance
with instance() as history:
    [state] = [s for s in history.all_instigator_state() if s.name == "inbox_sensor"] or [None]
    print(len(history.get_ticks(state.instigator_origin_id, state.selector_id)) if state else 0)
"""
    return int(workspace.command(sys.executable, "-c", code).stdout.strip().splitlines()[-1])


def test_one_file_one_run_over_restarts(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "daemon")
    daemon = Daemon(workspace, tmp_path / "daemon.log")
    try:
        daemon.start()
        (workspace.root / "inbox" / "new.txt").write_text("A text that nobody has seen before. " * 40)
        assert daemon.until(["SUCCESS"]) == ["SUCCESS"]
        daemon.kill()
        daemon.start()
        before = ticks(workspace)
        while ticks(workspace) < before + 3:
            assert daemon.process is not None and daemon.process.poll() is None
        assert inbox_runs(workspace) == ["SUCCESS"]
        (workspace.root / "inbox" / "second.txt").write_text("Another text that nobody has seen before. " * 40)
        assert daemon.until(["SUCCESS", "SUCCESS"]) == ["SUCCESS", "SUCCESS"]
    finally:
        daemon.kill()
    manifest = (workspace.root / "data/raw_corpus/manifest.json").read_text()
    assert "new.txt" in manifest and "second.txt" in manifest
