"""`plumbline audit --bom FILE --croissant FILE`: the audited chain in other tools' formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plumbline.provenance.link import AuditResult
    from plumbline.provenance.subject import Subject


def require_outside_artifacts(papers: Mapping[str, Path | None], subject: Subject, root: Path) -> None:
    """Refuse, before any work, a file inside the model's folder or an artifact.

    Raises:
        ValueError: one would lie there.
    """
    from plumbline.provenance.papers.write import require_outside

    for target in filter(None, papers.values()):
        require_outside(target, subject.place or subject.folder, root)


def write_papers(
    papers: Mapping[str, Path | None], subject: Subject, root: Path, result: AuditResult
) -> tuple[dict[str, tuple[Any, str]], bool]:
    """Write what --bom and --croissant ask for; returns name -> (JSON value, text), and whether all succeeded."""
    from plumbline.provenance.audit import UNFORESEEN, open_read_case
    from plumbline.provenance.papers.facts import gather
    from plumbline.provenance.papers.write import write_bom, write_croissant

    written: dict[str, tuple[Any, str]] = {}
    succeeded, gathered = True, None
    for name, target in papers.items():
        if target is None:
            continue
        try:
            if gathered is None:  # once for both: it hashes the model's files
                case = open_read_case(subject.folder, root)
                gathered = case, gather(case, result)
            case, facts = gathered
            if name == "bom":
                write_bom(facts, target)
            else:
                write_croissant(facts, case, target)
            written[name] = {"file": str(target)}, f"WRITTEN: {target}"
        except UNFORESEEN as error:
            written[name], succeeded = ({"error": str(error)}, f"NOT WRITTEN: {target}: {why(error)}"), False
    return written, succeeded


def why(error: Exception) -> str:
    """The message of an expected error; for an unexpected one also its type."""
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error!s:.200}"
