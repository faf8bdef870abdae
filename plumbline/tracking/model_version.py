"""A registered version of a model, and the URIs that name one.

A model is registered by reference: MLflow stores its hashes, path and metrics, DVC stores its bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion

EVALUATION, MODEL, CALIBRATION = "dvc.md5", "model.md5", "calibration.md5"
"""Tags of a registered version: DVC hashes of the evaluation, the model and the calibration set."""
RESTS_ON = "plumbline.rests_on"
"""Tag of a registered version: JSON, path -> DVC hash of every artifact from the corpus to the evaluation."""
MODEL_URI = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[\w-]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class ModelUri:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION`: either the alias or the version is empty."""

    name: str
    alias: str = ""
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> ModelUri:
        """Parse a URI.

        Raises:
            ValueError: it has another form.
        """
        match = MODEL_URI.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION, such as models:/plumbline/3"
            )
        return cls(match["name"], match["alias"] or "", match["version"] or "")

    def __str__(self) -> str:
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class ModelVersion:
    """A version: its pair and the DVC hashes of its folders. A missing tag reads as an empty string."""

    name: str
    """Name of the registered model."""
    version: str
    aliases: tuple[str, ...] = ()
    run_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    created: int = 0
    """Milliseconds since 1970."""

    @classmethod
    def of(cls, entity: MlflowModelVersion, aliases: tuple[str, ...]) -> ModelVersion:
        """Convert MLflow's entity; the aliases are passed in, because a search leaves them out."""
        run_id, created = str(entity.run_id or ""), int(entity.creation_timestamp or 0)
        return cls(str(entity.name), str(entity.version), aliases, run_id, dict(entity.tags), created)

    @property
    def pair(self) -> str:
        """`CALIBRATION-SCHEME`."""
        return self.tags.get("pair", "")

    @property
    def path(self) -> str:
        """The model's path in the workspace when it was registered."""
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
        """DVC hashes of all its upstream artifacts, of the model itself and of its evaluation.

        Raises:
            ValueError: the tag that lists them cannot be read.
        """
        text = self.tags.get(RESTS_ON, "{}")
        try:
            chain: dict[str, str] = json.loads(text)
            upstream = {str(md5) for md5 in chain.values()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.shown}: its tag {RESTS_ON} should map paths to DVC hashes, found {text[:60]!r}; delete the "
                "version, or evaluate its model again, which registers it"
            ) from error
        return frozenset({self.model, self.evaluation, self.calibration_set, *upstream} - {""})

    def named_in(self, path: str) -> str:
        """The DVC hash that `RESTS_ON` has for a path; empty without one, or if the tag is no JSON object."""
        try:
            chain = json.loads(self.tags.get(RESTS_ON, "{}"))
        except (ValueError, RecursionError):
            return ""
        return str(chain.get(path, "")) if isinstance(chain, dict) else ""

    @property
    def shown(self) -> str:
        """`models:/plumbline/3 @champion`."""
        return str(ModelUri(self.name, version=self.version)) + "".join(f" @{alias}" for alias in self.aliases)
