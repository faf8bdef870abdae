"""`plumbline ui` and `mlflow`: the web UIs of a workspace, on 127.0.0.1 only."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from plumbline.cli.guarded_dagster import HOSTS, MODULE
from plumbline.workspace import VARIABLE, workspace_root

ADDRESS = "127.0.0.1"


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A further name of this UI (repeatable).")
def ui(port: int, hosts: tuple[str, ...]) -> None:
    """Serve Dagster's UI for the graph and its history, and run the sensors. Ctrl-C stops it; the history is kept.

    It binds to 127.0.0.1, and answers no page of another site. Behind a reverse proxy, name the host that browsers see.

    \b
    Example: plumbline ui --port 3001
    """
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*|\[[0-9a-f:]+\]", host, re.IGNORECASE):
            raise click.BadParameter(
                f"{host!r}: expected a host name such as ui.example.org", param_hint="--allow-host"
            )
    require_free(port)
    click.echo("Dagster starts, half a minute  (Ctrl-C stops it; the history is kept in .dagster)")
    where = ["-h", ADDRESS, "-p", str(port)]
    # What sensors do every few seconds stands in the UI, under Automation.
    serve(workspace_root(), ["-m", MODULE, "dev", *where, "--log-level", "warning"], {HOSTS: ",".join(hosts)})


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def mlflow(port: int) -> None:
    """Serve MLflow's UI for the runs of this workspace and its registered models. Ctrl-C stops it; the runs are kept.

    \b
    Example: plumbline mlflow --port 5001
    """
    from plumbline.tracking.address import tracking_address
    from plumbline.tracking.location import ARTIFACTS, follow
    from plumbline.tracking.reading import experiments
    from plumbline.tracking.store import sqlite_path
    from plumbline.tracking.view import runs_page

    root = workspace_root()
    try:
        uri = str(tracking_address(root).uri)
        if uri.startswith("sqlite:"):
            follow(sqlite_path(uri))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if not uri.startswith("sqlite:"):
        raise click.ClickException(f"the runs of this workspace are on a server already: {uri}")
    require_free(port)
    base = f"http://{ADDRESS}:{port}"
    click.echo(f"MLflow: {base}  (Ctrl-C stops it; the runs are kept in mlflow.db)")
    for name, number in experiments(sqlite_path(uri)).items():
        click.echo(f"  {name}: {runs_page(base, number)}")
    where = ["--host", ADDRESS, "--port", str(port)]
    stores = ["--backend-store-uri", uri, "--default-artifact-root", str(sqlite_path(uri).parent / ARTIFACTS)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    serve(root, ["-m", "mlflow", "server", *where, *stores], quiet)


def require_free(port: int) -> None:
    """Refuse a port at which another process listens; the server itself would say so amid its log, after seconds.

    Raises:
        ClickException: names the option.
    """
    with contextlib.closing(socket.socket()) as probe:
        if not probe.connect_ex((ADDRESS, port)):
            raise click.ClickException(
                f"port {port} is in use, maybe by this command in another terminal or workspace: stop that, or name "
                "another one with --port"
            )


def serve(root: Path, command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process by Python with these arguments, in the workspace and with its Dagster history."""
    sys.stdout.flush()
    os.environ.update(environment)
    os.environ[VARIABLE] = str(root)
    os.environ.setdefault("DAGSTER_HOME", str(root / ".dagster"))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.chdir(root)
    # A shell script starts background jobs with SIGINT ignored. `dagster dev` then ignores SIGTERM as well.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *command])


COMMANDS = (ui, mlflow)
