"""Each asset has a package with one builder and one summary."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import plumbline
from plumbline.versioning.facts import STAGES

PACKAGE = Path(plumbline.__file__).parent
ASSETS = [
    name
    for name in yaml.safe_load((PACKAGE.parent / "dvc.yaml").read_text())["stages"]
    if (PACKAGE / name).is_dir() and name not in STAGES
]


@pytest.mark.parametrize("asset", ASSETS)
def test_an_asset_has_one_builder_and_one_summary(asset: str) -> None:
    builder = getattr(import_module(f"plumbline.{asset}.build"), f"build_{asset}")
    assert inspect.signature(builder).return_annotation == "None", "a builder writes; what it wrote is read by summary"
    assert list(inspect.signature(import_module(f"plumbline.{asset}.summary").summary).parameters) == ["folder"]


def test_how_results_are_shown_makes_no_artifact_stale() -> None:
    """A summary that a builder imported would be part of the asset's code version."""
    for path in (path for asset in ASSETS for path in (PACKAGE / asset).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not any(node.module == f"plumbline.{asset}.summary" for asset in ASSETS), path


def test_reading_summaries_imports_no_torch() -> None:
    modules = ", ".join(f"plumbline.{asset}.summary" for asset in ASSETS)
    code = f"import {modules}, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
