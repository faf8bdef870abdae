"""Scratch folders of running steps, and what a killed step leaves there.

An output is published by two renames: the last version moves aside, the new one takes its place. A process that is
killed in between leaves the last version as `NAME.xxxx.old`; it is put back before the next step.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from plumbline.versioning.digest import dvc_digest
from plumbline.versioning.lock import read_lock

ASIDE = ".old"


@contextlib.contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    """An empty folder on the file system of the outputs, for one process at a time. It is removed at the end."""
    place = _place(root)
    place.mkdir(parents=True, exist_ok=True)
    with alone(root, name):
        for aside in place.glob(f"*{ASIDE}"):
            if _step_of(aside) == name:
                _put_back(root, name, aside)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=place))
        folder.chmod(0o755)  # mkdtemp sets 0700, which the artifact would keep
        try:
            yield folder
        finally:
            remove(folder)


@contextlib.contextmanager
def alone(root: Path, name: str) -> Iterator[None]:
    """Within the context, no other process runs this step, or computes its output for one that publishes it."""
    from filelock import FileLock

    locks = root / ".plumbline" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{name}.lock"):
        yield


def parts_of(root: Path, name: str) -> Path:
    """Where a step leaves what a later run of it goes on from. It need not exist. It is removed once the step's output
    is published, or kept for the process that publishes it."""
    return root / ".plumbline" / "parts" / name


def acted_on(root: Path, name: str, code_version: str) -> Path:
    """A copy of the output on which a step last acted outside the workspace, if code of this version made it.

    `dvc repro` records an output after the step's command has ended, and removes one that a killed command left. The
    step is run again, but what it did outside is done: it finds here what it decided.
    """
    return root / ".plumbline" / "acted" / name / (code_version or "-")


def keep_acted_on(root: Path, name: str, code_version: str, out: Path) -> None:
    """Copy an output to where `acted_on` says, all or nothing, in place of those of earlier code."""
    with scratch(root, f"{name}-acted") as folder:
        copy, place = folder / "copy", acted_on(root, name, code_version)
        shutil.copytree(out, copy)
        remove(place.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        copy.rename(place)


def aside_of(folder: Path) -> Path:
    """Where the last version waits while the new one in a scratch folder takes its place."""
    return folder.with_name(f"{folder.name}{ASIDE}")


def sweep(root: Path) -> int:
    """Remove what killed steps left, and return the number of entries. Steps that still run are skipped.

    A version that was moved aside is put back if dvc.lock names it and its place is empty, or holds another.
    """
    from filelock import FileLock, Timeout

    removed = 0
    for folder in sorted(_place(root).glob("*")):
        name = _step_of(folder)
        with contextlib.suppress(Timeout), FileLock(root / ".plumbline" / "locks" / f"{name}.lock", timeout=0):
            if folder.name.endswith(ASIDE):
                _put_back(root, name, folder)
            remove(folder)
            removed += 1
    return removed


def _step_of(folder: Path) -> str:
    """The name of the step whose scratch folder or last version this is; it may have dots."""
    return folder.name.removesuffix(ASIDE).rsplit(".", 1)[0]


def _put_back(root: Path, name: str, aside: Path) -> None:
    entry = read_lock(root).get(name)
    if entry is None or not entry.outs or not aside.exists() or dvc_digest(aside) != entry.md5:
        return  # also if its removal was interrupted
    path = root / next(iter(entry.outs))
    if path.exists():
        if dvc_digest(path) == entry.md5:
            return
        remove(path)  # the version that was never recorded
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.rename(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _place(root: Path) -> Path:
    return root / "data" / ".tmp"
