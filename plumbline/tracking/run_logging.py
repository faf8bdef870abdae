"""Logging a run in MLflow, once per output: a retry returns the run that exists."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plumbline.artifact import link_or_copy
from plumbline.tracking.client import Tracking
from plumbline.tracking.location import local_folder
from plumbline.tracking.model_version import EVALUATION, MODEL
from plumbline.tracking.run import ModelRecord, RunRecord, Table, metric_names
from plumbline.tracking.store import mlflow_error
from plumbline.tracking.text import MODELS
from plumbline.tracking.view import NOTE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

BATCH = 100
"""MLflow accepts at most 100 parameters or tags in one call."""
SOURCE = {"mlflow.source.name": "plumbline", "mlflow.source.type": "LOCAL"}
"""Tags of every run."""
TABLES = "mlflow.loggedArtifacts"
"""Tag: the files that MLflow shows as tables."""
PARENT = "mlflow.parentRunId"
"""Tag of a child: the id of its parent."""
RECORDER = "recorder"
"""Tag of a run on a server: the writers of one workspace; see `Tracking.writing`."""
VERSION = "model_version"
"""Tag: the registered version of the model that the run evaluated."""


@dataclass(frozen=True)
class LoggedRun:
    """The id and the page of a logged run."""

    run_id: str
    url: str
    """Its page."""
    version: str = ""
    """Of the registered model; empty if the run registered none."""


def log_run(tracking: Tracking, record: RunRecord) -> LoggedRun:
    """Log a run with its children and register its model, once per identity.

    A finished run of the same identity is returned; if the registry has lost its version, that is registered again. A
    run whose process died after it registered is finished, any other is marked and logged anew.

    Raises:
        ValueError: a metric is not a finite number.
        TrackingError: the server does not answer, or the experiment was deleted.
    """
    for run_record in (record, *record.children):
        metric_names(run_record.metrics)  # raises before anything is written
    with tracking.writing() as recorder, tracking.client() as client:
        experiment = tracking.experiment_id(client, record.view)
        writer = _RunWriter(client, experiment, tracking.registered_model)
        earlier = _search(client, experiment, record.identity)
        for run in sorted(earlier, key=lambda run: run.info.status != "FINISHED"):
            run_id = str(run.info.run_id)
            if (version := writer.finish(run, record)) is not None:
                return LoggedRun(run_id, tracking.run_url(experiment, run_id), version)
            if run.info.status == "RUNNING" and recorder in ("", run.data.tags.get(RECORDER)):
                _end(client, experiment, run_id)
        run_id, version = writer.write(record, {**SOURCE, **({RECORDER: recorder} if recorder else {})})
    return LoggedRun(run_id, tracking.run_url(experiment, run_id), version)


@dataclass(frozen=True)
class _RunWriter:
    client: MlflowClient
    experiment: str
    registered_model: str

    def write(self, record: RunRecord, tags: Mapping[str, str]) -> tuple[str, str]:
        """Log a run and its children; returns its id and the version of its model."""
        from plumbline.tracking.dataset import dataset_input

        note = {NOTE: record.description} if record.description else {}
        shown = [{"path": name, "type": "table"} for name in record.tables]
        note |= {TABLES: json.dumps(shown)} if shown else {}
        version = ""
        with _started(self.client, self.experiment, record, {**record.identity, **record.tags, **tags, **note}) as run:
            dataset = dataset_input(record.dataset) if record.dataset else None
            if dataset:
                self._log_dataset(run, dataset)
            metric_links = self._log_model(run, record.model, dataset) if record.model else {}
            self._log_batches(run, record, metric_links)
            for path in record.artifacts:
                self.client.log_artifact(run, str(path), "plots" if path.suffix == ".png" else None)
            for path in record.linked:
                self._link(run, path)
            self._log_tables(run, record.tables)
            for child in record.children:
                self.write(child, {**SOURCE, PARENT: run})
            if record.model:  # the last thing: a run that registered is complete
                version = self._register(run, record.model, metric_links["model_id"])
                self.client.set_tag(run, VERSION, version)
        return run, version

    def finish(self, run: Any, record: RunRecord) -> str | None:
        """Complete what an earlier run of the same identity lacks; returns its version, or None if it must be redone.

        The version is empty for a record without a model.
        """
        run_id, finished = str(run.info.run_id), run.info.status == "FINISHED"
        if record.model is None:
            return "" if finished else None
        version = self._version_of(record.model, None if finished else run_id)
        if version is None:
            models = [output.model_id for output in (run.outputs.model_outputs if run.outputs else [])]
            if not finished or not models:
                return None
            version = self._register(run_id, record.model, models[0])  # the registry was emptied
        if run.data.tags.get(VERSION) != version:
            self.client.set_tag(run_id, VERSION, version)
        if not finished:
            self.client.set_terminated(run_id, "FINISHED")
        return version

    def _log_dataset(self, run_id: str, dataset: DatasetInput) -> None:
        """Log a dataset as the run's input.

        MLflow searches for the dataset and then inserts it without a lock. Of two processes that insert it at the same
        time one fails; its second attempt finds the dataset.
        """
        try:
            self.client.log_inputs(run_id, [dataset])
        except mlflow_error() as error:
            if "UNIQUE constraint" not in str(error) and "UniqueViolation" not in str(error):
                raise
            self.client.log_inputs(run_id, [dataset])

    def _log_model(self, run_id: str, model: ModelRecord, dataset: DatasetInput | None) -> dict[str, str]:
        """Log a model as the run's output; returns the fields that link metrics to it."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        name = re.sub(r"[/:.%\"']", "-", model.name)  # characters that MLflow rejects in a model's name
        tags = {MLFLOW_MODEL_IS_EXTERNAL: "true", **model.digests}
        logged = self.client.create_logged_model(self.experiment, name, run_id, tags)
        self.client.finalize_logged_model(logged.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        metric_links = {"model_id": str(logged.model_id)}
        if dataset:
            metric_links |= {"dataset_name": dataset.dataset.name, "dataset_digest": dataset.dataset.digest}
        return metric_links

    def _link(self, run_id: str, path: Path) -> None:
        """Log a file without a second copy where the store is on this machine."""
        folder = local_folder(str(self.client.get_run(run_id).info.artifact_uri))
        if folder is None:
            self.client.log_artifact(run_id, str(path))
        else:
            link_or_copy(path.resolve(), folder / path.name)

    def _log_tables(self, run_id: str, tables: Mapping[str, Table]) -> None:
        """Log tables as files in the form that MLflow shows."""
        with tempfile.TemporaryDirectory() as folder:
            for name, table in tables.items():
                path = Path(folder) / name
                content = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
                path.write_text(json.dumps(content), encoding="utf-8")
                self.client.log_artifact(run_id, str(path))

    def _log_batches(self, run_id: str, record: RunRecord, metric_links: Mapping[str, str]) -> None:
        """Log parameters and metrics in batches."""
        from mlflow.entities import Metric, Param

        timestamp = int(time.time() * 1000)
        params = [Param(name, value) for name, value in sorted(record.params.items())]
        named = metric_names(record.metrics).items()
        metrics = [Metric(name, value, timestamp, 0, **metric_links) for name, value in named]
        for start in range(0, max(len(params), len(metrics)), BATCH):
            batch = slice(start, start + BATCH)
            self.client.log_batch(run_id, metrics=metrics[batch], params=params[batch])

    def _register(self, run_id: str, model: ModelRecord, model_id: str) -> str:
        """The version of a model, registered once whoever else registers the same content."""
        try:
            self.client.get_registered_model(self.registered_model)
        except mlflow_error():
            with contextlib.suppress(mlflow_error()):  # another process created it first
                self.client.create_registered_model(self.registered_model, description=MODELS)
        if (version := self._version_of(model)) is not None:
            return version
        tags = {"pair": model.name, "path": model.path, **model.digests, **model.tags}
        created = self.client.create_model_version(
            self.registered_model,
            f"models:/{model_id}",
            run_id,
            tags=tags,
            description=model.description or None,
            model_id=model_id,
        )
        ours = str(created.version)  # an int on SQLite, text over http
        first = self._version_of(model) or ours
        if first != ours:  # another workspace registered it on the same server, and both can see that it was first
            self.client.delete_model_version(self.registered_model, ours)
        return first

    def _version_of(self, model: ModelRecord, run_id: str | None = None) -> str | None:
        """The first version of the same pair, model and evaluation; with `run_id`, only one that this run registered.

        None: there is none.
        """
        identity = {"pair": model.name, **{name: model.digests[name] for name in (MODEL, EVALUATION)}}
        query = f"name = '{self.registered_model}' and tags.`{MODEL}` = '{identity[MODEL]}'"
        versions = [
            int(version.version)
            for version in self.client.search_model_versions(query, max_results=1000)
            if identity.items() <= dict(version.tags).items() and run_id in (None, version.run_id)
        ]
        return str(min(versions)) if versions else None


@contextlib.contextmanager
def _started(client: MlflowClient, experiment: str, record: RunRecord, tags: Mapping[str, str]) -> Iterator[str]:
    """Start a run and yield its id; end it as finished, or as failed if the block raises.

    Its duration is that of the computation, which is over, where that is known.
    """
    end = int(time.time() * 1000)
    start = end - round(1000 * (record.seconds or 0))
    run_id = str(client.create_run(experiment, start_time=start, tags=dict(tags), run_name=record.name).info.run_id)
    try:
        yield run_id
        client.set_terminated(run_id, "FINISHED", end if record.seconds else None)
    except BaseException:
        with contextlib.suppress(Exception):
            client.set_terminated(run_id, "FAILED")
        raise


def _search(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[Any]:
    """Runs that have all these tags."""
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment], query))


def _end(client: MlflowClient, experiment: str, run_id: str) -> None:
    """Mark a run whose process died, and its children; they would stay RUNNING for ever."""
    for child in _search(client, experiment, {PARENT: run_id}):
        if child.info.status == "RUNNING":
            client.set_terminated(child.info.run_id, "KILLED")
    client.set_terminated(run_id, "KILLED")
