"""What goes into MLflow: one run per evaluation, one registered version per model, found again on a retry.

A model is registered by reference: MLflow holds its hashes, its path and the figures, DVC holds its bytes. Only
`MlflowClient` is used, never MLflow's active run, so that several partitions and processes cannot mix their runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from plumbline.tracking.store import as_global_uri, mlflow_error, opened, sqlite_path, unanswered

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_UI = "http://127.0.0.1:5000"
BATCH = 100
"""MLflow takes at most 100 parameters or tags in one call."""
STAGE, EVALUATION, MODEL, CALIBRATION = "dvc.stage", "dvc.md5", "model.md5", "calibration.md5"
"""Tags that identify a run, and (all but the first) a registered version."""
RESTS_ON = "plumbline.rests_on"
"""Tag of a registered version: JSON, path -> DVC hash of every artifact from the corpus to the evaluation."""


class TrackingError(RuntimeError):
    """MLflow does not answer, or does not hold what was asked for; the message says what to do."""


@dataclass(frozen=True)
class Tracking:
    """Where runs and registered models are kept."""

    uri: str
    """`sqlite:////absolute/path/mlflow.db` or `http(s)://...`; a relative path would follow the working directory."""
    experiment: str = "plumbline"
    registered_model: str = "plumbline"

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]|sqlite:////", self.uri):
            raise ValueError(
                f"tracking.uri: expected http(s)://... or sqlite:////absolute/path/mlflow.db, found {self.uri!r}"
            )

    def record_evaluation(
        self,
        *,
        pair: str,
        calibration: str,
        scheme: str,
        dvc_md5: str,
        model_md5: str,
        calibration_md5: str,
        choice: Mapping[str, Any],
        scheme_params: Mapping[str, Any],
        metrics: Mapping[str, float],
        hashes: Mapping[str, str],
        plots: Sequence[Path],
        dagster_run_id: str,
        code_version: str,
        model_path: str,
        counts: Mapping[str, Any] | None = None,
        rests_on: Mapping[str, str] | None = None,
    ) -> tuple[str, str]:
        """Log an evaluation and register the model that it evaluated; done once per (pair, evaluation, model).

        Args:
            pair: `CALIBRATION-SCHEME`, the run's name.
            dvc_md5: DVC hash of the evaluation's folder.
            model_md5: of the quantized model's folder.
            calibration_md5: of the calibration set's folder; becomes the digest of the run's dataset input.
            choice: every parameter really used for the calibration choice; logged as `choice.*`.
            scheme_params: likewise, as `scheme.*`.
            metrics: by name, e.g. `kl_mean/prose`; a character that MLflow refuses becomes `_`.
            hashes: every other digest of the chain; logged as tags `hash.*` on the run and on the version.
            plots: small image files, stored with the run under `plots/`.
            model_path: where the model lies, relative to the workspace.
            counts: rows and tokens in, out and lost by reason, nested by name; logged as metrics `count/*`.
            rests_on: path -> DVC hash of every artifact that the model was made from, for `plumbline gc`.

        Returns:
            The run's id and the model's version.

        Raises:
            ValueError: a metric is not a number.
            TrackingError: the server does not answer, or the experiment was deleted.
        """
        figures = metric_names({**metrics, **{f"count/{k}": v for k, v in flatten(counts or {}, "/").items()}})
        with self.client() as client:
            from mlflow.entities import LoggedModelOutput
            from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

            experiment_id = self.experiment_id(client)
            identity = {STAGE: f"evaluation@{pair}", EVALUATION: dvc_md5, MODEL: model_md5}
            found = search(client, experiment_id, identity)
            for run in found:
                if run.info.status == "FINISHED":
                    return run.info.run_id, run.data.tags["model_version"]
            _bury(client, self.registered_model, found)

            digests = {MODEL: model_md5, EVALUATION: dvc_md5, CALIBRATION: calibration_md5}
            digests |= {f"hash.{name}": value for name, value in sorted(hashes.items())}
            chain = {RESTS_ON: json.dumps(dict(rests_on), sort_keys=True)} if rests_on else {}
            tags = {
                **identity,
                **digests,
                "calibration": calibration,
                "scheme": scheme,
                "dagster.run_id": dagster_run_id,
                "code_version": code_version,
                "model_path": model_path,
                **recorder(),
            }
            with logged_run(client, experiment_id, pair, tags) as run_id:
                dataset = _dataset(calibration, calibration_md5, choice)
                log_dataset(client, run_id, dataset)
                model = client.create_logged_model(
                    experiment_id, _model_name(pair), run_id, {MLFLOW_MODEL_IS_EXTERNAL: "true", **digests}
                )
                client.finalize_logged_model(model.model_id, "READY")
                client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
                params = {**prefixed("choice", choice), **prefixed("scheme", scheme_params)}
                _log(client, run_id, params, figures, model.model_id, dataset.dataset)
                for plot in plots:
                    client.log_artifact(run_id, str(plot), "plots")
                version = self._register(
                    client, run_id, model.model_id, {"pair": pair, "path": model_path, **digests, **chain}
                )
                client.set_tag(run_id, "model_version", version)
        return run_id, version

    def trace(
        self, model_md5: str | None = None, *, alias: str | None = None, version: str | None = None
    ) -> dict[str, Any]:
        """What MLflow knows of a registered model, named by DVC hash, by alias or by version.

        Returns:
            version, aliases, run_id, pair, path, digests (by tag name), calibration (name and digest of the dataset
            input), params, metrics, dagster_run_id, code_version.

        Raises:
            TrackingError: no such model is registered.
        """
        with self.client() as client:
            try:
                if alias:
                    found = client.get_model_version_by_alias(self.registered_model, alias)
                elif version:
                    found = client.get_model_version(self.registered_model, version)
                else:
                    found = self._version(client, str(model_md5))
            except mlflow_error() as error:
                if unanswered(error):
                    raise  # `client` says what to do
                raise TrackingError(f"models:/{self.registered_model}@{alias or version}: {error}") from error
            run = client.get_run(found.run_id)
            registered = client.get_model_version(self.registered_model, str(found.version))
        tags = {name: value for name, value in registered.tags.items() if not name.startswith("plumbline.")}
        return {
            "version": str(found.version),
            "aliases": sorted(registered.aliases),
            "run_id": found.run_id,
            "pair": tags.pop("pair", ""),
            "path": tags.pop("path", ""),
            "digests": tags,
            "calibration": [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs],
            "params": run.data.params,
            "metrics": run.data.metrics,
            "dagster_run_id": run.data.tags.get("dagster.run_id", ""),
            "code_version": run.data.tags.get("code_version", ""),
        }

    def hint(self) -> str:
        """One line for people: how to look at the runs."""
        if self.uri.startswith("http"):
            return f"{self.uri.rstrip('/')}/#/experiments (experiment {self.experiment!r})"
        return f"`make mlflow`, then {LOCAL_UI}/#/experiments (experiment {self.experiment!r})"

    def run_url(self, run_id: str) -> str:
        """Address of a run's page; with SQLite it works while `make mlflow` runs."""
        base = self.uri.rstrip("/") if self.uri.startswith("http") else LOCAL_UI
        with self.client() as client:
            return f"{base}/#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}"

    @contextlib.contextmanager
    def client(self) -> Iterator[MlflowClient]:
        """A client, for as long as it is needed; errors of a server that does not answer say what to do."""
        client = opened(self.uri)
        try:
            with as_global_uri(self.uri):
                yield client
        except mlflow_error() as error:
            if unanswered(error):
                raise TrackingError(
                    f"MLflow at {self.uri} does not answer ({type(error).__name__}); start it, or correct tracking.uri "
                    "in params.yaml (without it, runs go to a SQLite file of the workspace)"
                ) from error
            raise

    def experiment_id(self, client: MlflowClient) -> str:
        """The id of the experiment, which is made if there is none."""
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            # On SQLite the artifacts lie beside the database; a server decides for itself.
            place = None if self.uri.startswith("http") else (sqlite_path(self.uri).parent / "mlruns").as_uri()
            with contextlib.suppress(mlflow_error()):  # another process was first
                return str(client.create_experiment(self.experiment, artifact_location=place))
            found = client.get_experiment_by_name(self.experiment)
        if found is None or found.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {self.experiment!r} was deleted; restore it in the UI or with "
                "`mlflow experiments restore`, or give tracking.experiment in params.yaml another name"
            )
        return str(found.experiment_id)

    def _register(self, client: MlflowClient, run_id: str, model_id: str, tags: dict[str, str]) -> str:
        try:
            client.get_registered_model(self.registered_model)
        except mlflow_error():
            with contextlib.suppress(mlflow_error()):  # another process was first
                client.create_registered_model(self.registered_model)
        made = client.create_model_version(
            self.registered_model, f"models:/{model_id}", run_id, tags=tags, model_id=model_id
        )
        return str(made.version)  # an int on SQLite, text over http

    def _version(self, client: MlflowClient, model_md5: str) -> Any:
        name = self.registered_model
        found = client.search_model_versions(f"name = '{name}' and tags.`{MODEL}` = '{model_md5}'")
        if not found:
            raise TrackingError(
                f"no version of {name!r} in MLflow at {self.uri} has the DVC hash {model_md5}; evaluate the model "
                "first (`plumbline run`), which registers it"
            )
        return max(found, key=lambda version: int(version.version))


def flatten(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested mappings as one level: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}{separator}{rest}": v for rest, v in flatten(value, separator).items()}
        else:
            flat[str(name)] = value
    return flat


def metric_names(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics under names that MLflow takes; two that would coincide stay apart by a number.

    Raises:
        ValueError: a value is not a finite number; names the metric.
    """
    named: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"metric {name!r}: expected a finite number, found {value!r}")
        parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
        plain = "/".join("_" if part in ("", ".", "..") else part for part in parts)[:240]
        unique, n = plain, 1
        while unique in named:
            unique, n = f"{plain}_{n + 1}", n + 1
        named[unique] = float(value)
    return named


def log_dataset(client: MlflowClient, run_id: str, dataset: Any) -> None:
    """Name a dataset as the run's input.

    MLflow looks for it and then inserts it, so of two processes that name a new one at once the later fails; the second
    time it is found.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.log_inputs(run_id, [dataset])
    except MlflowException as error:
        if "UNIQUE constraint" not in str(error) and "UniqueViolation" not in str(error):
            raise
        client.log_inputs(run_id, [dataset])


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as parameters: {"a": {"b": 1}} under "c" -> {"c.a.b": "1"}."""
    return {
        f"{prefix}.{name}": value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        for name, value in flatten(values).items()
    }


def _model_name(pair: str) -> str:
    return re.sub(r"[/:.%\"']", "-", pair)  # what MLflow refuses in a model's name


def _dataset(calibration: str, md5: str, choice: Mapping[str, Any]) -> Any:
    """The calibration set as MLflow's dataset input: by name and DVC hash, without its content."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    path = f"data/calibration_set/{calibration}"
    profile = json.dumps({"num_rows": choice["n"]}) if "n" in choice else None
    # 36 characters is MLflow's limit for a digest: an MD5 and `.dir` just fit.
    dataset = Dataset(calibration, md5, "local", json.dumps({"uri": path}), profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "calibration")])


def log_batches(client: MlflowClient, run_id: str, params: Mapping[str, str], metrics: Mapping[str, float]) -> None:
    """Parameters and metrics of a run, as many at a time as MLflow takes."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    p = [Param(name, value) for name, value in sorted(params.items())]
    m = [Metric(name, value, now, 0) for name, value in sorted(metrics.items())]
    for start in range(0, max(len(p), len(m)), BATCH):
        client.log_batch(run_id, metrics=m[start : start + BATCH], params=p[start : start + BATCH])


def _log(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    model_id: str,
    dataset: Any,
) -> None:
    """Parameters of the run; metrics of the run, of the model and of the calibration set at once."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    p = [Param(name, value) for name, value in sorted(params.items())]
    m = [
        Metric(name, value, now, 0, model_id=model_id, dataset_name=dataset.name, dataset_digest=dataset.digest)
        for name, value in sorted(metrics.items())
    ]
    for start in range(0, max(len(p), len(m)), BATCH):
        client.log_batch(run_id, metrics=m[start : start + BATCH], params=p[start : start + BATCH])


SOURCE = {"mlflow.source.name": "plumbline", "mlflow.source.type": "LOCAL"}
"""Tags of every run."""


def recorder() -> dict[str, str]:
    """Tags of a run that may be left behind by a process that dies: who wrote it."""
    return {**SOURCE, "recorder": f"{socket.gethostname()}:{os.getpid()}"}


@contextlib.contextmanager
def logged_run(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """A run that ends as finished, or as failed where an error leaves the block; gives its id."""
    run_id = str(client.create_run(experiment, tags=dict(tags), run_name=name).info.run_id)
    try:
        yield run_id
        client.set_terminated(run_id, "FINISHED")
    except BaseException:
        with contextlib.suppress(Exception):
            client.set_terminated(run_id, "FAILED")
        raise


def search(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> list[Any]:
    """Runs that carry all these tags."""
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment_id], query))


def _bury(client: MlflowClient, registered_model: str, runs: Sequence[Any]) -> None:
    """End the runs whose process died before it could; they would stay RUNNING, with a version that nobody uses."""
    host = socket.gethostname()
    for run in runs:
        recorder_host, _, pid = run.data.tags.get("recorder", "").rpartition(":")
        if run.info.status != "RUNNING" or recorder_host != host or psutil.pid_exists(int(pid)):
            continue
        client.set_terminated(run.info.run_id, "KILLED")
        for version in client.search_model_versions(f"name = '{registered_model}' and run_id = '{run.info.run_id}'"):
            client.delete_model_version(registered_model, str(version.version))
