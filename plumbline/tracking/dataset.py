"""A dataset in MLflow by name and DVC hash. Imports MLflow, so import it lazily."""

from __future__ import annotations

import json

from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from plumbline.tracking.run import DatasetRecord


class RecordedDataset(MetaDataset):  # type: ignore[misc]
    """A dataset whose content MLflow does not read: the digest is DVC's hash, the source a path in the workspace."""

    def __init__(self, dataset: DatasetRecord) -> None:
        source = get_dataset_source_from_json(json.dumps({"uri": dataset.path}), "local")
        self._rows = dataset.rows
        super().__init__(source, dataset.name, dataset.digest)

    @property
    def profile(self) -> str | None:
        return None if self._rows is None else json.dumps({"num_rows": self._rows})

    def to_dict(self) -> dict[str, str]:
        return super().to_dict() | ({} if self.profile is None else {"profile": self.profile})


def dataset_input(dataset: DatasetRecord) -> DatasetInput:
    """Convert a dataset to the input of a run."""
    entity = RecordedDataset(dataset)._to_mlflow_entity()
    return DatasetInput(entity, [InputTag(MLFLOW_DATASET_CONTEXT, dataset.context)])
