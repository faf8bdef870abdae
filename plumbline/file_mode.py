"""The mode of files that safetensors writes: like every other file, what the umask allows.

safetensors 0.8 creates its files for their owner alone (0600), whatever the umask. A server under another user, such as
a container that is not root, could not read the model.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path


def follow_umask(paths: Iterable[Path]) -> None:
    """Give files the mode that a new file would have in their folder."""
    modes: dict[Path, int] = {}
    for path in paths:
        if path.parent not in modes:
            modes[path.parent] = _mode_of_new_file(path.parent)
        path.chmod(modes[path.parent])


def _mode_of_new_file(folder: Path) -> int:
    """Found by making one: the umask can be read only by setting it, for all threads, and a folder may have rules."""
    trial = folder / f".mode-{os.getpid()}"
    try:
        trial.touch()
        return stat.S_IMODE(trial.stat().st_mode)
    finally:
        trial.unlink(missing_ok=True)
