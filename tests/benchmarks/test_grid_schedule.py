"""Schedules against what one can count by hand."""

from __future__ import annotations

import pytest

from benchmarks.grid_schedule import Timed, by_stage, enlarged, freely, makespan, table

STEPS = [
    Timed("raw_corpus", (), 0.0, 5.0),
    Timed("activation_stats@a", ("raw_corpus",), 4.0, 1.0),
    Timed("activation_stats@b", ("raw_corpus",), 8.0, 1.0),
    Timed("quantized_model@a-s", ("activation_stats@a",), 6.0, 1.0),
    Timed("quantized_model@b-s", ("activation_stats@b",), 6.0, 1.0),
]


@pytest.mark.parametrize(
    ("seconds", "workers", "expected"),
    [([3, 3, 2, 2, 2], 2, 7), ([3, 3, 2, 2, 2], 1, 12), ([3, 3, 2, 2, 2], 9, 3), ([], 4, 0)],
)
def test_a_free_worker_takes_the_longest_job(seconds: list[float], workers: int, expected: float) -> None:
    assert makespan(seconds, workers) == expected


@pytest.mark.parametrize(
    ("workers", "wall", "free"),
    [
        (1, 5 + (12 + 2) + (12 + 2), 5 + 12 + 12 + 1),  # the worker never waits: a's and b's statistics, two models
        (2, 5 + (8 + 2) + (6 + 2), 5 + 8 + 1 + 6 + 1),  # b's chain
        (512, 5 + (8 + 2) + (6 + 2), 5 + 8 + 1 + 6 + 1),
    ],
)
def test_the_seconds_of_a_run(workers: int, wall: float, free: float) -> None:
    assert sum(by_stage(STEPS, workers).values()) == wall
    assert freely(STEPS, workers) == free


def test_the_one_process_publishes_one_step_at_a_time() -> None:
    steps = [Timed(f"evaluation@{number}", (), 1.0, 2.0) for number in range(10)]
    assert freely(steps, 512) == 1 + 10 * 2
    assert by_stage(steps, 512) == {"evaluation, by workers": 1.0, "evaluation, published one by one": 20.0}
    assert "| 8 | 22 s | 1.4 × | 21 s | 1.4 × | evaluation, published one by one (91 %) |" in table(steps, [8])


def test_an_enlarged_grid_has_the_mean_seconds_and_its_own_inputs() -> None:
    larger = {step.name: step for step in enlarged(STEPS, 3, 2)}
    assert len(larger) == 1 + 3 + 6
    assert larger["activation_stats@2"] == Timed("activation_stats@2", ("raw_corpus",), 6.0, 1.0)
    assert larger["quantized_model@2-1"].reads == ("activation_stats@2",)
