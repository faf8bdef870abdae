"""What became of a model: the figures of its evaluation, and its promotions with their reasons."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from plumbline.provenance.data_links import file_in
from plumbline.provenance.decision_links import EVALUATIONS, metrics_of, pair_of
from plumbline.provenance.link import Case, dig
from plumbline.provenance.model_files import read_object
from plumbline.tracking.champions import FIGURES
from plumbline.tracking.promotion import history
from plumbline.tracking.renumbered import renumbered
from plumbline.tracking.store import TrackingError


def figures(case: Case) -> dict[str, float]:
    """The figures of the evaluation of these weights; empty if it is neither registered nor in the workspace."""
    metrics: dict[str, Any] | None = None
    with suppress(TrackingError, OSError, ValueError):
        metrics = metrics_of(case, case.versions[-1].evaluation) if case.versions else None
    if metrics is None:
        with suppress(OSError, ValueError):
            metrics = read_object(file_in(case.root / EVALUATIONS / pair_of(case), "metrics.json"))
    weights = dig(case.record, "model")
    if metrics is None or not weights or metrics.get("weights") != weights:
        return {}
    return {name: metrics[name] for name in FIGURES if isinstance(metrics.get(name), int | float)}


def promotions(case: Case) -> list[dict[str, str]]:
    """When, by whom and why the model was promoted, oldest first; empty if it was not, or MLflow does not answer."""
    with suppress(TrackingError):
        if case.registry is not None and case.versions:
            numbers = {version.version for version in case.versions}
            entries = renumbered(history(case.registry).entries, case.registry.versions())
            return [
                {"when": entry.when, "version": entry.version, "kind": entry.kind, "who": entry.who, "why": entry.why}
                for entry in entries
                if entry.version in numbers
            ]
    return []
