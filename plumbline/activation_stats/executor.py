"""Distributes jobs among processes of this machine, by Python's own pool or by Ray.

A job returns something small (a path): results are passed in files. A worker that dies loses only its job, which is run
again.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from plumbline.activation_stats.params import ExecutionParams
from plumbline.distribution import install_command

Job = TypeVar("Job")
Result = TypeVar("Result")

ATTEMPTS = 2
"""Number of attempts at a job whose worker dies, with either executor."""
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # idle threads of one worker leave the cores to the others
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OBJECTS = 80 << 20
"""Bytes that Ray reserves for results; the minimum it accepts."""


def require_executor(execution: ExecutionParams) -> None:
    """Refuse an executor that is not installed.

    Raises:
        ValueError: the executor is `ray` and Ray is not installed.
    """
    if execution.executor == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError(
            "execution.executor in params.yaml: found 'ray', but Ray is not installed; install the extra with "
            f"`{install_command('ray')}`, or say 'local'"
        )


def shared_out(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    execution: ExecutionParams,
    done: Callable[[Job], object] = lambda job: None,
) -> list[Result]:
    """The results of `work` for every job, in the order of the jobs, computed by `execution.workers` processes.

    Args:
        work: a function that another process can import by name, as it can the types of jobs and results.
        done: called in this process when a job is finished.

    Raises:
        RuntimeError: a job's worker died in every attempt, or Ray does not start.
        Exception: any that `work` raised.
    """
    require_executor(execution)
    with _environment(ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}):
        run = _by_ray if execution.executor == "ray" else _by_pool
        return run(work, jobs, min(execution.workers, len(jobs)), done)


def _by_pool(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, done: Callable[[Job], object]
) -> list[Result]:
    results: dict[int, Result] = {}
    _round(work, jobs, range(len(jobs)), workers, results, done)
    for number in [number for number in range(len(jobs)) if number not in results]:
        # A broken pool does not say which job's worker died, so unfinished jobs are run again one by one.
        _round(work, jobs, [number], 1, results, done)
        if number not in results:
            raise RuntimeError(_died(number, len(jobs)))
    return [results[number] for number in range(len(jobs))]


def _round(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    numbers: Sequence[int],
    workers: int,
    results: dict[int, Result],
    done: Callable[[Job], object],
) -> None:
    # Spawn, not fork: a fork copies held locks but not the threads that would release them.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(work, jobs[number]): number for number in numbers}
        for future in as_completed(futures):
            try:
                results[futures[future]] = future.result()
            except BrokenProcessPool:
                continue
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            done(jobs[futures[future]])


def _by_ray(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, done: Callable[[Job], object]
) -> list[Result]:
    ray = importlib.import_module("ray")
    if ray.is_initialized():
        raise RuntimeError("Ray runs in this process already; Plumbline starts its own and stops it again")
    ray.init(
        address="local",
        num_cpus=workers,
        object_store_memory=OBJECTS,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(_call)
        numbers = {remote.remote(work, job): number for number, job in enumerate(jobs)}
        results: dict[int, Result] = {}
        waiting = list(numbers)
        while waiting:
            ready, waiting = ray.wait(waiting)
            for reference in ready:
                number = numbers[reference]
                try:
                    results[number] = ray.get(reference)
                except ray.exceptions.WorkerCrashedError as error:
                    raise RuntimeError(_died(number, len(jobs))) from error
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                done(jobs[number])
        return [results[number] for number in range(len(jobs))]
    finally:
        ray.shutdown()


def _call(work: Callable[[Job], Result], job: Job) -> Result:
    return work(job)


def _died(number: int, of: int) -> str:
    return (
        f"shard {number + 1} of {of}: its worker died {ATTEMPTS} times without an exception, as the kernel ends a "
        "process when memory runs out; set execution.workers in params.yaml lower, or execution.mode to layerwise"
    )


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
