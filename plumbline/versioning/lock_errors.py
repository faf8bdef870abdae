"""What is wrong with a dvc.lock, with the line and the fix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

FIX = (
    "restore it with `git checkout dvc.lock`; without git, remove it, and `plumbline run` makes every stage anew, with "
    "the same bytes"
)


class MalformedLock(ValueError):
    """A dvc.lock that DVC would not read; the message has the line, what was found and what was expected."""


def described(error: Exception) -> str:
    """An error of reading or parsing a dvc.lock, with its line where that is known."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: not YAML ({error.problem})"
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"line {line}: the byte 0x{error.object[error.start]:02x} is not UTF-8"
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {error.character!r} may not be in a YAML file"
    return str(error)


def require_stages(content: Any, text: str) -> Mapping[str, Any]:
    """The records of the stages by name.

    Raises:
        MalformedLock: the file is empty or has another form than DVC's.
    """
    if content is None:
        raise MalformedLock("line 1: the file is empty, expected `schema:` and `stages:`")
    if not isinstance(content, Mapping):
        raise MalformedLock(f"line 1: found a {type(content).__name__}, expected `schema:` and `stages:`")
    if "schema" not in content:
        raise MalformedLock("line 1: there is no `schema:`, expected `schema: '2.0'`")
    stages = content.get("stages")
    if stages is None:
        return {}
    if not isinstance(stages, Mapping):
        raise MalformedLock(f"line {_line(text, 'stages')}: `stages` is a {type(stages).__name__}, expected a mapping")
    for name, stage in stages.items():
        if what := _wrong_stage(stage):
            raise MalformedLock(f"line {_line(text, 'stages', name)}: the stage {name}: {what}")
    return stages


def _wrong_stage(stage: Any) -> str:
    if not isinstance(stage, Mapping):
        return f"found {str(stage)[:40]!r}, expected a mapping with `cmd:`"
    for side in ("deps", "outs"):
        items = stage.get(side) or []
        if not isinstance(items, list) or not all(isinstance(item, Mapping) and "path" in item for item in items):
            return f"`{side}` is not a list of entries with `path:`"
    params = stage.get("params") or {}
    if not isinstance(params, Mapping) or not all(isinstance(v, Mapping | None) for v in params.values()):
        return "`params` is not a mapping from files to their values"
    return ""


def _line(text: str, *keys: str) -> int:
    """The line of a key; that of the last key on the way that exists."""
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), 1
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        entry = next(((name, value) for name, value in pairs if name.value == str(key)), None)
        if entry is None:
            break
        line, node = entry[0].start_mark.line + 1, entry[1]
    return line
