"""`plumbline ui` and `mlflow` become servers; what they become is caught here."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from plumbline.cli import serve
from plumbline.cli.guarded_dagster import warn_if_unguarded
from plumbline.cli.main import main
from plumbline.cli.serve import require_free
from plumbline.cli.workspace import write_workspace


class Became(Exception):
    """The command that the process would have become."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write_workspace(tmp_path / "workspace")
    monkeypatch.setenv("PLUMBLINE_ROOT", str(tmp_path / "workspace"))
    for name in ("DAGSTER_HOME", "PLUMBLINE_UI_HOSTS", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY", "PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # restored at the end
    monkeypatch.delenv("DAGSTER_HOME")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "")
    monkeypatch.chdir(tmp_path)

    def execv(path: str, command: list[str]) -> None:
        raise Became(path, command)

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(serve, "require_free", lambda port: None)  # something may listen on this machine
    interrupt = signal.getsignal(signal.SIGINT)
    yield tmp_path / "workspace"
    signal.signal(signal.SIGINT, interrupt)


def became(result: Result) -> list[str]:
    assert isinstance(result.exception, Became), result.output
    path, command = result.exception.args
    assert path == command[0] == sys.executable
    return list(command[1:])


def test_ui_is_dagster_in_the_workspace_on_this_machine_alone(root: Path) -> None:
    command = became(CliRunner().invoke(main, ["ui", "--port", "3001"]))
    quiet = ["--log-level", "warning"]
    assert command == ["-m", "plumbline.cli.guarded_dagster", "dev", "-h", "127.0.0.1", "-p", "3001", *quiet]
    assert Path.cwd() == root and os.environ["DAGSTER_HOME"] == str(root / ".dagster")
    assert os.environ["PLUMBLINE_UI_HOSTS"] == ""
    became(CliRunner().invoke(main, ["ui", "--allow-host", "ui.example.org", "--allow-host", "*.corp.example"]))
    assert os.environ["PLUMBLINE_UI_HOSTS"] == "ui.example.org,*.corp.example"


def test_a_server_that_a_script_started_in_the_background_is_stopped_by_signals(root: Path) -> None:
    """A shell script starts its background jobs with SIGINT ignored, which a new program inherits."""
    shows = "import signal; print(signal.getsignal(signal.SIGINT) == signal.default_int_handler)"
    starts = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from pathlib import Path; from plumbline.cli.serve import serve\n"
        f"serve(Path({str(root)!r}), ['-c', {shows!r}], {{}})"
    )
    done = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("variables", "is_warned"),
    [
        ({"DAGSTER_IS_DEV_CLI": "1"}, True),  # `dagster dev` by hand
        ({"DAGSTER_IS_DEV_CLI": "1", "PLUMBLINE_UI_HOSTS": ""}, False),  # `plumbline ui`
        ({}, False),  # a command, or a server of the definitions alone
    ],
)
def test_dagster_dev_by_hand_says_that_it_has_no_guard(
    variables: dict[str, str], is_warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("DAGSTER_IS_DEV_CLI", "PLUMBLINE_UI_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    warn_if_unguarded()
    assert ("start `plumbline ui`" in caplog.text) is is_warned


@pytest.mark.parametrize("host", ["*", "", "a b", "http://ui.example.org", "a,b", "*.*"])
def test_ui_is_not_opened_to_any_host(root: Path, host: str) -> None:
    result = CliRunner().invoke(main, ["ui", "--allow-host", host])
    assert result.exit_code == 2 and "expected a host name" in result.output


@pytest.mark.parametrize("command", ["ui", "mlflow"])
def test_a_port_in_use_is_said_before_the_server_starts(
    command: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "require_free", require_free)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = CliRunner().invoke(main, [command, "--port", port])
    assert result.exit_code == 1 and f"port {port} is in use" in result.output and "--port" in result.output
    became(CliRunner().invoke(main, [command, "--port", port]))


def test_mlflow_serves_the_workspace_s_own_store(root: Path) -> None:
    command = became(CliRunner().invoke(main, ["mlflow"]))
    assert command[:7] == ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "5000"]
    assert command[7:] == [
        "--backend-store-uri",
        f"sqlite:///{root / 'mlflow.db'}",
        "--default-artifact-root",
        str(root / "mlruns"),
    ]


def test_mlflow_of_a_copied_workspace_shows_the_copy_s_artifacts(root: Path) -> None:
    with sqlite3.connect(root / "mlflow.db") as store:
        store.execute("CREATE TABLE experiments (artifact_location)")
        store.execute("INSERT INTO experiments VALUES ('file:///gone/mlruns')")
    became(CliRunner().invoke(main, ["mlflow"]))
    with sqlite3.connect(root / "mlflow.db") as store:
        assert store.execute("SELECT * FROM experiments").fetchall() == [((root / "mlruns").as_uri(),)]


def test_a_server_elsewhere_is_not_served_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    result = CliRunner().invoke(main, ["mlflow"])
    assert result.exit_code == 1 and "on a server already: https://mlflow.example.org" in result.output
