"""Finds the workspace that commands act in."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PLUMBLINE_ROOT"
MARKS = ("params.yaml", "dvc.yaml")
"""Files that make a folder a workspace."""


class NoWorkspace(ValueError):
    """No workspace was found; the message says how to select or create one."""


def workspace_root() -> Path:
    """Return the folder that PLUMBLINE_ROOT names, else the nearest workspace upward from the current folder.

    Raises:
        NoWorkspace: there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        root = Path(named).resolve()
        if not (root / "params.yaml").is_file():
            raise NoWorkspace(f"{VARIABLE} names {named}, which is not a Plumbline workspace: it has no params.yaml")
        return root
    return workspace_above(Path.cwd())


def workspace_above(folder: Path) -> Path:
    """Return the nearest workspace: the folder itself or one of its parents.

    Raises:
        NoWorkspace: there is none.
    """
    start = folder.resolve()
    for candidate in (start, *start.parents):
        if is_workspace(candidate):
            return candidate
    raise NoWorkspace(
        f"{start} is not in a Plumbline workspace (a folder with {' and '.join(MARKS)}); change into one, select one "
        f"with `plumbline -C DIR` or {VARIABLE}, or create one with `plumbline init DIR`"
    )


def is_workspace(folder: Path) -> bool:
    """Whether a folder has the files of a workspace."""
    return all((folder / name).is_file() for name in MARKS)
