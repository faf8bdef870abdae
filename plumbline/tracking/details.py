"""What MLflow shows and loads for a registered version: read by the audit, through MLflow's client or from SQLite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from plumbline.tracking.reading import ClientReader, Reader, SqliteReader, connected, rows
from plumbline.tracking.store import mlflow_error, unanswered

READY = "READY"
LOGGED_STATUS = {0: "UNSPECIFIED", 1: "PENDING", 2: READY, 3: "FAILED"}
"""Numbers in MLflow's table of logged models."""


@dataclass(frozen=True)
class VersionDetails:
    """A registered version, beyond its tags."""

    source: str = ""
    """`models:/m-ID`, the logged model it was registered from; `models:/NAME/N` of a version copied by MLflow."""
    location: str = ""
    """URI of the files that `models:/NAME/N` loads."""
    status: str = ""
    """`READY`; MLflow loads no other."""
    description: str = ""


@dataclass(frozen=True)
class LoggedModel:
    """A logged model of MLflow."""

    model_id: str
    name: str
    run_id: str
    location: str
    """URI of its files."""
    experiment_location: str
    """URI under which the experiment keeps all its files."""
    status: str
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A dataset that a run names as its input."""

    name: str
    digest: str
    path: str
    """Its source, as recorded: a path in the workspace."""
    context: str
    """Its use in the run."""


@dataclass(frozen=True)
class RunDetails:
    """A run, beyond its name, parameters, metrics and tags."""

    location: str
    """URI of its files."""
    experiment_location: str
    deleted: bool = False
    """Whether MLflow hides it."""
    datasets: tuple[Dataset, ...] = ()
    models: tuple[str, ...] = ()
    """Ids of the logged models that it names as its output."""
    logged: Mapping[str, frozenset[float]] = field(default_factory=dict)
    """Every value ever logged under a metric's name, which MLflow's charts show; empty if the store is a server."""


class Details(Protocol):
    """Reads details; raises TrackingError if the store cannot be read."""

    def version(self, name: str, number: str) -> VersionDetails | None:
        """A registered version; None: there is none."""

    def logged_model(self, model_id: str) -> LoggedModel | None:
        """A logged model; None: there is none, or it was deleted."""

    def run(self, run_id: str) -> RunDetails | None:
        """A run; None: there is none."""

    def description(self, name: str) -> str:
        """Of the registered model."""


def details_reader(reader: Reader) -> Details:
    """The reader of details for the store that a reader of versions reads."""
    if isinstance(reader, SqliteReader):
        return SqliteDetails(reader)
    assert isinstance(reader, ClientReader)
    return ClientDetails(reader)


@dataclass(frozen=True)
class ClientDetails:
    """Reads through MLflow's client."""

    reader: ClientReader

    def version(self, name: str, number: str) -> VersionDetails | None:
        """See `Details`."""
        with self.reader.tracking.client() as client:
            entity = _or_none(lambda: client.get_model_version(name, number))
            if entity is None:
                return None
            location = str(client.get_model_version_download_uri(name, number))
        return VersionDetails(str(entity.source), location, str(entity.status), str(entity.description or ""))

    def logged_model(self, model_id: str) -> LoggedModel | None:
        """See `Details`."""
        with self.reader.tracking.client() as client:
            model = _or_none(lambda: client.get_logged_model(model_id))
            if model is None:
                return None
            experiment = client.get_experiment(model.experiment_id)
        return LoggedModel(
            model_id=model_id,
            name=str(model.name),
            run_id=str(model.source_run_id or ""),
            location=str(model.artifact_location),
            experiment_location=str(experiment.artifact_location),
            status=str(model.status),
            tags=dict(model.tags or {}),
            metrics={metric.key: float(metric.value) for metric in model.metrics or ()},
        )

    def run(self, run_id: str) -> RunDetails | None:
        """See `Details`."""
        with self.reader.tracking.client() as client:
            run = _or_none(lambda: client.get_run(run_id))
            if run is None:
                return None
            experiment = client.get_experiment(run.info.experiment_id)
        datasets = [
            Dataset(one.dataset.name, one.dataset.digest, _path(one.dataset.source), _context(one.tags))
            for one in (run.inputs.dataset_inputs if run.inputs else ())
        ]
        models = [str(output.model_id) for output in (run.outputs.model_outputs if run.outputs else ())]
        return RunDetails(
            location=str(run.info.artifact_uri),
            experiment_location=str(experiment.artifact_location),
            deleted=run.info.lifecycle_stage != "active",
            datasets=tuple(datasets),
            models=tuple(models),
        )

    def description(self, name: str) -> str:
        """See `Details`."""
        with self.reader.tracking.client() as client:
            model = _or_none(lambda: client.get_registered_model(name))
        return str(model.description or "") if model else ""


@dataclass(frozen=True)
class SqliteDetails:
    """Reads MLflow's tables."""

    reader: SqliteReader

    def version(self, name: str, number: str) -> VersionDetails | None:
        """See `Details`."""
        query = (
            "SELECT source, storage_location, status, description FROM model_versions WHERE name = ? AND version = ?"
        )
        found = self._rows(query, name, number)
        if not found:
            return None
        source, location, status, description = ("" if value is None else str(value) for value in found[0])
        return VersionDetails(source, location or source, status, description)

    def logged_model(self, model_id: str) -> LoggedModel | None:
        """See `Details`."""
        query = (
            "SELECT m.name, m.source_run_id, m.artifact_location, e.artifact_location, m.status "
            "FROM logged_models AS m JOIN experiments AS e USING (experiment_id) "
            "WHERE model_id = ? AND m.lifecycle_stage = 'active'"
        )
        found = self._rows(query, model_id)
        if not found:
            return None
        name, run_id, location, experiment, status = found[0]
        tags = self._rows("SELECT tag_key, tag_value FROM logged_model_tags WHERE model_id = ?", model_id)
        metrics = self._rows("SELECT metric_name, metric_value FROM logged_model_metrics WHERE model_id = ?", model_id)
        return LoggedModel(
            model_id=model_id,
            name=str(name),
            run_id=str(run_id or ""),
            location=str(location),
            experiment_location=str(experiment),
            status=LOGGED_STATUS.get(status, str(status)),
            tags={str(key): str(value) for key, value in tags},
            metrics={str(key): float(value) for key, value in metrics},
        )

    def run(self, run_id: str) -> RunDetails | None:
        """See `Details`."""
        query = (
            "SELECT r.artifact_uri, e.artifact_location, r.lifecycle_stage FROM runs AS r "
            "JOIN experiments AS e USING (experiment_id) WHERE run_uuid = ?"
        )
        found = self._rows(query, run_id)
        if not found:
            return None
        location, experiment, stage = found[0]
        inputs = self._rows(
            "SELECT d.name, d.digest, d.dataset_source, i.input_uuid FROM inputs AS i JOIN datasets AS d "
            "ON i.source_id = d.dataset_uuid WHERE i.source_type = 'DATASET' AND i.destination_id = ?",
            run_id,
        )
        datasets = [
            Dataset(str(name), str(digest), _path(source), self._context(uuid)) for name, digest, source, uuid in inputs
        ]
        models = self._rows(
            "SELECT destination_id FROM inputs WHERE source_type = 'RUN_OUTPUT' AND source_id = ?", run_id
        )
        logged: dict[str, set[float]] = {}
        for key, value in self._rows("SELECT key, value FROM metrics WHERE run_uuid = ?", run_id):
            logged.setdefault(str(key), set()).add(float(value))
        return RunDetails(
            location=str(location),
            experiment_location=str(experiment),
            deleted=stage != "active",
            datasets=tuple(datasets),
            models=tuple(str(model) for (model,) in models),
            logged={key: frozenset(values) for key, values in logged.items()},
        )

    def description(self, name: str) -> str:
        """See `Details`."""
        found = self._rows("SELECT description FROM registered_models WHERE name = ?", name)
        return str(found[0][0] or "") if found else ""

    def _context(self, input_id: str) -> str:
        query = "SELECT value FROM input_tags WHERE name = 'mlflow.data.context' AND input_uuid = ?"
        return "".join(str(value) for (value,) in self._rows(query, input_id))

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with connected(self.reader.path) as database:
            return rows(database, query, *values)


def _path(source: Any) -> str:
    """The path in the source of a dataset, which MLflow stores as JSON."""
    try:
        return str(json.loads(source)["uri"])
    except (ValueError, TypeError, KeyError):
        return str(source)


def _context(tags: Iterable[Any]) -> str:
    return "".join(str(tag.value) for tag in tags if tag.key == "mlflow.data.context")


def _or_none(read: Any) -> Any:
    """What a call returns; None if MLflow has no such thing."""
    try:
        return read()
    except mlflow_error() as error:
        if unanswered(error):
            raise
        return None
