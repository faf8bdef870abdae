"""Commands in a workspace: as child processes, or, without the seconds of their imports, as forks of this process."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tamperings import chain

RUN: tuple[str, ...] = ("plumbline", "run")
REPRO: tuple[str, ...] = ("dvc", "repro")
DAEMON: tuple[str, ...] = ("dagster-daemon", "run")
LAUNCH: tuple[str, ...] = ("dagster", "launch")
"""Dagster runs of one partition each, as a person launches them in the UI: nobody looks ahead for them."""


def preload() -> None:
    """Import what the commands import, so that forks have it."""
    import datasets
    import dvc.cli
    import matplotlib.pyplot
    import mlflow
    import sentence_transformers
    import torch
    import transformers

    import plumbline.cli.main
    import plumbline.graph.definitions
    import plumbline.graph.instance
    import plumbline.graph.run

    del datasets, dvc, matplotlib, mlflow, sentence_transformers, torch, transformers, plumbline


def environment(root: Path, **more: str) -> dict[str, str]:
    """The environment of a command: `plumbline`, which `dvc repro` calls, is the one of this interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**chain.environment(root), "PATH": path, "OMP_NUM_THREADS": "1", **more}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: the signal that killed it) and what it printed."""

    status: int
    output: str

    @property
    def tail(self) -> str:
        """The end of what it printed, in one line."""
        return " ".join(self.output[-1200:].split())


class Process:
    """A running fork of this process that executes a command in a session of its own."""

    def __init__(self, root: Path, command: Sequence[str], log: Path, **more: str) -> None:
        self.log, self.status = log, None
        self.pid = os.fork()
        if not self.pid:
            os._exit(_child(root, command, log, environment(root, **more)))

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status; None if it still runs after so many seconds."""
        until = None if seconds is None else time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif until is not None and time.monotonic() >= until:
                break
            else:
                time.sleep(0.005)
        return self.status

    def kill(self, group: bool = True) -> None:
        """Kill the process, and (as a power failure does) all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL) if group else os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def ended(self) -> Ended:
        """Wait for its end."""
        status = self.wait()
        assert status is not None
        return Ended(status, self.log.read_text(encoding="utf-8", errors="replace"))


def ran(root: Path, *command: str, status: int | None = 0, log: Path | None = None, **more: str) -> Ended:
    """Run a command in a workspace.

    Args:
        status: the expected exit status; None: any.

    Raises:
        AssertionError: it ended with another status, or with a traceback.
    """
    done = Process(root, command, log or Path(f"{root.parent}.log"), **more).ended()
    wrong = status is not None and done.status != status
    if wrong or "Traceback (most recent call last)" in done.output:
        raise AssertionError(f"{' '.join(command)} ended with {done.status}: {done.tail}")
    return done


def _child(root: Path, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> int:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(root)
    return _status(command)


def _status(command: Sequence[str]) -> int:
    """Execute a command in this process, a fork, and return its exit status."""
    try:
        program, *arguments = command
        if program == "dvc":
            from dvc.cli import main as dvc

            _fork_stages()
            return int(dvc(arguments) or 0)
        if program == "dagster":
            return _launch(Path.cwd())
        if program == "dagster-daemon":
            from dagster._daemon.cli import main as daemon

            sys.argv = [program, *arguments]
            daemon()
            return 0
        from plumbline.cli.main import main

        main(arguments, prog_name="plumbline")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _launch(root: Path) -> int:
    """A Dagster run per partition that is out of date, upstream first; the exit status."""
    from plumbline.graph.definitions import stage_assets
    from plumbline.graph.in_process import run_asset
    from plumbline.graph.instance import instance
    from plumbline.graph.run import failure
    from plumbline.versioning.lock import stage_name
    from plumbline.versioning.status import changed_stages

    for asset in stage_assets(root):
        name = asset.key.to_user_string()
        for key in asset.partitions_def.get_partition_keys() if asset.partitions_def else [None]:
            if stage_name(name, key) not in changed_stages(root, name):
                continue
            with instance() as history:
                result = run_asset(root, asset, history, {}, [key] if key else [])
            if not result.success:
                print(failure(result))
                return 1
    return 0


def _fork_stages() -> None:
    """Let DVC execute the commands of its stages as forks of its process: each is spared the seconds of its imports."""
    from dvc.stage import run
    from dvc.stage.exceptions import StageCmdFailedError

    def forked(executable: str | None, cmd: str, *, cwd: str, env: Mapping[str, str], **_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            os.environ.clear()
            os.environ.update(env)
            os.chdir(cwd)
            os._exit(_status(shlex.split(cmd)))
        if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise StageCmdFailedError(cmd, status)

    run._run = forked
