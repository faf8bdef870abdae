"""What a benchmark imports from the project exists, also inside functions that no test calls."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import benchmarks

ROOT = Path(benchmarks.__file__).parent
OURS = ("plumbline", "assets", "orchestration", "benchmarks", "tests")


def imports(path: Path) -> list[tuple[str, str]]:
    """Module and name of everything that a file imports from the project."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS
        for alias in node.names
    ]


def missing(module: str, name: str) -> bool:
    """Whether neither the module nor its package has the name."""
    if hasattr(importlib.import_module(module), name):
        return False
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return True
    return False


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_import_exists(path: Path) -> None:
    assert [f"{module}.{name}" for module, name in imports(path) if missing(module, name)] == []


def test_a_name_that_is_gone_is_found() -> None:
    assert missing("plumbline.graph.definitions", "checks_of")
    assert not missing("plumbline.graph", "definitions")
