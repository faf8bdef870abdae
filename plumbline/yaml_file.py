"""Reads YAML files as DVC reads them, so that a value means the same at both doors, and knows the line of every key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUGGEST_QUOTES = "put it in quotes"


@dataclass(frozen=True)
class YamlFile:
    """The content of a file, and where its parts are."""

    path: Path
    content: Any
    lines: dict[tuple[str, ...], int] = field(default_factory=dict, repr=False)
    """Keys from the top, list positions among them -> line, from 1."""

    def line(self, keys: Sequence[object]) -> int | None:
        """The line of the deepest of these keys that the file has; keys that it lacks are skipped; None without any."""
        place: tuple[str, ...] = ()
        for key in keys:
            if (*place, str(key)) in self.lines:
                place = (*place, str(key))
        return self.lines.get(place)


def read_yaml(path: Path) -> YamlFile:
    """Read a file of YAML 1.2; an empty one has the content None.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8 or not YAML, or has a key twice or one that is not text; the message names the file,
            the line and the fix.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    text = _text(path)
    yaml = YAML(typ="safe", pure=True)
    try:
        tree = yaml.compose(text)
        lines = dict(_lines(path, tree)) if tree is not None else {}
        return YamlFile(path, yaml.load(text), lines)
    except DuplicateKeyError as error:
        key = str(error.problem).partition('"')[2].partition('"')[0]
        first = f" (first in line {error.context_mark.line + 1})" if error.context_mark else ""
        raise ValueError(f"{_at(path, error)}: the key {key!r} occurs twice{first}; remove one of them") from error
    except MarkedYAMLError as error:
        raise ValueError(
            f"{_at(path, error)}: not YAML: {error.problem or error.context}; correct that line"
        ) from error
    except (YAMLError, ValueError, RecursionError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not YAML: {str(error) or type(error).__name__}") from error


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def _at(path: Path, error: Any) -> str:
    mark = error.problem_mark or error.context_mark
    return f"{path}, line {mark.line + 1}" if mark else str(path)


def _lines(path: Path, node: Any, place: tuple[str, ...] = (), above: tuple[int, ...] = ()) -> Iterator[Any]:
    """(keys from the top, line) of every key and list item; raises ValueError at a key that is not text."""
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    if id(node) in above:
        raise ValueError(f"{path}, line {node.start_mark.line + 1}: an alias refers to what contains it; remove it")
    above = (*above, id(node))
    if isinstance(node, SequenceNode):
        for number, item in enumerate(node.value):
            yield (*place, str(number)), item.start_mark.line + 1
            yield from _lines(path, item, (*place, str(number)), above)
    if not isinstance(node, MappingNode):
        return
    for key, value in node.value:
        line, kind = key.start_mark.line + 1, str(key.tag).rpartition(":")[2]
        if kind not in ("str", "merge"):
            section = f" under `{'.'.join(place)}`" if place else ""
            raise ValueError(
                f"{path}, line {line}: the key {key.value!s:.60}{section} is read as {kind}, expected text; "
                f"{SUGGEST_QUOTES}: '{key.value!s:.60}'"
            )
        yield (*place, str(key.value)), line
        yield from _lines(path, value, (*place, str(key.value)), above)
