"""What can be known of MLflow's store before anything is computed for it. MLflow is imported only if there is doubt."""

from __future__ import annotations

import os
import re
import sqlite3
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from plumbline.tracking.address import shown_uri, tracking_address
from plumbline.tracking.reading import SCHEMAS
from plumbline.tracking.store import TrackingError, sqlite_path

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
"""Where a server lists the artifacts that it passes through; 503 where it does not."""
REFUSED = (401, 403)
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
    """The reason why a server is unreachable, found within seconds; empty if it answers, and lets us in.

    Where it passes artifacts through, it must reach their store, too.
    """
    base, headers = re.sub(r"//.*@", "//", uri.rstrip("/")), _authorization(uri)  # urllib takes a user for the host
    try:
        _get(f"{base}/health", headers)
    except urllib.error.HTTPError as error:
        if error.code not in REFUSED or _other_credentials():
            return ""  # something answers; MLflow finds out the rest
        return (
            f"MLflow at {shown_uri(uri)} refuses these credentials ({error.code}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment of this process"
        )
    except (OSError, ValueError) as error:
        return (
            f"MLflow at {shown_uri(uri)} does not answer ({getattr(error, 'reason', error)}); start it, or correct "
            "tracking.uri in params.yaml or MLFLOW_TRACKING_URI"
        )
    try:
        _get(f"{base}{ARTIFACTS}", headers)
    except urllib.error.HTTPError as error:
        if error.code == 500:
            return (
                f"MLflow at {shown_uri(uri)} answers, but cannot list its artifacts: its log says why; usually the "
                "bucket of --artifacts-destination is not there, or the server lacks the store's address or key"
            )
    except (OSError, ValueError):
        pass  # slow, or no server of MLflow's own
    return ""


def _get(address: str, headers: Mapping[str, str]) -> None:
    urllib.request.urlopen(urllib.request.Request(address, headers=dict(headers)), timeout=SECONDS).close()


def _authorization(uri: str) -> dict[str, str]:
    """The header that MLflow's client would send, as far as the environment and the address tell."""
    parts = urlsplit(uri)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(parts.username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(parts.password or "")
    if user:
        return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _other_credentials() -> bool:
    """Whether MLflow may know credentials that are not looked at here: of a file, or a plugin."""
    return "MLFLOW_TRACKING_AUTH" in os.environ or (Path.home() / ".mlflow/credentials").is_file()


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
