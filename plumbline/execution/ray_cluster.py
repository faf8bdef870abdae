"""Runs jobs by Ray: on workers that it starts on this machine, or on those of a running cluster."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from plumbline.execution.died import ATTEMPTS, died
from plumbline.execution.params import ExecutionParams
from plumbline.execution.probe import problem, unusable

Job = TypeVar("Job")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

STARTS = 4
"""Attempts to start Ray, each of which it gives 30 seconds: too few for one on a busy machine."""
OBJECTS = 80 << 20
"""Bytes that Ray reserves for results; the minimum it accepts."""
FORWARDED = ("OMP_WAIT_POLICY", "PLUMBLINE_WORKERS", "PYTHONPATH")
"""Variables that workers on a running cluster get from this process. Those that Ray starts here inherit all."""
_keeping = False
_joined: ExecutionParams | None = None
"""How this process started or joined Ray."""


def node() -> str:
    """Ray's id of this machine; empty outside a worker of Ray."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return str(ray.get_runtime_context().get_node_id())


def run(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    execution: ExecutionParams,
    done: Callable[[Job], object],
    near: Callable[[Job], str],
) -> list[Result]:
    """The results of `work` for every job, in order; see `share_out`."""
    with connected(execution) as ray:
        cpus = 1 if execution.address is None else cpus_of_job(ray.nodes(), execution.workers)
        remote = ray.remote(num_cpus=cpus, max_retries=ATTEMPTS - 1)(_call)
        alive = {entry["NodeID"] for entry in ray.nodes() if entry["Alive"]}
        numbers = {}
        for number, job in enumerate(jobs):
            place = near(job)
            options = {"scheduling_strategy": _preferring(ray, place)} if place in alive else {}
            numbers[remote.options(**options).remote(work, job)] = number
        results: dict[int, Result] = {}
        try:
            for reference in _as_completed(ray, numbers):
                number = numbers[reference]
                try:
                    results[number] = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:  # the worker or its machine died, or memory ran out
                    raise RuntimeError(died(number, len(jobs))) from error
                done(jobs[number])
        except BaseException:
            for reference in numbers:  # on a cluster they would go on; a finished one is left alone
                ray.cancel(reference)
            raise
        return [results[number] for number in range(len(jobs))]


def _as_completed(ray: Any, references: Iterable[Any]) -> Iterator[Any]:
    waiting = list(references)
    while waiting:
        ready, waiting = ray.wait(waiting)
        yield from ready


def _call(work: Callable[[Job], Result], job: Job) -> Result:
    return work(job)


def _preferring(ray: Any, place: str) -> Any:
    """Prefer a machine, but go to another one where it has no room."""
    strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
    return strategies.NodeAffinitySchedulingStrategy(place, soft=True, _spill_on_unavailable=True)


@contextmanager
def kept() -> Iterator[None]:
    """Within the context, Ray stays once it has been started or joined, and its workers keep what they have loaded."""
    global _keeping
    before, _keeping = _keeping, True
    try:
        yield
    finally:
        _keeping = before
        if not before:
            _leave()


@contextmanager
def connected(execution: ExecutionParams) -> Iterator[Any]:
    """Within the context, Ray is there; yields the module.

    Raises:
        ValueError: Ray is not installed, or no cluster can be used at the address.
        RuntimeError: Ray runs in this process already, or does not start.
    """
    global _joined
    if said := problem(execution):
        raise ValueError(said)
    ray: Any = importlib.import_module("ray")
    if _joined != execution:
        _leave()
        if ray.is_initialized():
            raise RuntimeError("Ray runs in this process already; Plumbline starts its own and stops it again")
        _join(ray, execution)
        _joined = execution
    try:
        yield ray
    finally:
        if not _keeping:
            _leave()


def _join(ray: Any, execution: ExecutionParams) -> None:
    worker: Any = importlib.import_module("ray._private.worker")
    if hasattr(worker, "print_to_stdstream"):  # Ray prints a thousand characters when a worker dies
        worker.print_to_stdstream = _log_report
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if execution.address is None:
        _start(ray, execution.workers, quiet)
        return
    variables = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    try:
        ray.init(address=execution.address, runtime_env={"env_vars": variables}, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:  # it answers, but is of another version, say
        ray.shutdown()
        reason = str(error).strip().splitlines()
        raise ValueError(unusable(execution.address, reason[0] if reason else type(error).__name__)) from error


def lock_of_starts() -> Path:
    """The file that a process locks while it starts Ray on this machine."""
    return Path(tempfile.gettempdir()) / f"plumbline-ray-{os.getuid()}.lock"


def _start(ray: Any, workers: int, quiet: Mapping[str, Any]) -> None:
    """Start Ray on this machine; again, up to STARTS times, if its processes are not up within its 30 seconds.

    One process of a user at a time: two that start together, and try again together, keep each other from it.

    Raises:
        RuntimeError: it does not start.
    """
    from filelock import FileLock

    for attempt in range(STARTS):
        try:
            with FileLock(lock_of_starts()):
                ray.init(
                    address="local",
                    num_cpus=workers,
                    object_store_memory=OBJECTS,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
            return
        except Exception as error:  # Ray raises a bare one
            ray.shutdown()
            if attempt + 1 == STARTS:
                raise RuntimeError(
                    f"Ray does not start on this machine ({str(error).strip().splitlines()[0]}); it may be too busy or "
                    "short of memory: run again later, or say `executor: local` in params.yaml"
                ) from error


def _log_report(data: Mapping[str, Any], **_: Any) -> None:
    """Log the first sentence of what Ray reports, such as the death of a worker, instead of printing all."""
    for line in data.get("lines", ()):
        log.warning("Ray: %s", str(line).strip().split(". ")[0][:200])


def _leave() -> None:
    global _joined
    if _joined is not None:
        importlib.import_module("ray").shutdown()
        _joined = None


def cpus_of_job(nodes: Sequence[dict[str, Any]], workers: int) -> int:
    """CPUs that a job asks Ray for, so that at most `workers` run on each machine of the smallest kind.

    Args:
        nodes: as `ray.nodes()` returns them.
    """
    sizes = [int(entry["Resources"].get("CPU", 0)) for entry in nodes if entry["Alive"]]
    return max(1, min((size for size in sizes if size > 0), default=1) // workers)
