"""Artifacts that the stages themselves wrote, for the checks to read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.small_chain import build, write_sources


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `data` of a workspace with a quantized model and all that it was made from. Do not change it."""
    root = tmp_path_factory.mktemp("artifacts") / "workspace"
    root.mkdir()
    write_sources(root)
    build(root, "random")
    return root / "data"


@pytest.fixture
def data(artifacts: Path, tmp_path: Path) -> Path:
    """A copy of the artifacts that the test may damage."""
    return Path(shutil.copytree(artifacts, tmp_path / "data"))
