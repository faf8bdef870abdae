"""dvc.lock, and single records in its form: what each stage read and wrote when it last ran."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from plumbline.artifact import replace_text
from plumbline.versioning.code import VERSIONS

FILE = "dvc.lock"
MALFORMED = (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml where it is there
    """YAML 1.2, as DVC has it: 1e-06 is a number."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """The same for writing: a hash such as 41e1234 is quoted."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def dump(value: Any) -> str:
    """YAML that DVC and we read alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Entry:
    """The record of one run of a stage."""

    name: str
    cmd: str
    outs: dict[str, str]
    """Path relative to the workspace: DVC hash."""
    deps: dict[str, str]
    params: dict[str, Any]
    """Parameters by their dotted name in params.yaml."""
    code_version: str
    """Of the code that made the output, which need not be today's; empty in a record of an older Plumbline."""

    @property
    def md5(self) -> str:
        """DVC hash of the output: of the first, where there are several."""
        return next(iter(self.outs.values()), "")

    @property
    def asset(self) -> str:
        """The asset that the stage makes, or a partition of it."""
        return self.name.split("@")[0]


def stage_name(asset: str, key: str | None = None) -> str:
    """Name of the DVC stage that makes a partition of an asset."""
    return f"{asset}@{key}" if key else asset


def read_lock(root: Path) -> dict[str, Entry]:
    """The stages of dvc.lock by name; none without the file.

    Raises:
        ValueError: it is not a dvc.lock.
    """
    path = root / FILE
    if not path.is_file():
        return {}
    status = path.stat()
    return dict(_read(path, status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=4)
def _read(path: Path, *stamp: int) -> Mapping[str, Entry]:
    try:
        return parse_lock(path.read_text(encoding="utf-8"))
    except MALFORMED as error:
        raise ValueError(f"{path} is not what DVC wrote ({error}); restore it with `git checkout dvc.lock`") from error


def parse_lock(text: str) -> dict[str, Entry]:
    """The stages of a dvc.lock by name.

    Raises:
        one of MALFORMED: it is not one.
    """
    content = yaml.load(text, Loader=_Loader)
    stages = {} if content is None else content.get("stages") or {}
    return {name: entry_of(name, stage) for name, stage in stages.items()}


def parse_run(text: str) -> Entry:
    """A record of DVC's run cache, named by what the run made.

    Raises:
        one of MALFORMED: it is not one.
    """
    stage = yaml.load(text, Loader=_Loader)
    out = next((str(item["path"]) for item in stage.get("outs") or []), "")
    return entry_of("@".join(out.removeprefix("data/").split("/")[:2]), stage)


def entry_of(name: str, stage: Mapping[str, Any]) -> Entry:
    """A stage's record as DVC writes it, in dvc.lock and in its run cache.

    Raises:
        one of MALFORMED: it is not one.
    """

    def hashes(side: str) -> dict[str, str]:
        return {str(item["path"]): str(item["md5"]) for item in stage.get(side) or [] if "md5" in item}

    params: dict[str, Any] = {}
    code = ""
    for file, values in (stage.get("params") or {}).items():
        if file == VERSIONS:
            code = str(values.get(name.split("@")[0], ""))
        else:
            params |= values or {}
    return Entry(name, str(stage.get("cmd", "")), hashes("outs"), hashes("deps"), params, code)


def write_entry(root: Path, name: str, record: Mapping[str, Any]) -> None:
    """Set one record of dvc.lock, whose format is public; the file is replaced whole.

    For the holder of DVC's repository lock.
    """
    path = root / FILE
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) if path.is_file() else None
    stages = (content or {}).get("stages") or {}
    replace_text(path, dump({"schema": "2.0", "stages": {**stages, name: record}}))


def upstream(root: Path, name: str) -> dict[str, str]:
    """Path -> DVC hash of a stage's output and of every artifact that it was made from, as dvc.lock has them."""
    lock = read_lock(root)
    makers = {path: stage for stage, entry in lock.items() for path in entry.outs}
    hashes: dict[str, str] = {}
    waiting = [name] if name in lock else []
    while waiting:
        entry = lock[waiting.pop()]
        for path, md5 in (*entry.outs.items(), *entry.deps.items()):
            if path in makers and path not in hashes:
                hashes[path] = md5
                waiting.append(makers[path])
    return hashes
