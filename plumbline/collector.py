"""Python's garbage collector, which examines every object again and again while libraries are imported."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Disable garbage collection within the context: it takes a third of the time of an import, and frees nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def resume_collector() -> None:
    """End a pause early, and leave the objects that exist now, which are those of libraries, out of all collections.

    There are a million of them, and each collection during the work would take a third of a second otherwise. Call it
    before anything large is made: what is frozen is freed by its reference count only.
    """
    gc.freeze()
    gc.enable()
