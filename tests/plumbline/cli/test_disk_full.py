"""A full disk is said with where there is room, whichever library met it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from plumbline.cli import disk_full
from plumbline.cli.main import main

NO_SPACE = os.strerror(errno.ENOSPC)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    return tmp_path


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, NO_SPACE, "/w/data/x"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
        ValueError(f"raw_corpus: OSError: [Errno 28] {NO_SPACE}"),
    ],
)
def test_every_form_of_it_is_explained(error: Exception, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("plumbline.graph.run.run_graph", fails)
    result = CliRunner().invoke(main, ["run"], env={"PLUMBLINE_ROOT": str(root)})
    assert result.exit_code == 1 and str(error) in result.output, result.output
    assert "A disk is full. Free: 1,000,000.0 MB for the workspace" in result.output and "plumbline gc" in result.output


def test_an_error_on_a_disk_with_room_is_another_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = ValueError("no such thing")
    assert not disk_full.is_full(cause, root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=disk_full.LITTLE - 1))
    assert disk_full.is_full(cause, root)
