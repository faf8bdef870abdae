"""No circle of files: neither by imports, wherever they stand, nor by the names of modules in strings.

The direction of the packages is the contract in pyproject.toml, which `lint-imports` checks.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests.helpers.paths import PROJECT

ROOTS = ("orchestration", "assets", "plumbline")
"""From the highest package to the lowest."""


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named_modules(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """The modules that a string constant names, alone or as `module:attribute`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.split(":")[0]
            if "." in name and name in modules:
                yield name


def string_imports(root: Path) -> set[tuple[str, str]]:
    """(module, module that one of its strings names) under `root`."""
    trees = {
        module_name(path, root): ast.parse(path.read_text(encoding="utf-8"))
        for package in ROOTS
        for path in sorted((root / package).rglob("*.py"))
    }
    modules = set(trees)
    return {(name, other) for name, tree in trees.items() for other in named_modules(tree, modules) if other != name}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle, from a module back to itself; empty if there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


@pytest.fixture(scope="module")
def edges() -> dict[str, set[str]]:
    """Module -> modules that it imports, under TYPE_CHECKING and within functions too, or names in a string."""
    graph = grimp.build_graph(*ROOTS, exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    for module, other in string_imports(PROJECT):
        imports[module].add(other)
    return imports


def test_no_files_import_each_other_in_a_circle(edges: dict[str, set[str]]) -> None:
    assert " → ".join(circle(edges)) == ""


def test_no_string_names_a_module_of_a_higher_package() -> None:
    upward = [
        f"{module} names {other}"
        for module, other in sorted(string_imports(PROJECT))
        if ROOTS.index(other.split(".")[0]) < ROOTS.index(module.split(".")[0])
    ]
    assert upward == []


def test_a_circle_through_a_string_and_a_type_is_found(tmp_path: Path) -> None:
    for package in ROOTS:
        (tmp_path / package).mkdir()
    low, high = tmp_path / "plumbline/low.py", tmp_path / "plumbline/high.py"
    high.write_text("from plumbline import low\n")
    low.write_text('"""Uses what plumbline.high makes."""\nNAME = "plumbline.high.thing"\n')
    assert string_imports(tmp_path) == set()  # prose and longer names are no imports
    low.write_text('load = lambda: import_module("plumbline.high")\n')
    assert string_imports(tmp_path) == {("plumbline.low", "plumbline.high")}
    low.write_text('ENTRY = "plumbline.high:main"\n')
    [(module, other)] = string_imports(tmp_path)
    chain = circle({"plumbline.high": {"plumbline.low"}, module: {other}})
    assert sorted(chain[1:]) == ["plumbline.high", "plumbline.low"] and chain[0] == chain[-1]
