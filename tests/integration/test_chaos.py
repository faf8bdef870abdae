"""Kills, odd surroundings, a full disk, two runs at once. `python -m benchmarks.chaos` does more of it, at random."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.chaos.disk import NoDisk, enlarge, leave_free, small_disk
from benchmarks.chaos.surroundings import FOLDER, VARIABLES, bound_by_modes
from tests.helpers.processes import running, until
from tests.helpers.workspace import Workspace

pytestmark = pytest.mark.integration
RUN = [sys.executable, "-m", "plumbline.cli.main", "run"]


@dataclass(frozen=True)
class Elsewhere(Workspace):
    """A workspace whose commands have other variables."""

    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.variables}


@pytest.fixture
def odd_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def other_report(workspace: Workspace) -> None:
    """Make the report and what depends on it out of date."""
    workspace.set_params(report={"resamples": 201, "confidence": 0.95})


@pytest.mark.long
def test_killed_runs_in_odd_surroundings_give_the_same_bytes(
    finished: Workspace, tmp_path: Path, odd_umask: None
) -> None:
    """Another path, home, locale, umask, time zone and hash seed, and a kill in the first and in the second half."""
    home, root = tmp_path / "home", tmp_path / FOLDER / "wörk space"
    home.mkdir()
    home.chmod(0o555)
    again = Elsewhere(finished.copy(root).root, {**VARIABLES, "HOME": str(home)})
    for name in ("data", "dvc.lock", ".dvc/cache", ".dvc/tmp", ".plumbline", "mlflow.db"):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for step in ("sample_features", "quantized_model"):
        log = tmp_path / step
        with running([*bound_by_modes(), *RUN], again, log) as process:
            until(process, lambda log=log, step=step: re.search(f"▸.* {step}", log.read_text()), log)
    again.command(*bound_by_modes(), *RUN)
    assert again.lock() == finished.lock()
    assert not list((root / "data/.tmp").glob("*"))
    told = json.loads(again.plumbline("audit", "models:/plumbline@champion", "--json").stdout)
    assert told["verdict"] == "verified"


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(finished: Workspace, tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk") as disk:
            workspace = finished.copy(disk / "workspace")
            before = workspace.lock()
            other_report(workspace)
            leave_free(disk, 300)
            full = workspace.plumbline("run", check=False)
            assert full.returncode == 1 and "A disk is full. Free: " in full.stderr, full.stdout + full.stderr
            assert "Traceback" not in full.stderr
            assert workspace.lock()["data/deployed_model"] == before["data/deployed_model"]
            enlarge(disk)
            workspace.plumbline("run")
            assert "up to date" in workspace.plumbline("status").stdout
            assert "every artifact" in workspace.plumbline("verify").stdout
    except NoDisk as error:
        pytest.skip(str(error))


def test_two_runs_at_once_compute_once_and_agree(finished: Workspace, tmp_path: Path) -> None:
    workspace = finished.copy(tmp_path / "two")
    other_report(workspace)
    runs = [
        subprocess.Popen(
            RUN,
            cwd=workspace.root,
            env=workspace.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert workspace.dvc("status").stdout.strip() == "Data and pipelines are up to date."
    assert "up to date" in workspace.plumbline("status").stdout
    assert workspace.plumbline("audit", "models:/plumbline@champion").returncode == 0
