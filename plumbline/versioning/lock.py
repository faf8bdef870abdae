"""dvc.lock, and single records in its format: what each stage read and wrote in its last run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plumbline.artifact import replace_text
from plumbline.versioning.code import VERSIONS
from plumbline.versioning.facts import FACTS, NAMED_OUTPUTS
from plumbline.versioning.lock_errors import FIX, described, require_stages

FILE = "dvc.lock"
HEAD = "schema: '2.0'\nstages:\n"
MALFORMED = (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml if installed
    """Loader of YAML 1.2, as DVC reads it: 1e-06 is a number."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Dumper of YAML 1.2: it quotes a hash such as 41e1234."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def dump(value: Any) -> str:
    """A value as YAML that DVC and Plumbline read alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Entry:
    """The record of one run of a stage."""

    name: str
    cmd: str
    outs: dict[str, str]
    """Path relative to the workspace -> DVC hash."""
    deps: dict[str, str]
    """Path -> DVC hash of every input, those in data/named_outputs.yaml included."""
    params: dict[str, Any]
    """Dotted name in params.yaml -> value."""
    code_version: str
    """Code version that produced the output; it may differ from the installed one. Empty in older records."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File of facts.py -> key -> value."""

    @property
    def md5(self) -> str:
        """DVC hash of the first output; empty without one."""
        return next(iter(self.outs.values()), "")

    @property
    def asset(self) -> str:
        """The asset whose output, or partition, the stage produces."""
        return self.name.split("@")[0]


def stage_name(asset: str, key: str | None = None) -> str:
    """Name of the DVC stage of an asset, or of one of its partitions."""
    return f"{asset}@{key}" if key else asset


def read_lock(root: Path) -> dict[str, Entry]:
    """The stages of dvc.lock by name; empty without the file.

    Raises:
        ValueError: the file is malformed.
    """
    path = root / FILE
    if not path.is_file():
        return {}
    stamp = _stamp(path)
    if path not in _known or _known[path].stamp != stamp:
        try:
            text = path.read_text(encoding="utf-8")
            _known[path] = _LastLock(stamp, text, parse_lock(text))
        except MALFORMED as error:
            raise ValueError(f"{path}, {described(error)}; {FIX}") from error
    return dict(_known[path].entries)


@dataclass(frozen=True)
class _LastLock:
    """A dvc.lock as this process last read or wrote it."""

    stamp: tuple[int, ...]
    text: str
    entries: Mapping[str, Entry]
    blocks: Mapping[str, str] | None = None
    """The text of each record, by the name of its stage, if this process wrote the file."""


_known: dict[Path, _LastLock] = {}


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def parse_lock(text: str) -> dict[str, Entry]:
    """The stages of a dvc.lock by name.

    Raises:
        one of MALFORMED: the text is malformed.
    """
    stages = require_stages(yaml.load(text, Loader=_Loader), text)
    return {str(name): entry_of(str(name), stage) for name, stage in stages.items()}


def parse_run(text: str) -> Entry:
    """A record of DVC's run cache, named after the run's first output.

    Raises:
        one of MALFORMED: the text is malformed.
    """
    stage = yaml.load(text, Loader=_Loader)
    out = next((str(item["path"]) for item in stage.get("outs") or []), "")
    return entry_of("@".join(out.removeprefix("data/").split("/")[:2]), stage)


def entry_of(name: str, stage: Mapping[str, Any]) -> Entry:
    """A stage's record, from the mapping that DVC writes to dvc.lock and to its run cache.

    Raises:
        one of MALFORMED: the mapping is malformed.
    """

    def hashes(side: str) -> dict[str, str]:
        return {str(item["path"]): str(item["md5"]) for item in stage.get(side) or [] if "md5" in item}

    params: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    for file, values in (stage.get("params") or {}).items():
        if file in FACTS:
            facts[file] = dict(values or {})
        else:
            params |= values or {}
    deps = hashes("deps")
    for outputs in facts.get(NAMED_OUTPUTS, {}).values():
        deps |= {str(path): str(md5) for path, md5 in outputs.items()}
    code = str(facts.get(VERSIONS, {}).get(name.split("@")[0], ""))
    return Entry(name, str(stage.get("cmd", "")), hashes("outs"), deps, params, code, facts)


def write_entry(root: Path, name: str, record: Mapping[str, Any]) -> None:
    """Set one record of dvc.lock, whose format is public. The file is replaced as a whole.

    The caller must hold DVC's repository lock. What this process wrote last is not parsed again.

    Raises:
        ValueError: the file is malformed.
    """
    path = root / FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    entries, known = read_lock(root), _known.get(path)
    if known is not None and known.blocks is not None and known.text == text:
        blocks = known.blocks
    else:
        stages = (yaml.load(text, Loader=_Loader) or {}).get("stages") or {}
        blocks = {stage: _block(stage, content) for stage, content in stages.items()}
    block = _block(name, record)
    blocks = {**blocks, name: block}
    replace_text(path, text := "".join([HEAD, *blocks.values()]))
    _known[path] = _LastLock(_stamp(path), text, {**entries, **parse_lock(HEAD + block)}, blocks)


def _block(name: str, record: Mapping[str, Any]) -> str:
    """The lines of a record below `stages:`. Together they are what `dump` makes of all records at once."""
    return dump({"stages": {name: record}}).removeprefix("stages:\n")


def upstream(root: Path, outs: Mapping[str, str], deps: Mapping[str, str]) -> dict[str, str]:
    """Path -> DVC hash of a stage's output and of every artifact upstream of it.

    The stage itself need not be in dvc.lock: `dvc repro` writes its entry only when its command has ended.

    Args:
        outs: what the stage wrote.
        deps: what it read.
    """
    lock = read_lock(root)
    makers = {path: stage for stage, entry in lock.items() for path in entry.outs}
    hashes, waiting = dict(outs), [deps]
    while waiting:
        for path, md5 in waiting.pop().items():
            if path in makers and path not in hashes:
                hashes[path] = md5
                waiting.append({**lock[makers[path]].outs, **lock[makers[path]].deps})
    return hashes
