"""The address of the MLflow store of a workspace."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from plumbline.tracking.params import TrackingParams
from plumbline.tracking.store import NoStore, TrackingError, has_tables, not_sqlite, sqlite_path
from plumbline.yaml_file import read_yaml

DATABASE = "mlflow.db"
"""Default store: a SQLite file at the root of the workspace."""
SUPPORTED = re.compile(r"https?://[^/]|sqlite:////")


def tracking_address(root: Path, *, read_only: bool = False) -> TrackingParams:
    """Return the section `tracking` of params.yaml with its address filled in.

    The address is `tracking.uri`, else MLFLOW_TRACKING_URI, else a SQLite file of the workspace.

    Args:
        read_only: for commands that only read the registry. Other sections of params.yaml may be invalid, or the file
            absent. A missing SQLite store is an error, because opening it would create it.

    Raises:
        ValueError: params.yaml is invalid; a `TrackingError` if there is no store to read, or the address is of another
            kind. The message shows no password.
    """
    section = tracking_section(root) if read_only else _checked_section(root)
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    if (named := section.uri or environment) and not SUPPORTED.match(named):
        source = f"{root / 'params.yaml'}, tracking.uri" if section.uri else "the variable MLFLOW_TRACKING_URI"
        raise TrackingError(
            f"{source}: found {shown_uri(named)!r}, expected http(s)://HOST of an MLflow server, or "
            "sqlite:////ABSOLUTE/PATH/mlflow.db; correct it, or remove it to use mlflow.db in the workspace"
        )
    uri = named or f"sqlite:///{root.resolve() / DATABASE}"
    if read_only and uri.startswith("sqlite:"):
        _require_tables(sqlite_path(uri))
    return section.model_copy(update={"uri": uri})


def _require_tables(database: Path) -> None:
    """Raise TrackingError if a SQLite file has nothing to read, because MLflow would make its tables there."""
    if not database.is_file():
        raise NoStore(f"no model is registered in this workspace: {database} does not exist; `plumbline run` makes it")
    if problem := not_sqlite(database):
        raise TrackingError(problem)
    if not has_tables(database):
        raise NoStore(f"no model is registered in this workspace: {database} is empty; `plumbline run` fills it")


def _checked_section(root: Path) -> TrackingParams:
    from plumbline.params import load_params

    return load_params(root).tracking


def shown_uri(uri: str) -> str:
    """A URI for messages: without the user, the password and the query, any of which may be a secret."""
    return re.sub(r"//.*@", "//***@", uri.partition("?")[0])


def tracking_section(root: Path) -> TrackingParams:
    """The section `tracking` of params.yaml, whose other sections may be invalid; the defaults without the file.

    Raises:
        TrackingError: the section is invalid.
    """
    content: Any = None
    with contextlib.suppress(OSError, ValueError):
        content = read_yaml(root / "params.yaml").content
    section = content.get("tracking") if isinstance(content, dict) else None
    try:
        return TrackingParams.model_validate(section or {})
    except ValueError as error:
        raise TrackingError(f"params.yaml, tracking: {error}") from error
