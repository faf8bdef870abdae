"""A small study on disk: three choices, three schemes, 60 documents of two domains."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.calibration_report import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)
