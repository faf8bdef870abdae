"""Calibration sets built from samples on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def choose(tmp_path: Path) -> Callable[..., Path]:
    """choose(samples, strategy=..., n=..., ...) -> folder of the calibration set."""
    from plumbline.calibration_choice.build import build_calibration_choice
    from plumbline.calibration_set.build import build_calibration_set
    from plumbline.calibration_set.pool import Sources

    count = 0

    def make(samples: Path, features: Path | None = None, **params: Any) -> Path:
        nonlocal count
        count += 1
        choice, out = tmp_path / f"choice{count}", tmp_path / f"set{count}"
        choice.mkdir()
        out.mkdir()
        build_calibration_choice("mine", params, choice)
        build_calibration_set(choice, Sources(samples, features), out)
        return out

    return make
