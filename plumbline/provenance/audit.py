"""The audit of one model: checks every link; errors in a check become a link, not a traceback."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plumbline.provenance import data_links, model_links
from plumbline.provenance.cache_recovery import recover
from plumbline.provenance.link import AuditResult, Case, Link, dig
from plumbline.provenance.subject import Subject
from plumbline.versioning.lock import read_lock

UNFORESEEN = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError)
"""Errors that a check may raise on a malformed or forged file."""
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


Check = Callable[[Case], Link]


def audit(
    model: Path, root: Path, extra: Sequence[tuple[str, Check]] = (), shown: str = "", origin: str = ""
) -> AuditResult:
    """Recompute every digest from a quantized model to the documents of its calibration set.

    Artifacts that are no longer in the workspace are looked up in DVC's cache by their hash.

    Args:
        model: a model's folder, in the workspace or a copy elsewhere.
        root: the workspace whose data, dvc.lock and DVC cache are compared with it. Nothing is downloaded or changed.
        extra: further checks by name, reported first (the registry, a signature).
        shown: display name, if `model` is a temporary copy.
        origin: where that copy is from.

    Returns:
        A link per check, in order. Malformed files are reported, not raised.
    """
    case, problem = open_case(model, root)
    # `record` comes first: the other checks use the record that it reads.
    chain = tuple(_guarded(name, check, case) for name, check in CHECKS)
    with contextlib.suppress(*UNFORESEEN):  # raised by a forged record; keep the links as they are
        chain = recover(case, chain)
    links = tuple(_guarded(name, check, case) for name, check in extra) + chain
    if problem:
        links += (Link("dvc.lock", "tampered", problem, fix="git checkout dvc.lock"),)
    return AuditResult(shown or str(model), links, _about(case), origin)


def open_case(model: Path, root: Path) -> tuple[Case, str]:
    """Open a case for the checks; also returns the error in dvc.lock, or an empty string."""
    try:
        return Case(model, root, read_lock(root)), ""
    except ValueError as error:
        return Case(model, root, {}), str(error)


def open_read_case(model: Path, root: Path) -> Case:
    """Open a case and read its record, for commands that need more than an audit.

    Raises:
        ValueError: the model has no usable record.
    """
    case, _ = open_case(model, root)
    link = _guarded("record", model_links.record, case)
    if case.record is None:
        raise ValueError(f"{model} has no usable record: {link.meaning}; {link.fix}")
    return case


def audit_subject(subject: Subject, root: Path, extra: Sequence[tuple[str, Check]] = ()) -> AuditResult:
    """Audit a resolved reference, including the links specific to its kind."""
    subject_checks = [(f"reference {i}", check) for i, check in enumerate(subject.extra)]
    origin = "" if subject.shown == subject.reference else subject.shown
    return audit(subject.folder, root, [*subject_checks, *extra], subject.reference, origin)


def _guarded(name: str, check: Callable[[Case], Link], case: Case) -> Link:
    try:
        return check(case)
    except UNFORESEEN as error:
        why = f"{type(error).__name__}: {error!s:.200}"
        meaning = f"could not be parsed; files written by Plumbline always can ({why})"
        return Link(name, "tampered", meaning, fix=model_links.RESTORE)


def _about(case: Case) -> dict[str, Any]:
    """The model's own description, for the head of the report."""
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
