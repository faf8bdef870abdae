"""Workspaces that the integration tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.shared import made_once
from tests.helpers.workspace import SMALL, Workspace, make_workspace, write_texts


@pytest.fixture
def new_workspace(tmp_path: Path) -> Callable[..., Workspace]:
    """Makes a small workspace with a corpus that nothing has run on; sections of params.yaml may be replaced."""

    def make(name: str = "workspace", **sections: Any) -> Workspace:
        workspace = make_workspace(tmp_path / name, **{**SMALL, **sections})
        write_texts(workspace.root / "texts")
        return workspace

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A small workspace on which `plumbline run` has run once. Do not change it: copy it."""

    def make(folder: Path) -> None:
        workspace = make_workspace(folder / "workspace", **SMALL)
        write_texts(workspace.root / "texts")
        workspace.plumbline("run")

    return Workspace(made_once(tmp_path_factory, "finished", make) / "workspace")
