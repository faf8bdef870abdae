"""Where a workspace keeps what is not an artifact: Dagster's history and MLflow's runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.params import project_root

if TYPE_CHECKING:
    import dagster as dg


def dagster_home(root: Path | None = None) -> Path:
    """DAGSTER_HOME if it is set, else `.dagster` of the workspace."""
    return Path(os.environ.get("DAGSTER_HOME") or (root or project_root()) / ".dagster")


def tracking_uri(root: Path | None = None) -> str:
    """MLflow's address: `tracking.uri` of params.yaml, else MLFLOW_TRACKING_URI, else a SQLite file here."""
    from orchestration.params import load_params

    root = root or project_root()
    return load_params(root).tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Run configuration of commands that show progress of their own; the event log has everything all the same."""


@contextlib.contextmanager
def instance() -> Iterator[dg.DagsterInstance]:
    """The Dagster instance that remembers this workspace's history."""
    home = dagster_home()
    home.mkdir(parents=True, exist_ok=True)
    os.environ["DAGSTER_HOME"] = str(home)
    import dagster as dg

    with dg.DagsterInstance.get() as history:
        yield history
