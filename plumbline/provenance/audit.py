"""The audit of one model: every link in order, none of which can end in a traceback."""

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
"""What no check foresaw in a file that someone made to break it."""
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

    What the workspace does not hold any more is looked for in DVC's cache by its hash.

    Args:
        model: a model's folder, in the workspace or a copy elsewhere.
        root: the workspace whose data, dvc.lock and DVC cache vouch for it. Nothing is downloaded or changed.
        extra: further checks by name, which come first (the registry, a signature).
        shown: what was audited, for people, where `model` is a temporary copy.
        origin: where that copy is from.

    Returns:
        A link per check, in order. Whatever the files hold, it is reported and not raised.
    """
    case, problem = open_case(model, root)
    # Read before the others, which compare with it.
    chain = tuple(_guarded(name, check, case) for name, check in CHECKS)
    with contextlib.suppress(*UNFORESEEN):  # a forged record leads to them; what was found then stands
        chain = recover(case, chain)
    links = tuple(_guarded(name, check, case) for name, check in extra) + chain
    if problem:
        links += (Link("dvc.lock", "tampered", problem, fix="git checkout dvc.lock"),)
    return AuditResult(shown or str(model), links, _about(case), origin)


def open_case(model: Path, root: Path) -> tuple[Case, str]:
    """A case for these checks, and what is wrong with dvc.lock (empty: nothing)."""
    try:
        return Case(model, root, read_lock(root)), ""
    except ValueError as error:
        return Case(model, root, {}), str(error)


def open_read_case(model: Path, root: Path) -> Case:
    """A case whose record has been read, for what goes beyond an audit.

    Raises:
        ValueError: the model carries no usable record.
    """
    case, _ = open_case(model, root)
    link = _guarded("record", model_links.record, case)
    if case.record is None:
        raise ValueError(f"{model} carries no record that leads anywhere: {link.meaning}; {link.fix}")
    return case


def audit_subject(subject: Subject, root: Path, extra: Sequence[tuple[str, Check]] = ()) -> AuditResult:
    """`audit` of what a reference was resolved to, with the links that only this kind of reference has."""
    of_subject = [(f"reference {i}", check) for i, check in enumerate(subject.extra)]
    origin = "" if subject.shown == subject.reference else subject.shown
    return audit(subject.folder, root, [*of_subject, *extra], subject.reference, origin)


def _guarded(name: str, check: Callable[[Case], Link], case: Case) -> Link:
    try:
        return check(case)
    except UNFORESEEN as error:
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
