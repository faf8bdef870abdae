"""How far long work has come: a bar in a terminal, a line a minute in a file, and a log record per step for whoever
listens.

The records are messages of level DEBUG of the logger `plumbline.progress`, with a `Progress` as their attribute
`progress`. Nothing here can change an output, so this module is no part of a code version (versioning/code.py).
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any

from tqdm import tqdm

from plumbline.amounts import duration

log = logging.getLogger(__name__)
EVERY = 60.0
"""Seconds between two lines where no terminal shows the bar."""
OVER_LAYERS = "tokens × layers"
"""The unit of work that takes all tokens through one layer, then the next."""


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Attributes:
        what: the work, e.g. "activations".
        done: units done.
        total: units in all; None: unknown.
        unit: in the plural, e.g. "tokens".
        seconds: since the work began.
    """

    what: str
    done: int
    total: int | None
    unit: str
    seconds: float

    def __str__(self) -> str:
        """For example `activations: 512 of 2048 tokens (25 %), about 3 min left`."""
        if not self.total:
            return f"{self.what}: {self.done} {self.unit}"
        text = f"{self.what}: {self.done} of {self.total} {self.unit} ({100 * self.done // self.total} %)"
        if not 0 < self.done < self.total:
            return text
        return f"{text}, about {duration(self.seconds * (self.total - self.done) / self.done)} left"


class Bar(tqdm):
    """A tqdm bar with tqdm's arguments, that also logs. Without a terminal: a line a minute on standard error.

    `disable=True` silences all three. Threads may update it.
    """

    def __init__(self, *args: Any, desc: str, unit: str, total: int | None = None, **options: Any) -> None:
        options = {"desc": desc, "unit": unit, "total": total, "disable": None, **options}
        super().__init__(*args, **options)
        self._silent = options.get("disable") is True
        self._what, self._units = desc, f"{unit.strip().removesuffix('s')}s"
        self._done, self._began, self._guard = 0, time.monotonic(), Lock()
        self._next_line = self._began + EVERY
        self._tell()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def update(self, n: float | None = 1) -> Any:
        """Add `n` units."""
        with self._guard:
            self._done += int(n or 0)
            self._tell()
            return super().update(n)

    def _tell(self) -> None:
        if self._silent:
            return
        now = time.monotonic()
        is_due = self.disable and now >= self._next_line
        if not is_due and not log.isEnabledFor(logging.DEBUG):
            return
        total = None if self.total is None else int(self.total)
        state = Progress(self._what, self._done, total, self._units, now - self._began)
        log.debug("%s", state, extra={"progress": state})
        if is_due:
            self._next_line = now + EVERY
            with contextlib.suppress(OSError, ValueError):  # a closed pipe or file ends no work
                print(f"  {state}", file=sys.stderr, flush=True)
