"""Logging a run in MLflow, once per output: a retry returns the run that exists."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from plumbline.tracking.client import Tracking
from plumbline.tracking.run import ModelRecord, RunRecord, metric_names
from plumbline.tracking.store import mlflow_error

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

BATCH = 100
"""MLflow accepts at most 100 parameters or tags in one call."""
SOURCE = {"mlflow.source.name": "plumbline", "mlflow.source.type": "LOCAL"}
"""Tags of every run."""
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

    A finished run of the same identity is returned unchanged. After a failed or killed run a new one is logged.

    Raises:
        ValueError: a metric is not a finite number.
        TrackingError: the server does not answer, or the experiment was deleted.
    """
    for run_record in (record, *record.children):
        metric_names(run_record.metrics)  # raises before anything is written
    with tracking.client() as client:
        experiment = tracking.experiment_id(client)
        earlier = _search(client, experiment, record.identity)
        for run in earlier:
            if run.info.status == "FINISHED":
                run_id, version = str(run.info.run_id), str(run.data.tags.get(VERSION, ""))
                return LoggedRun(run_id, tracking.run_url(experiment, run_id), version)
        _end_dead_runs(client, tracking.registered_model, earlier)
        writer = _RunWriter(client, experiment, tracking.registered_model)
        run_id, version = writer.write(record, {**SOURCE, "recorder": f"{socket.gethostname()}:{os.getpid()}"})
    return LoggedRun(run_id, tracking.run_url(experiment, run_id), version)


@dataclass(frozen=True)
class _RunWriter:
    client: MlflowClient
    experiment: str
    registered_model: str

    def write(self, record: RunRecord, tags: Mapping[str, str]) -> tuple[str, str]:
        """Log a run and its children; returns its id and the version of its model."""
        from plumbline.tracking.dataset import dataset_input

        note = {"mlflow.note.content": record.description} if record.description else {}
        version = ""
        with _started(
            self.client, self.experiment, record.name, {**record.identity, **record.tags, **tags, **note}
        ) as run:
            dataset = dataset_input(record.dataset) if record.dataset else None
            if dataset:
                self._log_dataset(run, dataset)
            metric_links = self._log_model(run, record.model, dataset) if record.model else {}
            self._log_batches(run, record, metric_links)
            for path in record.artifacts:
                self.client.log_artifact(run, str(path), "plots" if path.suffix == ".png" else None)
            if record.model:
                version = self._register(run, record.model, metric_links["model_id"])
                self.client.set_tag(run, VERSION, version)
            for child in record.children:
                self.write(child, {**SOURCE, "mlflow.parentRunId": run})
        return run, version

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

    def _log_batches(self, run_id: str, record: RunRecord, metric_links: Mapping[str, str]) -> None:
        """Log parameters and metrics in batches."""
        from mlflow.entities import Metric, Param

        timestamp = int(time.time() * 1000)
        params = [Param(name, value) for name, value in sorted(record.params.items())]
        named = sorted(metric_names(record.metrics).items())
        metrics = [Metric(name, value, timestamp, 0, **metric_links) for name, value in named]
        for start in range(0, max(len(params), len(metrics)), BATCH):
            batch = slice(start, start + BATCH)
            self.client.log_batch(run_id, metrics=metrics[batch], params=params[batch])

    def _register(self, run_id: str, model: ModelRecord, model_id: str) -> str:
        try:
            self.client.get_registered_model(self.registered_model)
        except mlflow_error():
            with contextlib.suppress(mlflow_error()):  # another process created it first
                self.client.create_registered_model(self.registered_model)
        tags = {"pair": model.name, "path": model.path, **model.digests, **model.tags}
        created = self.client.create_model_version(
            self.registered_model, f"models:/{model_id}", run_id, tags=tags, model_id=model_id
        )
        return str(created.version)  # an int on SQLite, text over http


@contextlib.contextmanager
def _started(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Start a run and yield its id; end it as finished, or as failed if the block raises."""
    run_id = str(client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id)
    try:
        yield run_id
        client.set_terminated(run_id, "FINISHED")
    except BaseException:
        with contextlib.suppress(Exception):
            client.set_terminated(run_id, "FAILED")
        raise


def _search(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[Any]:
    """Runs that have all these tags."""
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment], query))


def _end_dead_runs(client: MlflowClient, registered_model: str, runs: Sequence[Any]) -> None:
    """End runs whose process died and delete their versions; they would stay RUNNING for ever."""
    host = socket.gethostname()
    for run in runs:
        recorder_host, _, pid = run.data.tags.get("recorder", "").rpartition(":")
        if run.info.status != "RUNNING" or recorder_host != host or psutil.pid_exists(int(pid)):
            continue
        client.set_terminated(run.info.run_id, "KILLED")
        for version in client.search_model_versions(f"name = '{registered_model}' and run_id = '{run.info.run_id}'"):
            client.delete_model_version(registered_model, str(version.version))
