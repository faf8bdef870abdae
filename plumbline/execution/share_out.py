"""Shares out jobs among worker processes: of this machine by Python's own pool, or by Ray, here or on a cluster.

A job returns something small: what it computes is passed in files. The results do not depend on who computed them. A
worker that dies loses only its job, which is run again.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from plumbline.execution import local, ray_cluster
from plumbline.execution.params import ExecutionParams
from plumbline.execution.probe import problem
from plumbline.execution.worker_check import with_check

Job = TypeVar("Job")
Result = TypeVar("Result")

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # idle threads of one worker leave the cores to the others
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
WORKERS = "PLUMBLINE_WORKERS"
"""Environment variable of a worker process: how many share its machine."""


@dataclass(frozen=True)
class WorkerPlace:
    """Where a job ran."""

    host: str
    pid: int
    node: str = ""
    """Ray's id of the machine."""

    @classmethod
    def here(cls) -> WorkerPlace:
        """The place of this process."""
        return cls(socket.gethostname(), os.getpid(), ray_cluster.node())


def require_executor(execution: ExecutionParams) -> None:
    """Refuse an executor that cannot be used.

    Raises:
        ValueError: Ray is not installed, or no cluster answers at its address.
    """
    if said := problem(execution):
        raise ValueError(said)


def shares_out(execution: ExecutionParams) -> bool:
    """Whether this process shares out its jobs: as `execution` says, but a worker does its own job by itself."""
    return execution.shares_out and WORKERS not in os.environ


def workers_here() -> int:
    """How many workers share this machine; 1 if this process is none."""
    return int(os.environ.get(WORKERS, "1"))


def share_out(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    execution: ExecutionParams,
    done: Callable[[Job], object] = lambda job: None,
    near: Callable[[Job], str] = lambda job: "",
) -> list[Result]:
    """The results of `work` for every job, in the order of the jobs, computed by other processes.

    A worker first runs the check of `worker_check.checked_workers`, within its context.

    Args:
        work: a function that another process can import by name, as it can the types of jobs and results.
        done: called in this process when a job is finished.
        near: Ray's id of the machine where a job's inputs lie, which is preferred as long as it has room; empty: any.

    Raises:
        ValueError: Ray is not installed, or does not answer at the address.
        RuntimeError: a job's worker died in every attempt, or Ray does not start.
        Exception: any that `work` raised.
    """
    if not jobs:
        return []
    work = with_check(work)
    paths = os.pathsep.join(path for path in sys.path if path)
    with _environment(ENVIRONMENT | {"PYTHONPATH": paths, WORKERS: str(execution.workers)}):
        if execution.executor == "ray":
            return ray_cluster.run(work, jobs, execution, done, near)
        return local.run(work, jobs, min(execution.workers, len(jobs)), done)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Within the context, set environment variables for the processes that are started there."""
    before: dict[str, Any] = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
