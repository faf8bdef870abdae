"""A workspace with an evaluated model, and its papers; made once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.papers import card, measure, papers


@pytest.fixture(scope="session")
def evaluated(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain with an evaluation and a base model that declares its licence. Do not change it: copy it."""
    root = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("evaluated") / "workspace"))
    card(root / "base", "apache-2.0")
    measure(root)
    return root


@pytest.fixture(scope="session")
def written(evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the papers: bom.cdx.json and croissant.json."""
    out = tmp_path_factory.mktemp("papers")
    papers(evaluated, out)
    return out


@pytest.fixture
def bom(written: Path) -> dict[str, Any]:
    """The bill of materials."""
    from plumbline.artifact import read_json

    return dict(read_json(written / "bom.cdx.json"))


@pytest.fixture
def croissant(written: Path) -> dict[str, Any]:
    """The Croissant document."""
    from plumbline.artifact import read_json

    return dict(read_json(written / "croissant.json"))
