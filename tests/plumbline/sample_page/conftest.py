"""One workspace with two sets, read by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.shown_set import write_workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("shown") / "workspace")
