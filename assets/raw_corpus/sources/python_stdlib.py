"""The bundled default corpus: the standard library of the running Python, read from the interpreter.

Two domains. *prose*: the docstrings of every module and class, the reference topics behind `help()`, and the docs of
built-in types. *code*: the source of every module with its docstrings taken out, so the domains do not share text.
Nothing of it is copied into the project.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Tables that machines wrote, and packages that are tests or third-party code.
EXCLUDED = frozenset({"encodings", "pydoc_data", "site-packages", "dist-packages", "lib2to3", "idlelib", "ensurepip"})
TESTS = frozenset({"test", "tests", "idle_test"})
SHORTEST_DOCSTRING = 200  # characters; below that a module's prose is a line, not a document


def modules(include_tests: bool = False) -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every pure-Python module of the standard library, in order of name.

    Args:
        include_tests: also the interpreter's own test suite (where it is installed), which the corpus leaves out and
            the training of the bundled model takes in.
    """
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if EXCLUDED.intersection(parts) or parts[0].startswith(("_sysconfigdata", "config-")):
            continue
        if TESTS.intersection(parts) and not include_tests:
            continue
        yield ".".join(p for p in parts if p != "__init__"), path


def split_docstrings(source: str) -> tuple[str, str]:
    """Separate a module's prose from its code.

    Returns:
        The docstrings, each under the name it documents, and the source without them.

    Raises:
        SyntaxError: the source does not parse under the running Python.
    """
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    prose: list[str] = []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    named = {id(tree): ""} | {id(child): getattr(child, "name", "") for child in ast.walk(tree) if isinstance(child, kinds[1:])}
    for node in ast.walk(tree):
        if not isinstance(node, kinds):
            continue
        text = ast.get_docstring(node)
        if not text:
            continue
        name = named[id(node)]
        prose.append(f"{name}\n{text}" if name else text)
        statement = node.body[0]
        # A docstring that shares its line with other code stays: cutting it would cut the code too.
        first, last = statement.lineno - 1, statement.end_lineno or statement.lineno
        if lines[first][: statement.col_offset].strip() == "" and lines[last - 1].rstrip().endswith(("'", '"')):
            lines[first:last] = [""] * (last - first)
    return "\n\n".join(prose), "".join(lines)


def code_and_prose(include_tests: bool = False) -> Iterator[tuple[str, str, str]]:
    """(module name, prose, code) of every module that is UTF-8 and parses."""
    for name, path in modules(include_tests):
        try:
            source = path.read_text(encoding="utf-8")
            prose, code = split_docstrings(source)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue  # the library carries a few files that are broken on purpose, for its own tests
        yield name, prose, code


def topics() -> Iterator[tuple[str, str]]:
    """(topic, text) of the language reference that `help()` shows."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield name, texts[name]


def builtin_docs() -> Iterator[tuple[str, str]]:
    """(module name, prose) of the modules written in C: their docstrings and those of what they hold."""
    for name in sorted(sys.builtin_module_names):
        module = importlib.import_module(name)
        parts = [inspect.getdoc(module) or ""]
        for key, value in sorted(vars(module).items()):
            if key.startswith("_") or not callable(value):
                continue
            parts.append(f"{key}\n{inspect.getdoc(value) or ''}")
            if inspect.isclass(value) and value.__module__ == name:
                for attribute in sorted(vars(value)):
                    if not attribute.startswith("_"):
                        doc = inspect.getdoc(getattr(value, attribute))
                        parts.append(f"{key}.{attribute}\n{doc or ''}")
        yield name, "\n\n".join(parts)
