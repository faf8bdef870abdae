"""A folder as the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.params import ModelParams


def checkpoint(folder: Path | str, root: Path = Path(), **params: Any) -> BaseCheckpoint:
    """The base model in `folder` (relative to `root`), on the CPU unless `params` has another device."""
    return BaseCheckpoint.of(ModelParams.model_validate({"name": str(folder), "device": "cpu", **params}), root)
