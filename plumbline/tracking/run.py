"""The content of an MLflow run, as dataclasses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plumbline.markdown import literal
from plumbline.tracking.view import EVALUATIONS, View

STAGE, OUTPUT = "dvc.stage", "dvc.md5"
"""Tags that identify a run: the DVC stage, and the DVC hash of its output."""
LONGEST_DESCRIPTION = 4000


@dataclass(frozen=True)
class DatasetRecord:
    """The input of a run, by reference."""

    name: str
    digest: str
    """DVC hash. MLflow takes at most 36 characters: an MD5 and `.dir` just fit."""
    path: str
    """In the workspace."""
    context: str
    """Its use in the run, e.g. `calibration`."""
    rows: int | None = None


@dataclass(frozen=True)
class Table:
    """A table that a run logs as a file, which MLflow shows, and compares between runs."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class ModelRecord:
    """The model that a run evaluated, to be registered by reference."""

    name: str
    path: str
    """In the workspace."""
    digests: Mapping[str, str]
    """By tag; set on the logged model and on the registered version. Model and evaluation identify the version."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further tags of the registered version."""
    description: str = ""
    """Of the registered version; its page has it."""


@dataclass(frozen=True)
class RunRecord:
    """A run: its identity, and what it logs."""

    name: str
    identity: Mapping[str, str] = field(default_factory=dict)
    """Tags that together identify one finished run of the experiment. Empty for a child."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Finite numbers by name, e.g. `kl_mean/prose`, what decides first: MLflow keeps this order. A character that it
    rejects becomes `_`."""
    description: str = ""
    dataset: DatasetRecord | None = None
    artifacts: Sequence[Path] = ()
    """Small files; images are stored under `plots/`."""
    linked: Sequence[Path] = ()
    """Further files, of which a store on this machine gets hard links instead of copies."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    """By file name, such as `layer_errors.json`."""
    seconds: float | None = None
    """How long the computation took, which is the duration that MLflow shows; None: unknown."""
    view: View = EVALUATIONS
    """How the experiment is shown."""
    model: ModelRecord | None = None
    children: Sequence[RunRecord] = ()


def origin_tags(dagster_run_id: str, code_version: str, digests: Mapping[str, Any]) -> dict[str, str]:
    """Tags of the origin: Dagster run, code version, and digests as `hash.*`."""
    hashes = {f"hash.{name}": str(value) for name, value in flatten(digests).items()}
    return {"dagster.run_id": dagster_run_id, "code_version": code_version, **hashes}


def verdict_description(verdict: Mapping[str, Any]) -> str:
    """The headline, what was drawn, what to use, and the sentences of verdict.json, as MLflow's Markdown."""
    advice = [one["sentence"] for one in verdict.get("advice", ())]
    sentences = [verdict["headline"], verdict.get("caveat", ""), *advice, *verdict["sentences"]]
    return "\n\n".join(literal(text) for text in sentences if text)[:LONGEST_DESCRIPTION]


def page_files(folder: Path) -> list[Path]:
    """The page of an output, its tables and plots."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".html", ".json", ".png"))


def flatten(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Flatten nested mappings: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}{separator}{rest}": v for rest, v in flatten(value, separator).items()}
        else:
            flat[str(name)] = value
    return flat


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested values to parameters: {"a": {"b": 1}} under "c" -> {"c.a.b": "1"}.

    A key that is a name of the user's, such as a domain, is changed to what MLflow accepts; equal names get a number.
    """
    flat = {f"{prefix}.{name}": value for name, value in flatten(values).items()}
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        for name, value in zip(_accepted(flat), flat.values(), strict=True)
    }


def metric_names(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics under names that MLflow accepts; equal names get a number appended.

    Raises:
        ValueError: a value is not a finite number; the message names the metric.
    """
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"metric {name!r}: expected a finite number, found {value!r}")
    return dict(zip(_accepted(metrics), map(float, metrics.values()), strict=True))


def _accepted(names: Iterable[str]) -> list[str]:
    """The names as MLflow accepts them, in the same order; equal ones get a number appended."""
    accepted: dict[str, None] = {}
    for name in names:
        parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
        plain = "/".join("_" if part in ("", ".", "..") else part for part in parts)[:240]
        unique, n = plain, 1
        while unique in accepted:
            unique, n = f"{plain}_{n + 1}", n + 1
        accepted[unique] = None
    return list(accepted)
