"""What each worker checks before a job: that its machine computes as the one that shares out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

Check = Callable[[], object]
"""Runs in a worker and raises if it must not compute; another process can import it by name."""
_check: ContextVar[Check | None] = ContextVar("_check", default=None)


@contextmanager
def checked_workers(check: Check) -> Iterator[None]:
    """Within the context, every worker that `share_out` has work runs `check` before each job."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


@dataclass(frozen=True)
class _Checked:
    work: Callable[[Any], Any]
    check: Check

    def __call__(self, job: Any) -> Any:
        self.check()
        return self.work(job)


def with_check(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function, behind the check of the context, if there is one."""
    check = _check.get()
    return work if check is None else _Checked(work, check)
