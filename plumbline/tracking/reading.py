"""Reading the registry: through MLflow's client, or from a SQLite file without importing MLflow.

Importing MLflow takes 2 CPU seconds and opening the store 1 more; the rest of `plumbline log` takes 0.3.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from plumbline.tracking.model_version import ModelVersion
from plumbline.tracking.store import TrackingError, mlflow_error, sqlite_path, unanswered
from plumbline.tracking.view import SAVED

if TYPE_CHECKING:
    from plumbline.tracking.client import Tracking

PAGE = 1000
"""Versions per request."""
SCHEMAS = frozenset({"dc11669786a5"})
"""Revisions of MLflow's tables that `SqliteReader` can read; any other revision is read through MLflow's client."""


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model: tags and aliases."""

    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias -> version."""

    def aliases_of(self, version: str) -> tuple[str, ...]:
        """The aliases of one version, sorted."""
        return tuple(sorted(alias for alias, number in self.aliases.items() if number == version))


@dataclass(frozen=True)
class RunData:
    """Name, parameters, metrics and tags of a run."""

    name: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class Reader(Protocol):
    """Reads a store; raises TrackingError if it cannot be read."""

    def model(self, name: str) -> RegisteredModel | None:
        """The registered model; None: nothing was registered under this name."""

    def versions(self, name: str) -> list[ModelVersion]:
        """Its versions, with their aliases, in any order."""

    def run(self, run_id: str) -> RunData | None:
        """A run; None: there is no run with this id."""


def reader(tracking: Tracking) -> Reader:
    """The fastest reader that supports the store."""
    if tracking.uri.startswith("sqlite:"):
        path = sqlite_path(tracking.uri)
        with contextlib.suppress(sqlite3.Error, TrackingError), connected(path) as database:
            if {revision for (revision,) in database.execute("SELECT version_num FROM alembic_version")} <= SCHEMAS:
                return SqliteReader(path)
    return ClientReader(tracking)


@dataclass(frozen=True)
class ClientReader:
    """Reads through MLflow's client."""

    tracking: Tracking
    page: int = PAGE

    def model(self, name: str) -> RegisteredModel | None:
        """See `Reader`."""
        with self.tracking.client() as client:
            models = client.search_registered_models(f"name = '{name}'")
        if not models:
            return None
        aliases = {alias: str(version) for alias, version in models[0].aliases.items()}
        return RegisteredModel(dict(models[0].tags), aliases)

    def versions(self, name: str) -> list[ModelVersion]:
        """See `Reader`."""
        model = self.model(name) or RegisteredModel()
        versions: list[ModelVersion] = []
        token = None
        with self.tracking.client() as client:
            while True:
                page = client.search_model_versions(f"name = '{name}'", max_results=self.page, page_token=token)
                # A search omits the aliases.
                versions += [ModelVersion.of(entity, model.aliases_of(str(entity.version))) for entity in page]
                token = page.token
                if not token:
                    return versions

    def run(self, run_id: str) -> RunData | None:
        """See `Reader`."""
        with self.tracking.client() as client:
            try:
                run = client.get_run(run_id)
            except mlflow_error() as error:
                if unanswered(error):
                    raise
                return None
        data = run.data
        return RunData(str(run.info.run_name or ""), dict(data.params), dict(data.metrics), dict(data.tags))


@dataclass(frozen=True)
class SqliteReader:
    """Reads MLflow's tables."""

    path: Path

    def model(self, name: str) -> RegisteredModel | None:
        """See `Reader`."""
        with connected(self.path) as database:
            if not rows(database, "SELECT 1 FROM registered_models WHERE name = ?", name):
                return None
            tags = rows(database, "SELECT key, value FROM registered_model_tags WHERE name = ?", name)
            aliases = rows(database, "SELECT alias, version FROM registered_model_aliases WHERE name = ?", name)
        return RegisteredModel(dict(tags), {alias: str(version) for alias, version in aliases})

    def versions(self, name: str) -> list[ModelVersion]:
        """See `Reader`."""
        model = self.model(name) or RegisteredModel()
        tags: dict[int, dict[str, str]] = {}
        with connected(self.path) as database:
            query = "SELECT version, key, value FROM model_version_tags WHERE name = ?"
            for version, key, value in rows(database, query, name):
                tags.setdefault(version, {})[key] = value
            query = (
                "SELECT version, run_id, creation_time FROM model_versions "
                "WHERE name = ? AND current_stage != 'Deleted_Internal'"
            )
            listed = rows(database, query, name)
        return [
            ModelVersion(
                name, str(version), model.aliases_of(str(version)), run_id or "", tags.get(version, {}), created or 0
            )
            for version, run_id, created in listed
        ]

    def run(self, run_id: str) -> RunData | None:
        """See `Reader`."""
        with connected(self.path) as database:
            runs = rows(database, "SELECT name FROM runs WHERE run_uuid = ?", run_id)
            if not runs:
                return None
            params = rows(database, "SELECT key, value FROM params WHERE run_uuid = ?", run_id)
            query = "SELECT key, CASE WHEN is_nan THEN NULL ELSE value END FROM latest_metrics WHERE run_uuid = ?"
            metrics = {key: math.nan if value is None else value for key, value in rows(database, query, run_id)}
            tags = rows(database, "SELECT key, value FROM tags WHERE run_uuid = ?", run_id)
        return RunData(runs[0][0] or "", dict(params), metrics, dict(tags))


@contextlib.contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a SQLite file that cannot write."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        yield connection
    finally:
        connection.close()


def rows(database: sqlite3.Connection, query: str, *values: str) -> list[tuple[Any, ...]]:
    """The rows of a query.

    Raises:
        TrackingError: the database cannot be read.
    """
    try:
        return database.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise TrackingError(f"MLflow's database cannot be read ({error}); restore it from a backup") from error


def experiments(path: Path) -> dict[str, str]:
    """Name -> id of the experiments in a SQLite file that have our view; empty if it cannot be read."""
    query = (
        "SELECT name, experiments.experiment_id FROM experiments JOIN experiment_tags USING (experiment_id) "
        "WHERE key = ? AND lifecycle_stage = 'active' ORDER BY experiment_id"
    )
    with contextlib.suppress(sqlite3.Error, TrackingError), connected(path) as database:
        return {str(name): str(number) for name, number in rows(database, query, SAVED)}
    return {}
