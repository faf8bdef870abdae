"""The workspaces that use one DVC cache. DVC itself does not record them.

A workspace notes its path in the cache when it publishes an output. Projects that use DVC without Plumbline, and those
that only pulled, leave no note, so an empty list proves nothing for a cache outside the workspace.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from plumbline.artifact import replace_text
from plumbline.versioning.cache import cache_folder

NOTES = "plumbline_users"
"""Folder in the cache, beside `files` and `runs`: a file per workspace, with its path."""


def is_outside(root: Path) -> bool:
    """Whether the cache lies outside the workspace, so that others may use it."""
    return not cache_folder(root).resolve().is_relative_to(root.resolve())


def note_use(root: Path) -> None:
    """Note in a cache outside the workspace that the workspace uses it."""
    path = str(root.resolve())
    note = _notes(root) / hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:16]
    if not is_outside(root) or note.is_file():
        return
    with contextlib.suppress(OSError, UnicodeError):  # a read-only cache: nothing is published into it either
        note.parent.mkdir(parents=True, exist_ok=True)
        replace_text(note, path + "\n")


def other_users(root: Path) -> list[Path]:
    """The other workspaces that noted their use of the cache, still exist and still use it, sorted."""
    users = set()
    for note in _notes(root).glob("*"):
        with contextlib.suppress(OSError, ValueError):
            path = Path(note.read_text(encoding="utf-8").strip())
            if (
                path != root.resolve()
                and path.is_dir()
                and cache_folder(path).resolve() == cache_folder(root).resolve()
            ):
                users.add(path)
    return sorted(users)


def _notes(root: Path) -> Path:
    return cache_folder(root).parents[1] / NOTES
