"""The versions of a registered model."""

from __future__ import annotations

from pathlib import Path

from plumbline.tracking.client import Tracking
from plumbline.tracking.model_version import ModelUri, ModelVersion
from plumbline.tracking.reading import ClientReader, Reader, RegisteredModel, RunData, reader
from plumbline.tracking.store import TrackingError

ALIAS = "champion"


class Registry:
    """The versions of one registered model.

    Raises (every method):
        TrackingError: MLflow does not answer, or there is no such version or run.
    """

    def __init__(self, tracking: Tracking, reader: Reader | None = None) -> None:
        self.tracking, self.reader = tracking, reader or ClientReader(tracking)

    @property
    def name(self) -> str:
        return self.tracking.registered_model

    def model(self) -> RegisteredModel | None:
        """Tags and aliases; None: nothing was registered yet."""
        return self.reader.model(self.name)

    def versions(self) -> list[ModelVersion]:
        """Every registered version, oldest first."""
        return sorted(self.reader.versions(self.name), key=lambda version: int(version.version))

    def version(self, number: str) -> ModelVersion:
        """The version with this number."""
        return self.resolve(ModelUri(self.name, version=str(number)))

    def resolve(self, uri: ModelUri) -> ModelVersion:
        """The version that a URI names, also one of another registered model."""
        for version in self.reader.versions(uri.name):
            if uri.alias in version.aliases if uri.alias else uri.version == version.version:
                return version
        raise TrackingError(
            f"{uri}: MLflow at {self.tracking.uri} has no such version; `plumbline log` lists champions"
        )

    def of_model(self, md5: str) -> ModelVersion:
        """The newest version of the model whose folder has this DVC hash."""
        versions = [version for version in self.versions() if version.model == md5]
        if not versions:
            raise TrackingError(
                f"no version of {self.name!r} in MLflow at {self.tracking.uri} has the DVC hash {md5}; evaluate the "
                "model first (`plumbline run`), which registers it"
            )
        return versions[-1]

    def of_run(self, run_id: str) -> ModelVersion:
        """The newest version that a run registered."""
        run = self.run(run_id)
        versions = [version for version in self.versions() if version.run_id == run_id]
        if not versions:
            raise TrackingError(
                f"run {run_id} ({run.name}) registered no version of {self.name!r}: it is not the run of an evaluation"
            )
        return versions[-1]

    def run(self, run_id: str) -> RunData:
        """Name, parameters and metrics of a run."""
        run = self.reader.run(run_id)
        if run is None:
            raise TrackingError(f"MLflow at {self.tracking.uri} has no run {run_id}")
        return run

    def champion(self) -> ModelVersion | None:
        """The version that has the alias; None: no version has it."""
        return next((version for version in self.versions() if ALIAS in version.aliases), None)


def open_registry(root: Path, *, read_only: bool = False) -> Registry:
    """The registered model of a workspace; `read_only` and errors as in `tracking_address`."""
    tracking = Tracking.of(root, read_only=read_only)
    return Registry(tracking, reader(tracking) if read_only else None)


def registered_versions(root: Path) -> list[ModelVersion]:
    """Every registered version, oldest first; empty if there is no registry."""
    try:
        return open_registry(root, read_only=True).versions()
    except TrackingError:
        return []
