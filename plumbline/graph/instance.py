"""The Dagster instance of a workspace, which stores its run history."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.workspace import workspace_root

if TYPE_CHECKING:
    import dagster as dg

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Run configuration for commands that print their own progress; the event log stays complete."""


def dagster_home(root: Path | None = None) -> Path:
    """DAGSTER_HOME if it is set, else `.dagster` of the workspace."""
    return Path(os.environ.get("DAGSTER_HOME") or (root or workspace_root()) / ".dagster")


@contextlib.contextmanager
def instance() -> Iterator[dg.DagsterInstance]:
    """Yield the Dagster instance of this workspace."""
    home = dagster_home()
    home.mkdir(parents=True, exist_ok=True)
    os.environ["DAGSTER_HOME"] = str(home)
    import dagster as dg

    with dg.DagsterInstance.get() as history:
        yield history
