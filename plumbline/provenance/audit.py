"""The audit of one model: checks every link; errors in a check become a link, not a traceback."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plumbline.provenance import (
    data_links,
    decision_links,
    document_links,
    history_link,
    lock_link,
    model_files,
    model_links,
    registry,
    stage_links,
)
from plumbline.provenance.cache_recovery import recover
from plumbline.provenance.link import AuditResult, Case, Link, dig
from plumbline.provenance.resaved import resaved
from plumbline.provenance.standing import figures, promotions
from plumbline.provenance.subject import Subject
from plumbline.tracking.model_version import ModelVersion
from plumbline.tracking.store import TrackingError
from plumbline.versioning.lock import read_lock
from plumbline.versioning.settings import UnreadableConfig

UNFORESEEN = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError)
"""Errors that a check may raise on a malformed or forged file."""
Check = Callable[[Case], Link | None]
"""A check returns its link, or None where it does not apply."""
CHECKS: tuple[tuple[str, Check], ...] = (
    ("record", model_links.record),
    ("weights", model_links.weights),
    ("model folder", model_links.folder),
    ("tokenizer", model_links.tokenizer),
    ("base model", data_links.base_model),
    ("statistics", data_links.statistics),
    ("calibration set", data_links.calibration_set),
    ("calibration choice", stage_links.calibration_choice),
    ("pool", stage_links.pool),
    ("documents", document_links.documents),
)
"""The links from the model to its documents. `record` comes first: the others use what it reads."""
AFTER: tuple[tuple[str, Check], ...] = (
    ("texts", document_links.texts),
    ("dvc.lock", lock_link.dvc_lock),
    ("evaluation", decision_links.evaluation),
    ("promotion", decision_links.promotion),
)
"""The links that compare what the first ones found, in the workspace or in DVC's cache."""
REGISTRY: tuple[tuple[str, Check], ...] = (
    ("registry", registry.registry),
    ("promotion history", history_link.promotion_history),
)


def audit(
    model: Path,
    root: Path,
    extra: Sequence[tuple[str, Check]] = (),
    shown: str = "",
    origin: str = "",
    version: ModelVersion | None = None,
) -> AuditResult:
    """Recompute every digest from a quantized model to the text of its calibration documents, and compare them with
    dvc.lock and the registry.

    Artifacts that are no longer in the workspace are looked up in DVC's cache by their hash.

    Args:
        model: a model's folder, in the workspace or a copy elsewhere.
        root: the workspace whose data, dvc.lock, DVC cache and registry are compared with it. Nothing is downloaded or
            changed.
        extra: further checks by name, reported first (a signature).
        shown: display name, if `model` is a temporary copy.
        origin: where that copy is from.
        version: the registered version that was asked for.

    Returns:
        A link per check that applies: `extra`, the registry, then in order from the model. Malformed files are
        reported, not raised.
    """
    case, problem = open_case(model, root)
    case.version = version
    chain = tuple(_guarded(CHECKS, case))
    with contextlib.suppress(*UNFORESEEN):  # raised by a forged record; keep the links as they are
        chain = recover(case, chain)
    links = (*_guarded(extra, case), *_guarded(REGISTRY, case), *chain, *_guarded(AFTER, case))
    if problem:
        links = (*(link for link in links if link.name != "dvc.lock"), _damaged_lock(problem))
    return AuditResult(shown or str(model), links, _about(case), origin)


def _damaged_lock(problem: str) -> Link:
    return Link("dvc.lock", "tampered", problem, fix="git checkout dvc.lock")


def open_case(model: Path, root: Path) -> tuple[Case, str]:
    """Open a case for the checks; also returns the error in dvc.lock, or an empty string."""
    problem = ""
    try:
        case = Case(model, root, read_lock(root))
    except ValueError as error:
        case, problem = Case(model, root, {}), str(error)
    with contextlib.suppress(*UNFORESEEN):  # of a forged file, which a check reports
        case.resaved = resaved(model, root, case.lock, case.hasher)
        if case.resaved is not None and not case.resaved.problems:
            case.original = case.resaved.md5
    return case, problem


def open_read_case(model: Path, root: Path) -> Case:
    """Open a case and read its record, for commands that need more than an audit.

    Raises:
        ValueError: the model has no usable record.
    """
    case, _ = open_case(model, root)
    [link] = _guarded(CHECKS[:1], case)
    if case.record is None:
        raise ValueError(f"{model} has no usable record: {link.meaning}; {link.fix}")
    return case


def audit_subject(subject: Subject, root: Path, extra: Sequence[tuple[str, Check]] = ()) -> AuditResult:
    """Audit a resolved reference, including the links specific to its kind."""
    subject_checks = [(f"reference {i}", check) for i, check in enumerate(subject.extra)]
    origin = "" if subject.shown == subject.reference else subject.shown
    return audit(subject.folder, root, [*subject_checks, *extra], subject.reference, origin, subject.version)


def _guarded(checks: Sequence[tuple[str, Check]], case: Case) -> Iterator[Link]:
    """The links of the checks that apply; an error in a check becomes a link."""
    for name, check in checks:
        try:
            link = check(case)
        except UnreadableConfig as error:  # of the workspace, which says nothing of the model
            link = Link(name, "missing", f"could not be checked: {error}", fix="correct DVC's configuration")
        except TrackingError as error:
            link = Link(name, "missing", f"could not be compared with the registry: {error}", fix=registry.ANSWER)
        except UNFORESEEN as error:
            why = f"{type(error).__name__}: {error!s:.200}"
            meaning = f"could not be parsed; files written by Plumbline always can ({why})"
            link = Link(name, "tampered", meaning, fix=model_files.RESTORE)
        if link is not None:
            yield link


def _about(case: Case) -> dict[str, Any]:
    """The model's own description, for the head of the report."""
    choice, scheme = dig(case.record, "calibration_set", "choice"), dig(case.record, "scheme")
    samples = model_files.samples_of(case.record)
    base = dig(case.record, "base_model")
    return {
        "base_model": base if isinstance(base, dict) and {"name", "digest"} <= base.keys() else {},
        "choice": choice if isinstance(choice, dict) else {},
        "scheme": scheme if isinstance(scheme, dict) else {},
        "samples": len(samples),
        "documents": len(model_files.documents_of(case.record)),
        "domains": dict(sorted(Counter(str(sample.get("domain")) for sample in samples).items())),
        "sources": dict(Counter(str(sample.get("source")) for sample in samples).most_common(3)),
        "figures": _unless_forged(figures, case, {}),
        "promotions": _unless_forged(promotions, case, []),
    }


def _unless_forged(read: Callable[[Case], Any], case: Case, without: Any) -> Any:
    """What `read` returns; `without` where a forged record cannot be read, which a check reports."""
    try:
        return read(case)
    except UNFORESEEN:
        return without
