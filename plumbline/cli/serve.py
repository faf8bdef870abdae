"""`plumbline ui` and `mlflow`: the web UIs of a workspace, on 127.0.0.1 only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from plumbline.workspace import VARIABLE, workspace_root

ADDRESS = "127.0.0.1"


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
def ui(port: int) -> None:
    """Serve Dagster's UI for the graph and its history, and run the sensors. Ctrl-C stops it; the history is kept.

    \b
    Example: plumbline ui --port 3001
    """
    click.echo(f"Dagster: http://{ADDRESS}:{port}  (Ctrl-C stops it; the history is kept in .dagster)")
    serve(workspace_root(), ["-m", "dagster", "dev", "-h", ADDRESS, "-p", str(port)], {})


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def mlflow(port: int) -> None:
    """Serve MLflow's UI for the runs of this workspace and its registered models. Ctrl-C stops it; the runs are kept.

    \b
    Example: plumbline mlflow --port 5001
    """
    from plumbline.tracking.address import tracking_address

    root = workspace_root()
    try:
        uri = str(tracking_address(root).uri)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if not uri.startswith("sqlite:"):
        raise click.ClickException(f"the runs of this workspace are on a server already: {uri}")
    click.echo(f"MLflow: http://{ADDRESS}:{port}  (Ctrl-C stops it; the runs are kept in mlflow.db)")
    where = ["--host", ADDRESS, "--port", str(port)]
    stores = ["--backend-store-uri", uri, "--default-artifact-root", str(root / "mlruns")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    serve(root, ["-m", "mlflow", "server", *where, *stores], quiet)


def serve(root: Path, command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process by Python with these arguments, in the workspace and with its Dagster history."""
    sys.stdout.flush()
    os.environ.update(environment)
    os.environ[VARIABLE] = str(root)
    os.environ.setdefault("DAGSTER_HOME", str(root / ".dagster"))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, *command])


COMMANDS = (ui, mlflow)
