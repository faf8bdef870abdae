"""What can be known of MLflow's store before anything is computed for it. MLflow is imported only if there is doubt."""

from __future__ import annotations

import os
import re
import sqlite3
import urllib.error
import urllib.request
from pathlib import Path

from plumbline.tracking.address import shown_uri, tracking_address
from plumbline.tracking.reading import SCHEMAS
from plumbline.tracking.store import TrackingError, sqlite_path

SECONDS = 5
"""A server that answers nothing in this time is unreachable."""


def store_problem(root: Path) -> str:
    """The reason why runs cannot be logged in the workspace's store; empty if they can. Nothing is created."""
    try:
        uri = str(tracking_address(root).uri)
    except TrackingError as error:
        return str(error)
    if uri.startswith("http"):
        return server_problem(uri)
    path = sqlite_path(uri)
    return _database_problem(path) if path.is_file() else ""


def server_problem(uri: str) -> str:
    """The reason why a server is unreachable, found within seconds; empty if something answers."""
    address = re.sub(r"//.*@", "//", uri.rstrip("/"))  # urllib takes a user for a part of the host
    try:
        urllib.request.urlopen(f"{address}/health", timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # something answers; whether it lets us in, MLflow finds out
    except (OSError, ValueError) as error:
        return (
            f"MLflow at {shown_uri(uri)} does not answer ({getattr(error, 'reason', error)}); start it, or correct "
            "tracking.uri in params.yaml or MLFLOW_TRACKING_URI"
        )
    return ""


def _database_problem(path: Path) -> str:
    try:
        revision = _revision(path)
    except sqlite3.Error as error:
        if "locked" in str(error):
            return (
                f"{path} has been locked by another process for {SECONDS} s: wait until that ends, or end it "
                f"(`fuser {path}` names it)"
            )
        return (
            f"{path} cannot be read ({error}); restore it from a backup, or move it away and `plumbline run` makes one"
        )
    if closed := next((place for place in (path, path.parent) if not os.access(place, os.W_OK)), None):
        return (
            f"{closed} cannot be written, and MLflow's runs go there: give the user of this process the right to write"
        )
    if revision in SCHEMAS or revision is None:
        return ""
    import mlflow
    from mlflow.store.db import utils

    current = getattr(utils, "_get_latest_schema_revision", lambda: revision)()  # without it, MLflow itself complains
    if revision == current:
        return ""
    return (
        f"{path} was written by another version of MLflow (its tables are of revision {revision}, MLflow "
        f"{mlflow.__version__} has {current}): copy the file, then run `mlflow db upgrade sqlite:///{path}`; or "
        "install the version of MLflow that wrote it"
    )


def _revision(path: Path) -> str | None:
    """The revision of MLflow's tables; None: there are none yet."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=SECONDS)
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "alembic_version" not in tables:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None
    finally:
        connection.close()
