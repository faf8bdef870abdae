"""Results of a study as they are measured, kept outside the artifact: a killed study resumes where it stopped.

A result is stored under a digest of everything that decides it, so an outdated one is never read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np

from plumbline.artifact import known_json, sha256_json, to_disk, write_json


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
class ResultCache:
    """A folder of results."""

    folder: Path
    conditions: Mapping[str, Any]
    """What all results of a study share: code, inputs, base model, held-out documents."""

    def load(self, **key: Any) -> Measured | None:
        """The result under these parameters; None: there is none."""
        content = self._read(key)
        return None if content is None else Measured(**{**content, "kl": np.array(content["kl"])})

    def store(self, result: Measured, **key: Any) -> None:
        """Write a result, whole or not at all."""
        self._write(key, {**asdict(result), "kl": result.kl.tolist()})

    def load_figures(self, **key: Any) -> dict[str, float] | None:
        """Figures by name under these parameters; None: there are none."""
        return self._read(key)

    def store_figures(self, figures: Mapping[str, float], **key: Any) -> None:
        """Write figures, whole or not at all."""
        self._write(key, dict(figures))

    def _path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{sha256_json({**self.conditions, **key})}.json"

    def _read(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        return known_json(self._path(key))

    def _write(self, key: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        path = self._path(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{gethostname()}.{os.getpid()}.draft")
        write_json(draft, content)
        to_disk(draft)
        draft.replace(path)
