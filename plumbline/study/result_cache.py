"""What was measured so far, outside the artifact: a study that was killed goes on where it was.

A result is kept under a digest of everything that decides it, so that one which no longer applies is never found.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plumbline.artifact import read_json, sha256_json, write_json


@dataclass(frozen=True)
class Documents:
    """The held-out documents, in order."""

    names: list[str]
    domains: list[str]
    tokens: np.ndarray
    """int64 (D,): predicted tokens."""


@dataclass(frozen=True)
class Measured:
    """One quantized model on the held-out documents, in their order."""

    kl: np.ndarray
    """float64 (D,): KL in nats, summed over the document's tokens."""
    agree: int
    """Tokens for which both models' most probable next token is the same."""
    samples: int
    """Of the calibration set."""
    tokens: int
    set_digest: str
    fallbacks: int
    """Layers that were rounded to nearest instead."""


@dataclass(frozen=True)
class Kept:
    """A folder of results."""

    folder: Path
    conditions: Mapping[str, Any]
    """What all results of a study share: code, inputs, base model, held-out documents."""

    def find(self, **what: Any) -> Measured | None:
        """The result under these parameters, if it is there."""
        path = self._path(what)
        if not path.is_file():
            return None
        found = read_json(path)
        return Measured(**{**found, "kl": np.array(found["kl"])})

    def keep(self, result: Measured, **what: Any) -> None:
        """Write a result, whole or not at all."""
        self._write(self._path(what), {**asdict(result), "kl": result.kl.tolist()})

    def find_figures(self, **what: Any) -> dict[str, float] | None:
        """Figures by name under these parameters, if they are there."""
        path = self._path(what)
        return dict(read_json(path)) if path.is_file() else None

    def keep_figures(self, figures: Mapping[str, float], **what: Any) -> None:
        """Write figures, whole or not at all."""
        self._write(self._path(what), dict(figures))

    def _path(self, what: Mapping[str, Any]) -> Path:
        return self.folder / f"{sha256_json({**self.conditions, **what})}.json"

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        write_json(draft, content)
        draft.replace(path)
