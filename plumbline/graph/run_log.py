"""The log of a run: what the library says, and every 20 seconds how far long work is."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from plumbline.amounts import duration
from plumbline.progress import Progress
from plumbline.progress import log as progress_log

LIBRARY = logging.getLogger("plumbline")
EVERY = 20.0
"""Seconds between two lines about the progress."""
Say = Callable[[int, str], object]
"""(level, message): writes a line into the log of the run."""


class _ToRun(logging.Handler):
    """Forwards messages, and remembers the latest progress instead of forwarding it."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say
        self.latest: Progress | None = None

    def emit(self, record: logging.LogRecord) -> None:
        state = getattr(record, "progress", None)
        if state is None:
            self._say(record.levelno, record.getMessage())
        else:
            self.latest = state


@contextlib.contextmanager
def logged(step: str, say: Say, every: float = EVERY) -> Iterator[None]:
    """Within the context, forward the library's messages and say every so often how far the step is.

    Args:
        step: its name, with which each line about the progress begins.
        say: may be called from another thread.
    """
    handler, stop, began = _ToRun(say), threading.Event(), time.monotonic()

    def beat() -> None:
        while not stop.wait(every):
            say(logging.INFO, progress_line(step, handler.latest, time.monotonic() - began))

    levels = {LIBRARY: logging.INFO, progress_log: logging.DEBUG}
    before = {logger: logger.level for logger in levels}
    LIBRARY.addHandler(handler)
    for logger, level in levels.items():
        logger.setLevel(level)
    thread = threading.Thread(target=beat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        LIBRARY.removeHandler(handler)
        for logger, level in before.items():
            logger.setLevel(level)


def progress_line(step: str, state: Progress | None, seconds: float) -> str:
    """What the log says about a step after so many seconds; `state` is None before the first bar."""
    # a bar that is full belongs to the work before: writing, hashing, loading have none
    doing = f"{state}; " if state is not None and (not state.total or state.done < state.total) else ""
    return f"{step}: {doing}{duration(seconds)} so far"
