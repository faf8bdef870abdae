"""The Dagster instance of a workspace, which stores its run history."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.workspace import workspace_root
from plumbline.workspace_template import template_root

if TYPE_CHECKING:
    import dagster as dg

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Run configuration for commands that print their own progress; the event log stays complete."""


SETTINGS = "dagster.yaml"
_open: dict[Path, dg.DagsterInstance] = {}


def dagster_home(root: Path | None = None) -> Path:
    """DAGSTER_HOME if it is set, else `.dagster` of the workspace."""
    return Path(os.environ.get("DAGSTER_HOME") or dagster_home_of(root or workspace_root()))


def dagster_home_of(root: Path) -> Path:
    """The folder of a workspace's own Dagster instance."""
    return root / ".dagster"


@contextlib.contextmanager
def instance() -> Iterator[dg.DagsterInstance]:
    """Yield the Dagster instance of this workspace; within a context of the same process, the same one."""
    home = dagster_home()
    if home in _open:
        yield _open[home]
        return
    home.mkdir(parents=True, exist_ok=True)
    if home == dagster_home_of(workspace_root()) and not (home / SETTINGS).exists():
        shutil.copyfile(template_root() / ".dagster" / SETTINGS, home / SETTINGS)  # without it, telemetry is on
    os.environ["DAGSTER_HOME"] = str(home)
    import dagster as dg

    with dg.DagsterInstance.get() as history:
        _open[home] = history
        try:
            yield history
        finally:
            del _open[home]
