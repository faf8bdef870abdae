"""Workspaces that the tests of the audit share; each is made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.small_chain import chain, make_keys, register, second


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a quantized model, everything it came from, dvc.lock and DVC's cache."""
    return chain(tmp_path_factory.mktemp("pristine") / "workspace", "random")


@pytest.fixture
def workspace(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the chain that the test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "workspace"))


@pytest.fixture(scope="session")
def registered(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain and a second model in one workspace, both in MLflow. Do not change it: copy it."""
    root = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("registered") / "workspace"))
    second(root)
    register(root)
    return root


@pytest.fixture
def both(registered: Path, tmp_path: Path) -> Path:
    """A copy of the two models that the test may damage."""
    return Path(shutil.copytree(registered, tmp_path / "workspace"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private key and its public key; skips where signatures cannot be made."""
    pytest.importorskip("model_signing", reason="needs the extra `signing`")
    return make_keys(tmp_path_factory.mktemp("keys"), "key")
