"""Ends a worker process whose parent died: nobody would read its result, and it would hold memory and go on writing."""

from __future__ import annotations

import os
from multiprocessing import parent_process
from multiprocessing.connection import wait
from threading import Thread

SECONDS = 1.0
"""Seconds between two looks at the parent's number. Usually its death is noticed at once, by the pipe that it held."""


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that one ends.

    A thread waits, on every platform alike. Linux's death signal would also come when only a thread of the parent ends.
    """
    Thread(target=_wait_and_exit, name="end_with_parent", daemon=True).start()


def _wait_and_exit() -> None:
    parent = parent_process()
    if parent is None:  # started by something else
        return
    # A process that the parent forked holds the pipe open, too. Windows never changes the number.
    while not wait([parent.sentinel], SECONDS) and os.getppid() == parent.pid:
        pass
    os._exit(1)  # as if it had been killed, too: what it wrote so far is not complete
