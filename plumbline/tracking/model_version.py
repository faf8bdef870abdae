"""A registered version of a model, as MLflow's registry has it: by its tags, which lead to DVC's hashes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plumbline.tracking.client import CALIBRATION, EVALUATION, MODEL, RESTS_ON

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Version:
    """Which pair it is, and the DVC hashes of its folders; a tag that is not there is an empty string."""

    name: str
    """Of the registered model."""
    version: str
    aliases: tuple[str, ...] = ()
    run_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, found: ModelVersion, aliases: Sequence[str] | None = None) -> Version:
        """What MLflow found. A search leaves the aliases out: `aliases` gives them."""
        names = sorted(found.aliases if aliases is None else aliases)
        return cls(str(found.name), str(found.version), tuple(names), str(found.run_id or ""), dict(found.tags))

    @property
    def pair(self) -> str:
        """`CALIBRATION-SCHEME`."""
        return self.tags.get("pair", "")

    @property
    def path(self) -> str:
        """Where the model lay in the workspace when it was registered."""
        return self.tags.get("path", "")

    @property
    def model(self) -> str:
        """DVC hash of the model's folder."""
        return self.tags.get(MODEL, "")

    @property
    def evaluation(self) -> str:
        """DVC hash of its evaluation's folder."""
        return self.tags.get(EVALUATION, "")

    @property
    def calibration_set(self) -> str:
        """DVC hash of its calibration set's folder."""
        return self.tags.get(CALIBRATION, "")

    @property
    def rests_on(self) -> frozenset[str]:
        """DVC hashes of every artifact that it was made from, its own and its evaluation's among them."""
        chain = json.loads(self.tags.get(RESTS_ON, "{}"))
        return frozenset({self.model, self.evaluation, self.calibration_set, *chain.values()} - {""})

    @property
    def shown(self) -> str:
        """`models:/plumbline/3 @champion`."""
        return f"models:/{self.name}/{self.version}" + "".join(f" @{alias}" for alias in self.aliases)
