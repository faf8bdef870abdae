"""Opening MLflow's store: fast, without log output, and with short timeouts; a SQLite store is created."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.collector import collector_paused

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = b"SQLite format 3\0"
"""The first bytes of a SQLite database."""


class TrackingError(ValueError):
    """MLflow does not answer, or has no such model, version or run; the message says what to do."""


class NoStore(TrackingError):
    """The workspace has no registry yet."""


def mlflow_error() -> type[Exception]:
    """The base class of MLflow's errors."""
    from mlflow.exceptions import MlflowException

    return MlflowException  # type: ignore[no-any-return]


def sqlite_path(uri: str) -> Path:
    """The path in `sqlite:///...`."""
    return Path(uri.removeprefix("sqlite:///"))


def not_sqlite(path: Path) -> str:
    """Why a file cannot be a SQLite database; empty if it may be one, is empty, or does not exist."""
    try:
        with path.open("rb") as file:
            head = file.read(len(SQLITE))
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}); make it a file that the user of this process may read"
    if head in (b"", SQLITE):
        return ""
    return (
        f"{path} is not a SQLite database (it begins with {head[:12]!r}); restore it from a backup, or move it away, "
        "and `plumbline run` makes one and registers again what dvc.lock records"
    )


def has_tables(path: Path) -> bool:
    """Whether MLflow has made its tables in a SQLite file.

    Raises:
        TrackingError: it is damaged, or locked by another process.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
            return database.execute(query).fetchone() is not None
    except sqlite3.Error as error:
        raise TrackingError(
            f"{path} cannot be read ({error}); end the process that holds it, or restore it from a backup"
        ) from error


def unanswered(error: Exception) -> bool:
    """Whether an error means that the server cannot be reached."""
    return "API request to" in str(error) or "HTTPConnectionPool" in str(error)


@lru_cache(maxsize=8)
def opened(uri: str) -> MlflowClient:
    """Return a client of a store; a SQLite store is created if it does not exist.

    Raises:
        TrackingError: a SQLite store has tables that this version of MLflow does not read.
    """
    load_library()
    from mlflow import MlflowClient

    if not uri.startswith("http"):
        path = sqlite_path(uri)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _create_database(path)
    try:
        with collector_paused(), as_global_uri(uri):
            return MlflowClient(uri, uri)
    except mlflow_error() as error:
        if uri.startswith("http"):
            raise
        raise TrackingError(
            f"{sqlite_path(uri)} is no database of this MLflow ({str(error).partition('. ')[0]}); restore "
            "it from a backup, or move it away and `plumbline run` makes one"
        ) from error


def load_library() -> None:
    """Import MLflow and its SQLite store, with our settings: it reads them on import, and values that the user has set
    win. No telemetry, no warning on a machine without git, and a dead server is reported after seconds, by default
    after minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    with collector_paused():
        import mlflow
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    # MLflow logs a database's error with its traceback, then raises it; whoever catches it says it once.
    logging.getLogger("mlflow.store.db.utils").addFilter(_has_no_traceback)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return record.exc_info is None


@contextlib.contextmanager
def as_global_uri(uri: str) -> Iterator[None]:
    """Set the process-wide address: MLflow's registry looks up logged models there and ignores the client's address.

    `set_tracking_uri` also sets an environment variable. It is restored, or it would redirect other workspaces.
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
    """Create MLflow's tables by its own migrations, with a single fsync.

    70 migrations that each sync the disk take 5 s. Here they write to a private draft without syncing, and the finished
    file is linked to its name. A crash leaves no partial database.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    initialize = getattr(utils, "_initialize_tables", None)
    if initialize is None:
        return  # MLflow moved the function; it then creates the tables itself on opening
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
        with contextlib.suppress(FileExistsError):  # another process created it first
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic.runtime.migration")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
