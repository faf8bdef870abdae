"""Outputs that workers computed and no stage has published yet: `.plumbline/built/STAGE.IDENTITY/`.

A folder is addressed by all that decides its content, and appears as a whole, so that any number of workers may write
there, on any machine that sees the workspace. Publishing them stays with one process.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plumbline.artifact import read_json, sha256_json, to_disk, write_json
from plumbline.versioning.digest import dvc_digest
from plumbline.versioning.pipeline import plain, resolved
from plumbline.versioning.recording import Step
from plumbline.versioning.scratch import remove

RECORD, OUT, DRAFT = "record.json", "out", ".draft"
DIGITS = 16


@dataclass(frozen=True)
class Built:
    """An output that a worker computed."""

    md5: str
    """DVC hash."""
    size: int
    """Bytes."""
    seconds: float
    host: str
    pid: int
    node: str
    """Ray's id of the machine; empty without Ray."""
    said: tuple[tuple[int, str], ...] = ()
    """Level and text of what the library logged."""


def identity(step: Step) -> str:
    """Digest of what decides a step's output: its inputs, parameters and code."""
    facts = {file: dict(values) for file, values in step.facts.items()}
    return sha256_json(plain([step.name, step.inputs, step.code_version, step.params, facts]))[:DIGITS]


def folder_of(step: Step) -> Path:
    """Where the output of a step lies once a worker has computed it."""
    return _place(step.root) / f"{step.name}.{identity(step)}"


def is_built(step: Step) -> bool:
    """Whether the output of a step is there."""
    return (folder_of(step) / RECORD).is_file()


@contextlib.contextmanager
def draft(step: Step) -> Iterator[Path]:
    """An empty folder for the output of a step. It is removed at the end; `finish` moves what is in it."""
    folder = folder_of(step)
    made = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}{DRAFT}")
    (made / OUT).mkdir(parents=True)
    try:
        yield made / OUT
    finally:
        remove(made)


def finish(step: Step, out: Path, where: Mapping[str, Any], seconds: float, said: tuple[tuple[int, str], ...]) -> Built:
    """Move a draft, complete, to its place. If another worker was faster, its folder stays.

    Args:
        where: host, pid and node.
    """
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    built = Built(dvc_digest(out), size, seconds, said=said, **where)
    write_json(out.parent / RECORD, asdict(built))
    to_disk(out.parent / RECORD)
    with contextlib.suppress(OSError):  # not empty: it is there already
        out.parent.rename(folder_of(step))
    return built


def discard(step: Step) -> None:
    """Remove the output of a step that somebody else has published meanwhile, if it is there."""
    if _place(step.root).is_dir():
        remove(folder_of(step))


def take(step: Step, folder: Path) -> Built | None:
    """Move the output of a step into its empty folder; None: no worker computed it."""
    if not _place(step.root).is_dir() or not is_built(step):
        return None
    place = folder_of(step)
    content = read_json(place / RECORD)
    built = Built(**{**content, "said": tuple((int(level), str(text)) for level, text in content["said"])})
    mode = folder.stat().st_mode
    folder.rmdir()
    shutil.move(place / OUT, folder)  # data/ may be another file system
    folder.chmod(mode)
    remove(place)
    step.expected = built.md5
    return built


def clear(root: Path, keep: Mapping[str, str]) -> None:
    """Remove what nobody will take: drafts of killed workers, other versions, and what dvc.yaml no longer has.

    Args:
        keep: stage -> identity of the version that is wanted. Other stages of dvc.yaml are left alone.
    """
    stages = resolved(root)
    for path in sorted(_place(root).glob("*")):
        name, _, rest = path.name.removesuffix(DRAFT).partition(".")
        if name not in stages or (name in keep and (path.name.endswith(DRAFT) or rest != keep[name])):
            remove(path)


def _place(root: Path) -> Path:
    return root / ".plumbline" / "built"
