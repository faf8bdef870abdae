"""The records of checks in a workspace. They depend on the machine, so they are no artifacts of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, write_json
from plumbline.base_model.folder import base_model_digest

PLACE = Path(".plumbline") / "serve_check"
FILE = "serve_check.json"
LOG = PLACE / "engine.log"
"""What the engine printed last."""


def record_path(root: Path, name: str) -> Path:
    """Where a workspace keeps the record of a model: a pair of the grid, or the name of another folder."""
    return root / PLACE / name / FILE


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def record_of(root: Path, name: str, folder: Path) -> dict[str, Any] | None:
    """The record of a model; None: it was not checked, or its files have changed since.

    Raises:
        ValueError: the record is not JSON.
    """
    path = record_path(root, name)
    if not path.is_file():
        return None
    record: dict[str, Any] = read_json(path)
    return record if record["model"] == base_model_digest(folder) else None
