"""A workspace that somebody damaged: every command ends with a sentence that names the file, never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from plumbline.cli.main import main
from tests.helpers.paths import PROJECT
from tests.helpers.workspace import make_workspace


def _append(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes() + data) and None


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text) and None


def _without_dvc(root: Path) -> None:
    (root / ".dvc").rename(root / "elsewhere")


DAMAGES = {
    "params.yaml is cut off": (_write("params.yaml", "model: ["), "params.yaml, line 1: not YAML"),
    "a byte is not UTF-8": (_append("params.yaml", b"# caf\xe9\n"), "the byte 0xe9 is not UTF-8"),
    "a key is doubled": (_append("params.yaml", b"model: {}\n"), "the key 'model' occurs twice"),
    "a value is wrong": (_append("params.yaml", b"drift: {no: 1}\n"), "drift.no: unknown key"),
    "dvc.yaml is cut off": (_write("dvc.yaml", "stages: ["), "dvc.yaml, line 1: not YAML"),
    "dvc.yaml is a list": (_write("dvc.yaml", "- 1"), "expected `stages:`"),
    "dvc.yaml has an unknown key": (_write("dvc.yaml", "stages: {a: {cmdx: b}}"), "extra keys not allowed"),
    "dvc.yaml names an unknown variable": (
        _write("dvc.yaml", "stages: {a: {cmd: b, outs: ['${nobody}']}}"),
        "Could not find 'nobody'",
    ),
    "dvc.lock is cut off": (_write("dvc.lock", "schema: '2.0'\nstages: ["), ": not YAML (did not find"),
    "dvc.lock is empty": (_write("dvc.lock", ""), "dvc.lock, line 1: the file is empty"),
    "dvc.lock has no schema": (_write("dvc.lock", "stages: {}"), "there is no `schema:`"),
    "dvc.lock has half a stage": (
        _write("dvc.lock", "schema: '2.0'\nstages:\n  raw_corpus: 5\n"),
        "dvc.lock, line 3: the stage raw_corpus: found '5'",
    ),
    "dvc.lock is not UTF-8": (
        lambda root: (root / "dvc.lock").write_bytes(b"schema: '2.0'\n# caf\xe9\n") and None,
        "dvc.lock, line 2: the byte 0xe9 is not UTF-8",
    ),
    "intake.yaml is cut off": (_write("intake.yaml", "files: ["), "git checkout intake.yaml"),
    "requested.yaml is a number": (_write("requested.yaml", "5"), "requested.yaml"),
    "there is no .dvc": (_without_dvc, "it has no .dvc"),
    "DVC's settings are cut off": (_append(".dvc/config", b"[core\n"), "DVC's configuration cannot be read (line "),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["status", "run"])
def test_the_file_is_named(command: str, damage: str, tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace").root
    act, said = DAMAGES[damage]
    act(root)
    result = CliRunner().invoke(main, [command], env={"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(tmp_path)})
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1, repr(result.exception)
    assert said in result.output and result.output.splitlines()[-1].strip(), result.output


def test_reconcile_says_it_too(tmp_path: Path) -> None:
    """In a process of its own, because it imports the workspace's definitions."""
    root = make_workspace(tmp_path / "workspace").root
    _append("params.yaml", b"model: {}\n")(root)
    environment = {**os.environ, "PLUMBLINE_ROOT": str(root), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "plumbline", "reconcile"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the key 'model' occurs twice" in done.stderr


def test_a_developer_can_have_the_traceback(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace").root
    _append("params.yaml", b"model: {}\n")(root)
    result = CliRunner().invoke(main, ["status"], env={"PLUMBLINE_ROOT": str(root), "PLUMBLINE_TRACEBACK": "1"})
    assert isinstance(result.exception, ValueError)


LOCK = [name for name in DAMAGES if name.startswith("dvc.lock")]


@pytest.mark.parametrize("damage", LOCK)
@pytest.mark.parametrize("command", [["verify"], ["run", "--plan"], ["gc", "--dry"]])
def test_a_damaged_lock_is_named_with_line_and_fix_by_other_commands(
    command: list[str], damage: str, tmp_path: Path
) -> None:
    root = make_workspace(tmp_path / "workspace").root
    act, said = DAMAGES[damage]
    act(root)
    result = CliRunner().invoke(main, command, env={"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(tmp_path)})
    assert isinstance(result.exception, SystemExit) and result.exit_code == 1, repr(result.exception)
    assert said in result.output and "git checkout dvc.lock" in result.output


def test_a_registry_that_is_no_database_is_called_so(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace").root
    (root / "mlflow.db").write_text("my notes\n")
    environment = {"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": None}
    for command in (["log"], ["audit", "models:/plumbline@champion"], ["gc", "--dry"]):
        result = CliRunner().invoke(main, command, env=environment)
        said = " ".join(result.output.split())
        assert result.exit_code in (1, 2) and "is not a SQLite database (it begins with b'my notes" in said, said
        assert "move it away" in said and "moved" not in said
    assert (root / "mlflow.db").read_text() == "my notes\n"


def test_an_empty_registry_stays_empty(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace").root
    (root / "mlflow.db").touch()
    environment = {"PLUMBLINE_ROOT": str(root), "DAGSTER_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": None}
    for command in (["status"], ["log"], ["audit", "models:/plumbline@champion"], ["gc", "--dry"]):
        result = CliRunner().invoke(main, command, env=environment)
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert (root / "mlflow.db").read_bytes() == b"", command
