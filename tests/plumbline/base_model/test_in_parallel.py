"""Tasks side by side: every one once, in order, on one thread each, and none forgotten when one fails."""

from __future__ import annotations

import threading

import pytest
import torch

from plumbline.base_model.in_parallel import in_parallel
from plumbline.base_model.one_thread import one_thread


@pytest.mark.parametrize("workers", [None, 1, 2, 5])
def test_results_come_in_the_order_of_the_tasks(workers) -> None:
    calls: list[int] = []
    tasks = [lambda i=i: (calls.append(i), i * i)[1] for i in range(20)]
    assert in_parallel(tasks, list(range(20)), workers) == [i * i for i in range(20)]
    assert sorted(calls) == list(range(20))
    assert in_parallel([], workers=workers) == []


def test_the_most_expensive_task_starts_first() -> None:
    started: list[int] = []
    in_parallel([lambda i=i: started.append(i) for i in range(4)], [2.0, 9.0, 1.0, 5.0], workers=1)
    assert started == [1, 3, 0, 2]


def test_tasks_run_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=30)  # breaks, and raises, if a second one does not come while one waits
    in_parallel([meeting.wait, meeting.wait], workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_computes_on_one_thread_without_gradients(workers) -> None:
    before = torch.get_num_threads()
    x = torch.ones(3, requires_grad=True)
    seen = in_parallel([lambda: (torch.get_num_threads(), (x * 2).requires_grad)] * 4, workers=workers)
    assert seen == [(1, False)] * 4
    assert torch.get_num_threads() == before


def test_within_one_thread_tasks_run_one_after_the_other_on_it() -> None:
    with one_thread():
        assert set(in_parallel([threading.get_ident] * 3)) == {threading.get_ident()}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [ValueError("this one"), KeyboardInterrupt()], ids=repr)
def test_an_error_reaches_the_caller_and_the_rest_is_not_begun(workers, error) -> None:
    begun: list[int] = []

    def task(i: int) -> None:
        begun.append(i)
        if i == 0:
            raise error

    before = torch.get_num_threads()
    with pytest.raises(type(error)):
        in_parallel([lambda i=i: task(i) for i in range(5000)], workers=workers)
    assert len(begun) < 5000
    assert torch.get_num_threads() == before
