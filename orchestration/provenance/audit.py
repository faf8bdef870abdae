"""The audit of one model: every link in order, none of which can end in a traceback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestration.provenance import data_links, model_links
from orchestration.provenance.content import locked
from orchestration.provenance.link import AuditResult, Case, Link, dig

CHECKS: tuple[tuple[str, Callable[[Case], Link]], ...] = (
    ("record", model_links.record),
    ("weights", model_links.weights),
    ("model folder", model_links.folder),
    ("tokenizer", model_links.tokenizer),
    ("base model", data_links.base_model),
    ("statistics", data_links.statistics),
    ("calibration set", data_links.calibration_set),
    ("documents", data_links.documents),
)


def audit(model: Path, root: Path) -> AuditResult:
    """Recompute every digest from a quantized model to the documents of its calibration set.

    Args:
        model: a model's folder, in the workspace or a copy elsewhere.
        root: the workspace whose data, dvc.lock and DVC cache vouch for it. Nothing is downloaded or changed.

    Returns:
        A link per check, in order. Whatever the files hold, it is reported and not raised.
    """
    problem = ""
    try:
        lock = locked(root)
    except ValueError as error:
        lock, problem = {}, str(error)
    case = Case(model, root, lock)
    links = tuple(_guarded(name, check, case) for name, check in CHECKS)
    if problem:
        links += (Link("dvc.lock", "tampered", problem, fix="git checkout dvc.lock"),)
    return AuditResult(str(model), links, _about(case))


def _guarded(name: str, check: Callable[[Case], Link], case: Case) -> Link:
    try:
        return check(case)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        # What no check foresaw in a file that someone made to break it.
        why = f"{type(error).__name__}: {error!s:.200}"
        meaning = f"it cannot be checked, which no file that Plumbline wrote leads to ({why})"
        return Link(name, "tampered", meaning, fix=model_links.RESTORE)


def _about(case: Case) -> dict[str, Any]:
    """What the model says of itself, for the head of the report."""
    choice, scheme = dig(case.record, "calibration_set", "choice"), dig(case.record, "scheme")
    samples = model_links.samples_of(case.record)
    return {
        "choice": choice if isinstance(choice, dict) else {},
        "scheme": scheme if isinstance(scheme, dict) else {},
        "samples": len(samples),
        "documents": len(model_links.documents_of(case.record)),
        "domains": dict(sorted(Counter(str(sample.get("domain")) for sample in samples).items())),
        "sources": dict(Counter(str(sample.get("source")) for sample in samples).most_common(3)),
    }
