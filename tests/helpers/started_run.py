"""A Dagster run that has started and does not end by itself."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

RUN = """
import sys
import dagster as dg

@dg.asset(pool="heavy")
def waits():
    print("started", flush=True)
    sys.stdin.read()

with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    dg.materialize([waits], instance=instance)
"""


@contextlib.contextmanager
def started_run(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a started run in the Dagster instance of a folder; killed at the end, if it still lives."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"started\n"
            yield process
        finally:
            process.kill()
