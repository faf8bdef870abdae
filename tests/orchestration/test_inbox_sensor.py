"""A new file leads to one run, exactly once: over restarts, crashes, half-written files and returns of old content."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
import pytest

from orchestration import sensors


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sensors, "project_root", lambda: tmp_path)
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "README.md").write_text("not part of the corpus")
    return tmp_path / "inbox"


class Daemon:
    """Ticks the sensor as the daemon does: the cursor is saved after the tick, unless it is killed before."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.launched: list[str] = []

    def tick(self, killed_before_saving: bool = False) -> int:
        context = dg.build_sensor_context(cursor=self.cursor)
        result = sensors.inbox_sensor(context)
        requests = result.run_requests or [] if isinstance(result, dg.SensorResult) else []
        new = [request.run_key for request in requests if request.run_key not in self.launched]  # Dagster's own rule
        self.launched += new
        if not killed_before_saving:
            self.cursor = result.cursor if isinstance(result, dg.SensorResult) else context.cursor
        return len(new)


def test_a_new_file_leads_to_one_run(inbox: Path) -> None:
    daemon = Daemon()
    assert [daemon.tick() for _ in range(3)] == [0, 0, 0]
    (inbox / "a.txt").write_text("alpha")
    assert [daemon.tick() for _ in range(5)] == [0, 1, 0, 0, 0]


def test_a_file_that_still_grows_waits(inbox: Path) -> None:
    daemon = Daemon()
    (inbox / "a.txt").write_text("al")
    assert daemon.tick() == 0
    (inbox / "a.txt").write_text("alpha")
    assert daemon.tick() == 0
    assert [daemon.tick() for _ in range(3)] == [1, 0, 0]


def test_a_daemon_killed_before_it_saved_its_cursor_launches_nothing_twice(inbox: Path) -> None:
    daemon = Daemon()
    (inbox / "a.txt").write_text("alpha")
    daemon.tick()
    assert daemon.tick(killed_before_saving=True) == 1
    assert [daemon.tick() for _ in range(4)] == [0, 0, 0, 0]


def test_a_touched_file_is_not_new(inbox: Path) -> None:
    daemon = Daemon()
    (inbox / "a.txt").write_text("alpha")
    daemon.tick(), daemon.tick()
    os.utime(inbox / "a.txt", ns=(1, 1))
    assert [daemon.tick() for _ in range(4)] == [0, 0, 0, 0]
    assert len(daemon.launched) == 1


def test_content_that_comes_back_runs_again(inbox: Path) -> None:
    daemon = Daemon()
    for content in ("alpha", "beta", "alpha"):
        (inbox / "a.txt").write_text(content * 2)
        os.utime(inbox / "a.txt", ns=(len(daemon.launched), len(daemon.launched)))
        daemon.tick(), daemon.tick()
    assert len(daemon.launched) == 3


def test_removal_is_a_change(inbox: Path) -> None:
    daemon = Daemon()
    (inbox / "a.txt").write_text("alpha")
    daemon.tick(), daemon.tick()
    (inbox / "a.txt").unlink()
    assert [daemon.tick() for _ in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("name", [".hidden.txt", "upload.txt.part", "notes.txt~", "README.md"])
def test_partial_and_hidden_files_are_not_dropped_files(inbox: Path, name: str) -> None:
    daemon = Daemon()
    (inbox / name).write_text("alpha")
    assert [daemon.tick() for _ in range(3)] == [0, 0, 0]
