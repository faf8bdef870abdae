"""Code versions: for each stage, a digest of the library code that can affect its output.

The code of a stage is its builder's module and every module of `plumbline` that it imports, directly or indirectly,
anywhere in a file. Comments, docstrings, layout and the order of imports do not count. The modules are parsed, not
imported.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from plumbline import kernels
from plumbline.artifact import replace_text

PACKAGE = "plumbline"
LIBRARY = Path(__file__).resolve().parents[1]
"""The installed package `plumbline`."""
LINK = ".plumbline/library"
"""Symbolic link to it in a workspace. DVC watches it to detect changes of the library."""
STAGE = "code_versions"
"""The stage of dvc.yaml that writes the versions."""
VERSIONS = "data/code_versions.yaml"
"""The output of that stage: a version per asset. Every other stage names its own version in its `params`."""
ALSO_RUN = {"deployed_model": ("plumbline.evaluation.build", "plumbline.quantized_model.params")}
"""Modules that the Dagster definition of an asset runs besides the asset's builder."""
INEXACT = {
    "plumbline.activation_stats.kernel": "activation_stats/kernel.c",
    "plumbline.quantized_model.solver": "quantized_model/solver.c",
}
"""Modules whose compiled kernel and fallback differ in the last bits. The version states which of the two runs."""
NO_EFFECT = ("plumbline.execution", "plumbline.progress")
"""Modules and packages on which no output depends: who computes, and what people are told. Versions leave them out."""
DIGITS = 12
MEMO = "code.json"
MEMO_SIZE = 500
"""Maximum number of modules in the memo: those of the library, and earlier texts of edited ones."""
SETTLED = 1_000_000_000
"""Nanoseconds after which a file has a new modification time for certain when it is written again."""
_State = tuple[tuple[str, int, int, int], ...]
NAME = re.compile(r"(?![./])[\w.-]+(/[\w.-]+)*")
"""String constants that may name a module or a file."""
QUOTED = re.compile(r"[\"']([\w.-]+)[\"']")
C_COMMENT = re.compile(r"(\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')|//[^\n]*|/\*.*?\*/", re.DOTALL)
C_TOKEN = re.compile(
    r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|[\w.])*"
    r"|<<=|>>=|\.\.\.|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|##|\S"
)


@dataclass(frozen=True)
class _ParsedModule:
    """What the version needs of a module's source."""

    digest: str
    """SHA-256 of its normalized syntax tree."""
    imports: tuple[str, ...]
    """Names after `import` and `from`, and `module.name` for each name in `from module import name`."""
    strings: tuple[str, ...]
    """String constants that may name a module or a data file."""
    interface: int
    """Its constant VERSION, the interface version of a compiled kernel; 0 without one."""


_parsed_here: dict[str, _ParsedModule] = {}
"""What this process has parsed, as in the memo: each definition of an asset asks for a version by itself."""


class Library:
    """The modules and data files of a copy of the package `plumbline`. Each file is read once, on first use."""

    def __init__(self, folder: Path | None = None, memo: Path | None = None) -> None:
        """Read the names of the files and the memo.

        Args:
            folder: None: the installed package.
            memo: file that caches parsed modules by the digest of their text; it saves a second of parsing.
        """
        self.folder, self._memo = folder or LIBRARY, memo
        self._parsed = _read_memo(memo) if memo else {}
        self._must_save = False
        self._files = set(_files(self.folder))
        self._data_folders = {name.rpartition("/")[0] for name in self._files} - {
            name.rpartition("/")[0] for name in self._files if name.endswith(".py")
        }
        self._sources: dict[str, _ParsedModule] = {}
        self._digests: dict[str, str] = {}

    def modules(self, *roots: str) -> set[str]:
        """`roots` and every module that they import, directly or indirectly, without those of no effect.

        `plumbline/__init__.py` is included, but its imports are not followed: they serve notebooks.

        Raises:
            ValueError: the library lacks one of `roots`.
        """
        if absent := [root for root in roots if not self._file(root)]:
            raise ValueError(
                f"the library {self.folder} has no module {absent[0]}, which a stage needs: install another"
            )
        reached: set[str] = set()
        waiting = list(roots)
        while waiting:
            name = waiting.pop()
            if name in reached or _without_effect(name) or not self._file(name):
                continue
            reached.add(name)
            parts = name.split(".")
            waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
            if len(parts) > 1:
                source = self._source(name)
                waiting += (*source.imports, *source.strings)
        return reached

    def digest(self, *roots: str) -> str:
        """SHA-256 (hex) of `roots`, the modules that they import and the data files that these name.

        It includes the kernel that runs, compiled or fallback, where the two differ in the last bits.
        """
        modules = sorted(self.modules(*roots))
        lines = [f"{name} {self._source(name).digest}" for name in modules]
        lines += [f"{name} {self._data_digest(name)}" for name in self.data(modules)]
        lines += [f"{name} {self._implementation(name)}" for name in modules if name in INEXACT]
        self._save()
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def data(self, modules: Iterable[str]) -> list[str]:
        """Paths in the library of the data files that the modules name, and of the files that these include.

        A name is relative to the module's folder or to the library. The name of a folder without modules stands for
        all its files.
        """
        places = {name: self._file(name).rpartition("/")[0] for name in modules}
        waiting = [path for name in places for path in self._named(self._source(name).strings, {places[name], ""})]
        reached: set[str] = set()
        while waiting:
            path = waiting.pop()
            if path in reached:
                continue
            reached.add(path)
            if path.endswith((".c", ".h", ".j2")):
                names = QUOTED.findall((self.folder / path).read_text(encoding="utf-8"))
                waiting += self._named(names, {*places.values(), path.rpartition("/")[0]})
        return sorted(reached)

    def _named(self, names: Iterable[str], folders: Iterable[str]) -> list[str]:
        paths = [f"{folder}/{name}" if folder else name for name in names for folder in folders]
        files = [path for path in paths if path in self._files and not path.endswith(".py")]
        for path in paths:
            if path in self._data_folders:
                files += [file for file in self._files if file.startswith(f"{path}/") and not file.endswith(".md")]
        return files

    def _implementation(self, module: str) -> str:
        return kernels.implementation(INEXACT[module], self._source(module).interface)

    def _file(self, name: str) -> str:
        """Path of a module in the library; empty if the library lacks it."""
        package, *parts = name.split(".")
        place = "/".join(parts)
        candidates = (f"{place}/__init__.py", f"{place}.py") if parts else ("__init__.py",)
        return next((path for path in candidates if path in self._files), "") if package == PACKAGE else ""

    def _source(self, name: str) -> _ParsedModule:
        if name not in self._sources:
            path = self._file(name)
            data = (self.folder / path).read_bytes()
            key = f"{name} {hashlib.sha256(data).hexdigest()}"
            source = self._parsed.pop(key, None)
            if source is None:
                source, self._must_save = _parsed_here.get(key) or _parse(data, name, path), True
            self._sources[name] = self._parsed[key] = _parsed_here[key] = source
        return self._sources[name]

    def _data_digest(self, path: str) -> str:
        if path not in self._digests:
            data = (self.folder / path).read_bytes()
            if path.endswith((".c", ".h")):
                data = "\n".join(_c_tokens(data.decode("utf-8"))).encode()
            self._digests[path] = hashlib.sha256(data).hexdigest()
        return self._digests[path]

    def _save(self) -> None:
        if self._memo and self._must_save:
            last = list(self._parsed.items())[-MEMO_SIZE:]  # modules in use are the last ones
            content = {"by": _own_digest(), "sources": {key: asdict(source) for key, source in last}}
            with contextlib.suppress(OSError):  # a read-only workspace
                self._memo.parent.mkdir(parents=True, exist_ok=True)
                replace_text(self._memo, json.dumps(content))
            self._must_save = False


def _without_effect(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in NO_EFFECT)


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of the files of the library, without compiled ones."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        place = Path(parent).relative_to(folder)
        for name in names:
            if not name.endswith((".pyc", ".so", ".pyd")):
                yield (place / name).as_posix()


# ---------------------------------------------------------------------------------------------------------------------
# Versions


def builders_of(asset: str) -> tuple[str, ...]:
    """The module that builds an asset, and the other modules that its Dagster definition runs."""
    return (f"plumbline.{asset}.build", *ALSO_RUN.get(asset, ()))


def code_version(asset: str, library: Library | None = None) -> str:
    """Code version of an asset: the first digits of its digest.

    Args:
        library: None: the installed one.

    Raises:
        ValueError: the library has no builder of that asset.
    """
    return (library or Library()).digest(*builders_of(asset))[:DIGITS]


def module_version(*modules: str) -> str:
    """Code version of modules of the installed library, by their names."""
    return Library().digest(*modules)[:DIGITS]


def library_of(root: Path) -> Library:
    """The installed library, with the memo of a workspace."""
    return Library(memo=root / ".plumbline" / MEMO)


def code_versions(root: Path, assets: Iterable[str]) -> dict[str, str]:
    """Code version of each asset in the installed library. The workspace's memo only makes it faster.

    A process computes them again when the name, inode, size or modification time of a file of the library changed.
    """
    wanted, state = tuple(assets), _state(LIBRARY)
    if time.time_ns() - max((mtime for *_, mtime in state), default=0) < SETTLED:
        return _versions.__wrapped__(root, wanted, LIBRARY, state)
    return dict(_versions(root, wanted, LIBRARY, state))


@lru_cache(maxsize=2)
def _versions(root: Path, assets: tuple[str, ...], folder: Path, state: _State) -> dict[str, str]:
    library = library_of(root)
    return {asset: code_version(asset, library) for asset in assets}


def _state(folder: Path) -> _State:
    """Name, inode, size and modification time of each file of the library, in order."""
    stats = ((name, (folder / name).stat()) for name in sorted(_files(folder)))
    return tuple((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in stats)


def link_library(root: Path) -> None:
    """Link `.plumbline/library` in the workspace to the installed library, so that DVC watches it.

    Raises:
        OSError: the workspace is not writable.
    """
    link(root / LINK, LIBRARY)


def link(place: Path, target: Path) -> None:
    """Make `place` a symbolic link to a folder.

    Raises:
        OSError: the folder of `place` is not writable.
    """
    if place.is_symlink() and place.readlink() == target:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target, target_is_directory=True)
    if place.is_dir() and not place.is_symlink():  # the workspace was copied by a tool that follows links
        shutil.rmtree(place)
    try:
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Source without what cannot affect an output


def _parse(data: bytes, module: str, path: str) -> _ParsedModule:
    tree = ast.parse(data, path)
    _drop_docstrings(tree)
    imports, strings = set(), set()
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            imports |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
            strings.add(node.value)
    return _ParsedModule(
        hashlib.sha256(_normalized(tree).encode()).hexdigest(),
        tuple(sorted(name for name in imports if name.split(".")[0] == PACKAGE)),
        tuple(sorted(strings)),
        next((int(node.value.value) for node in tree.body if _is_version(node)), 0),  # type: ignore[attr-defined]
    )


def _is_version(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Assign)
        and [getattr(target, "id", "") for target in node.targets] == ["VERSION"]
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, int)
    )


def _drop_docstrings(tree: ast.Module) -> None:
    """Remove every statement that is only a string: docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                block[:] = [statement for statement in block if not _is_text(statement)]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all its descendants, without the bodies of `if TYPE_CHECKING`."""
    yield node
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and "TYPE_CHECKING" in (getattr(node.test, "id", ""), getattr(node.test, "attr", "")):
        children = node.orelse
    for child in children:
        yield from _executed(child)


def _normalized(node: Any) -> str:
    """A syntax tree as text. Adjacent imports are sorted. Empty fields, which vary by Python version, are omitted."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({','.join(f'{name}={_normalized(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(_in_order(node))}]"
    return repr(node)


def _in_order(nodes: list[Any]) -> Iterator[str]:
    imports: list[str] = []
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                imports.append(_normalized(type(node)(**{**dict(ast.iter_fields(node)), "names": [alias]})))
            continue
        yield from sorted(imports)
        imports.clear()
        yield _normalized(node)
    yield from sorted(imports)


def _c_tokens(text: str) -> Iterator[str]:
    """The tokens of a C source. A directive is one token, because its end of line is significant."""
    without_comments = C_COMMENT.sub(lambda match: match[1] or " ", text.replace("\\\n", " "))
    for line in without_comments.splitlines():
        if line.lstrip().startswith("#"):
            yield " ".join(line.split())
        else:
            yield from C_TOKEN.findall(line)


# ---------------------------------------------------------------------------------------------------------------------
# The memo


def _own_digest() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _read_memo(path: Path) -> dict[str, _ParsedModule]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["by"] != _own_digest():
            return {}
        return {
            key: _ParsedModule(
                source["digest"], tuple(source["imports"]), tuple(source["strings"]), int(source["interface"])
            )
            for key, source in content["sources"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):  # absent or corrupt: parse again
        return {}
