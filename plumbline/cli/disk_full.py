"""What to say when a disk is full, whichever library noticed it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

SIGNS = (*(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)), "database or disk is full")
"""How the operating system and SQLite say it; Dagster and MLflow repeat it in messages of their own."""


LITTLE = 16 << 20
"""Bytes. A failure with less free space is put down to it: DVC and SQLite have many names for it."""


def is_full(error: BaseException, root: Path) -> bool:
    """Whether an error, or one that caused it, comes from a full disk."""
    if shutil.disk_usage(root).free < LITTLE:
        return True
    seen: BaseException | None = error
    while seen is not None:
        if any(sign in str(seen) for sign in SIGNS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def advice(root: Path) -> str:
    """Where there is no room, and what to do."""
    places = {root: "the workspace", Path(tempfile.gettempdir()): "temporary files"}
    free = ", ".join(
        f"{shutil.disk_usage(place).free / 1e6:,.1f} MB for {what} ({place})" for place, what in places.items()
    )
    return (
        f"A disk is full. Free: {free}. Make room (`plumbline gc` shows what DVC's cache can lose), then give the "
        "command again. Nothing was lost: every finished step is recorded, and the last good version of the others is "
        "in place."
    )
