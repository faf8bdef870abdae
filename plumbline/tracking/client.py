"""MLflow as the workspace uses it: a store, an experiment, a registered model.

Only `MlflowClient` is used, never MLflow's active run: concurrent partitions and processes must not mix their runs.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from plumbline.artifact import replace_text
from plumbline.tracking.address import tracking_address
from plumbline.tracking.location import artifact_location, follow
from plumbline.tracking.store import TrackingError, as_global_uri, mlflow_error, opened, sqlite_path, unanswered
from plumbline.tracking.view import EVALUATIONS, TRAINING, View, apply

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_UI = "http://127.0.0.1:5000"
"""Where `plumbline mlflow` serves the UI of a SQLite store."""


@dataclass(frozen=True)
class Tracking:
    """The MLflow store, experiment and registered model of a workspace."""

    uri: str
    """`sqlite:////absolute/path/mlflow.db` or `http(s)://...`; a relative path depends on the working directory."""
    experiment: str = "plumbline"
    registered_model: str = "plumbline"
    locks: Path = field(default=Path(tempfile.gettempdir()), compare=False)
    """Folder of the lock for a server, which one workspace's processes share. A SQLite store has a lock of its own."""

    read_only: bool = field(default=False, compare=False)
    """Whether the store stays as it is, also where the workspace was moved."""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]|sqlite:////", self.uri):
            raise ValueError(
                f"tracking.uri: expected http(s)://... or sqlite:////absolute/path/mlflow.db, found {self.uri!r}"
            )

    @property
    def database(self) -> Path | None:
        """The SQLite file of the store; None: a server."""
        return None if self.uri.startswith("http") else sqlite_path(self.uri)

    @classmethod
    def of(cls, root: Path, *, read_only: bool = False) -> Tracking:
        """MLflow as configured in params.yaml; `read_only` and errors as in `tracking_address`."""
        address = tracking_address(root, read_only=read_only)
        locks = root / ".plumbline" / "locks"
        return cls(str(address.uri), address.experiment, address.registered_model, locks, read_only)

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """URL of a run's page; for a SQLite store it is served while `plumbline mlflow` runs."""
        base = self.uri.rstrip("/") if self.uri.startswith("http") else LOCAL_UI
        return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?{TRAINING}"

    @contextlib.contextmanager
    def client(self) -> Iterator[MlflowClient]:
        """Yield a client; raise `TrackingError` when the server does not answer."""
        if (database := self.database) is not None and not self.read_only:
            follow(database)
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

    @contextlib.contextmanager
    def writing(self) -> Iterator[str]:
        """Hold the lock under which one process at a time logs runs; the system frees it when a process dies.

        Yields:
            The name of those who share the lock: an unfinished run of this recorder is of a process that died. Every
            writer of a SQLite store shares it; of a server, those of one workspace.
        """
        from filelock import FileLock

        if self.database is not None:
            self.database.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.database}.lock"):
                yield ""
            return
        self.locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self.locks / "tracking.lock"):
            name = self.locks / "tracking.recorder"
            if not name.is_file():
                replace_text(name, uuid.uuid4().hex)
            yield name.read_text(encoding="utf-8")

    def experiment_id(self, client: MlflowClient, view: View = EVALUATIONS) -> str:
        """The id of the experiment, which is created if it does not exist, and shown as `view` says."""
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            # With SQLite the artifacts are stored beside the database; a server has its own location.
            location = None if self.database is None else artifact_location(self.database)
            with contextlib.suppress(mlflow_error()):  # another process created it first
                client.create_experiment(self.experiment, location, view.tags())
            experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {self.experiment!r} was deleted; restore it in the UI or with "
                "`mlflow experiments restore`, or give tracking.experiment in params.yaml another name"
            )
        apply(client, str(experiment.experiment_id), view, experiment.tags)
        return str(experiment.experiment_id)
