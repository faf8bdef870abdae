"""Two that work in one workspace at once, and what changes while they do."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from benchmarks.chaos.processes import DAEMON, REPRO, RUN, Process, ran
from benchmarks.chaos.small import differences

PATIENCE, SETTLE = 900, 20
"""Seconds that two daemons have to bring a workspace up to date, and then to do what they should not."""
DECISION = "deployed_model: outs"


def wrong_after_two(start: Path, place: Path, commands: Sequence[Sequence[str]], expected: dict[str, str]) -> list[str]:
    """Start the commands at the same time in a copy of the workspace; what is wrong at their end.

    One may lose against the other, with a message that says so; then it is given once more.
    """
    shutil.copytree(start, place, symlinks=True)
    processes = [Process(place, command, Path(f"{place}.{i}.log")) for i, command in enumerate(commands)]
    ends = [process.ended() for process in processes]
    wrong = [end.tail for end in ends if "Traceback (most recent call last)" in end.output]
    for command, end in zip(commands, ends, strict=True):
        if end.status:
            ran(place, *command)
    if not wrong:
        wrong = differences(place, expected)
    return wrong


def wrong_after_an_edit(
    start: Path,
    place: Path,
    command: Sequence[str],
    edit: Callable[[Path], None],
    step: str,
    expected: dict[str, str],
) -> list[str]:
    """Edit a file of the workspace while a run is at a step; the next run gives what a run after the edit gives."""
    shutil.copytree(start, place, symlinks=True)
    process = Process(place, command, Path(f"{place}.0.log"))
    while not process.log.is_file() or step not in process.log.read_text(encoding="utf-8", errors="replace"):
        if process.wait(0.02) is not None:
            return [f"it ended before {step}: {process.ended().tail}"]
    process.wait(Random(step).uniform(0, 0.5))
    edit(place)
    end = process.ended()
    if "Traceback (most recent call last)" in end.output:
        return [end.tail]
    if end.status and "run it again" not in end.output and "run" not in end.output:
        return [f"it does not say what to do: {end.tail}"]
    ran(place, *RUN)
    # The record of the promotion names the champion before, which the first run may have made.
    as_expected = {key: value for key, value in expected.items() if key != DECISION}
    return [line for line in differences(place, as_expected) if line != f"dvc.lock, {DECISION} is not expected"]


def wrong_with_two_daemons(
    finished: Path, place: Path, edit: Callable[[Path], None], expected: dict[str, str]
) -> list[str]:
    """Start two daemons in a finished workspace, edit it, and wait until they have brought it up to date."""
    shutil.copytree(finished, place, symlinks=True)
    daemons = [Process(place, DAEMON, Path(f"{place}.{i}.log")) for i in range(2)]
    try:
        edit(place)
        until = time.monotonic() + PATIENCE
        while (last := ran(place, "plumbline", "status", status=None)).status:
            ended = [daemon for daemon in daemons if daemon.wait(2) is not None]
            if ended or time.monotonic() > until:
                why = "a daemon ended" if ended else f"after {PATIENCE} s it is not up to date"
                return [f"{why}: {last.tail}; {daemons[0].log.read_text(encoding='utf-8', errors='replace')[-400:]}"]
        for daemon in daemons:
            daemon.wait(SETTLE)
    finally:
        for daemon in daemons:
            daemon.kill()
    import dagster as dg

    with dg.DagsterInstance.from_config(str(place / ".dagster")) as history:
        failed = [run.run_id for run in history.get_runs() if run.status == dg.DagsterRunStatus.FAILURE]
    wrong = [f"{len(failed)} runs failed"] if failed else []
    return wrong + differences(place, expected)


def wrong_with_a_locked_store(finished: Path, place: Path) -> list[str]:
    """Start a run while another process holds MLflow's database."""
    shutil.copytree(finished, place, symlinks=True)
    params = place / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("resamples: 100", "resamples: 101"), encoding="utf-8")
    connection = sqlite3.connect(place / "mlflow.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        locked = ran(place, *RUN, status=1)
    finally:
        connection.execute("ROLLBACK")
        connection.close()
    wrong = [] if "locked by another process" in locked.output else [f"it only says: {locked.tail}"]
    ran(place, *RUN)
    return wrong


PAIRS: dict[str, Sequence[Sequence[str]]] = {
    "two `plumbline run` at once": (RUN, RUN),
    "`plumbline run` beside `dvc repro`": (RUN, REPRO),
}
