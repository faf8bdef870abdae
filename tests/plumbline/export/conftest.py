"""A calibration set of uneven samples, and a workspace that holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.subjects import write_set

LENGTHS = (7, 512, 33, 600, 1, 64)
"""More than llm-compressor's defaults are kind to: uneven, not sorted."""


@pytest.fixture(scope="session")
def samples() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 96, size=length, dtype=np.int32) for length in LENGTHS]


@pytest.fixture
def calibration_set(tmp_path: Path, samples: list[np.ndarray]) -> Path:
    folder = tmp_path / "data" / "calibration_set" / "uneven"
    folder.mkdir(parents=True)
    write_set(folder, "uneven", samples)
    return folder
