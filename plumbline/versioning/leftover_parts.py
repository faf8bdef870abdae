"""What interrupted steps left to go on from (`scratch.parts_of`), and what of it no run can use any more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from plumbline.versioning.pipeline import resolved
from plumbline.versioning.scratch import parts_of, remove
from plumbline.versioning.status import changed_stages


@dataclass(frozen=True)
class Leftover:
    """The parts of one step.

    Attributes:
        step: its name.
        bytes: that they take on disk.
        needed: why they stay; empty: no run goes on from them.
    """

    step: str
    bytes: int
    needed: str


def leftover_parts(root: Path) -> list[Leftover]:
    """The parts of every step that left some, by name."""
    folders = sorted(path for path in parts_of(root, "").glob("*") if path.is_dir())
    if not folders:
        return []
    stages, changed = resolved(root), changed_stages(root, *{path.name.partition("@")[0] for path in folders})
    return [Leftover(path.name, _size(path), _needed(root, path.name, stages, changed)) for path in folders]


def remove_parts(root: Path, leftovers: Iterable[Leftover]) -> int:
    """Remove those that are not needed, and return how many. A step that has begun meanwhile keeps its parts."""
    removed = 0
    for leftover in leftovers:
        if not leftover.needed and not _is_running(root, leftover.step):
            remove(parts_of(root, leftover.step))
            removed += 1
    return removed


def _needed(root: Path, step: str, stages: Iterable[str], changed: Iterable[str]) -> str:
    if _is_running(root, step):
        return "it is running"
    if step not in stages:
        return ""  # params.yaml no longer has it
    return "its next run goes on from them" if step in changed else ""


def _is_running(root: Path, step: str) -> bool:
    from filelock import FileLock, Timeout

    lock = root / ".plumbline" / "locks" / f"{step}.lock"
    if not lock.exists():
        return False
    with contextlib.suppress(Timeout), FileLock(lock, timeout=0):
        return False
    return True


def _size(folder: Path) -> int:
    # blocks, because a file that is being joined has holes
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())
