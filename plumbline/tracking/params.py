"""The section `tracking` of params.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class TrackingParams(BaseModel):
    """The MLflow store; `uri: null` means a SQLite file of this workspace."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = None
    experiment: str = "plumbline"
    registered_model: str = "plumbline"
