"""DVC's file of who reads and writes what, which a killed `dvc repro` leaves half written.

DVC writes `.dvc/tmp/rwlock` in place and refuses to work while it is no JSON. It holds nothing but the locks of running
commands.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

FILE, GUARD = ".dvc/tmp/rwlock", ".dvc/tmp/rwlock.lock"


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
