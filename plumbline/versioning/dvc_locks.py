"""DVC's file of who reads and writes what: other commands at work here, and what a killed `dvc repro` left of it.

DVC writes `.dvc/tmp/rwlock` in place and refuses to work while it is no JSON. It holds nothing but the locks of running
commands.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

FILE, GUARD = ".dvc/tmp/rwlock", ".dvc/tmp/rwlock.lock"
BUSY = r"'(?P<path>[^']+)' is busy.*?\(PID (?P<pid>\d+)\): (?P<command>[^\n]*)"
"""What DVC says of a file that another of its commands uses."""


class Busy(ValueError):
    """Another command of DVC works on the same files."""


@contextlib.contextmanager
def busy_in_words() -> Iterator[None]:
    """Raise Busy, with who works on what and what to do, for DVC's LockError."""
    from dvc.lock import LockError

    try:
        yield
    except LockError as error:
        found = re.search(
            r"'(?P<path>[^']+)' is busy.*?\(PID (?P<pid>\d+)\): (?P<command>[^\n]*)", str(error), re.DOTALL
        )
        who = f"process {found['pid']}, {found['command']}, uses {found['path']}" if found else str(error)
        raise Busy(f"another command of DVC is at work here ({who}): give this one again when it has ended") from error


def remove_damaged_locks(root: Path) -> bool:
    """Remove the file if it is damaged and no command of DVC is writing it; whether it was removed."""
    if not _is_damaged(root / FILE):
        return False
    from dvc.lock import LockError, make_lock

    with contextlib.suppress(LockError, OSError), make_lock(str(root / GUARD)):
        if _is_damaged(root / FILE):
            (root / FILE).unlink()
            return True
    return False


def _is_damaged(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except OSError:
        return False
    except ValueError:
        return True
    return False
