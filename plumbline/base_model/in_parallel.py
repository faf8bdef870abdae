"""Runs independent tasks side by side, each on one thread: the same bits as one after the other.

A matrix product that is divided among threads sums in an order that depends on their number. Tasks that share no sum
can run side by side instead: PyTorch and BLAS release the interpreter lock while they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from plumbline.base_model.one_thread import one_thread

T = TypeVar("T")


def in_parallel(
    tasks: Sequence[Callable[[], T]], costs: Sequence[float] | None = None, workers: int | None = None
) -> list[T]:
    """Call every task once and return the results in the order of `tasks`.

    Tasks must not depend on each other, and must not change what another task reads.

    Args:
        tasks: functions without arguments. They may run on other threads than the caller's, and so outside its
            `torch.no_grad()` and the like; gradients are off in them.
        costs: cost of each task, in any unit. The most expensive tasks start first, so that no long one is left for
            the end.
        workers: number of threads; None: as many as PyTorch may use here, which is one within `one_thread` or a task.

    Raises:
        Exception: the first, in the order of `tasks`, that a task raised; tasks that have not started do not run.
        KeyboardInterrupt: the same way, as soon as the running tasks are done.
    """
    workers = min(len(tasks), workers or torch.get_num_threads())
    order = sorted(range(len(tasks)), key=lambda i: -costs[i] if costs is not None else 0)
    with one_thread():
        if workers <= 1:
            done = {i: _alone(tasks[i]) for i in order}
            return [done[i] for i in range(len(tasks))]
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            futures = {i: pool.submit(_alone, tasks[i]) for i in order}
            return [futures[i].result() for i in range(len(tasks))]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _alone(task: Callable[[], T]) -> T:
    with torch.no_grad():
        return task()
