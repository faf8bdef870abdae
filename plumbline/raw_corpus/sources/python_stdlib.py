"""The default corpus: the standard library of the running Python, read from the interpreter.

Two domains. *prose*: the docstrings of every module and class, the reference topics of `help()`, and the docs of
built-in types. *code*: the source of every module without its docstrings, so that the domains share no text. Nothing is
copied into the workspace.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from plumbline.artifact import sha256_json
from plumbline.raw_corpus.document import Document
from plumbline.raw_corpus.file_hashes import FileHashes
from plumbline.raw_corpus.rows import RowReader
from plumbline.raw_corpus.source_file import Rejected, SourceFile

# generated tables, tests and third-party code
EXCLUDED = frozenset({"encodings", "pydoc_data", "site-packages", "dist-packages", "lib2to3", "idlelib", "ensurepip"})
TESTS = frozenset({"test", "tests", "idle_test"})
SHORTEST_DOCSTRING = 200  # characters; below that a module's prose is a line, not a document


def modules(include_tests: bool = False) -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every pure-Python module of the standard library, in order of name.

    Args:
        include_tests: also the interpreter's test suite (if installed), which the training of the bundled model uses
            and the corpus does not.
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
    named = {id(node): getattr(node, "name", "") for node in ast.walk(tree) if isinstance(node, kinds)}
    for node in ast.walk(tree):
        if not isinstance(node, kinds):
            continue
        text = ast.get_docstring(node)
        if not text:
            continue
        name = named[id(node)]
        prose.append(f"{name}\n{text}" if name else text)
        statement = node.body[0]
        # keep a docstring that shares a line with code, as removing it would remove the code, too
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
            continue  # a few files are invalid on purpose, for tests
        yield name, prose, code


def topics() -> Iterator[tuple[str, str]]:
    """(topic, text) of the language reference in `help()`."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield name, texts[name]


def builtin_docs() -> Iterator[tuple[str, str]]:
    """(module name, prose) of the modules written in C: the docstrings of the module and its members."""
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


def source_files(name: str, max_document_bytes: int, hashes: FileHashes) -> Iterator[SourceFile]:
    """The library as three virtual files: `docstrings` and `topics` (prose), `library` (code).

    A document's group is its module or topic, so that a module's prose and code are in the same split. Short docstrings
    and modules that do not parse are left out; an empty module is a rejected row.
    """
    texts = functools.cache(lambda: list(code_and_prose()))  # parsed once for both files, and only if one is read
    paths = list(modules())
    library = [[module, hashes.sha256(path)] for module, path in paths]
    size = sum(path.stat().st_size for _, path in paths)
    builtin, topic_texts = list(builtin_docs()), list(topics())

    def file(
        virtual: str, domain: str, content: object, size: int, pairs: Callable[[], Iterable[tuple[str, str]]]
    ) -> SourceFile:
        reader = RowReader(f"{name}/{virtual}", domain, max_document_bytes)
        options = {"domain": domain, "max_document_bytes": max_document_bytes, "shortest_docstring": SHORTEST_DOCSTRING}

        def read() -> Iterator[Document | Rejected]:
            return (reader.text(row, text, group) for row, (group, text) in enumerate(pairs()))

        return SourceFile(virtual, sha256_json(content), size, options, read)

    def docstrings() -> Iterator[tuple[str, str]]:
        yield from ((m, prose) for m, prose, _ in texts() if len(prose) >= SHORTEST_DOCSTRING)
        yield from builtin

    def code() -> Iterator[tuple[str, str]]:
        return ((m, source) for m, _, source in texts())

    builtin_size = sum(len(text.encode()) for _, text in builtin)
    yield file("docstrings", "prose", [library, builtin], size + builtin_size, docstrings)
    yield file("library", "code", library, size, code)
    yield file("topics", "prose", topic_texts, sum(len(t.encode()) for _, t in topic_texts), lambda: topic_texts)
