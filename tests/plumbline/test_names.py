"""Names that tell things apart, and functions that one reads at a glance."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.helpers.paths import PROJECT

PATHS = [path for root in ("plumbline", "assets", "orchestration") for path in sorted((PROJECT / root).rglob("*.py"))]
TREES = {path.relative_to(PROJECT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in PATHS}
LONGEST = 60
"""Lines of a function's body, without signature and docstring: the signature of a strategy lists its options."""
LONG: dict[str, str] = {}
"""`file:function` that may be longer, and why it reads better whole."""
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc", "tools", "stuff"}


def lines_of_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    total = (function.end_lineno or first.lineno) - first.lineno + 1
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def test_every_class_has_a_name_of_its_own() -> None:
    places: dict[str, list[str]] = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_function_is_long_without_a_reason() -> None:
    long = {
        f"{path}:{node.name}": lines_of_body(node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of_body(node) > LONGEST
    }
    assert {name: lines for name, lines in long.items() if name not in LONG} == {}
    assert set(LONG) <= set(long), "shorter by now, or gone: take it from the list"


def test_no_file_has_a_name_that_could_hold_anything() -> None:
    assert [path for path in TREES if VAGUE & set(Path(path).stem.split("_"))] == []


def test_a_number_and_its_percent_sign_have_a_space_between_them() -> None:
    """As everywhere on the pages. `:.1%` in a format writes none."""
    formats = re.compile(r":[^{}\s]*%\}")
    found = [
        f"{path}:{number}"
        for path in PATHS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if formats.search(line)
    ]
    assert found == []
