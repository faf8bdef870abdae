"""What assets work with besides their inputs: the base model, DVC and MLflow, as Dagster resources.

They take no configuration at launch: params.yaml and .dvc/config say what they are, and dvc.lock records it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from plumbline.params import Params

if TYPE_CHECKING:
    from plumbline.tracking.registry import Registry

BASE_MODEL, DVC, MLFLOW = "base_model", "dvc", "mlflow"


class MlflowStore:
    """The MLflow store of a workspace."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def registry(self) -> Registry:
        """The registry of models. It is opened on use, as params.yaml may have changed."""
        from plumbline.tracking.registry import open_registry

        return open_registry(self.root)


def resources(root: Path, params: Params) -> dict[str, Any]:
    """The resources of a workspace by their keys, each with a description of what it is here."""
    model, tracking = params.model, params.tracking
    revision = f" at commit {model.revision}" if model.revision else ""
    where = tracking.uri or "the SQLite file mlflow.db of this workspace; `plumbline mlflow` shows it"
    described = {
        BASE_MODEL: (
            params.model,
            f"The model that is quantized: {model.name}{revision}, on device {model.device}. Set under `model:` in "
            "params.yaml; the digest of its files is part of what each stage records.",
        ),
        DVC: (
            root,
            "The cache and the record of every artifact: data/ is what dvc.lock says, and each asset is a stage of "
            "dvc.yaml. Cache and remotes are set in .dvc/config (`dvc remote add`).",
        ),
        MLFLOW: (
            MlflowStore(root),
            f"Where evaluations, reports and studies are logged and the champion is registered: {where}. Experiment "
            f"{tracking.experiment}, registered model {tracking.registered_model}. Set under `tracking:` in "
            "params.yaml.",
        ),
    }
    return {key: _fixed(key, value, description) for key, (value, description) in described.items()}


def _fixed(key: str, value: Any, description: str) -> dg.ResourceDefinition:
    def resource(_: Any) -> Any:
        return value

    resource.__name__ = resource.__qualname__ = key  # the page shows it as the type
    return dg.ResourceDefinition(resource, description=description)
