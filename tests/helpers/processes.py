"""Servers and daemons that a test starts, watches, and kills with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tests.helpers.workspace import Workspace

T = TypeVar("T")
PATIENCE = 600.0
"""Seconds after which a server or a run hangs; on a slow machine under load a run of Dagster takes minutes."""


@contextlib.contextmanager
def running(command: Sequence[str], workspace: Workspace, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own; at the end the group is killed, as by a power failure."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=workspace.root, env=workspace.environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(process: subprocess.Popen[bytes], ask: Callable[[], T], log: Path, seconds: float = PATIENCE) -> T:
    """Ask until the answer is true; an end of the process ends the wait at once."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(timeout=0.5)
            raise AssertionError(f"{process.args} ended with {status}:\n{log.read_text()[-4000:]}")
        assert time.monotonic() < deadline, f"waited {seconds} s in vain; the log ends:\n{log.read_text()[-4000:]}"
    return answer
