"""Whether a run can work where it is: the workspace's path, and the right to write there and into DVC's cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from plumbline.versioning.cache import cache_folder
from plumbline.versioning.file_system import cannot_lock

AWKWARD = "{}[]*?"
"""Characters of a path with which DVC ends in an error (braces), or Dagster overlooks its settings (a pattern's)."""
FOLDERS = ("", "data", "data/.tmp", ".plumbline", ".plumbline/locks", ".dvc", ".dvc/tmp")


def awkward(path: Path) -> str:
    """A sentence about a path at which DVC or Dagster fails; empty for any other."""
    wrong = "".join(character for character in AWKWARD if character in str(path))
    return (
        f"{path} has {' '.join(wrong)} in its path, which DVC or Dagster take for a pattern: move it to another path; "
        "spaces and letters of any alphabet are fine"
        if wrong
        else ""
    )


def unwritable(root: Path) -> Iterator[str]:
    """What keeps a run from working here: a sentence about the workspace's path, its folders, or DVC's cache."""
    if problem := awkward(root.resolve()):
        yield problem
        return
    if path := _first_closed(root / name for name in FOLDERS):
        yield (
            f"{path} cannot be written: it is read-only, or belongs to another user. Give the user of this process the "
            "right to write there, or copy the workspace"
        )
        return
    if (locks := root / ".plumbline" / "locks").is_dir() and (problem := cannot_lock(locks)):
        yield problem
        return
    cache = cache_folder(root)
    if problem := awkward(cache):
        yield problem
        return
    runs = cache.parents[1] / "runs"
    objects, records = cache.glob("[0-9a-f][0-9a-f]"), (*runs.glob("*"), *runs.glob("*/*"))
    if path := _first_closed([_existing(cache), *objects, _existing(runs), *records]):
        yield (
            f"DVC's cache cannot be written ({path} is read-only, or belongs to another user). Give the user of this "
            "process the right to write there (`dvc config cache.shared group` keeps it for a group), or name another "
            "cache: `dvc cache dir --local FOLDER`"
        )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _first_closed(folders: Iterable[Path]) -> Path | None:
    return next((path for path in folders if path.is_dir() and not os.access(path, os.W_OK | os.X_OK)), None)
