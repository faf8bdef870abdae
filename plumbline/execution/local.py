"""Runs jobs in processes of this machine, by Python's own pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from plumbline.execution.died import died
from plumbline.execution.orphan import end_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")


def run(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, done: Callable[[Job], object]
) -> list[Result]:
    """The results of `work` for every job, in order, by at most `workers` processes.

    Raises:
        RuntimeError: a job's worker died in every attempt.
        Exception: any that `work` raised.
    """
    results: dict[int, Result] = {}
    _round(work, jobs, range(len(jobs)), workers, results, done)
    for number in [number for number in range(len(jobs)) if number not in results]:
        # A broken pool does not say which job's worker died, so unfinished jobs are run again one by one.
        _round(work, jobs, [number], 1, results, done)
        if number not in results:
            raise RuntimeError(died(number, len(jobs)))
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
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
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
