"""Opening MLflow's store: quickly, quietly, not waiting for a server that is not there, and made if it is a file."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient


class TrackingError(ValueError):
    """MLflow does not answer, or does not hold what was asked for; the message says what to do."""


def mlflow_error() -> type[Exception]:
    """What MLflow raises."""
    from mlflow.exceptions import MlflowException

    return MlflowException  # type: ignore[no-any-return]


def sqlite_path(uri: str) -> Path:
    """The file behind `sqlite:///...`."""
    return Path(uri.removeprefix("sqlite:///"))


def unanswered(error: Exception) -> bool:
    """Whether a server that cannot be reached is what MLflow complains of."""
    return "API request to" in str(error) or "HTTPConnectionPool" in str(error)


@lru_cache(maxsize=8)
def opened(uri: str) -> MlflowClient:
    """A client of a store; makes a SQLite store that does not exist yet."""
    # Read when mlflow is imported; what the user has set wins. Nothing is sent anywhere, and a machine without git is
    # no reason for a warning. A dead server is reported after seconds (by default after minutes).
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    with _collector_paused():
        from mlflow import MlflowClient

        if not uri.startswith("http"):
            path = sqlite_path(uri)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                _create_database(path)
        with as_global_uri(uri):
            return MlflowClient(uri, uri)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Imports and mappings allocate much and free nothing: a third of their time would go into looking for garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def as_global_uri(uri: str) -> Iterator[None]:
    """MLflow's registry looks a logged model up at the process-wide address, whatever its client was opened with.

    The environment variable that `set_tracking_uri` leaves behind would redirect other workspaces: it is put back.
    """
    import mlflow

    name = "MLFLOW_TRACKING_URI"
    before = os.environ.get(name)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _create_database(path: Path) -> None:
    """Make MLflow's tables by its own migrations, but in one file sync.

    70 migrations that each wait for the disk take 5 s; here they write to a file that nobody else sees, without
    waiting, and the finished file gets its name at once. A crash on the way leaves no half-made database either.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    initialize = getattr(utils, "_initialize_tables", None)
    if initialize is None:
        return  # an MLflow that has moved it makes the tables itself, on opening
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        engine = sqlalchemy.create_engine(f"sqlite:///{draft}")

        @sqlalchemy.event.listens_for(engine, "connect")
        def without_waiting(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

        with _quiet():
            initialize(engine)
        engine.dispose()
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import logging

    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic.runtime.migration")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
