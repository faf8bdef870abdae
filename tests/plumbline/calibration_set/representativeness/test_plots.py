from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plumbline.calibration_set.representativeness.plots import FARTHEST, plot_lengths, plot_panel, position


def metric(value: float, p05: float, median: float, p95: float) -> dict[str, Any]:
    null = {"p05": p05, "median": median, "p95": p95}
    return {"value": value, "null": null, "ratio": value / median if median else None, "label": "a metric"}


def test_a_value_is_placed_between_the_median_and_the_95th_percentile_of_random_draws() -> None:
    assert position(metric(3.0, 0.5, 1.0, 2.0)) == (-0.5, 2.0)
    assert position(metric(1.0, 0.5, 1.0, 2.0)) == (-0.5, 0.0)
    assert position(metric(0.0, 0.0, 0.0, 0.0)) == (1.0, 0.0)
    assert position(metric(0.1, 0.0, 0.0, 0.0))[1] > FARTHEST


def test_plots_are_small_pictures_of_the_same_bytes_each_time(tmp_path: Path) -> None:
    metrics = {f"m{i}": metric(float(i), 0.5, 1.0, 2.0) for i in range(19)} | {"zero": metric(0.1, 0, 0, 0)}
    block = {"metrics": metrics, "flagged": ["m7", "zero"], "p_value": 0.0025, "reference": "tuning", "samples": 64}
    for name in ("one.png", "two.png"):
        plot_panel(block, tmp_path / name)
        plot_lengths(np.array([5, 900]), np.arange(1, 1000), "tuning", tmp_path / f"lengths-{name}")
    for kind in ("", "lengths-"):
        bytes_of = [(tmp_path / f"{kind}{name}").read_bytes() for name in ("one.png", "two.png")]
        assert bytes_of[0] == bytes_of[1]
        assert bytes_of[0].startswith(b"\x89PNG")
        assert len(bytes_of[0]) < 100_000


@pytest.mark.parametrize("lengths", [[1], [7, 7], [1, 100_000]])
def test_lengths_of_any_range_can_be_drawn(lengths: list[int], tmp_path: Path) -> None:
    plot_lengths(np.array(lengths), np.array(lengths), "production", tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").is_file()
